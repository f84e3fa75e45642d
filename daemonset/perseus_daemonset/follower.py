"""Follows one rank through its plan: from what the trainer says to the clock that should hold now. Pure.

Every agent applies the same rule to the same documents, so all stages of a pipeline change plans together: in
iteration n the newest accepted plan holds whose first iteration is at most n; else the one before stays; else the GPU
is unlocked. On any doubt (the trainer does not do what the plan says) the GPU is unlocked, and stays so until a whole
iteration has matched the plan again.
"""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import dataclass, field

from perseus_api.instructions import Instruction
from perseus_api.messages import Boundary, BoundaryKind
from perseus_api.plan import Plan

_ITERATION_BEGIN, _ITERATION_END = BoundaryKind.ITERATION_BEGIN, BoundaryKind.ITERATION_END
_INSTRUCTION_BEGIN, _INSTRUCTION_END = BoundaryKind.INSTRUCTION_BEGIN, BoundaryKind.INSTRUCTION_END


@dataclass(frozen=True)
class RankWindow:
    """One rank's part of a sweep's window: the clocks of iterations from `first` to before `end`."""

    first: int
    end: int
    clocks: tuple[int, ...]


@dataclass(frozen=True)
class RankPlan:
    """One rank's part of a plan.

    Attributes:
        order: instructions by letter.
        chunks: model chunk of each; empty where all are 0, or the plan does not say.
        clocks: of each, in MHz; 0 where it has none.
        seconds: what they take by the profile (`perseus_api.durations`).
        windows: of a sweep, in place of `clocks`; outside of them the GPU is unlocked.
        measurement: names the sweep; empty in every other plan.
        upcoming: by position, and after the last one, the clock that should hold when the instruction before has ended;
            0 if there is none.
        steps: the order's instructions, and None after the last; a letter of a later version stands for itself.
        times: `seconds` by instruction and model chunk.
    """

    generation: int
    first_iteration: int
    order: str
    clocks: tuple[int, ...]
    blocking_watts: float
    predicted_seconds: float
    predicted_joules: float
    windows: tuple[RankWindow, ...] = ()
    measurement: str = ""
    chunks: tuple[int, ...] = ()
    seconds: dict[str, dict[int, float]] = field(default_factory=dict)
    upcoming: tuple[int, ...] = field(init=False)
    steps: tuple[str | None, ...] = field(init=False, repr=False, compare=False)
    times: dict[tuple[Instruction, int], dict[int, float]] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        """Find what every boundary asks for: the next clock of each position (after the last the next iteration's)."""
        known = {each.code: each for each in Instruction}
        object.__setattr__(self, "steps", (*(known.get(letter, letter) for letter in self.order), None))
        times = {(known[key[0]], int(key[1:] or 0)): each for key, each in self.seconds.items() if key[0] in known}
        object.__setattr__(self, "times", times)
        following = next((clock for clock in self.clocks if clock), 0)
        upcoming = [following]
        for clock in reversed(self.clocks):
            following = clock or following
            upcoming.append(following)
        object.__setattr__(self, "upcoming", tuple(reversed(upcoming)))

    @classmethod
    def of(cls, plan: Plan, pipeline: int, stage: int) -> RankPlan:
        """Cut a rank's part out of a plan.

        Raises:
            IndexError: the plan has no such pipeline or stage.
        """
        return cls(
            generation=plan.generation,
            first_iteration=plan.first_iteration,
            order=plan.order[stage],
            clocks=plan.clocks_of(pipeline, stage),
            blocking_watts=plan.baseline.blocking_power_of(stage),
            predicted_seconds=plan.baseline.iteration_seconds,
            predicted_joules=plan.baseline.stage_joules[stage],
            seconds=plan.seconds_of(stage),
            windows=tuple(
                RankWindow(window.first_iteration, window.end, plan.variants[window.variant].clocks[stage])
                for window in (plan.sweep.windows if plan.sweep else ())
            ),
            measurement=plan.sweep.measurement if plan.sweep else "",
            chunks=plan.chunks[stage] if plan.chunks else (),
        )

    def clocks_in(self, iteration: int) -> tuple[int, ...]:
        """Return the clocks of an iteration, one for each instruction of the order; empty: unlocked."""
        if not self.measurement:
            return self.clocks
        place = bisect_right(self.windows, iteration, key=lambda window: window.first) - 1
        return self.windows[place].clocks if place >= 0 and iteration < self.windows[place].end else ()

    def clock_after(self, iteration: int, position: int) -> int | None:
        """Return the clock that a sweep wants when the instruction before a position has ended; None: unlocked.

        Every other plan has it in `upcoming`.
        """
        for clocks in (self.clocks_in(iteration)[position:], self.clocks_in(iteration + 1)):
            for clock in clocks:
                if clock:
                    return clock
        return None

    def expected_seconds(self, boundary: Boundary, megahertz: int | None) -> float | None:
        """Return what an instruction takes by the profile at a clock, None if that is not known.

        An unlocked GPU runs at its highest clock; what has no clock stands at 0.
        """
        if boundary.instruction is None:
            return None
        times = self.times.get((boundary.instruction, boundary.chunk))
        if not times:
            return None
        if not boundary.instruction.has_clock:
            return times.get(0)
        return times.get(max(times) if megahertz is None else megahertz)


