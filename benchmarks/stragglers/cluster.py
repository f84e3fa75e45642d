"""Stragglers on the real cluster: how fast every agent has the answer, and what the healthy pipeline saves.

Simulated GPT-3 175B, 8 stages x 2 and x 4 pipelines, Prometheus scraping every 5 s. All GPUs of one pipeline get slower
by a ratio, and well again, time after time. Times are from the end of the first iteration that shows the change (when
the agent's metric first has it) until every rank's agent holds the plan for it, read from the agents' own pages. What
of it is the wait for Prometheus's next scrape is read from Prometheus: the rest is ours.
"""

from __future__ import annotations

import base64
import json
import time
import urllib.parse
from collections.abc import Callable
from typing import Any, NamedTuple

import yaml
from perseus_api import names
from perseus_api.frontier import Frontier
from perseus_api.plan import Plan
from perseus_operator.planning import stragglers_of
from perseus_planner import plan_for_deadline

from demo.figures import iteration_begins, measure_phase, savings_percent, stretched_baseline_joules
from testbed.installation import SYSTEM_NAMESPACE, Installation, install
from testbed.observation import Recorder, Sample, fetch_page

JOB, NAMESPACE, SLOW, STAGES = "gpt3-175b", "default", 1, 8
RATIOS = (1.2, 1.05, 1.5, 1.1)
ENTER, LEAVE = 1.03, 1.02
MEASURED_ITERATIONS = 4
QUIET_SECONDS = 8.0
RECORDED_EVERY_SECONDS = 0.2


def measure_cluster(pipelines: int, events: int) -> dict[str, Any]:
    """Return the latencies of so many stragglers and recoveries, and the gaps to the frontier's look-up."""
    from demo.scenario import GIVEN_EXAMPLE

    installation = install(lambda text: print(text, flush=True))
    installation.kubectl("delete", "perseusjob", JOB, "-n", NAMESPACE, "--ignore-not-found", "--timeout=60s")
    installation.install_chart(gpus=STAGES * pipelines)
    _let_agents_see_new_gpus(installation)
    installation.cool_all()
    with Recorder(lambda: installation.read_sample(NAMESPACE, JOB), RECORDED_EVERY_SECONDS) as recorder:
        documents = installation.kubectl("kustomize", str(installation.overlay(GIVEN_EXAMPLE)))
        installation.kubectl("apply", "-n", NAMESPACE, "-f", "-", input_text=_changed(documents, pipelines))
        try:
            return _Events(installation, recorder, pipelines).run(events)
        finally:
            installation.kubectl("delete", "perseusjob", JOB, "-n", NAMESPACE, "--timeout=120s")
            installation.cool_all()


def _let_agents_see_new_gpus(installation: Installation) -> None:
    """Start the agents anew: NVML lists the GPUs that were there when it was initialised."""
    daemon_set = ("daemonset/perseus-agent", "-n", SYSTEM_NAMESPACE)
    installation.kubectl("rollout", "restart", *daemon_set)
    installation.kubectl("rollout", "status", *daemon_set, "--timeout=90s")
    installation.forget_addresses()


def _changed(documents: str, pipelines: int) -> str:
    """Return the example with so many pipelines and without a dwell time.

    Events follow each other faster than the dwell time allows; it is not what is measured here.
    """
    found = list(yaml.safe_load_all(documents))
    (job,) = (each for each in found if each["kind"] == "PerseusJob")
    job["spec"]["parallelism"]["pipelines"] = pipelines
    job["spec"].setdefault("straggler", {})["dwellSeconds"] = 2
    return yaml.safe_dump_all(found)


class _Reaction(NamedTuple):
    """Seconds from the end of the iteration that shows a change: to its scrape, to the plan, to the last agent."""

    scraped: float
    planned: float
    accepted: float


