"""Schedules that a job names: what its optimisation pod is told, what the plan says, what a profile must hold."""

from __future__ import annotations

import base64
import json
import sys
from pathlib import Path
from typing import Any

import pytest
from perseus_api import names
from perseus_api.frontier import Frontier
from perseus_api.job import PerseusJobSpec
from perseus_api.schedules import JobSchedule, Schedule
from perseus_operator.children import ENV_CHECKSUM, ENV_SHAPE
from perseus_operator.optimiser.main import compute
from perseus_operator.profiles import ProfileProblem, load_profile
from perseus_operator.shapes import pipeline_of_job

sys.path.insert(0, str(Path(__file__).parent))
from bare import BareCluster, OperatorProcess, eventually, perseus_job, profile_config_map

CHUNKS = {"Interleaved1F1B": 2, "ZBH1": 2, "ZBV": 2}
SPLIT_BACKWARD = ("ZBH1", "ZBV")
NAMED = [each.value for each in JobSchedule if each.value not in ("EarlyRecompute1F1B", "Recorded")]


def parallelism(schedule: str) -> dict[str, int]:
    return {"stages": 2, "pipelines": 2, "microbatches": 4, "chunks": CHUNKS.get(schedule, 1)}


def profile(schedule: str, stages: int | None = None) -> dict[str, Any]:
    count = 2 * CHUNKS.get(schedule, 1) if stages is None else stages
    return profile_config_map(stages=count, split=schedule in SPLIT_BACKWARD)


def spec(schedule: str) -> PerseusJobSpec:
    job = perseus_job(parallelism=parallelism(schedule), schedule=schedule)
    return PerseusJobSpec.parse(job["spec"])


def computed(bare: BareCluster, home: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> Frontier:
    """Do what the optimisation pod of the job does, with the environment and the profile that it is given."""
    jobs = json.loads(bare.kubectl("get", "jobs", "-n", home, "-o", "json"))["items"]
    (optimiser,) = [each for each in jobs if each["metadata"]["name"].startswith("train-optimiser")]
    environment = optimiser["spec"]["template"]["spec"]["containers"][0]["env"]
    for each in environment:
        if each["name"] in (ENV_SHAPE, ENV_CHECKSUM):
            monkeypatch.setenv(each["name"], each["value"])
    for key, text in (bare.find("configmap", home, "profile") or {})["data"].items():
        (folder / key).write_text(text)
    return compute(folder)


@pytest.mark.cluster
@pytest.mark.parametrize("schedule", ["Interleaved1F1B", "ZBV"])
def test_a_job_that_names_a_schedule_with_chunks_gets_its_plan(
    schedule: str,
    bare: BareCluster,
    operator: OperatorProcess,
    home: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    bare.apply(home, profile(schedule), perseus_job(parallelism=parallelism(schedule), schedule=schedule))
    eventually("the frontier's ConfigMap", lambda: bare.find("configmap", home, "train-frontier"))
    eventually("its Job", lambda: "train-optimiser" in bare.kubectl("get", "jobs", "-n", home, "-o", "name"))
    made = computed(bare, home, tmp_path, monkeypatch)
    data = {names.FRONTIER_KEY: base64.b64encode(made.encode()).decode()}
    patch = json.dumps({"binaryData": data})
    bare.kubectl("patch", "configmap", "train-frontier", "-n", home, "--type=merge", "-p", patch)
    eventually("the plan", lambda: bare.plan(home, "train"))
    plan = bare.plan(home, "train")
    assert plan is not None
    orders = pipeline_of_job(spec(schedule)).orders()
    assert plan.order == tuple("".join(step.instruction.code for step in order) for order in orders)
    assert plan.chunks == tuple(tuple(step.chunk for step in order) for order in orders)
    assert any("F1" in table for table in plan.stage_seconds), "what a chunk takes is told apart"
    container = (bare.find("job", home, "train") or {})["spec"]["template"]["spec"]["containers"][0]
    told = {each["name"]: each.get("value") for each in container["env"]}
    assert (told[names.ENV_SCHEDULE], told[names.ENV_CHUNKS]) == (schedule, "2")


@pytest.mark.parametrize("schedule", NAMED)
def test_every_named_schedule_is_planned_from_a_profile_of_its_virtual_stages(schedule: str) -> None:
    found = load_profile(spec(schedule), "profile", profile(schedule))
    pipeline = pipeline_of_job(spec(schedule))
    assert found.profile.stages == pipeline.virtual_stages == 2 * CHUNKS.get(schedule, 1)
    assert pipeline.schedule is Schedule(schedule)


def test_a_profile_of_the_ranks_alone_lacks_the_second_chunks() -> None:
    with pytest.raises(ProfileProblem, match=r"4 virtual stages \(2 stages x 2 chunks\).* has 2 stages"):
        load_profile(spec("Interleaved1F1B"), "profile", profile("Interleaved1F1B", stages=2))


@pytest.mark.parametrize(
    ("schedule", "given", "missing"),
    [
        ("ZBV", "Interleaved1F1B", "backward_input of stage 0, which spec.schedule ZBV runs"),
        ("EarlyRecompute1F1B", "1F1B", "recompute of stage 0, which spec.schedule EarlyRecompute1F1B runs"),
    ],
)
def test_a_profile_of_another_schedule_is_refused_by_what_it_lacks(schedule: str, given: str, missing: str) -> None:
    with pytest.raises(ProfileProblem, match=missing):
        load_profile(spec(schedule), "profile", profile(given))
