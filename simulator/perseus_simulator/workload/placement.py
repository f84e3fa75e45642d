"""Where a rank of the simulated job stands in its pipeline, and who its peers are. No I/O but the environment."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass

from perseus_api import names
from perseus_api.encoding import first_problem
from perseus_api.orders import PipelineOrders
from perseus_api.schedules import JobSchedule, Schedule
from perseus_planner.pipeline import Order, Pipeline, PipelineError
from perseus_planner.recorded import problem_of, recorded_pipeline
from pydantic import ValidationError

from perseus_simulator.library import SimulatorError

ENV_PEER_ADDRESSES = "PERSEUS_PEER_ADDRESSES"  # host:port of each rank, with commas; for processes on one machine
ENV_ORDERS = "PERSEUS_SIMULATOR_ORDERS"  # of the schedule Recorded: JSON, as `perseus_api.orders` has it
PORT = 29400


@dataclass(frozen=True)
class Placement:
    """One rank of the job.

    Attributes:
        rank: global rank.
        stages: pipeline stages.
        pipelines: data-parallel pipelines.
        tensor_parallel: ranks of a stage.
        line: the pipeline: what each stage runs when, and which part of the model it holds in which chunk.
        gpu_uuid: its GPU.
        addresses: host and port of every rank.
    """

    rank: int
    pipelines: int
    tensor_parallel: int
    line: Pipeline
    gpu_uuid: str
    addresses: tuple[tuple[str, int], ...]

    @property
    def stages(self) -> int:
        """Pipeline stages."""
        return self.line.stages

    @property
    def v_shape(self) -> bool:
        """Whether every other chunk runs through the stages backwards."""
        return self.line.v_shape or self.line.schedule is Schedule.ZBV

    @property
    def tensor_rank(self) -> int:
        """Rank within the stage."""
        return self.rank % self.tensor_parallel

    @property
    def stage(self) -> int:
        """Pipeline stage."""
        return self.rank // self.tensor_parallel % self.stages

    @property
    def pipeline(self) -> int:
        """Data-parallel index."""
        return self.rank // self.tensor_parallel // self.stages

    def rank_of(self, pipeline: int, stage: int) -> int:
        """Return the rank at a place, with this rank's tensor rank."""
        return (pipeline * self.stages + stage) * self.tensor_parallel + self.tensor_rank

    @property
    def previous(self) -> int | None:
        """The rank that sends activations, None on the first stage."""
        return self.rank_of(self.pipeline, self.stage - 1) if self.stage > 0 else None

    @property
    def next(self) -> int | None:
        """The rank that sends gradients, None on the last stage."""
        return self.rank_of(self.pipeline, self.stage + 1) if self.stage < self.stages - 1 else None

    @property
    def replicas(self) -> tuple[int, ...]:
        """Ranks of the same stage in all pipelines, this one among them: they synchronise gradients."""
        return tuple(self.rank_of(pipeline, self.stage) for pipeline in range(self.pipelines))

    @property
    def neighbours(self) -> tuple[int, ...]:
        """The ranks that a chunk of this one sends to or receives from, in order."""
        line = self.line
        own = [line.virtual_stage(self.stage, chunk) for chunk in range(line.chunks)]
        beside = {each + step for each in own for step in (-1, 1)} & set(range(line.virtual_stages))
        ranks = {self.holder(each) for each in beside} - {self.rank}
        return tuple(sorted(ranks))

    def holder(self, virtual_stage: int) -> int:
        """Return the rank of this pipeline that holds a virtual stage."""
        line = self.line
        for stage in range(line.stages):
            if any(line.virtual_stage(stage, chunk) == virtual_stage for chunk in range(line.chunks)):
                return self.rank_of(self.pipeline, stage)
        raise ValueError(f"there is no virtual stage {virtual_stage}")

    def order(self) -> Order:
        """Return what this rank runs in one iteration, in its schedule's order."""
        return self.line.orders()[self.stage]

    @classmethod
    def from_environment(cls, environment: Mapping[str, str] | None = None) -> Placement:
        """Read the operator's variables and the device plugin's.

        Raises:
            SimulatorError: one is missing or makes no sense; the text names it.
        """
        given = os.environ if environment is None else environment
        stages, pipelines = _number(given, names.ENV_STAGES), _number(given, names.ENV_PIPELINES)
        tensor_parallel = _number(given, names.ENV_TENSOR_PARALLEL, "1")
        ranks = stages * pipelines * tensor_parallel
        rank = _number(given, names.ENV_RANK, least=0)
        if rank >= ranks:
            raise SimulatorError(f"{names.ENV_RANK} is {rank}, but there are {ranks} ranks")
        line = _line(given, stages)
        gpu = given.get(names.ENV_GPU_UUID) or given.get(names.ENV_VISIBLE_DEVICES, "")
        if not gpu.startswith("GPU-") or "," in gpu:
            raise SimulatorError(f"{names.ENV_VISIBLE_DEVICES} must name one GPU: request {names.GPU_RESOURCE}: 1")
        return cls(
            rank=rank,
            pipelines=pipelines,
            tensor_parallel=tensor_parallel,
            line=line,
            gpu_uuid=gpu,
            addresses=_addresses(given, ranks),
        )


