"""The planner's narrow door: profile and pipeline in, frontier and plans out.

Everything that a reader of the frontier document sees is made here from measured points: times are the longest path
at real times, energies are those of one GPU of each stage in one iteration, blocking included: sum of e_i - P_b d_i
over all instructions, plus P_b x T of each rank's GPU (Chung et al., SOSP '24, equation 3). A rank waits once, however
many virtual stages it holds.
"""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version

import numpy as np
import numpy.typing as npt
from perseus_api.frontier import Frontier, PipelineShape, RealisedPlan
from perseus_api.instructions import Instruction
from perseus_api.profile import Profile

from perseus_planner.costs import NANOSECONDS, CostTable, cost_table
from perseus_planner.dag import Dag, build_dag
from perseus_planner.fixed import transferring, with_fixed
from perseus_planner.lookup import select
from perseus_planner.objective import Objective
from perseus_planner.pipeline import Order, Pipeline
from perseus_planner.realise import realise
from perseus_planner.sweep import Sweep, finish_times, longest_path, sweep

Integers = npt.NDArray[np.int64]
DEFAULT_PLANS = 320
MAXIMUM_CLOCKS = 800_000  # of all plans together: keeps the document below a ConfigMap's size
MAXIMUM_BREAKPOINTS = 2048


class PlanningError(ValueError):
    """The profile does not fit the pipeline; the text says what is missing."""


