"""spec.schedule Recorded with real parts: API server, the operator as a process, agents' pages over HTTP.

The job trains unlocked until its order is known; then that is planned, kept over restarts, and recorded anew when the
ranks run another one.
"""

from __future__ import annotations

import base64
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from perseus_api import names
from perseus_api.frontier import Frontier
from perseus_api.instructions import Instruction
from perseus_api.measurements import RankOrder
from perseus_api.messages import ChunkPlacement
from perseus_api.orders import PipelineOrders
from perseus_api.profile import parse_profile
from perseus_operator.children import ENV_CHECKSUM, ENV_SHAPE, ORDERS_FOLDER
from perseus_operator.optimiser.main import compute
from perseus_operator.steps.order import ANNOTATION_RECORDED
from perseus_planner import Order, Step

sys.path.insert(0, str(Path(__file__).parent))
from bare import BareCluster, OperatorProcess, eventually, perseus_job, profile_config_map
from measured import ITERATION_SECONDS, Agents

pytestmark = pytest.mark.cluster
FORWARD, BACKWARD = Instruction.FORWARD, Instruction.BACKWARD


def one_at_a_time(microbatches: int) -> Order:
    """A schedule that the planner has no name for: each microbatch through both chunks and back, then the next."""
    turn = ((FORWARD, 0), (FORWARD, 1), (BACKWARD, 1), (BACKWARD, 0))
    return tuple(Step(each, microbatch, chunk) for microbatch in range(microbatches) for each, chunk in turn)


def ran(order: Order) -> RankOrder:
    return RankOrder(
        letters="".join(step.instruction.code for step in order),
        microbatches=tuple(step.microbatch for step in order),
        chunks=tuple(step.chunk for step in order),
        placement=ChunkPlacement.LOOP,
        repeats=5,
    )


def recorded_job(**spec: Any) -> dict[str, Any]:
    return perseus_job(schedule="Recorded", accounting={"baselineIterations": 1}, **spec)


def told(bare: BareCluster, home: str, condition: str) -> tuple[str, str]:
    found = bare.conditions(home, "train").get(condition, {})
    return found.get("reason", ""), found.get("message", "")


def orders(bare: BareCluster, home: str) -> PipelineOrders | None:
    found = bare.find("configmap", home, "train-orders")
    return PipelineOrders.decode(base64.b64decode(found["binaryData"][names.ORDERS_KEY])) if found else None


def optimisers(bare: BareCluster, home: str) -> list[dict[str, Any]]:
    jobs = json.loads(bare.kubectl("get", "jobs", "-n", home, "-o", "json"))["items"]
    found = [each for each in jobs if each["metadata"]["name"].startswith("train-optimiser")]
    return sorted(found, key=lambda each: str(each["metadata"]["creationTimestamp"]))


def optimise(
    bare: BareCluster, home: str, optimiser: dict[str, Any], folder: Path, patch: pytest.MonkeyPatch
) -> Frontier:
    """Do what an optimisation pod does: read what is mounted and set, compute, and fill the frontier's ConfigMap."""
    pod = optimiser["spec"]["template"]["spec"]
    for each in pod["containers"][0]["env"]:
        if each["name"] in (ENV_SHAPE, ENV_CHECKSUM):
            patch.setenv(each["name"], each["value"])
    volumes = {each["name"]: each.get("configMap", {}).get("name") for each in pod["volumes"]}
    for mount in pod["containers"][0]["volumeMounts"]:
        found = bare.find("configmap", home, volumes[mount["name"]] or "none")
        target = folder / mount["mountPath"].strip("/")
        target.mkdir(exist_ok=True)
        for key, text in ((found or {}).get("data") or {}).items():
            (target / key).write_text(text)
        for key, text in ((found or {}).get("binaryData") or {}).items():
            (target / key).write_bytes(base64.b64decode(text))
    made = compute(folder / "profile", folder / ORDERS_FOLDER.strip("/"))
    data = {names.FRONTIER_KEY: base64.b64encode(made.encode()).decode()}
    change = json.dumps({"binaryData": data})
    bare.kubectl("patch", "configmap", "train-frontier", "-n", home, "--type=merge", "-p", change)
    return made