class _Events:
    def __init__(self, installation: Installation, recorder: Recorder, pipelines: int) -> None:
        self._pipelines = pipelines
        self._healthy = [index for index in range(pipelines) if index != SLOW]
        self._installation = installation
        self._recorder = recorder
        self._answers: list[_Reaction] = []
        self._recoveries: list[_Reaction] = []
        self._savings: dict[str, dict[str, Any]] = {}

    def run(self, events: int) -> dict[str, Any]:
        wait = self._recorder.wait_for
        sample = wait("every GPU runs the plan", self._all(lambda rank: rank.generation_active >= 1), 300)
        baseline = measure_phase("baseline", self._recorder.samples, 2, 10)
        gpus = [rank.gpu for (pipeline, _), rank in sample.ranks.items() if pipeline == SLOW]
        time.sleep(20)
        planned = self._recorder.samples[-1].pipeline_seconds[SLOW]
        for number in range(events):
            ratio = RATIOS[number % len(RATIOS)]
            self._installation.heat(ratio, *gpus)
            took = self._reaction(f"straggler {number}", lambda seconds: seconds > ENTER * planned, slow=True)
            self._answers.append(took)
            if number < len(RATIOS):
                self._measure(ratio, baseline)
            else:
                time.sleep(QUIET_SECONDS)
            self._installation.cool(*gpus)
            took = self._reaction(f"recovery {number}", lambda seconds: seconds < LEAVE * planned, slow=False)
            self._recoveries.append(took)
            time.sleep(QUIET_SECONDS)
            print(f"event {number}: {ratio}: {_told(self._answers[-1])}; back {_told(took)}", flush=True)
        return {
            "events": events,
            "answer_seconds": [each.accepted for each in self._answers],
            "recovery_seconds": [each.accepted for each in self._recoveries],
            "answers": [each._asdict() for each in self._answers],
            "recoveries": [each._asdict() for each in self._recoveries],
            "savings": self._savings,
            "scrape_seconds": self._installation.scrape_interval_seconds,
        }

    def _reaction(self, what: str, shows: Callable[[float], bool], slow: bool) -> _Reaction:
        """Return how long it takes from the first iteration that shows a change until every rank's agent has its plan.

        The iteration in which the speed changed shows a part of the change. A straggler's part may be answered by a
        plan of its own; a recovery is answered by the plan without stragglers only.
        """
        before = self._recorder.samples[-1].operator_generation
        shown = self._recorder.wait_for(
            f"{what} shows", lambda each: SLOW in each.pipeline_seconds and shows(each.pipeline_seconds[SLOW]), 60
        )
        wanted = before + 1 if slow else self._generation_without_stragglers(what)
        holds = self._all(lambda rank: rank.generation_accepted >= wanted)
        known = next((each for each in self._recorder.samples if holds(each)), None)
        accepted = known or self._recorder.wait_for(f"{what} is answered", holds, 60)
        planned = next(each for each in self._recorder.samples if each.operator_generation >= wanted)
        moments = (self._scraped(shown, shows), planned.time_seconds, accepted.time_seconds)
        return _Reaction(*(max(0.0, each - shown.time_seconds) for each in moments))

    def _scraped(self, shown: Sample, shows: Callable[[float], bool]) -> float:
        """Return when Prometheus read the first value that shows the change."""
        series = f'perseus_pipeline_seconds{{namespace="{NAMESPACE}",job="{JOB}",pipeline="{SLOW}"}}[2m]'
        query = urllib.parse.urlencode({"query": series})
        answer = json.loads(fetch_page(f"{self._installation.prometheus_url}/api/v1/query?{query}"))
        read = sorted(
            (float(seconds), float(value)) for each in answer["data"]["result"] for seconds, value in each["values"]
        )
        tolerance = 2 * RECORDED_EVERY_SECONDS  # the recorder may have come a little after Prometheus
        return next(seconds for seconds, value in read if seconds > shown.time_seconds - tolerance and shows(value))

    def _generation_without_stragglers(self, what: str, timeout_seconds: float = 60.0) -> int:
        deadline = time.monotonic() + timeout_seconds
        name = names.plan_config_map_name(NAMESPACE, JOB)
        while time.monotonic() < deadline:
            plan = Plan.decode(self._content(name, SYSTEM_NAMESPACE, names.PLAN_KEY))
            if not stragglers_of(plan).pipelines:
                return plan.generation
            time.sleep(0.3)
        raise TimeoutError(f"{what}: no plan without stragglers within {timeout_seconds:.0f} s")

    def _measure(self, ratio: float, baseline: Any) -> None:
        """Measure what the healthy pipeline saves against full speed in the same situation."""
        time.sleep(2 * QUIET_SECONDS)
        recorder = self._recorder
        first = max(recorder.samples[-1].pipeline_iteration.values()) + 1
        end = first + MEASURED_ITERATIONS
        recorder.wait_for(
            "enough iterations",
            lambda each: any(
                index > end or (index == end and each.time_seconds > begin + 1.2)
                for index, begin in iteration_begins([each], self._healthy[0]).items()
            ),
            120,
        )
        phase = measure_phase(f"straggler {ratio}", recorder.samples, first, end)
        frontier = self._frontier()
        watts = frontier.blocking_power_watts
        measured = [
            savings_percent(
                phase.pipeline_joules[pipeline],
                stretched_baseline_joules(baseline, pipeline, phase.iteration_seconds, STAGES, watts),
            )
            for pipeline in self._healthy
        ]
        fastest = frontier.fastest
        seconds = ratio * frontier.plans[0].iteration_seconds
        chosen = plan_for_deadline(frontier, seconds)
        blocked = watts * STAGES
        looked_up = savings_percent(
            chosen.iteration_joules + blocked * (seconds - chosen.iteration_seconds),
            fastest.iteration_joules + blocked * (seconds - fastest.iteration_seconds),
        )
        bound = savings_percent(
            chosen.bound_joules + blocked * (seconds - chosen.iteration_seconds),
            fastest.iteration_joules + blocked * (seconds - fastest.iteration_seconds),
        )
        self._savings[str(ratio)] = {"measured": measured, "looked_up": looked_up, "bound": bound}
        told = ", ".join(f"{each:.2f}" for each in measured)
        print(f"ratio {ratio}: saved {told} %, look-up {looked_up:.2f} %, bound {bound:.2f} %", flush=True)

    def _frontier(self) -> Frontier:
        name = names.frontier_config_map_name(JOB)
        return Frontier.decode(self._content(name, NAMESPACE, names.FRONTIER_KEY))

    def _content(self, config_map: str, namespace: str, key: str) -> bytes:
        text = self._installation.kubectl("get", "configmap", config_map, "-n", namespace, "-o", "json")
        return base64.b64decode(json.loads(text)["binaryData"][key])

    def _all(self, condition: Callable[[Any], bool]) -> Callable[[Sample], bool]:
        ranks = self._pipelines * STAGES
        return lambda sample: len(sample.ranks) == ranks and all(condition(rank) for rank in sample.ranks.values())


def _told(reaction: _Reaction) -> str:
    return f"{reaction.accepted:.2f} s (scrape {reaction.scraped:.2f}, plan {reaction.planned:.2f})"