def frontier(profile: Profile, pipeline: Pipeline, plans: int = DEFAULT_PLANS, profile_checksum: str = "") -> Frontier:
    """Compute the frontier of a pipeline and plans on it, from no slowdown to T*.

    Args:
        profile: measured times and energies; stages beyond the pipeline's are left out.
        pipeline: its shape.
        plans: how many plans at most; large pipelines get fewer, so that the document fits a ConfigMap.
        profile_checksum: kept in the document, so that a stale frontier is recognised.

    Raises:
        PlanningError: the profile lacks a stage or an instruction.
        ValueError: the schedule has no order for this shape (PipelineError), or given orders cannot run.
    """
    orders = with_fixed(pipeline.orders(), pipeline, profile)
    dag = build_dag(orders, pipeline, transferring(pipeline, profile))
    _check_profile(profile, pipeline, dag)
    costs = cost_table(profile, dag.keys, dag.kind_rank, dag.kind_beside)
    watts = tuple(profile.blocking_power_of(rank) for rank in range(pipeline.stages))
    document = _Document(watts, orders, dag, costs)
    count = max(2, min(plans, MAXIMUM_CLOCKS // dag.nodes))
    realised = document.plans(count)
    return Frontier(
        shape=PipelineShape(
            stages=pipeline.stages,
            microbatches=pipeline.microbatches,
            tensor_parallel=pipeline.tensor_parallel,
            schedule=pipeline.schedule,
        ),
        profile_checksum=profile_checksum,
        blocking_power_watts=watts[0] if len(set(watts)) == 1 else sum(watts) / len(watts),
        stage_blocking_power_watts=() if len(set(watts)) == 1 else watts,
        order=tuple("".join(step.instruction.code for step in order) for order in orders),
        microbatches=tuple(tuple(step.microbatch for step in order) for order in orders),
        chunks=() if pipeline.chunks == 1 else tuple(tuple(step.chunk for step in order) for order in orders),
        fastest=document.fastest(),
        fastest_stage_joules=document.fastest_stage_joules(),
        plans=realised,
        breakpoint_seconds=document.breakpoint_seconds(),
        breakpoint_joules=document.breakpoint_joules(),
        tool_version=_version(),
    )


def plan(profile: Profile, pipeline: Pipeline, objective: Objective) -> RealisedPlan:
    """Compute the plan for an objective.

    Raises:
        PlanningError: the profile lacks a stage or an instruction.
    """
    return select(frontier(profile, pipeline), objective)


def _check_profile(profile: Profile, pipeline: Pipeline, dag: Dag) -> None:
    """Check that the profile measures what the pipeline runs."""
    missing = sorted(
        (key for key in dag.keys if key not in profile.measurements),
        key=lambda key: (key[0], key[1] is not Instruction.FORWARD),
    )
    if missing:
        stage, instruction = missing[0]
        place = f"the profile has no {instruction.value} of stage {stage}"
        if stage < profile.stages:
            remedy = f"the schedule {pipeline.schedule.value} runs it; measure it, or choose another schedule"
        elif pipeline.chunks > 1:
            remedy = (
                f"it has {profile.stages} stages, but {pipeline.stages} ranks of {pipeline.chunks} chunks are "
                f"{pipeline.virtual_stages} virtual stages; measure each chunk as a stage of its own"
            )
        else:
            remedy = (
                f"it has {profile.stages} stages, the pipeline {pipeline.stages}; "
                "measure it, or lower spec.parallelism.stages"
            )
        raise PlanningError(f"{place}: {remedy}")
    listed = len(profile.header.stage_gpus)
    if 0 < listed < pipeline.stages:
        raise PlanningError(
            f"the profile header's stageGpus lists the GPUs of {listed} ranks, the pipeline has {pipeline.stages}; "
            "add the others"
        )


class _Document:
    """The frontier's parts, computed once."""

    def __init__(self, watts: tuple[float, ...], orders: tuple[Order, ...], dag: Dag, costs: CostTable) -> None:
        self._watts = watts
        self._waiting_watts = sum(watts)
        self._dag = dag
        self._costs = costs
        fastest = np.array([option.nanoseconds for option in costs.fastest], dtype=np.int64)[dag.kind]
        self._fastest_nanoseconds = fastest
        self._shortest = longest_path(dag, fastest)
        cheapest = np.array([options[-1].nanoseconds for options in costs.options], dtype=np.int64)[dag.kind]
        self._longest = max(self._shortest, longest_path(dag, cheapest))
        self._sweep: Sweep | None = None
        # Where each node's clock stands among all orders' entries; what is in no order has none.
        ends = np.cumsum([len(order) for order in orders])
        self._ordered = np.flatnonzero(dag.position >= 0)
        self._entries = np.concatenate([[0], ends[:-1]])[dag.stage[self._ordered]] + dag.position[self._ordered]
        self._breaks = ends[:-1]

    def plans(self, count: int) -> tuple[RealisedPlan, ...]:
        """Realise plans at evenly spaced times from no slowdown to T*; each cheaper than the one before."""
        targets = np.unique(np.linspace(self._shortest, self._longest, count).astype(np.int64))[::-1]
        self._sweep = sweep(self._dag, self._costs, targets)
        found: list[RealisedPlan] = []
        start, nanoseconds, joules = self._costs.option_arrays()
        best = np.inf
        for target, events in zip(targets[::-1], self._sweep.events[::-1], strict=True):
            options = realise(self._dag, self._costs, events, int(target)) + start[self._dag.kind]
            cost = float(joules[options].sum())
            if cost < best:
                best = cost
                found.append(self._realised(nanoseconds[options], cost, self._clocks(options - start[self._dag.kind])))
        found.sort(key=lambda each: each.iteration_seconds)
        return tuple(found)

    def fastest(self) -> RealisedPlan:
        """Every instruction at its highest clock."""
        cost = float(np.array([option.cost_joules for option in self._costs.fastest])[self._dag.kind].sum())
        clocks = np.array([option.clock_megahertz for option in self._costs.fastest], dtype=np.int64)[self._dag.kind]
        return self._realised(self._fastest_nanoseconds, cost, clocks)

    def fastest_stage_joules(self) -> tuple[float, ...]:
        """Energy of one GPU of each stage when everything runs at its highest clock."""
        joules = np.array([option.cost_joules for option in self._costs.fastest])[self._dag.kind]
        seconds = self._shortest / NANOSECONDS
        return tuple(
            float(joules[self._dag.stage == stage].sum()) + watts * seconds for stage, watts in enumerate(self._watts)
        )

    def breakpoint_seconds(self) -> tuple[float, ...]:
        """Times of the relaxation's breakpoints, growing."""
        return tuple(float(each) / NANOSECONDS for each in self._breakpoints())

    def breakpoint_joules(self) -> tuple[float, ...]:
        """Energies of the relaxation at those times, waiting until T* included: falling."""
        assert self._sweep is not None  # noqa: S101 - plans() comes first
        longest = float(self._sweep.nanoseconds[0])
        waiting = self._waiting_watts * longest / NANOSECONDS
        return tuple(max(0.0, self._sweep.cost_at(float(each)) + waiting) for each in self._breakpoints())

    def _breakpoints(self) -> Integers:
        assert self._sweep is not None  # noqa: S101
        times = self._sweep.nanoseconds[::-1]
        times = times[times >= self._shortest]
        if len(times) > MAXIMUM_BREAKPOINTS:
            times = times[np.unique(np.linspace(0, len(times) - 1, MAXIMUM_BREAKPOINTS).astype(np.int64))]
        return times

    def _realised(self, nanoseconds: Integers, cost_joules: float, clocks: Integers) -> RealisedPlan:
        time = int(finish_times(self._dag.before_start, self._dag.before, nanoseconds).max())
        waiting = self._waiting_watts * time / NANOSECONDS
        assert self._sweep is not None  # noqa: S101
        entries = np.zeros(len(self._entries), dtype=np.int64)
        entries[self._entries] = clocks[self._ordered]
        return RealisedPlan(
            iteration_seconds=time / NANOSECONDS,
            iteration_joules=cost_joules + waiting,
            bound_joules=max(0.0, self._sweep.cost_at(time) + waiting),
            clocks=tuple(tuple(each.tolist()) for each in np.split(entries, self._breaks)),
        )

    def _clocks(self, options: Integers) -> Integers:
        table = [[option.clock_megahertz for option in each] for each in self._costs.options]
        return np.array(
            [table[kind][option] for kind, option in zip(self._dag.kind, options, strict=True)], dtype=np.int64
        )


def _version() -> str:
    try:
        return version("perseus-operator")
    except PackageNotFoundError:
        return ""
