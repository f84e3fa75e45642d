"""One planning problem: a profile on a pipeline, with what every plan for it needs to know.

Times are the longest path at real times. Energies are those of one GPU of each rank in one iteration, blocking
included: sum of e_i - P_b d_i over all instructions, plus P_b x T of each rank's GPU (Chung et al., SOSP '24, equation
3). A rank waits once, however many virtual stages it holds; tensor-parallel ranks multiply energies, which is left to
whoever reports.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from perseus_api.frontier import RealisedPlan
from perseus_api.instructions import Instruction
from perseus_api.profile import Profile

from perseus_planner.costs import PICOSECONDS, cost_table
from perseus_planner.dag import build_dag
from perseus_planner.errors import UnfitProfile
from perseus_planner.fixed import transferring, with_fixed
from perseus_planner.pipeline import Pipeline
from perseus_planner.realise import realise
from perseus_planner.sweep import Sweep, finish_times, longest_path, sweep

Integers = npt.NDArray[np.int64]
Numbers = npt.NDArray[np.float64]
MAXIMUM_SECONDS = 1e6  # of all instructions together, each at its slowest


@dataclass(frozen=True)
class PlannedStep:
    """One instruction as a plan runs it.

    Attributes:
        instruction: the kind of work.
        microbatch: that it is for.
        chunk: model chunk of the rank.
        stage: virtual stage: the stage of the profile that measured it.
        frequency_megahertz: clock; 0 where it has none.
        begin_seconds: after the iteration's begin.
        seconds: duration.
        joules: energy of one GPU.
    """

    instruction: Instruction
    microbatch: int
    chunk: int
    stage: int
    frequency_megahertz: int
    begin_seconds: float
    seconds: float
    joules: float


class Problem:
    """A profile on a pipeline.

    Attributes:
        shortest: time of every instruction at its highest clock, in ps.
        longest: T*, the time of every instruction at its cheapest, in ps.
        least: the shortest time that measured clocks allow, in ps; below `shortest` if a lower clock measured faster.
    """

    def __init__(self, profile: Profile, pipeline: Pipeline) -> None:
        """Build the graph and the costs.

        Raises:
            UnfitProfile: the profile lacks a stage or an instruction.
        """
        self.profile = profile
        self.pipeline = pipeline
        self.orders = with_fixed(pipeline.orders(), pipeline, profile)
        self.dag = build_dag(self.orders, pipeline, transferring(pipeline, profile))
        self._check_profile()
        self._check_length()
        self.costs = cost_table(profile, self.dag.keys, self.dag.kind_rank, self.dag.kind_beside)
        self.watts = tuple(profile.blocking_power_of(rank) for rank in range(pipeline.stages))
        self.waiting_watts = sum(self.watts)
        self._start, self._picoseconds, self._joules = self.costs.option_arrays()
        self._first = self._start[self.dag.kind]
        self._clocks = np.array([each.clock_megahertz for kind in self.costs.options for each in kind], dtype=np.int64)
        fastest = np.array([each.picoseconds for each in self.costs.fastest], dtype=np.int64)
        self._fastest_picoseconds = fastest[self.dag.kind]
        self.shortest = longest_path(self.dag, self._fastest_picoseconds)
        self.least = longest_path(self.dag, self._picoseconds[self._first])
        self.longest = max(self.shortest, longest_path(self.dag, self._picoseconds[self._start[1:] - 1][self.dag.kind]))

    def sweep(self, targets: Integers) -> Sweep:
        """Sweep the relaxation down to the last of the falling target times (ps)."""
        return sweep(self.dag, self.costs, targets)

    def realise(self, swept: Sweep, index: int, limit_picoseconds: int, steps: int) -> Integers:
        """Return a plan (options by node) from the relaxation at one of a sweep's targets; see `realise`."""
        prices = swept.prices_joules_per_picosecond(index)
        bound = swept.cost_at(limit_picoseconds)
        return realise(self.dag, self.costs, swept.events[index], prices, limit_picoseconds, bound, steps)

    def cost_joules(self, options: Integers) -> float:
        """Return the plan's cost: energy with the blocking power of its instructions taken off."""
        return float(self._joules[self._first + options].sum())

    def bound_joules(self, swept: Sweep, picoseconds: float) -> float:
        """Return the relaxation's energy at a time: no plan of that time has less."""
        return max(0.0, swept.cost_at(picoseconds) + self.waiting_watts * picoseconds / PICOSECONDS)

    def realised(self, swept: Sweep, options: Integers) -> RealisedPlan:
        """Return a plan as documents hold it."""
        chosen = self._first + options
        return self.document(swept, self._picoseconds[chosen], float(self._joules[chosen].sum()), self._clocks[chosen])

    def fastest(self, swept: Sweep) -> RealisedPlan:
        """Every instruction at its highest clock."""
        cost = float(np.array([option.cost_joules for option in self.costs.fastest])[self.dag.kind].sum())
        clocks = np.array([option.clock_megahertz for option in self.costs.fastest], dtype=np.int64)[self.dag.kind]
        return self.document(swept, self._fastest_picoseconds, cost, clocks)

    def fastest_stage_joules(self) -> tuple[float, ...]:
        """Energy of one GPU of each rank when everything runs at its highest clock."""
        joules = np.array([option.cost_joules for option in self.costs.fastest])[self.dag.kind]
        seconds = self.shortest / PICOSECONDS
        by_rank = np.bincount(self.dag.stage, weights=joules, minlength=self.pipeline.stages)
        return tuple(float(each) + watts * seconds for each, watts in zip(by_rank, self.watts, strict=True))

    def document(self, swept: Sweep, picoseconds: Integers, cost_joules: float, clocks: Integers) -> RealisedPlan:
        """Return a plan from the time and the clock of each node."""
        time = int(finish_times(self.dag.before_start, self.dag.before, picoseconds).max())
        lengths = np.array([len(order) for order in self.orders])
        ends = np.cumsum(lengths)
        ordered = np.flatnonzero(self.dag.position >= 0)  # What is in no order has no clock.
        entries = np.zeros(ends[-1], dtype=np.int64)
        entries[(ends - lengths)[self.dag.stage[ordered]] + self.dag.position[ordered]] = clocks[ordered]
        return RealisedPlan(
            iteration_seconds=time / PICOSECONDS,
            iteration_joules=cost_joules + self.waiting_watts * time / PICOSECONDS,
            bound_joules=self.bound_joules(swept, time),
            clocks=tuple(tuple(row.tolist()) for row in np.split(entries, ends[:-1])),
        )

    def steps(self, plan: RealisedPlan, switch_seconds: float = 0.0) -> tuple[tuple[PlannedStep, ...], ...]:
        """Return what each rank runs under a plan, in order of execution, everything as early as it can.

        Args:
            plan: the plan.
            switch_seconds: by which a change of clock delays the instruction after it.
        """
        table = {
            (key, each.frequency_megahertz if key[1].has_clock else 0): each
            for key in self.dag.keys
            for each in self.profile.measurements[key]
        }
        measured = [
            table[self.dag.keys[kind], plan.clocks[rank][position] if position >= 0 else 0]
            for rank, position, kind in zip(self.dag.stage, self.dag.position, self.dag.kind, strict=True)
        ]
        picoseconds = np.array([max(1, round(each.time_seconds * PICOSECONDS)) for each in measured], dtype=np.int64)
        delayed = picoseconds + self._delays(plan, round(switch_seconds * PICOSECONDS))
        begins = finish_times(self.dag.before_start, self.dag.before, delayed) - picoseconds
        rows: list[list[PlannedStep | None]] = [[None] * len(order) for order in self.orders]
        for node in np.flatnonzero(self.dag.position >= 0):
            rank, position = self.dag.stage[node], self.dag.position[node]
            step = self.orders[rank][position]
            rows[rank][position] = PlannedStep(
                step.instruction,
                step.microbatch,
                step.chunk,
                self.pipeline.virtual_stage(int(rank), step.chunk),
                plan.clocks[rank][position],
                float(begins[node]) / PICOSECONDS,
                measured[node].time_seconds,
                measured[node].energy_joules,
            )
        return tuple(tuple(each for each in row if each is not None) for row in rows)

    def _delays(self, plan: RealisedPlan, dead: int) -> Integers:
        """Of each node, by how much a change of clock before it delays it."""
        switching = []
        for order, row in zip(self.orders, plan.clocks, strict=True):
            last = next((clock for clock in reversed(row) if clock), 0)
            mine = []
            for step, clock in zip(order, row, strict=True):
                mine.append(step.instruction.has_clock and clock != last)
                last = clock if step.instruction.has_clock else last
            switching.append(mine)
        return np.array(
            [
                dead if position >= 0 and switching[rank][position] else 0
                for rank, position in zip(self.dag.stage, self.dag.position, strict=True)
            ],
            dtype=np.int64,
        )

    def _check_length(self) -> None:
        """Check that no path is so long that integers overflow."""
        slowest = np.array([max(each.time_seconds for each in self.profile.measurements[key]) for key in self.dag.keys])
        if float(slowest[self.dag.kind].sum()) > MAXIMUM_SECONDS:
            raise UnfitProfile(
                f"the pipeline's instructions take more than {MAXIMUM_SECONDS:g} s together: the profile's times are "
                "in seconds; measure again"
            )

    def _check_profile(self) -> None:
        """Check that the profile measures what the pipeline runs."""
        profile, pipeline = self.profile, self.pipeline
        missing = sorted(
            (key for key in self.dag.keys if key not in profile.measurements),
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
                    "measure it, or lower the number of stages"
                )
            raise UnfitProfile(f"{place}: {remedy}")
        listed = len(profile.header.stage_gpus)
        if 0 < listed < pipeline.stages:
            raise UnfitProfile(
                f"the profile header's stageGpus lists the GPUs of {listed} ranks, the pipeline has {pipeline.stages}; "
                "add the others"
            )
