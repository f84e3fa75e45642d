"""The PerseusJob as programs see it: the spec that the API server has already checked and filled with defaults.

The CRD (``crds/perseusjobs.perseus.energy.yaml``) is the contract with users; this model is the same contract for code,
with the same names, bounds and defaults. A test holds the two together. It knows nothing of the cluster.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from pydantic.alias_generators import to_camel

from perseus_api.errors import DocumentError
from perseus_api.ranks import RankOrder, RankShape
from perseus_api.schedules import JobSchedule

# Model chunks of each rank that a schedule may have; those that are not here may have any number.
_CHUNKS = {
    JobSchedule.ONE_FORWARD_ONE_BACKWARD: range(1, 2),
    JobSchedule.GPIPE: range(1, 2),
    JobSchedule.EARLY_RECOMPUTE_1F1B: range(1, 2),
    JobSchedule.INTERLEAVED_1F1B: range(2, 257),
    JobSchedule.ZBV: range(2, 3),
}
_IN_ROUNDS = (JobSchedule.INTERLEAVED_1F1B, JobSchedule.ZB_H1)


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, alias_generator=to_camel, populate_by_name=True)


class ObjectiveType(StrEnum):
    """What a plan is chosen for."""

    NO_SLOWDOWN = "NoSlowdown"
    MAX_SLOWDOWN = "MaxSlowdown"
    MINIMUM_ENERGY = "MinimumEnergy"


class Parallelism(_Part):
    """How the model is cut; stages x pipelines x tensor parallel degree ranks of one GPU each.

    `microbatches` and `chunks` say what training is to run; with the schedule RECORDED what it was seen to run counts.
    """

    stages: Annotated[int, Field(ge=1, le=256)]
    pipelines: Annotated[int, Field(ge=1, le=65_536)]
    tensor_parallel: Annotated[int, Field(ge=1, le=1024)] = 1
    microbatches: Annotated[int, Field(ge=1, le=4096)]
    chunks: Annotated[int, Field(ge=1, le=256)] = 1
    rank_order: RankOrder = RankOrder.PIPELINE_STAGE_TENSOR

    @property
    def ranks(self) -> int:
        """Number of ranks, which is the number of GPUs."""
        return self.shape.ranks

    @property
    def shape(self) -> RankShape:
        """How ranks are numbered."""
        return RankShape(self.stages, self.pipelines, self.tensor_parallel, self.rank_order)


class Objective(_Part):
    """What the plan is chosen for; `max_slowdown_percent` belongs to MAX_SLOWDOWN alone."""

    type: ObjectiveType = ObjectiveType.NO_SLOWDOWN
    max_slowdown_percent: Annotated[int, Field(ge=1, le=100)] | None = None

    @model_validator(mode="after")
    def _consistent(self) -> Objective:
        if (self.type is ObjectiveType.MAX_SLOWDOWN) != (self.max_slowdown_percent is not None):
            raise ValueError("spec.objective.maxSlowdownPercent must be set for the type MaxSlowdown, and only for it")
        return self


class ProfileReference(_Part):
    """Names a ConfigMap beside the job."""

    name: Annotated[str, Field(min_length=1, max_length=253)]


class RunMode(StrEnum):
    """What happens with plans."""

    TRAIN = "Train"
    DRY_RUN = "DryRun"


class ProfilingMode(StrEnum):
    """Where a profile is measured that is not given."""

    IN_JOB = "InJob"
    PODS = "Pods"


class SweepType(StrEnum):
    """Which clocks are measured."""

    ADAPTIVE = "Adaptive"
    FULL = "Full"


class CacheUse(StrEnum):
    """Whether measured profiles are kept and found again."""

    USE = "Use"
    IGNORE = "Ignore"


class DriftResponse(StrEnum):
    """What is done where instructions have drifted from the profile."""

    CORRECT = "Correct"
    MEASURE = "Measure"


class Profiling(_Part):
    """Where the times and energies of the instructions come from: the reference, else the cache, else measured.

    Where instructions drift from the profile it is corrected, or measured anew, at most `max_repeats` times.
    """

    profile_ref: ProfileReference | None = None
    mode: ProfilingMode = ProfilingMode.IN_JOB
    sweep: SweepType = SweepType.ADAPTIVE
    max_slowdown_percent: Annotated[int, Field(ge=1, le=100)] = 10
    cache: CacheUse = CacheUse.USE
    on_drift: DriftResponse = DriftResponse.CORRECT
    max_repeats: Annotated[int, Field(ge=1, le=100)] = 3


class StragglerPolicy(_Part):
    """When a slow pipeline lets the others slow down; percents of the planned pipeline time.

    `window_iterations` are looked at for a small slowdown in noise, fewer where they suffice. Nobody is made slower
    twice within `dwell_seconds`. Without measurements the last decision holds for `hold_seconds`. `query` is PromQL
    that gives slowdowns by the label `pipeline`. Where instructions of all pipelines take more than `drift_percent`
    longer or shorter than the profile says, the frontier is made anew from corrected times; 0: never.
    """

    enabled: bool = True
    enter_percent: Annotated[int, Field(ge=1, le=100)] = 3
    leave_percent: Annotated[int, Field(ge=0, le=99)] = 2
    window_iterations: Annotated[int, Field(ge=1, le=100)] = 15
    dwell_seconds: Annotated[int, Field(ge=0, le=3600)] = 20
    hold_seconds: Annotated[int, Field(ge=5, le=86_400)] = 120
    query: Annotated[str, Field(min_length=1, max_length=2000)] | None = None
    drift_percent: Annotated[int, Field(ge=0, le=100)] = 5

    @model_validator(mode="after")
    def _consistent(self) -> StragglerPolicy:
        if self.leave_percent >= self.enter_percent:
            raise ValueError("spec.straggler.leavePercent must be below spec.straggler.enterPercent")
        return self


class Accounting(_Part):
    """How savings are measured; 0 baseline iterations means a predicted baseline."""

    baseline_iterations: Annotated[int, Field(ge=0, le=1000)] = 10


class WorkloadKind(StrEnum):
    """What `spec.workloadRef` may name."""

    JOB = "Job"
    STATEFUL_SET = "StatefulSet"
    JOB_SET = "JobSet"
    TRAIN_JOB = "TrainJob"
    PYTORCH_JOB = "PyTorchJob"


class WorkloadReference(_Part):
    """Names a workload that exists beside the job."""

    kind: WorkloadKind
    name: Annotated[str, Field(min_length=1, max_length=253)]


class PerseusJobSpec(_Part):
    """The whole spec: either `template`, a PodTemplateSpec as a plain dictionary, or `workload_ref`."""

    suspend: bool = False
    mode: RunMode = RunMode.TRAIN
    parallelism: Parallelism
    schedule: JobSchedule = JobSchedule.ONE_FORWARD_ONE_BACKWARD
    objective: Objective = Objective()
    profiling: Profiling = Profiling()
    straggler: StragglerPolicy = StragglerPolicy()
    accounting: Accounting = Accounting()
    ttl_seconds_after_finished: Annotated[int, Field(ge=0, le=31_536_000)] | None = None
    template: dict[str, Any] | None = None
    workload_ref: WorkloadReference | None = None

    @model_validator(mode="after")
    def _one_workload(self) -> PerseusJobSpec:
        if (self.template is None) == (self.workload_ref is None):
            raise ValueError("spec needs either a template or a workloadRef; set one of them")
        return self

    @model_validator(mode="after")
    def _drift_is_looked_for(self) -> PerseusJobSpec:
        if self.profiling.on_drift is DriftResponse.MEASURE and self.straggler.drift_percent == 0:
            raise ValueError("spec.profiling.onDrift Measure needs a spec.straggler.driftPercent above 0")
        return self

    @model_validator(mode="after")
    def _schedule_fits(self) -> PerseusJobSpec:
        chunks, schedule = self.parallelism.chunks, self.schedule
        if chunks not in _CHUNKS.get(schedule, range(1, 257)):
            raise ValueError(
                "spec.parallelism.chunks must be 2 or more for spec.schedule Interleaved1F1B, 2 for ZBV, and 1 for "
                "1F1B, GPipe and EarlyRecompute1F1B"
            )
        if self.parallelism.stages * chunks > 256:
            raise ValueError("spec.parallelism cuts the model into more than 256 parts (stages x chunks)")
        rounds = self.parallelism.microbatches // self.parallelism.stages
        if schedule in _IN_ROUNDS and chunks > 1 and rounds and self.parallelism.microbatches % rounds:
            raise ValueError(
                "spec.parallelism.microbatches must divide into equal rounds of spec.parallelism.stages or a few more; "
                "use a multiple of the stages"
            )
        return self

    @classmethod
    def parse(cls, spec: object) -> PerseusJobSpec:
        """Load the spec of an object read from the API.

        Raises:
            DocumentError: the spec breaks a rule that the CRD's schema should have refused; the text names the field.
        """
        try:
            return cls.model_validate(spec)
        except ValidationError as error:
            first = error.errors()[0]
            place = ".".join(["spec", *(str(part) for part in first["loc"])])
            raise DocumentError(f"{place}: {first['msg']}; correct it and apply the job again") from None
