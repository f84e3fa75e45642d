"""What one visit to a PerseusJob gathers, from step to step, for the status at its end. It does nothing by itself."""

from __future__ import annotations

from dataclasses import dataclass

from perseus_api.frontier import Frontier
from perseus_api.plan import Plan

from perseus_operator.children import Document
from perseus_operator.conditions import Story
from perseus_operator.monitor import JobKey
from perseus_operator.planning import Stragglers
from perseus_operator.profiles import LoadedProfile


@dataclass
class Visit:
    """A visit.

    Attributes:
        key: namespace and name of the job.
        job: as the API served it when the visit began.
        story: its conditions.
        plan: that holds, once known.
        stragglers: the situation that the plan is made for.
        profile: once loaded.
        frontier: once computed.
        settled: whether nothing is on its way that no event would tell of.
    """

    key: JobKey
    job: Document
    story: Story
    plan: Plan | None = None
    stragglers: Stragglers | None = None
    profile: LoadedProfile | None = None
    frontier: Frontier | None = None
    settled: bool = True
