"""Whole runs of what the demonstration does not show: a schedule without a name, model chunks, profiling pods.

From `kubectl apply` without a profile to the plan on every GPU and back to nothing. The three train beside each other
on the node's 16 GPUs. Energies are differences of the agents' counters, which are NVML's underneath.
"""

from __future__ import annotations

import base64
import json
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from perseus_api import names
from perseus_api.orders import PipelineOrders
from perseus_api.plan import Plan
from perseus_api.profile import Profile, parse_profile
from perseus_simulator.workload.placement import ENV_ORDERS
from prometheus_client.parser import text_string_to_metric_families

from testbed.installation import AGENT_PORT, SYSTEM_NAMESPACE, Installation

sys.path.insert(0, str(Path(__file__).parent))
from product import NAMESPACE, perseus_job, wait_until

pytestmark = pytest.mark.cluster
STAGES, MICROBATCHES = 2, 4
PLANNED_ITERATIONS = 8
COUNTERS = "perseus_iterations_total", "perseus_gpu_energy_joules_total", "perseus_gpu_baseline_joules_total"
TIMEOUT_SECONDS, OBJECTS_TIMEOUT_SECONDS, LOCKS_TIMEOUT_SECONDS = 300.0, 60.0, 5.0
# Every microbatch forwards, then backwards from the last one to the first.
LAST_FIRST = PipelineOrders(
    order=("FFFFBBBB",) * STAGES, microbatches=((0, 1, 2, 3, 3, 2, 1, 0),) * STAGES, chunks=(), v_shape=False
)
RECORDED, CHUNKED, PODS = "recorded", "chunked", "pods"
SPECS: dict[str, dict[str, Any]] = {
    RECORDED: {"schedule": "Recorded", "parallelism": {"pipelines": 2}},
    CHUNKED: {"schedule": "Interleaved1F1B", "parallelism": {"pipelines": 3, "chunks": 2, "microbatches": 2}},
    PODS: {"parallelism": {"pipelines": 1, "tensorParallel": 3}, "profiling": {"mode": "Pods"}},
}


@dataclass(frozen=True)
class Counted:
    """A job's counters at one moment, of all ranks together."""

    iterations: float
    joules: float
    baseline_joules: float


@dataclass(frozen=True)
class WholeRun:
    """What a run came to.

    Attributes:
        name: of the job.
        status: of the PerseusJob while the plan held.
        plan: that held.
        profile: that was measured.
        orders: that were recorded, if they were.
        saved: energy saved by the plan, over what its iterations would have used unlocked.
    """

    name: str
    status: dict[str, Any]
    plan: Plan
    profile: Profile
    orders: PipelineOrders | None
    saved: float


def job(name: str, tag: str) -> dict[str, Any]:
    """A job without a profile."""
    spec = dict(SPECS[name])
    parallelism = {"stages": STAGES, "microbatches": MICROBATCHES, **spec.pop("parallelism")}
    profiling = {"maxSlowdownPercent": 100, "cache": "Ignore", **spec.pop("profiling", {})}
    objective = {"type": "MinimumEnergy"}
    document = perseus_job(name, tag, parallelism=parallelism, profiling=profiling, objective=objective, **spec)
    if name == RECORDED:
        container = document["spec"]["template"]["spec"]["containers"][0]
        container["env"] = [{"name": ENV_ORDERS, "value": LAST_FIRST.model_dump_json(by_alias=True)}]
    return document


def found(installation: Installation, kind: str, name: str, namespace: str = NAMESPACE) -> dict[str, Any]:
    text = installation.kubectl("get", kind, name, "-n", namespace, "-o", "json", "--ignore-not-found")
    document: dict[str, Any] = json.loads(text) if text.strip() else {}
    return document


def plan_of(installation: Installation, name: str) -> Plan | None:
    config_map = found(installation, "configmap", names.plan_config_map_name(NAMESPACE, name), SYSTEM_NAMESPACE)
    encoded = (config_map.get("binaryData") or {}).get(names.PLAN_KEY)
    return Plan.decode(base64.b64decode(encoded)) if encoded else None


def is_planned(installation: Installation, name: str) -> bool:
    """Whether all agents run a plan that is no sweep."""
    status = found(installation, "perseusjob", name).get("status", {})
    applied = {each["type"]: each["reason"] for each in status.get("conditions", [])}.get("PlanApplied")
    return applied == "AllAgents"


def counted(installation: Installation, name: str) -> Counted:
    """Read the agents' counters of a job."""
    sums = dict.fromkeys(COUNTERS, 0.0)
    for pod in installation.pods("agent"):
        page = installation.kubectl(
            "get", "--raw", f"/api/v1/namespaces/{SYSTEM_NAMESPACE}/pods/{pod}:{AGENT_PORT}/proxy/metrics"
        )
        for family in text_string_to_metric_families(page):
            for sample in family.samples:
                labels = sample.labels
                if sample.name not in sums or (labels["namespace"], labels["job"]) != (NAMESPACE, name):
                    continue
                if labels.get("source") == "predicted":
                    assert sample.value == 0, "the baseline is measured"
                sums[sample.name] += sample.value
    return Counted(*sums.values())


