"""The report of a run: ``build/demo/report.json`` and the table on the terminal. Pure but for the writing."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path

from demo.figures import Phase, savings_percent


@dataclass(frozen=True)
class StragglerFigures:
    """What happened when a GPU got hot.

    Attributes:
        injected_slowdown: factor by which the hot GPU slows down.
        pipeline_slowdown: measured time of the hot GPU's pipeline over its time before.
        detected_after_seconds: from the end of the first slow iteration (when the agent's metric first shows it) to the
            operator's new plan.
        all_agents_after_seconds: the same, until every rank's agent holds the new plan.
        all_gpus_after_seconds: the same, until every GPU runs it (a plan changes at an iteration boundary).
        injection_to_all_agents_seconds: from the fault itself until every rank's agent holds the new plan.
        savings_percent: of the healthy pipelines, against full speed in the same situation.
        recovery_detected_after_seconds: from the end of the first fast iteration to the operator's new plan.
        recovery_all_agents_after_seconds: the same, until every rank's agent holds it.
    """

    injected_slowdown: float
    pipeline_slowdown: float
    detected_after_seconds: float
    all_agents_after_seconds: float
    all_gpus_after_seconds: float
    injection_to_all_agents_seconds: float
    savings_percent: float
    recovery_detected_after_seconds: float
    recovery_all_agents_after_seconds: float


@dataclass(frozen=True)
class ProfilingFigures:
    """What measuring the profile in the job has cost.

    Attributes:
        clocks: that were measured.
        iterations: of the sweep.
        seconds: from the baseline's end to the profile.
        slowdown_percent: how much longer the sweep's iterations were than unlocked ones, on average.
        iterations_lost: begun by the training and not finished, by the agents' counters.
    """

    clocks: int
    iterations: int
    seconds: float
    slowdown_percent: float
    iterations_lost: int


@dataclass(frozen=True)
class Report:
    """Everything that the demonstration measured; `profiling` is None where nothing was measured."""

    kubernetes: str
    gpus: int
    time_scale: float
    scrape_interval_seconds: float
    phases: tuple[Phase, ...]
    profiling: ProfilingFigures | None
    bound_savings_percent: float
    predicted_savings_percent: float
    straggler: StragglerFigures
    locks_left: int
    objects_left: tuple[str, ...]
    clock_changes: int

    @property
    def savings_percent(self) -> float:
        """Measured savings of the planned phase against the baseline phase."""
        return savings_percent(self._phase("planned").iteration_joules, self._phase("baseline").iteration_joules)

    @property
    def slowdown_percent(self) -> float:
        """Measured slowdown of the planned phase against the baseline phase."""
        return 100 * (self._phase("planned").iteration_seconds / self._phase("baseline").iteration_seconds - 1)

    def write(self, path: Path) -> None:
        """Write the report as JSON."""
        document = {
            **asdict(self),
            "savings_percent": self.savings_percent,
            "slowdown_percent": self.slowdown_percent,
        }
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(document, indent=2) + "\n")

    def table(self) -> str:
        """Return the table for the terminal."""
        baseline = self._phase("baseline")
        lines = [f"{'phase':<12}{'iterations':>10}{'s/iteration':>13}{'J/iteration':>13}{'energy':>9}{'time':>9}"]
        for phase in self.phases:
            energy = -savings_percent(phase.iteration_joules, baseline.iteration_joules)
            time = 100 * (phase.iteration_seconds / baseline.iteration_seconds - 1)
            lines.append(
                f"{phase.name:<12}{phase.iterations:>10}{phase.iteration_seconds:>13.3f}"
                f"{phase.iteration_joules:>13.0f}{energy:>+8.1f}%{time:>+8.2f}%"
            )
        if self.profiling is not None:
            lines += [
                "",
                f"profile: {self.profiling.clocks} clocks measured in {self.profiling.iterations} iterations "
                f"({self.profiling.seconds:.0f} s), {self.profiling.slowdown_percent:+.1f} % time on average; "
                f"iterations lost: {self.profiling.iterations_lost}",
            ]
        lines += [
            "",
            f"planned: {self.savings_percent:.2f} % saved at {self.slowdown_percent:+.2f} % time "
            f"(relaxation's bound {self.bound_savings_percent:.2f} %, the plan predicted "
            f"{self.predicted_savings_percent:.2f} %)",
            f"straggler: pipeline {100 * (self.straggler.pipeline_slowdown - 1):+.1f} %, plan made "
            f"{self.straggler.detected_after_seconds:.1f} s and at all agents "
            f"{self.straggler.all_agents_after_seconds:.1f} s after the first slow iteration; "
            f"the healthy pipeline saves {self.straggler.savings_percent:.1f} % against full speed just then",
            f"locks left: {self.locks_left}; objects left: {len(self.objects_left)}; "
            f"clock changes: {self.clock_changes}",
        ]
        return "\n".join(lines)

    def _phase(self, name: str) -> Phase:
        return next(phase for phase in self.phases if phase.name == name)
