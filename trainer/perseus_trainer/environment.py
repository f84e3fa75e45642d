"""Who this process is in the training job, read from the ``PERSEUS_*`` variables. It knows no socket."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass

from perseus_api import names
from perseus_api.ranks import MANY_PIPELINES, RankOrder, RankShape


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
        """Read the variables; the rank is the operator's, or else the one that torchrun numbers (``RANK``).

        Raises:
            EnvironmentProblem: a variable is missing or out of range.
        """
        given = os.environ if environment is None else environment
        name = names.ENV_RANK if given.get(names.ENV_RANK) else names.ENV_TORCH_RANK
        if not given.get(name):
            raise EnvironmentProblem(f"{names.ENV_RANK} is not set: set it, or start the script with torchrun")
        shape, rank = _shape(given), _number(given, name, 0)
        try:
            pipeline, stage, tensor_rank = shape.place(rank)
        except ValueError as error:
            raise EnvironmentProblem(f"{name}: {error}") from None
        return cls(
            namespace=_text(given, names.ENV_NAMESPACE),
            job=_text(given, names.ENV_JOB),
            pipeline=pipeline,
            stage=stage,
            tensor_rank=tensor_rank,
            gpu_uuid=_gpu(given),
        )


def _shape(given: Mapping[str, str]) -> RankShape:
    order = given.get(names.ENV_RANK_ORDER) or RankOrder.PIPELINE_STAGE_TENSOR.value
    if order not in set(RankOrder):
        known = ", ".join(each.value for each in RankOrder)
        raise EnvironmentProblem(f"{names.ENV_RANK_ORDER} must be one of {known}, not {order[:40]!r}")
    return RankShape(
        _number(given, names.ENV_STAGES, 1),
        _number(given, names.ENV_PIPELINES, 1, default=MANY_PIPELINES),
        _number(given, names.ENV_TENSOR_PARALLEL, 1, default=1),
        RankOrder(order),
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
    """Return the GPU of this process: the one named, the only one, or the one of its local rank."""
    named = given.get(names.ENV_GPU_UUID, "")
    if named:
        return named
    visible = [each.strip() for each in given.get(names.ENV_VISIBLE_DEVICES, "").split(",")]
    if not all(each.startswith("GPU-") for each in visible):
        return ""
    local = given.get(names.ENV_TORCH_LOCAL_RANK, "0" if len(visible) == 1 else "")
    return visible[int(local)] if local.isdecimal() and int(local) < len(visible) else ""