def saved_by(installation: Installation, name: str, ranks: int) -> float:
    """Let the plan hold for some iterations, and return what it saved of their baseline."""
    before = counted(installation, name)
    after = before

    def is_enough() -> bool:
        nonlocal after
        after = counted(installation, name)
        return after.iterations - before.iterations >= PLANNED_ITERATIONS * ranks

    wait_until(f"iterations of {name}", is_enough, TIMEOUT_SECONDS)
    return 1 - (after.joules - before.joules) / (after.baseline_joules - before.baseline_joules)


@pytest.fixture(scope="module")
def runs(installation: Installation) -> dict[str, WholeRun]:
    """The three jobs: measured, planned, watched and deleted."""
    jobs = [f"perseusjob/{name}" for name in SPECS]
    remove = ("delete", "-n", NAMESPACE, *jobs, "--ignore-not-found", "--timeout=60s")
    installation.kubectl(*remove)
    begin = time.monotonic()
    documents = {"apiVersion": "v1", "kind": "List", "items": [job(name, installation.tag) for name in SPECS]}
    installation.kubectl("apply", "-n", NAMESPACE, "-f", "-", input_text=json.dumps(documents))
    made: dict[str, WholeRun] = {}
    try:
        for name in sorted(SPECS, key=lambda each: each == PODS):
            wait_until(f"the plan of {name}", lambda name=name: is_planned(installation, name), TIMEOUT_SECONDS)  # type: ignore[misc]
            print(f"{name}: planned after {time.monotonic() - begin:.0f} s")
            status, plan = found(installation, "perseusjob", name)["status"], plan_of(installation, name)
            assert plan is not None
            data = found(installation, "configmap", names.profile_config_map_name(name))["data"]
            profile = parse_profile(data[names.PROFILE_CSV_KEY], data[names.PROFILE_HEADER_KEY])
            kept = found(installation, "configmap", names.orders_config_map_name(name)).get("binaryData")
            orders = PipelineOrders.decode(base64.b64decode(kept[names.ORDERS_KEY])) if kept else None
            saved = saved_by(installation, name, plan.tensor_parallel * STAGES * len(plan.pipelines))
            made[name] = WholeRun(name, status, plan, profile, orders, saved)
    finally:
        installation.kubectl(*remove)
    print(f"all is over after {time.monotonic() - begin:.0f} s")
    return made


@pytest.fixture(params=list(SPECS))
def run(request: pytest.FixtureRequest, runs: dict[str, WholeRun]) -> WholeRun:
    """Each of the runs."""
    return runs[request.param]


def test_its_profile_was_measured(run: WholeRun) -> None:
    assert run.status["profile"]["source"] == "Measured"
    assert run.status["profile"]["clocks"] >= 5
    assert run.status["profile"]["sweepIterations"] > 0
    assert run.profile.header.blocking_power_watts > 0


def test_its_plan_saves_energy_by_the_counters(run: WholeRun) -> None:
    print(f"saved {100 * run.saved:.1f} %, predicted {run.status['plan']['predictedSavingsPermille'] / 10:.1f} %")
    assert run.saved > 0.15
    assert run.saved == pytest.approx(run.status["plan"]["predictedSavingsPermille"] / 1000, abs=0.08)


def test_it_leaves_nothing(run: WholeRun, installation: Installation) -> None:
    wait_until("no object", lambda: not installation.perseus_objects(NAMESPACE, run.name), OBJECTS_TIMEOUT_SECONDS)
    wait_until("no lock", lambda: not installation.locked_gpus(), LOCKS_TIMEOUT_SECONDS)


def test_the_order_without_a_name_was_seen_and_is_what_is_planned(runs: dict[str, WholeRun]) -> None:
    recorded = runs[RECORDED]
    assert recorded.orders == LAST_FIRST
    assert recorded.plan.order == LAST_FIRST.order
    assert recorded.profile.header.schedule.startswith("Recorded:")


def test_chunks_were_measured_and_are_planned_by_virtual_stage(runs: dict[str, WholeRun]) -> None:
    chunked = runs[CHUNKED]
    assert {stage for stage, _ in chunked.profile.measurements} == set(range(2 * STAGES))
    assert all(set(chunks) == {0, 1} for chunks in chunked.plan.chunks)


def test_profiling_pods_measured_before_the_training_began(runs: dict[str, WholeRun]) -> None:
    pods = runs[PODS]
    assert pods.status["plan"]["firstIteration"] == 3, "the training pods count from 0, and the baseline comes first"
    assert pods.profile.header.tensor_parallel == pods.plan.tensor_parallel
