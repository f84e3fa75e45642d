"""Who this process is in the training job, read from the ``PERSEUS_*`` variables. It knows no socket."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass

from perseus_api import names


class EnvironmentProblem(ValueError):
    """A variable is missing or no number; the text names it."""


@dataclass(frozen=True, slots=True)
class Rank:
    """One training process.

    Attributes:
        namespace: of the PerseusJob.
        job: name of the PerseusJob.
        pipeline: data-parallel index.
        stage: pipeline stage.
        tensor_rank: rank within the stage.
        gpu_uuid: UUID of its GPU; empty leaves it to the agent, if the pod owns only one.
    """

    namespace: str
    job: str
    pipeline: int
    stage: int
    tensor_rank: int
    gpu_uuid: str = ""

    @classmethod
    def from_environment(cls, environment: Mapping[str, str] | None = None) -> Rank:
        """Read the variables; rank = (pipeline * stages + stage) * tensor parallel degree + tensor rank.

        Raises:
            EnvironmentProblem: a variable is missing or out of range.
        """
        given = os.environ if environment is None else environment
        rank = _number(given, names.ENV_RANK, 0)
        stages = _number(given, names.ENV_STAGES, 1)
        tensor_parallel = _number(given, names.ENV_TENSOR_PARALLEL, 1, default=1)
        stage_index, tensor_rank = divmod(rank, tensor_parallel)
        pipeline, stage = divmod(stage_index, stages)
        return cls(
            namespace=_text(given, names.ENV_NAMESPACE),
            job=_text(given, names.ENV_JOB),
            pipeline=pipeline,
            stage=stage,
            tensor_rank=tensor_rank,
            gpu_uuid=_gpu(given),
        )


def _text(given: Mapping[str, str], name: str) -> str:
    value = given.get(name, "")
    if not value:
        raise EnvironmentProblem(f"{name} is not set: the operator sets it in the training pods")
    return value


def _number(given: Mapping[str, str], name: str, least: int, default: int | None = None) -> int:
    value = given.get(name, "")
    if not value and default is not None:
        return default
    try:
        number = int(value)
    except ValueError:
        raise EnvironmentProblem(f"{name} must be a whole number, not {value[:40]!r}") from None
    if number < least:
        raise EnvironmentProblem(f"{name} must be at least {least}, not {number}")
    return number


def _gpu(given: Mapping[str, str]) -> str:
    named = given.get(names.ENV_GPU_UUID, "")
    if named:
        return named
    visible = given.get(names.ENV_VISIBLE_DEVICES, "")
    return visible if visible.startswith("GPU-") and "," not in visible else ""