def test_a_schedule_without_a_name_is_seen_planned_and_seen_to_change(
    bare: BareCluster,
    operator: OperatorProcess,
    home: str,
    agents: Callable[[str], Agents],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    bare.apply(home, profile_config_map(stages=4), recorded_job())
    eventually("it waits for the order", lambda: told(bare, home, "FrontierReady")[0] == "Recording")
    assert bare.find("job", home, "train"), "the job trains meanwhile"
    assert told(bare, home, "ProfileValid")[0] == "ProfileLoaded"
    node = agents("train")
    node.train()
    eventually("it says who", lambda: "pipeline 0 stage 0 has not run" in told(bare, home, "FrontierReady")[1], 60)
    assert bare.plan(home, "train") is None, "unlocked"
    # One pipeline runs something else: nobody's order is taken.
    node.orders = [ran(one_at_a_time(4))] * 2
    node.strangers = {(1, 1): ran(one_at_a_time(3))}
    eventually("it says who differs", lambda: told(bare, home, "FrontierReady")[0] == "OrdersDiffer", 60)
    assert "pipeline 1 stage 1 runs another order than pipeline 0 stage 1" in told(bare, home, "FrontierReady")[1]
    assert orders(bare, home) is None
    node.strangers = {}
    eventually("the order", lambda: orders(bare, home), 60)
    eventually("the optimisation", lambda: optimisers(bare, home))
    reached = (time.time() - node.begun) / ITERATION_SECONDS
    first = optimise(bare, home, optimisers(bare, home)[0], tmp_path, monkeypatch)
    assert (first.shape.chunks, first.shape.microbatches) == (2, 4)
    eventually("the plan", lambda: bare.plan(home, "train"))
    plan = bare.plan(home, "train")
    assert plan is not None
    assert plan.first_iteration > reached, "training is beyond its baseline: all agents must have it in time"
    assert plan.order == ("FFBB" * 4,) * 2
    assert plan.chunks == ((0, 1, 1, 0) * 4,) * 2
    seen = "(4 microbatches, 2 chunks) that the ranks were seen to run"
    eventually("the status follows the plan", lambda: seen in told(bare, home, "FrontierReady")[1])
    # An operator that starts anew reads it, agents or not.
    node.orders = []
    operator.kill()
    operator.start()
    eventually("it knows", lambda: told(bare, home, "FrontierReady")[0] == "Optimised")
    assert len(optimisers(bare, home)) == 1
    # Another number of microbatches: not at once, then anew.
    node.orders = [ran(one_at_a_time(6))] * 2
    stray = "run another order by now"
    eventually("it is seen", lambda: stray in told(bare, home, "FrontierReady")[1], 90)
    time.sleep(3)  # Visits that the status's own change asked for.
    assert stray in told(bare, home, "FrontierReady")[1], "it stays said until it is planned"
    assert bare.plan(home, "train") == plan
    past = json.dumps({"metadata": {"annotations": {ANNOTATION_RECORDED: "2026-01-01T00:00:00Z"}}})
    bare.kubectl("patch", "configmap", "train-orders", "-n", home, "--type=merge", "-p", past)
    eventually("the new order", lambda: (orders(bare, home) or PipelineOrders).order == ("FFBB" * 6,) * 2, 90)
    eventually("its optimisation", lambda: len(optimisers(bare, home)) == 2)
    newest = next(each for each in optimisers(bare, home) if '"microbatches": 6' in json.dumps(each).replace("\\", ""))
    second = optimise(bare, home, newest, tmp_path, monkeypatch)
    assert second.profile_checksum != first.profile_checksum
    eventually("the new plan", lambda: (bare.plan(home, "train") or plan).generation == 2)
    eventually("nothing more is said of it", lambda: stray not in told(bare, home, "FrontierReady")[1])
    assert (bare.plan(home, "train") or plan).order == ("FFBB" * 6,) * 2


def test_a_recorded_order_that_the_profile_does_not_hold_is_said(
    bare: BareCluster, operator: OperatorProcess, home: str, agents: Callable[[str], Agents]
) -> None:
    bare.apply(home, profile_config_map(stages=2), recorded_job())
    eventually("the job", lambda: bare.find("job", home, "train"))
    node = agents("train")
    node.orders = [ran(one_at_a_time(4))] * 2
    node.train()
    eventually("it is said", lambda: told(bare, home, "ProfileValid")[0] == "ProfileTooSmall", 60)
    assert "the job has 4 virtual stages (2 stages x 2 chunks)" in told(bare, home, "ProfileValid")[1]


def test_a_recorded_order_is_measured_by_virtual_stage_while_the_job_trains(
    bare: BareCluster, operator: OperatorProcess, home: str, agents: Callable[[str], Agents]
) -> None:
    job = recorded_job()
    del job["spec"]["profiling"]
    job["metadata"]["labels"] = {names.LABEL_MODEL: "tiny"}
    bare.apply(home, job)
    eventually("the job", lambda: bare.find("job", home, "train"))
    node = agents("train")
    node.train()
    eventually("it waits", lambda: told(bare, home, "ProfileValid")[0] == "Recording", 60)
    node.orders = [ran(one_at_a_time(4))] * 2
    eventually("a sweep", lambda: (plan := bare.plan(home, "train")) is not None and plan.sweep is not None, 60)
    sweep = bare.plan(home, "train")
    assert sweep is not None
    assert sweep.chunks == ((0, 1, 1, 0) * 4,) * 2
    eventually("the profile", lambda: bare.find("configmap", home, "train-profile"), 120)
    texts = (bare.find("configmap", home, "train-profile") or {})["data"]
    found = parse_profile(texts[names.PROFILE_CSV_KEY], texts[names.PROFILE_HEADER_KEY])
    assert set(found.measurements) == {(stage, each) for stage in range(4) for each in (FORWARD, BACKWARD)}
    known = orders(bare, home)
    assert known is not None
    assert (found.header.chunks, found.header.schedule) == (2, f"Recorded:{known.digest}")
    cached = bare.kubectl("get", "configmap", "-n", home, "-l", f"{names.LABEL_MODEL}=tiny", "-o", "name").split()
    assert len(cached) == 1, "found again by the same order only"
