"""The objects that scenarios apply: a profile, a small job, and the frontier that an optimisation pod would find."""

from __future__ import annotations

import base64
import functools
import json
from typing import Any

from perseus_api import names
from perseus_api.frontier import Frontier
from perseus_operator.profiles import profile_checksum
from perseus_planner import Pipeline, frontier
from perseus_simulator.testing import SPLIT, WHOLE, example_profile

Document = dict[str, Any]
STAGES, PIPELINES, MICROBATCHES = 2, 2, 4
HEADER = json.dumps({"blockingPowerWatts": 80.0})


@functools.cache
def csv_of(stages: int = STAGES, seconds: float = 0.05, split: bool = False) -> str:
    """The example profile as CSV, with a forward of so many seconds at full clock, and backwards in one part or two."""
    profile = example_profile(stages, seconds, SPLIT if split else WHOLE)
    return "stage,instruction,frequency,time,energy\n" + "".join(
        f"{stage},{instruction.value},{each.frequency_megahertz},{each.time_seconds!r},{each.energy_joules!r}\n"
        for (stage, instruction), rows in profile.measurements.items()
        for each in rows
    )


@functools.cache
def frontier_of(
    stages: int = STAGES, microbatches: int = MICROBATCHES, seconds: float = 0.05, tensor_parallel: int = 1
) -> Frontier:
    """The frontier of such a profile."""
    checksum = profile_checksum(csv_of(stages, seconds), HEADER)
    profile = example_profile(stages, seconds)
    pipeline = Pipeline(stages, microbatches, tensor_parallel=tensor_parallel)
    return frontier(profile, pipeline, plans=20, profile_checksum=checksum)


@functools.cache
def frontier_data(
    stages: int = STAGES, microbatches: int = MICROBATCHES, seconds: float = 0.05, tensor_parallel: int = 1
) -> dict[str, str]:
    """The binaryData of such a frontier's ConfigMap."""
    found = frontier_of(stages, microbatches, seconds, tensor_parallel)
    return {names.FRONTIER_KEY: base64.b64encode(found.encode()).decode()}


def profile_config_map(
    name: str = "profile", seconds: float = 0.05, stages: int = STAGES, split: bool = False, **replaced: str
) -> Document:
    """A valid profile."""
    data = {names.PROFILE_CSV_KEY: csv_of(stages, seconds, split), names.PROFILE_HEADER_KEY: HEADER, **replaced}
    return {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name}, "data": data}


def perseus_job(name: str = "train", gpus: int = 1, **spec: Any) -> Document:
    """A job of 2 stages x 2 pipelines, unless told otherwise."""
    container = {"name": "trainer", "image": "trainer", "resources": {"limits": {names.GPU_RESOURCE: gpus}}}
    return {
        "apiVersion": names.API_VERSION,
        "kind": names.KIND,
        "metadata": {"name": name},
        "spec": {
            "parallelism": {"stages": STAGES, "pipelines": PIPELINES, "microbatches": MICROBATCHES},
            "profiling": {"profileRef": {"name": "profile"}},
            "template": {"spec": {"containers": [container]}},
            **spec,
        },
    }


def job_path(namespace: str, name: str = "") -> str:
    """Return the API path of a PerseusJob, or of all of a namespace."""
    root = f"/apis/{names.API_VERSION}" + (f"/namespaces/{namespace}" if namespace else "") + f"/{names.PLURAL}"
    return f"{root}/{name}" if name else root


def core_path(plural: str, namespace: str, name: str = "") -> str:
    """Return the API path of something of the core group."""
    root = f"/api/v1/namespaces/{namespace}/{plural}"
    return f"{root}/{name}" if name else root


def batch_path(namespace: str, name: str = "") -> str:
    """Return the API path of a batch Job."""
    root = f"/apis/batch/v1/namespaces/{namespace}/jobs"
    return f"{root}/{name}" if name else root