def _line(given: Mapping[str, str], stages: int) -> Pipeline:
    """Return the pipeline of the schedule that the environment names, or of the orders that it gives."""
    try:
        schedule = JobSchedule(given.get(names.ENV_SCHEDULE, JobSchedule.ONE_FORWARD_ONE_BACKWARD.value))
    except ValueError:
        known = ", ".join(each.value for each in JobSchedule)
        raise SimulatorError(f"{names.ENV_SCHEDULE} must be one of {known}") from None
    if schedule is JobSchedule.RECORDED:
        return _given(given, stages)
    microbatches, chunks = _number(given, names.ENV_MICROBATCHES), _number(given, names.ENV_CHUNKS, "1")
    try:
        line = Pipeline(stages, microbatches, schedule.planned, chunks=chunks)
        line.orders()
    except PipelineError as error:
        raise SimulatorError(f"{names.ENV_SCHEDULE}: {error}") from None
    return line


def _given(given: Mapping[str, str], stages: int) -> Pipeline:
    text = given.get(ENV_ORDERS, "")
    try:
        line = recorded_pipeline(PipelineOrders.model_validate_json(text))
    except ValidationError as error:
        raise SimulatorError(
            f"{names.ENV_SCHEDULE} {JobSchedule.RECORDED.value} needs orders in {ENV_ORDERS}: {first_problem(error)}"
        ) from None
    problem = problem_of(line) if line.stages == stages else f"they are of {line.stages} stages, not {stages}"
    if problem:
        raise SimulatorError(f"{ENV_ORDERS}: {problem}")
    return line


def _addresses(given: Mapping[str, str], ranks: int) -> tuple[tuple[str, int], ...]:
    listed = given.get(ENV_PEER_ADDRESSES, "")
    if listed:
        pairs = [each.rpartition(":") for each in listed.split(",")]
        if len(pairs) != ranks or not all(port.isdigit() for _, _, port in pairs):
            raise SimulatorError(f"{ENV_PEER_ADDRESSES} must name host:port of each of {ranks} ranks")
        return tuple((host, int(port)) for host, _, port in pairs)
    coordinator = given.get(names.ENV_COORDINATOR, "")
    host, dot, domain = coordinator.partition(".")
    if not host.endswith("-0"):
        raise SimulatorError(f"{names.ENV_COORDINATOR} must be rank 0's host name, such as JOB-0.JOB")
    return tuple((f"{host[:-1]}{rank}{dot}{domain}", PORT) for rank in range(ranks))


def _number(given: Mapping[str, str], name: str, default: str = "", least: int = 1) -> int:
    value = given.get(name, default)
    if not value.isdigit() or int(value) < least:
        raise SimulatorError(f"{name} must be a whole number from {least}, not {value[:40]!r}")
    return int(value)
