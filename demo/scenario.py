"""The story of the demonstration, top-down: apply, optimise, run, straggle, recover, delete.

Every step acts through the doors that users have (kubectl, helm) and observes through metrics pages; the only thing
that a user could not do is to heat a simulated GPU.
"""

from __future__ import annotations

import base64
import json
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path

from perseus_api import names
from perseus_api.frontier import Frontier
from perseus_api.job import PerseusJobSpec

from demo.figures import (
    Phase,
    iteration_begins,
    lost_iterations,
    measure_phase,
    savings_percent,
    stretched_baseline_joules,
)
from demo.narration import Narrator
from demo.report import ProfilingFigures, Report, StragglerFigures
from testbed.installation import Installation
from testbed.observation import Recorder, Sample

EXAMPLES = Path(__file__).resolve().parent.parent / "examples"
MEASURED_EXAMPLE, GIVEN_EXAMPLE = EXAMPLES / "gpt3-175b", EXAMPLES / "gpt3-175b-given-profile"
JOB = "gpt3-175b"
STAGES, PIPELINES = 8, 2
HEALTHY_PIPELINE, HOT_PIPELINE, HOT_STAGE, HOT_SLOWDOWN = 0, 1, 7, 1.2
PLANNED_ITERATIONS, STRAGGLER_ITERATIONS, RECOVERED_ITERATIONS = 10, 6, 5
SLOW_RATIO = 1.03  # a pipeline time above this multiple of the planned one is the straggler's (the job's enterPercent)
COOL_RATIO = 1.02  # and back below this one it has recovered (leavePercent)
START_TIMEOUT_SECONDS = 180.0
SWEEP_TIMEOUT_SECONDS = 900.0
PLAN_TIMEOUT_SECONDS = 60.0
_HOPELESS = (
    "ProfileInvalid",
    "ProfilingFailed",
    "ProfileTooSmall",
    "OptimisationFailed",
    "TemplateRefused",
    "TrainingFailed",
)
REACTION_TIMEOUT_SECONDS = 60.0


@dataclass
class Run:
    """What a run brought: the report, and the recording for the picture."""

    report: Report
    samples: list[Sample]
    events: list[tuple[float, str]]


def run_scenario(
    installation: Installation,
    narrator: Narrator,
    namespace: str = "default",
    given_profile: bool = False,
    undisturbed: Callable[[], AbstractContextManager[None]] = nullcontext,
) -> Run:
    """Play the whole story on a cluster that has the operator and 16 simulated GPUs.

    Args:
        installation: of the product.
        narrator: tells the story.
        namespace: of the job.
        given_profile: whether the job comes with a profile; else it is measured while the job trains, or found in the
            cache where an earlier demonstration has measured it.
        undisturbed: entered while figures are taken: of the unlocked iterations, and from the plan to the recovery.

    Raises:
        TimeoutError: something that should happen did not; the text says what.
    """
    with Recorder(lambda: installation.read_sample(namespace, JOB)) as recorder:
        example = GIVEN_EXAMPLE if given_profile else MEASURED_EXAMPLE
        story = _Story(installation, narrator, namespace, recorder, example)
        story.apply()
        with undisturbed():
            baseline = story.run_unlocked()
        profiling = None if given_profile else story.watch_the_sweep()
        with undisturbed():
            planned = story.run_planned(baseline)
            straggler, reaction = story.heat_a_gpu(baseline, planned)
            recovered, recovery = story.cool_the_gpu(planned, reaction)
        frontier = story.frontier()
        clock_changes = int(sum(rank.clock_changes for rank in recorder.samples[-1].ranks.values()))
        locks_left, objects_left = story.delete()
    fast_plan = frontier.plans[0]
    report = Report(
        kubernetes=installation.kubernetes_version(),
        gpus=STAGES * PIPELINES,
        time_scale=1.0,
        scrape_interval_seconds=installation.scrape_interval_seconds,
        phases=(baseline, planned, straggler, recovered),
        profiling=profiling,
        bound_savings_percent=savings_percent(fast_plan.bound_joules, frontier.fastest.iteration_joules),
        predicted_savings_percent=savings_percent(fast_plan.iteration_joules, frontier.fastest.iteration_joules),
        straggler=StragglerFigures(
            injected_slowdown=HOT_SLOWDOWN,
            pipeline_slowdown=reaction.pipeline_seconds / reaction.pipeline_seconds_before,
            detected_after_seconds=reaction.detected_seconds,
            all_agents_after_seconds=reaction.accepted_seconds,
            all_gpus_after_seconds=reaction.active_seconds,
            injection_to_all_agents_seconds=reaction.from_cause_seconds,
            savings_percent=savings_percent(
                straggler.pipeline_joules[HEALTHY_PIPELINE],
                stretched_baseline_joules(
                    baseline, HEALTHY_PIPELINE, straggler.iteration_seconds, STAGES, frontier.blocking_power_watts
                ),
            ),
            recovery_detected_after_seconds=recovery.detected_seconds,
            recovery_all_agents_after_seconds=recovery.accepted_seconds,
        ),
        locks_left=locks_left,
        objects_left=objects_left,
        clock_changes=clock_changes,
    )
    return Run(report, recorder.samples, story.events)