class Follower:
    """The state of one rank.

    Attributes:
        late: plan changes made after the iteration that the plan named.
        mismatches: iterations in which the trainer did not follow the plan's order.
        mismatch: what was wrong with the last of them, empty when the plan is followed again.
        mismatch_kind: that in one word: order, unfinished, surplus or broken.
        finished_order: whether every instruction of the plan's order has ended in this iteration.
        ended_nanoseconds: when the last iteration ended, by the trainer; None while one runs, and where none ended.
        intermissions: how often something else than the next iteration followed on one, and the clock was given back.
        in_intermission: whether that is so now.
    """

    def __init__(self) -> None:
        """Begin without a plan."""
        self.late = 0
        self.mismatches = 0
        self.mismatch = self.mismatch_kind = ""
        self.finished_order = False
        self.ended_nanoseconds: int | None = None
        self.intermissions = 0
        self.in_intermission = False
        self._newest: RankPlan | None = None
        self._waiting: list[RankPlan] = []  # accepted, oldest first, none yet begun
        self._active: RankPlan | None = None
        self._position = 0
        self._in_iteration = False
        self._astray = False
        self._on_trial = False  # after a mismatch, until a whole iteration has matched
        self._iteration = -1
        self._last_begun = -1

    @property
    def accepted_generation(self) -> int:
        """Generation of the newest plan, 0 without one."""
        return self._newest.generation if self._newest else 0

    @property
    def active_generation(self) -> int:
        """Generation of the plan that sets clocks now, 0 without one."""
        return self._active.generation if self._active else 0

    @property
    def reference(self) -> RankPlan | None:
        """The plan whose predictions and blocking power hold: the active one, else the newest."""
        return self._active or self._newest

    @property
    def clocks(self) -> tuple[int, ...]:
        """The clocks that this iteration runs; empty while it is unlocked."""
        return (
            self._active.clocks_in(self._last_begun) if self._active and not self._astray and not self._on_trial else ()
        )

    def offer(self, plan: RankPlan | None) -> int | None:
        """Take the newest plan (None: it was withdrawn); return the clock that should hold now (None: unlocked)."""
        if plan is not None and plan == self._newest:
            return self._wish()
        self._newest = plan
        if plan is None:
            self._active = None
            self._waiting.clear()
            self._on_trial = self.finished_order = False
            self.mismatch = ""
            return None
        # One that holds no later than the newest is never chosen again.
        self._waiting = [each for each in self._waiting if each.first_iteration < plan.first_iteration]
        self._waiting.append(plan)
        if self._active is None and self._in_iteration:
            # Where the trainer is in this order is not known before the next iteration begins.
            self._astray = True
        return self._wish()

    def follow(self, boundary: Boundary) -> int | None:
        """Take one boundary; return the clock in MHz that should hold from now on, None for unlocked."""
        kind = boundary.kind
        if kind is _INSTRUCTION_BEGIN or kind is _INSTRUCTION_END:
            if self._in_iteration and not self._astray:
                self._instruct(kind, boundary.instruction, boundary.chunk)
        elif kind is _ITERATION_BEGIN:
            self._begin(boundary.iteration)
        elif kind is _ITERATION_END:
            self._end(boundary.time_nanoseconds)
        else:
            self._break()
        return self._wish()

    def intermit(self) -> None:
        """Something else runs between two iterations: the GPU is unlocked until the next begins, whatever comes."""
        self.intermissions += 1
        self.in_intermission = self._astray = True

    def _begin(self, iteration: int) -> None:
        if self._in_iteration:
            self._finish()
        before, chosen = self.reference, self._for_iteration(iteration)
        if chosen is not None and chosen is not self._active and self._last_begun >= chosen.first_iteration:
            self.late += 1
        self._last_begun = self._iteration = iteration
        if chosen is not None and chosen is not before:
            # What did not fit the plan before may fit this one.
            self._on_trial = False
        self._active = chosen
        self._position = 0
        self._in_iteration = True
        self._astray = self.finished_order = self.in_intermission = False
        self.ended_nanoseconds = None

    def _end(self, now_nanoseconds: int) -> None:
        if self._in_iteration:
            self._finish()
        self._in_iteration = False
        self.ended_nanoseconds = now_nanoseconds

    def _break(self) -> None:
        if self._in_iteration and self.reference is not None and not self._astray:
            self._stray("broken", "an exception left the iteration")
        self._in_iteration = False

    def _instruct(self, kind: BoundaryKind, instruction: Instruction | None, chunk: int) -> None:
        plan = self._active or self._newest
        if plan is None or instruction is None:
            return
        expected = plan.steps[self._position]
        if instruction is not expected:
            self._stray("order" if expected else "surplus", f"{instruction.value} came where {_name(expected)}")
        elif plan.chunks and chunk != plan.chunks[self._position]:
            what = f"{instruction.value} of chunk {chunk}"
            self._stray("order", f"{what} came where that of chunk {plan.chunks[self._position]} follows in the plan")
        elif kind is _INSTRUCTION_END:
            self._position += 1
            self.finished_order = plan.steps[self._position] is None

    def _finish(self) -> None:
        plan = self.reference
        if plan is None or self._astray:
            return
        if self._position != len(plan.order):
            self._stray("unfinished", f"the iteration ended where {_name(plan.steps[self._position])}")
        else:
            self._on_trial, self.mismatch = False, ""

    def _stray(self, kind: str, what: str) -> None:
        self._astray = self._on_trial = True
        self.finished_order = False
        self.mismatches += 1
        self.mismatch_kind = kind
        self.mismatch = f"iteration {self._iteration}, instruction {self._position}: {what}"

    def _for_iteration(self, iteration: int) -> RankPlan | None:
        # A newer generation for later does not take the place of one that holds now: every agent of the pipeline must
        # choose the same, whether the newer one has reached it yet or not.
        chosen = self._active
        while self._waiting and self._waiting[0].first_iteration <= iteration:
            chosen = self._waiting.pop(0)
        return chosen

    def _wish(self) -> int | None:
        plan = self._active
        if plan is None or self._astray or self._on_trial:
            return None
        if plan.measurement:
            return plan.clock_after(self._last_begun, self._position)
        return plan.upcoming[self._position] or None


def _name(expected: str | None) -> str:
    return f"{expected or 'nothing'} follows in the plan"
