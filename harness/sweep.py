"""The kill sweep: SIGKILL at every write of a job's life, before the API server saw it and after it did it."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from harness.comparison import differences, doubled_events, plan_troubles, shifted
from harness.proxy import Answer, Moment, Request
from harness.scenario import Life, Outcome, Stage


@dataclass
class Kill:
    """A life with one kill.

    Attributes:
        write: which write it was at.
        moment: before the API server saw it, or after it did it.
        request: what was being written; empty if this life had fewer writes, so that nobody was killed.
        found: differences from the undisturbed life.
        seconds: how long it took.
    """

    write: int
    moment: Moment
    request: str = ""
    found: list[str] = field(default_factory=list)
    seconds: float = 0.0


def undisturbed(stage: Stage, namespace: str = "calm") -> Outcome:
    """Play a life that nobody disturbs.

    Raises:
        AssertionError: even that does not end well.
    """
    stage.operator.kill()
    stage.proxy.clear()
    outcome = Life(stage, namespace).play()
    assert not outcome.trouble, outcome.trouble
    return outcome


def kill_at(
    stage: Stage, calm: Outcome, write: int, moment: Moment, matches: Callable[[Request], bool] | None = None
) -> Kill:
    """Play a life in which the operator is killed once, and compare.

    Args:
        stage: where.
        calm: the undisturbed life.
        write: number of the write at which it is killed.
        moment: before the API server saw it, or after it did it.
        matches: the first write of which this is true, instead of the one of that number: a life on a busy machine may
            have one write more or less than the undisturbed one.
    """
    chosen = matches or (lambda request: request.write == write)
    kill = Kill(write, moment)
    stage.operator.kill()
    stage.proxy.clear()

    def fault(request: Request, when: Moment) -> Answer | None:
        if kill.request or not request.write or when is not moment or not chosen(request):
            return None
        kill.request = f"{request.method} {request.path}"
        stage.operator.kill()
        return Answer(503, "Killed")

    stage.proxy.inject(fault)
    life = Life(stage, f"kill-{write}-{moment.value}")
    outcome = life.play()
    stage.proxy.inject(None)
    kill.seconds = outcome.seconds
    kill.found = compare(stage, calm, outcome, life)
    return kill


def compare(stage: Stage, calm: Outcome, outcome: Outcome, life: Life) -> list[str]:
    """Return what differs from the undisturbed life."""
    if outcome.trouble:
        return [outcome.trouble]
    found = differences(shifted(calm.living, calm.shift), shifted(outcome.living, outcome.shift))
    found += differences(calm.after, outcome.after) + plan_troubles(outcome.plans)
    return found + doubled_events(stage.client, life.namespace, calm.events)


def sweep(stage: Stage, calm: Outcome, writes: Iterable[int]) -> list[Kill]:
    """Kill at each of some writes, before and after."""
    return [kill_at(stage, calm, write, moment) for write in writes for moment in (Moment.BEFORE, Moment.AFTER)]
