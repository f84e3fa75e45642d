"""What the planner says when profile, pipeline and objective do not fit together."""

from __future__ import annotations


class PlanningError(ValueError):
    """No plan can be made; the text is one sentence that says why and what to change."""


class UnfitProfile(PlanningError):
    """The profile does not measure what the pipeline runs, or not in a way that can be planned with."""