@dataclass(frozen=True)
class _Reaction:
    """How a change of a pipeline's speed became a plan; times from the end of the first iteration that shows it."""

    detected_seconds: float
    accepted_seconds: float
    active_seconds: float
    from_cause_seconds: float
    pipeline_seconds: float
    pipeline_seconds_before: float


@dataclass
class _Story:
    installation: Installation
    narrator: Narrator
    namespace: str
    recorder: Recorder
    example: Path
    events: list[tuple[float, str]] = field(default_factory=list)

    def apply(self) -> None:
        self.narrator.heading("kubectl apply a PerseusJob: GPT-3 175B, 8 stages x 2 pipelines x 12 microbatches, 1F1B")
        self._forget_earlier_run()
        self.installation.kubectl("apply", "-n", self.namespace, "-k", str(self.installation.overlay(self.example)))
        seen: dict[str, str] = {}
        deadline = time.monotonic() + START_TIMEOUT_SECONDS
        while time.monotonic() < deadline:
            self._tell_conditions(seen)
            if any(each.get("reason") in _HOPELESS for each in self._conditions()):
                break
            ready = self.example == MEASURED_EXAMPLE or seen.get("FrontierReady") == "True"
            if ready and self.recorder.samples and self.recorder.samples[-1].ranks:
                return
            time.sleep(0.5)
        raise TimeoutError(f"the job is not training: {self._complaints()}")

    def watch_the_sweep(self) -> ProfilingFigures | None:
        """Wait until the profile is measured and optimised, training goes on meanwhile; None where one was found."""
        self.narrator.heading("Profile: measured while the job trains, a few iterations at each clock")
        begin, first = time.time(), self.recorder.samples[-1]
        seen, told = {"PlanApplied": ""}, ""
        while time.time() < begin + SWEEP_TIMEOUT_SECONDS:
            profile = next((each for each in self._conditions() if each["type"] == "ProfileValid"), None)
            if profile is not None and profile["message"] != told:
                told = profile["message"]
                self.narrator.say(told)
            if profile is not None and profile["status"] == "True":
                break
            if any(each.get("reason") in _HOPELESS for each in self._conditions()):
                raise TimeoutError(f"the profile was not measured: {self._complaints()}")
            time.sleep(1.0)
        else:
            raise TimeoutError(f"the profile was not measured: {self._complaints()}")
        figures = self._sweep_figures(first, self.recorder.samples[-1], time.time() - begin)
        while seen.get("FrontierReady") != "True" or "plan" not in self._job()["status"]:
            self._tell_conditions(seen)
            if time.time() > begin + SWEEP_TIMEOUT_SECONDS:
                raise TimeoutError(f"the job is not optimised: {self._complaints()}")
            time.sleep(0.5)
        return figures

    def _sweep_figures(self, first: Sample, last: Sample, seconds: float) -> ProfilingFigures | None:
        status = self._job()["status"]["profile"]
        if "sweepIterations" not in status:
            self.narrator.say("nothing was measured: an earlier demonstration's profile was found in the cache")
            return None
        self._happened(last, "profile measured")
        figures = ProfilingFigures(
            clocks=int(status["clocks"]),
            iterations=int(status["sweepIterations"]),
            seconds=seconds,
            slowdown_percent=int(status["sweepSlowdownPermille"]) / 10,
            iterations_lost=lost_iterations(first, last),
        )
        self.narrator.say(
            f"{figures.clocks} clocks in {figures.iterations} iterations ({seconds:.0f} s), which were "
            f"{figures.slowdown_percent:.1f} % longer than unlocked; iterations lost: {figures.iterations_lost}"
        )
        return figures

    def _complaints(self) -> str:
        false = [each for each in self._conditions() if each["status"] == "False"]
        return "; ".join(f"{each['type']}: {each['message']}" for each in false)

    def _forget_earlier_run(self) -> None:
        """Take away what a demonstration that was killed has left: its job, and a hot GPU."""
        self.installation.kubectl(
            "delete", "perseusjob", JOB, "-n", self.namespace, "--ignore-not-found", "--timeout=60s"
        )
        self._wait_until_nothing_is_left()
        self.installation.cool_all()

    def run_unlocked(self) -> Phase:
        self.narrator.heading("Baseline: the first iterations run unlocked and are measured")
        first = int(self._job()["spec"]["accounting"]["baselineIterations"]) + 1
        self._wait_for_iteration(first, START_TIMEOUT_SECONDS)
        return self._told(measure_phase("baseline", self.recorder.samples, 1, first))

    def run_planned(self, baseline: Phase) -> Phase:
        self.narrator.heading("Planned: every instruction at the clock of the plan, no slowdown")
        generation = int(self._job()["status"]["plan"]["generation"])
        sample = self.recorder.wait_for(
            "every GPU runs the plan",
            lambda each: _all_ranks(each, lambda rank: rank.generation_active >= generation),
            PLAN_TIMEOUT_SECONDS,
        )
        self._happened(sample, "plan")
        first = max(sample.pipeline_iteration.values()) + 1
        self._wait_for_iteration(first + PLANNED_ITERATIONS, PLANNED_ITERATIONS * 10.0)
        phase = measure_phase("planned", self.recorder.samples, first, first + PLANNED_ITERATIONS)
        return self._told(phase, baseline)

    def heat_a_gpu(self, baseline: Phase, planned: Phase) -> tuple[Phase, _Reaction]:
        before = self.recorder.samples[-1]
        gpu = before.ranks[HOT_PIPELINE, HOT_STAGE].gpu
        self.narrator.heading(f"Straggler: {gpu} (pipeline {HOT_PIPELINE}, stage {HOT_STAGE}) gets hot")
        cause_seconds = time.time()
        self.installation.heat(HOT_SLOWDOWN, gpu)
        limit = before.pipeline_seconds[HOT_PIPELINE] * SLOW_RATIO
        reaction = self._reaction("hot GPU", "slow", before, cause_seconds, lambda seconds: seconds > limit)
        # A plan for the half-slow iteration is followed by the whole answer once the dwell time is over, not before.
        policy = PerseusJobSpec.parse(self._job()["spec"]).straggler
        self._wait_until_settled(policy.dwell_seconds)
        phase = self._phase("straggler", STRAGGLER_ITERATIONS)
        # The first slow iteration was hot for a part of it only.
        reaction = replace(reaction, pipeline_seconds=self.recorder.samples[-1].pipeline_seconds[HOT_PIPELINE])
        self._told(phase, baseline)
        self.narrator.say(
            f"an iteration takes {phase.iteration_seconds:.3f} s, {planned.iteration_seconds:.3f} s before; the "
            f"healthy pipeline uses {savings_percent(phase.pipeline_joules[0], planned.pipeline_joules[0]):.1f} % less"
        )
        return phase, reaction

    def cool_the_gpu(self, planned: Phase, hot: _Reaction) -> tuple[Phase, _Reaction]:
        before = self.recorder.samples[-1]
        gpu = before.ranks[HOT_PIPELINE, HOT_STAGE].gpu
        self.narrator.heading("Recovery: the GPU cools down")
        cause_seconds = time.time()
        self.installation.cool(gpu)
        limit = hot.pipeline_seconds_before * COOL_RATIO
        reaction = self._reaction("GPU cool", "fast", before, cause_seconds, lambda seconds: seconds < limit)
        self._wait_until_settled()
        return self._told(self._phase("recovered", RECOVERED_ITERATIONS), planned), reaction

    def delete(self) -> tuple[int, tuple[str, ...]]:
        self.narrator.heading("kubectl delete the PerseusJob")
        self.installation.kubectl("delete", "perseusjob", JOB, "-n", self.namespace, "--timeout=60s")
        self.installation.kubectl(
            "delete", "-n", self.namespace, "-k", str(self.installation.overlay(self.example)), "--ignore-not-found"
        )
        objects = self._wait_until_nothing_is_left()
        locks = len(self.installation.locked_gpus())
        self.narrator.say(f"locks left: {locks}; objects left: {len(objects)}")
        return locks, tuple(objects)

    def _wait_until_nothing_is_left(self, timeout_seconds: float = 60.0) -> list[str]:
        """Wait until the job's objects are gone; return those that are not."""
        deadline = time.monotonic() + timeout_seconds
        objects = self.installation.perseus_objects(self.namespace, JOB)
        while objects and time.monotonic() < deadline:
            time.sleep(0.5)
            objects = self.installation.perseus_objects(self.namespace, JOB)
        return objects

    def frontier(self) -> Frontier:
        """Read the frontier that the optimisation pod wrote."""
        name = names.frontier_config_map_name(JOB)
        config_map = json.loads(self.installation.kubectl("get", "configmap", name, "-n", self.namespace, "-o", "json"))
        return Frontier.decode(base64.b64decode(config_map["binaryData"][names.FRONTIER_KEY]))

    def _reaction(
        self, cause: str, speed: str, before: Sample, cause_seconds: float, shows: Callable[[float], bool]
    ) -> _Reaction:
        self.events.append((cause_seconds, cause))
        timeout = REACTION_TIMEOUT_SECONDS
        shown = self.recorder.wait_for(
            f"an iteration of pipeline {HOT_PIPELINE} that is {speed}",
            lambda each: HOT_PIPELINE in each.pipeline_seconds and shows(each.pipeline_seconds[HOT_PIPELINE]),
            timeout,
        )
        # The last sample in which no agent showed it yet: whatever plan is newer was made because of it.
        generation = max(
            (each for each in self.recorder.samples if each.time_seconds < shown.time_seconds),
            key=lambda each: each.time_seconds,
        ).operator_generation
        detected = self._first("a new plan", shown, lambda each: each.operator_generation > generation)
        accepted = self._first(
            "the new plan at every agent",
            shown,
            lambda each: _all_ranks(each, lambda rank: rank.generation_accepted > generation),
        )
        active = self._first(
            "the new plan on every GPU",
            shown,
            lambda each: _all_ranks(each, lambda rank: rank.generation_active > generation),
        )
        self._happened(detected, "replanned")
        self.narrator.say(
            f"first {speed} iteration {shown.time_seconds - cause_seconds:.1f} s after the cause; then the operator "
            f"replanned after {detected.time_seconds - shown.time_seconds:.1f} s, every agent had the plan after "
            f"{accepted.time_seconds - shown.time_seconds:.1f} s, every GPU ran it after "
            f"{active.time_seconds - shown.time_seconds:.1f} s"
        )
        return _Reaction(
            detected_seconds=detected.time_seconds - shown.time_seconds,
            accepted_seconds=accepted.time_seconds - shown.time_seconds,
            active_seconds=active.time_seconds - shown.time_seconds,
            from_cause_seconds=accepted.time_seconds - cause_seconds,
            pipeline_seconds=active.pipeline_seconds[HOT_PIPELINE],
            pipeline_seconds_before=before.pipeline_seconds[HOT_PIPELINE],
        )

    def _first(self, what: str, since: Sample, condition: Callable[[Sample], bool]) -> Sample:
        """Return the first sample not before `since` that meets the condition, waiting for it if need be."""
        for sample in self.recorder.samples:
            if sample.time_seconds >= since.time_seconds and condition(sample):
                return sample
        return self.recorder.wait_for(what, condition, REACTION_TIMEOUT_SECONDS)

    def _wait_until_settled(self, dwell_seconds: float = 0.0) -> None:
        """Wait until every GPU has run one plan for longer than Prometheus and operator take to ask for another.

        A GPU gets hot in the middle of an iteration, so the first slow one is only half slow: a second plan follows it,
        after the dwell time where it makes somebody slower.
        """
        quiet_seconds = self.installation.scrape_interval_seconds + 4.0
        since, generation = time.time(), -1
        earliest = since + dwell_seconds + quiet_seconds

        def settled(sample: Sample) -> bool:
            nonlocal since, generation
            running = {rank.generation_active for rank in sample.ranks.values()}
            if running != {generation} or generation != sample.operator_generation:
                since, generation = sample.time_seconds, sample.operator_generation
            self.narrator.progress(f"generation {generation} for {sample.time_seconds - since:.0f} s")
            return sample.time_seconds - since > quiet_seconds and sample.time_seconds > earliest

        self.recorder.wait_for("plans settle", settled, REACTION_TIMEOUT_SECONDS)

    def _phase(self, name: str, iterations: int) -> Phase:
        first = max(self.recorder.samples[-1].pipeline_iteration.values()) + 1
        self._wait_for_iteration(first + iterations, iterations * 10.0)
        return measure_phase(name, self.recorder.samples, first, first + iterations)

    def _wait_for_iteration(self, iteration: int, timeout_seconds: float) -> None:
        """Wait until every rank has passed the begin of an iteration."""

        def passed(sample: Sample) -> bool:
            self.narrator.progress(f"iteration {sample.pipeline_iteration.get(0, '-')} of {iteration}")
            begins = iteration_begins([sample], 0)
            return any(each > iteration or (each == iteration and _settled(sample, begins[each])) for each in begins)

        self.recorder.wait_for(f"iteration {iteration}", passed, timeout_seconds)

    def _told(self, phase: Phase, reference: Phase | None = None) -> Phase:
        text = f"{phase.name}: {phase.iteration_seconds:.3f} s and {phase.iteration_joules:.0f} J an iteration"
        if reference is not None:
            text += (
                f" (energy {-savings_percent(phase.iteration_joules, reference.iteration_joules):+.1f} %, time "
                f"{100 * (phase.iteration_seconds / reference.iteration_seconds - 1):+.2f} % against {reference.name})"
            )
        self.narrator.say(text)
        return phase

    def _happened(self, sample: Sample, text: str) -> None:
        self.events.append((sample.time_seconds, text))

    def _job(self) -> dict[str, dict[str, dict[str, str]]]:
        job: dict[str, dict[str, dict[str, str]]] = json.loads(
            self.installation.kubectl("get", "perseusjob", JOB, "-n", self.namespace, "-o", "json")
        )
        return job

    def _conditions(self) -> list[dict[str, str]]:
        conditions: object = self._job().get("status", {}).get("conditions", [])
        return conditions if isinstance(conditions, list) else []

    def _tell_conditions(self, seen: dict[str, str]) -> None:
        for condition in self._conditions():
            if seen.get(condition["type"]) != condition["status"] and condition["status"] != "Unknown":
                seen[condition["type"]] = condition["status"]
                self.narrator.say(f"{condition['type']}={condition['status']}: {condition['message']}")


def _settled(sample: Sample, begin_seconds: float) -> bool:
    return sample.time_seconds >= begin_seconds + 1.2


def _all_ranks(sample: Sample, condition: Callable[..., bool]) -> bool:
    return len(sample.ranks) == STAGES * PIPELINES and all(condition(rank) for rank in sample.ranks.values())
