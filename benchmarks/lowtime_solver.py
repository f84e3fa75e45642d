"""The public solver (`lowtime`, Apache-2.0, by Perseus' authors) on the same problem, for the ratio of the two.

It solves a fresh max-flow for every millisecond between the slowest and the fastest plan; its cost of an instruction is
an exponential fitted to the measured points. Only the solver's own loop is timed: building and fitting are not.
"""

from __future__ import annotations

import time

import networkx as nx
from lowtime.cost_model import ExponentialModel
from lowtime.operation import CandidateExecutionOptions, DummyOperation, ExecutionOption, Operation, OperationSpec
from lowtime.solver import PhillipsDessouky
from perseus_api.instructions import Instruction
from perseus_api.profile import Profile
from perseus_planner import Pipeline

UNIT_SECONDS = 0.001


def solve(profile: Profile, pipeline: Pipeline) -> tuple[float, int]:
    """Return (seconds, number of points) of lowtime's whole frontier."""
    graph = _graph(profile, pipeline)
    solver = PhillipsDessouky(graph)
    begin = time.process_time()
    points = sum(1 for _ in solver.run())
    return time.process_time() - begin, points


def _graph(profile: Profile, pipeline: Pipeline) -> nx.DiGraph:
    watts = profile.header.blocking_power_watts
    specs = {}
    for key, rows in profile.measurements.items():
        options = CandidateExecutionOptions(
            options=[
                ExecutionOption(
                    real_time=each.time_seconds,
                    unit_time=UNIT_SECONDS,
                    cost=each.energy_joules - watts * each.time_seconds,
                    knob=each.frequency_megahertz,
                )
                for each in rows
            ]
        )
        specs[key] = OperationSpec(options=options, cost_model=ExponentialModel(options))
    graph = nx.DiGraph()
    source, sink = 0, 1
    graph.add_node(source, op=DummyOperation())
    graph.add_node(sink, op=DummyOperation())
    graph.graph["source_node"], graph.graph["sink_node"] = source, sink
    numbers: dict[tuple[int, Instruction, int], int] = {}
    orders = pipeline.orders()
    for stage, order in enumerate(orders):
        for step in order:
            numbers[stage, step[0], step[1]] = len(numbers) + 2
            graph.add_node(numbers[stage, step[0], step[1]], op=Operation(spec=specs[stage, step[0]]))
    for stage, order in enumerate(orders):
        row = [numbers[stage, step[0], step[1]] for step in order]
        nx.add_path(graph, row)
        for step in order:
            before = _needed(stage, len(orders) - 1, step[0], step[1])
            if before is not None:
                graph.add_edge(numbers[before], numbers[stage, step[0], step[1]])
    for node in list(graph.nodes):
        if node not in (source, sink):
            if graph.in_degree(node) == 0:
                graph.add_edge(source, node)
            if graph.out_degree(node) == 0:
                graph.add_edge(node, sink)
    return graph


def _needed(stage: int, last: int, instruction: Instruction, microbatch: int) -> tuple[int, Instruction, int] | None:
    if instruction is Instruction.FORWARD:
        return (stage - 1, Instruction.FORWARD, microbatch) if stage else None
    if stage == last:
        return (stage, Instruction.FORWARD, microbatch)
    return (stage + 1, Instruction.BACKWARD, microbatch)
