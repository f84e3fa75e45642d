"""What one visit to a PerseusJob gathers, from step to step, for the status at its end. It does nothing by itself."""

from __future__ import annotations

from dataclasses import dataclass, field

from perseus_api.frontier import Frontier
from perseus_api.plan import Plan

from perseus_operator.causes import Finding
from perseus_operator.children import Document
from perseus_operator.conditions import Story
from perseus_operator.ledger import Totals
from perseus_operator.monitor import JobKey
from perseus_operator.planning import Stragglers
from perseus_operator.profiles import LoadedProfile


@dataclass(frozen=True)
class StragglerFinding:
    """A straggler as it is told.

    Attributes:
        pipeline: index.
        ratio: measured (or announced) over planned time.
        finding: cause, pod and GPU.
        node: that the pod runs on; empty where it is not known.
    """

    pipeline: int
    ratio: float
    finding: Finding
    node: str


@dataclass
class Visit:
    """A visit.

    Attributes:
        key: namespace and name of the job.
        job: as the API served it when the visit began.
        story: its conditions.
        plan: that holds, once known.
        stragglers: the situation that the plan is made for.
        findings: of the stragglers, the slowest first.
        profile: once loaded.
        repeats: how often the profile was measured anew because it had drifted, or is.
        frontier: once computed.
        measuring: whether a sweep goes on, or the order of the ranks is waited for, which no event tells of either: it
            is looked at steadily.
        ended: outcome of training and when it ended (wall-clock seconds), once it has.
        totals: accounted since the job began, as last written down.
        report: for the status, once training has ended and all is counted.
        settled: whether nothing is on its way that no event would tell of.
        is_watched: whether an event tells of every change of what it saw.
    """

    key: JobKey
    job: Document
    story: Story
    plan: Plan | None = None
    stragglers: Stragglers | None = None
    findings: list[StragglerFinding] = field(default_factory=list)
    profile: LoadedProfile | None = None
    repeats: int = 0
    frontier: Frontier | None = None
    measuring: bool = False
    ended: tuple[str, float] | None = None
    totals: Totals | None = None
    report: Document | None = None
    settled: bool = True
    is_watched: bool = True

    @property
    def is_new(self) -> bool:
        """Whether no status was ever written of the job: nothing is counted of it, and nobody was told of a plan."""
        return not self.job.get("status")
