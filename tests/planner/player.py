"""Plays orders step by step, as GPUs would: an independent check of the planner's graph, times and energies."""

from __future__ import annotations

from collections.abc import Sequence

from perseus_api.instructions import Instruction
from perseus_api.profile import Measurement, Profile, ProfileHeader
from perseus_planner import Order, Pipeline

_GRADIENTS = (Instruction.BACKWARD, Instruction.BACKWARD_INPUT)
CLOCK = 1000


def play(
    profile: Profile, pipeline: Pipeline, orders: Sequence[Order], clocks: Sequence[Sequence[int]]
) -> tuple[float, float]:
    """Time (s) and energy (J) of one iteration: of one GPU of each rank, waiting included."""
    measured = {
        (*key, each.frequency_megahertz if key[1].has_clock else 0): each
        for key, rows in profile.measurements.items()
        for each in rows
    }
    named = {
        (rank, step.chunk) for rank, order in enumerate(orders) for step in order if step.instruction is Instruction.P2P
    }
    last = pipeline.virtual_stages - 1
    place = {
        pipeline.virtual_stage(rank, chunk): (rank, chunk)
        for rank in range(pipeline.stages)
        for chunk in range(pipeline.chunks)
    }
    ends: dict[tuple[int, str, int], float] = {}
    position, now = [0] * len(orders), [0.0] * len(orders)
    busy, joules = [0.0] * len(orders), 0.0

    def transfer(source: int, target: int) -> Measurement | None:
        there = measured.get((source, Instruction.P2P, 0))
        apart = place[source][0] != place[target][0]
        return there if there and apart and place[source] not in named else None

    def progress(rank: int) -> bool:
        nonlocal joules
        if position[rank] == len(orders[rank]):
            return False
        instruction, microbatch, chunk = orders[rank][position[rank]]
        virtual = pipeline.virtual_stage(rank, chunk)
        kind = "gradient" if instruction in _GRADIENTS else instruction.value
        source = None
        if kind == "forward" and virtual > 0:
            source = (virtual - 1, kind, microbatch)
        elif kind == "gradient":
            source = (virtual + 1, kind, microbatch) if virtual < last else (virtual, "forward", microbatch)
        begin = now[rank]
        if source is not None:
            if source not in ends:
                return False
            sent = transfer(source[0], virtual)
            joules += sent.energy_joules if sent else 0.0
            begin = max(begin, ends[source] + (sent.time_seconds if sent else 0.0))
        found = measured[virtual, instruction, clocks[rank][position[rank]]]
        now[rank] = ends[virtual, kind, microbatch] = begin + found.time_seconds
        busy[rank] += found.time_seconds
        joules += found.energy_joules
        position[rank] += 1
        return True

    while any(at < len(order) for at, order in zip(position, orders, strict=True)):
        assert any(progress(rank) for rank in range(len(orders))), "the orders of the stages wait for each other"
    total = max(now)
    return total, joules + sum(profile.blocking_power_of(rank) * (total - each) for rank, each in enumerate(busy))


def seconds_of(pipeline: Pipeline, seconds: dict[Instruction, float]) -> float:
    """Time of an iteration in which each instruction takes the same on all stages."""
    measurements = {
        (stage, instruction): (Measurement(CLOCK, time, 1.0),)
        for stage in range(pipeline.virtual_stages)
        for instruction, time in seconds.items()
    }
    orders = pipeline.orders()
    profile = Profile(ProfileHeader(blocking_power_watts=0.0), measurements)
    return play(profile, pipeline, orders, [[CLOCK] * len(order) for order in orders])[0]
