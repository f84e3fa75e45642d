"""A training job in simulated time under the operator's own decisions: hours in seconds.

Pipelines run under the plan in force, wait for each other at the end of an iteration, and are seen only through
scrapes; every half second the operator's pure code decides (voices, evidence, dwell, look-up, first iteration), as its
monitor and its plan step do. What is not here is Prometheus, the API server and the agents: their part is time, and
measured elsewhere.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from perseus_api.frontier import Frontier
from perseus_api.job import PerseusJobSpec
from perseus_api.plan import JobReference, Plan
from perseus_operator.measurements import NOTICE_SECONDS, Measurement, PipelineVoice, first_iteration
from perseus_operator.planning import Stragglers, make_plan, planned_seconds, same_clocks
from perseus_operator.stragglers import JobWatch, assess, training_restarted

ROUND_SECONDS = 0.5
REFERENCE = JobReference(namespace="team", name="train", uid="u")
Slowdown = Callable[[int, float], float]


@dataclass
class Change:
    """A plan that was pushed."""

    seconds: float
    plan: Plan
    stragglers: Stragglers


@dataclass
class _Pipeline:
    iteration: int = 0
    begin: float = 0.0
    ends: float = 0.0
    seconds: float | None = None
    scraped: Measurement | None = None
    scraped_at: float = 0.0


@dataclass
class SimulatedJob:
    """A job of some pipelines.

    Attributes:
        frontier: that plans are looked up in.
        pipelines: how many.
        slowdown: of a pipeline at a time, 1 for none.
        noise: standard deviation of an iteration's time, as a part of it.
        scrape_seconds: between scrapes of one pipeline.
        clock_offsets: of the pipelines' nodes, in seconds.
        visible: whether a pipeline's metrics are there at a time.
        announced: slowdowns told of by another source at a time.
        straggler: fields of spec.straggler.
        seed: of the noise.
    """

    frontier: Frontier
    pipelines: int = 2
    slowdown: Slowdown = lambda _pipeline, _seconds: 1.0
    noise: float = 0.002
    scrape_seconds: float = 5.0
    clock_offsets: Mapping[int, float] = field(default_factory=dict)
    visible: Callable[[int, float], bool] = lambda _pipeline, _seconds: True
    announced: Callable[[float], Mapping[int, float]] = lambda _seconds: {}
    straggler: Mapping[str, Any] = field(default_factory=dict)
    seed: int = 0
    changes: list[Change] = field(default_factory=list)
    now: float = 0.0
    iteration_seconds: list[tuple[float, float]] = field(default_factory=list)

    def __post_init__(self) -> None:
        """Start training under the first plan."""
        shape = self.frontier.shape
        self.spec = PerseusJobSpec.parse(
            {
                "parallelism": {
                    "stages": shape.stages,
                    "pipelines": self.pipelines,
                    "microbatches": shape.microbatches,
                },
                "profiling": {"profileRef": {"name": "profile"}},
                "straggler": dict(self.straggler),
                "template": {},
            }
        )
        self._random = random.Random(self.seed)  # noise, to be repeated
        self._states = [_Pipeline() for _ in range(self.pipelines)]
        self.plan = make_plan(REFERENCE, self.spec, self.frontier, Stragglers(), 1, 11)
        self._active = self.plan
        self.watch = JobWatch()
        self.watch.changed(None, self.plan, Stragglers(), self.spec.straggler, 0.0)
        self._begin_iteration(0)

    def run(self, seconds: float) -> list[Change]:
        """Go on for some time; return all changes so far."""
        until = self.now + seconds
        while self.now < until:
            self._train()
            self._scrape()
            self._decide()
            self.now += ROUND_SECONDS
        return self.changes

    def restart_operator(self) -> None:
        """A new operator, that knows the plan and nothing else."""
        self.watch = JobWatch.resume(self.plan, self.spec.straggler, self.now)

    def _begin_iteration(self, index: int) -> None:
        if self.plan.first_iteration <= index:
            self._active = self.plan
        begin = max(each.ends for each in self._states)
        for state in self._states:
            state.iteration, state.begin = index, begin
        for number, state in enumerate(self._states):
            factor = self.slowdown(number, state.begin) * max(0.5, 1 + self._random.gauss(0, self.noise))
            state.ends = state.begin + planned_seconds(self._active, number) * factor

    def _train(self) -> None:
        while all(state.ends <= self.now for state in self._states):
            begin = self._states[0].begin
            for state in self._states:
                state.seconds = state.ends - state.begin
            self.iteration_seconds.append((self.now, max(state.ends for state in self._states) - begin))
            self._begin_iteration(self._states[0].iteration + 1)

    def _scrape(self) -> None:
        for index, state in enumerate(self._states):
            if not self.visible(index, self.now):
                state.scraped = None
            elif state.scraped is None or self.now - state.scraped_at >= self.scrape_seconds - 1e-9:
                offset = self.clock_offsets.get(index, 0.0)
                seconds = state.ends - state.begin if state.ends <= self.now else state.seconds
                state.scraped = Measurement(seconds, state.iteration, state.begin + offset, self.now, 0.0, "pod")
                # Targets are scraped at times of their own.
                lag = self._random.uniform(0, self.scrape_seconds) if state.scraped_at == 0.0 else 0.0
                state.scraped_at = self.now - lag

    def _decide(self) -> None:
        measured: dict[int, Measurement] = {}
        for index, state in enumerate(self._states):
            if state.scraped is not None:
                voice = self.watch.voices.setdefault(index, PipelineVoice())
                chosen = voice.choose([state.scraped], planned_seconds(self.plan, index), self.now)
                if chosen is not None:
                    measured[index] = chosen
        policy = self.spec.straggler
        wanted = assess(self.watch, self.plan, measured, policy, self.announced(self.now), self.now)
        if training_restarted(self.watch, self.plan, measured) or wanted == self.watch.stragglers:
            return
        made = make_plan(REFERENCE, self.spec, self.frontier, wanted, self.plan.generation + 1, 0)
        if same_clocks(self.plan, made):
            self.watch.settle(wanted, policy, self.now)
            return
        planned = max(planned_seconds(self.plan, index) for index in range(self.pipelines))
        ages = {
            index: Measurement(
                each.seconds, each.iteration, each.begin_seconds, each.scraped_seconds,
                self.now - (each.scraped_seconds or 0.0), each.pod,
            )
            for index, each in measured.items()
        }  # fmt: skip
        first = first_iteration(planned, ages, 0.0, NOTICE_SECONDS)
        before, self.plan = self.plan, made.model_copy(update={"first_iteration": first})
        self.watch.changed(before, self.plan, wanted, policy, self.now)
        self.changes.append(Change(self.now, self.plan, wanted))


def false_alarms(frontier: Frontier, hours: float, pipelines: int, noise: float, seed: int) -> int:
    """Return how many plans were pushed for a straggler where there was none."""
    job = SimulatedJob(frontier, pipelines, noise=noise, seed=seed)
    job.run(math.ceil(3600 * hours))
    return sum(bool(change.stragglers.pipelines) for change in job.changes)
