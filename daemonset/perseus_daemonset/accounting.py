"""Energy and time of one rank, iteration by iteration, from the GPU's energy counter. Pure.

An iteration goes from one begin to the next, so that the counter's differences telescope and its refresh of about 100
ms does not add up; the last one before a trainer leaves goes to its own end. Iteration 0 warms up and is not counted.
The baseline of an iteration (docs/accounting.md) is the measured energy of an unlocked one, plus blocking power times
the time beyond the unlocked duration; without a measured one it is predicted, and said to be.

An iteration that an exception left did not do an iteration's work, so it can be compared with none: its energy counts
as used, its baseline is that same energy (no saving is claimed for it), and it is no iteration anywhere else. The same
holds for what a script does between two iterations for so long that it is more than their gap (`intermission.py`): the
iteration before it goes to its own end.
"""

from __future__ import annotations

from perseus_api.instructions import Instruction
from perseus_api.messages import Boundary, BoundaryKind

from perseus_daemonset.baselines import Unlocked
from perseus_daemonset.follower import RankPlan
from perseus_daemonset.instructions import InstructionBooks
from perseus_daemonset.intermission import patience_seconds
from perseus_daemonset.measuring.measurer import Measurer
from perseus_daemonset.ordering import OrderBooks

MEASURED, PREDICTED = "measured", "predicted"
_INSTRUCTION_END = BoundaryKind.INSTRUCTION_END
# A pipeline's time ends with a backward of any kind.
_BACKWARDS = frozenset({Instruction.BACKWARD, Instruction.BACKWARD_INPUT, Instruction.BACKWARD_WEIGHT})
_NANOSECONDS = 1_000_000_000


class RankAccount:
    """The books of one rank.

    Attributes:
        energy_joules: of counted iterations, of broken ones, and of intermissions.
        iterations: how many were counted.
        baseline_joules: what the same would have cost unlocked, by source.
        seconds: that they took.
        baseline_seconds: that they would have taken unlocked, by source.
        iteration: index of the iteration that runs now; -1 before the first.
        iteration_seconds: duration of the last whole iteration.
        pipeline_seconds: first forward's begin to last backward's end of the last iteration; None before the first.
        begin_wall_seconds: wall-clock time at which the current iteration began.
        measurer: measures instructions while a sweep runs; None before the first.
        instructions: how long they take.
        was_locked: whether the GPU was locked at some moment of this iteration.
        order: in which they ran.
    """

    def __init__(self) -> None:
        """Open the books."""
        self.energy_joules = 0.0
        self.iterations = 0
        self.baseline_joules: dict[str, float] = {}
        self.seconds = 0.0
        self.baseline_seconds: dict[str, float] = {}
        self.iteration = -1
        self.iteration_seconds: float | None = None
        self.pipeline_seconds: float | None = None
        self.begin_wall_seconds: float | None = None
        self.measurer: Measurer | None = None
        self.instructions = InstructionBooks()
        self.order = OrderBooks()
        self._unlocked_joules = 0.0
        self._unlocked_seconds = 0.0
        self._unlocked_iterations = 0
        self._begin: tuple[int, int, float] | None = None  # iteration, nanoseconds, joules
        self._end: tuple[int, int, float] | None = None  # the same of the newest iteration's own end
        self.was_locked = False
        self._first_forward: int | None = None
        self._last_backward: int | None = None

    @property
    def unlocked_iteration_joules(self) -> float | None:
        """Mean measured energy of an unlocked iteration."""
        return self._unlocked_joules / self._unlocked_iterations if self._unlocked_iterations else None

    @property
    def unlocked_iteration_seconds(self) -> float | None:
        """Mean measured duration of an unlocked iteration."""
        return self._unlocked_seconds / self._unlocked_iterations if self._unlocked_iterations else None

    @property
    def unlocked(self) -> Unlocked:
        """The sums over unlocked iterations, to be kept for the next agent."""
        return Unlocked(self._unlocked_joules, self._unlocked_seconds, self._unlocked_iterations)

    def resume(self, unlocked: Unlocked) -> None:
        """Go on with what an agent before this one measured."""
        self._unlocked_joules = unlocked.joules
        self._unlocked_seconds = unlocked.seconds
        self._unlocked_iterations = unlocked.iterations

    def interrupted(self, plan: RankPlan | None = None) -> None:
        """The trainer's connection ended: an iteration that it ended counts, one under way does not.

        Args:
            plan: whose blocking power and predictions hold for the last iteration.
        """
        if self._begin is not None and self._end is not None and self._end[0] == self._begin[0]:
            self._close(self._end[1], self._end[2], plan)
        self._begin = self._end = None
        self.instructions.interrupted()
        self.order.interrupted()

    def locked(self) -> None:
        """The GPU is locked now."""
        self.was_locked = True

    def begin_iteration(
        self, boundary: Boundary, joules: float | None, wall_seconds: float, plan: RankPlan | None
    ) -> None:
        """Close the iteration before and open the next.

        Args:
            boundary: the begin of the next.
            joules: the GPU's energy counter, None if it could not be read.
            wall_seconds: wall-clock time.
            plan: whose blocking power and predictions hold for the iteration before.
        """
        if self._begin is not None and joules is not None and boundary.iteration == self._begin[0] + 1:
            end = self._end_before_intermission(boundary.time_nanoseconds, plan)
            if end is None:
                self._close(boundary.time_nanoseconds, joules, plan)
            else:
                self._close(end[1], end[2], plan)
                if self._begin[0] > 0:
                    self._count_as_its_own_baseline(joules - end[2], plan)
        self.iteration = boundary.iteration
        self.begin_wall_seconds = wall_seconds
        self._begin = None if joules is None else (boundary.iteration, boundary.time_nanoseconds, joules)
        self.was_locked = False
        self._first_forward = self._last_backward = None

    def instruction(self, boundary: Boundary, order_finished: bool) -> None:
        """Take an instruction's boundary for the pipeline's time.

        Args:
            boundary: begin or end of an instruction.
            order_finished: the plan's order says that nothing follows in this iteration.
        """
        if boundary.kind is _INSTRUCTION_END:
            if boundary.instruction in _BACKWARDS:
                self._last_backward = boundary.time_nanoseconds
                if order_finished:
                    self._publish()
        elif self._first_forward is None and boundary.instruction is Instruction.FORWARD:
            self._first_forward = boundary.time_nanoseconds

    def end_iteration(self, boundary: Boundary, joules: float | None = None) -> None:
        """Take an iteration's end: whatever came last was the last.

        Args:
            boundary: the end.
            joules: the GPU's energy counter, None if it could not be read.
        """
        if boundary.kind is BoundaryKind.ITERATION_END:
            self._publish()
            self._end = None if joules is None else (boundary.iteration, boundary.time_nanoseconds, joules)

    def break_iteration(self, boundary: Boundary, joules: float | None, plan: RankPlan | None) -> None:
        """Take the moment at which an exception left the iteration: what it used counts, the iteration does not.

        Args:
            boundary: that moment.
            joules: the GPU's energy counter, None if it could not be read.
            plan: that held.
        """
        begin, self._begin, self._end = self._begin, None, None
        self._first_forward = self._last_backward = None
        if begin is not None and joules is not None and begin[0] == boundary.iteration and begin[0] > 0:
            self._count_as_its_own_baseline(joules - begin[2], plan)

    def _end_before_intermission(self, now: int, plan: RankPlan | None) -> tuple[int, int, float] | None:
        """Return the end of the iteration that began last, if what followed is more than a gap."""
        if self._begin is None or self._end is None or self._end[0] != self._begin[0]:
            return None
        own_seconds = (self._end[1] - self._begin[1]) / _NANOSECONDS
        # The first iterations have nothing but themselves to tell how long one is.
        known = max(own_seconds, self.unlocked_iteration_seconds or 0.0)
        patience = patience_seconds(plan.predicted_seconds if plan is not None else 0.0, known)
        return self._end if now - self._end[1] > patience * _NANOSECONDS else None

    def _count_as_its_own_baseline(self, joules: float, plan: RankPlan | None) -> None:
        """Count what can be compared with nothing: it was used, and no saving is claimed for it."""
        if joules < 0 or self._is_incomparable(plan):
            return
        self.energy_joules += joules
        self._add_baseline(MEASURED, joules, 0.0)

    def _close(self, nanoseconds: int, joules: float, plan: RankPlan | None) -> None:
        """Count the iteration that began last, up to a moment and the counter's reading at it."""
        if self._begin is None:
            return
        iteration, begin, before = self._begin
        seconds = (nanoseconds - begin) / _NANOSECONDS
        self.iteration_seconds = seconds
        if iteration > 0 and joules >= before and seconds > 0:
            self._count(joules - before, seconds, plan)

    def _publish(self) -> None:
        if self._first_forward is not None and self._last_backward is not None:
            self.pipeline_seconds = (self._last_backward - self._first_forward) / _NANOSECONDS

    def _count(self, joules: float, seconds: float, plan: RankPlan | None) -> None:
        if self._is_incomparable(plan):
            return
        self.energy_joules += joules
        self.iterations += 1
        self.seconds += seconds
        if not self.was_locked:
            self._unlocked_joules += joules
            self._unlocked_seconds += seconds
            self._unlocked_iterations += 1
            self._add_baseline(MEASURED, joules, seconds)
            return
        blocking = plan.blocking_watts if plan is not None else 0.0
        measured_joules, measured_seconds = self.unlocked_iteration_joules, self.unlocked_iteration_seconds
        if measured_joules is not None and measured_seconds is not None:
            beyond = max(0.0, seconds - measured_seconds)
            self._add_baseline(MEASURED, measured_joules + blocking * beyond, measured_seconds)
        elif plan is not None:
            beyond = max(0.0, seconds - plan.predicted_seconds)
            self._add_baseline(PREDICTED, plan.predicted_joules + blocking * beyond, plan.predicted_seconds)

    def _is_incomparable(self, plan: RankPlan | None) -> bool:
        """Whether it ran in a sweep with nothing measured before: a sweep comes before the profile."""
        return self.was_locked and plan is not None and bool(plan.measurement) and not self._unlocked_iterations

    def _add_baseline(self, source: str, joules: float, seconds: float) -> None:
        self.baseline_joules[source] = self.baseline_joules.get(source, 0.0) + joules
        self.baseline_seconds[source] = self.baseline_seconds.get(source, 0.0) + seconds
