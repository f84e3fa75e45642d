"""A job without a profile gets one: measured while it trains or before, found again, or asked for in a dry run."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from perseus_api import names
from perseus_api.profile import Profile, parse_profile
from perseus_operator.profiles import profile_checksum
from perseus_planner import Pipeline, frontier

sys.path.insert(0, str(Path(__file__).parent))
from bare import BareCluster, OperatorProcess, eventually, perseus_job, profile_config_map
from measured import BLOCKING_WATTS, IMAGE, Agents, cost

pytestmark = pytest.mark.cluster
MODEL = {names.LABEL_MODEL: "tiny"}


@pytest.fixture
def home(bare: BareCluster) -> Iterator[str]:
    """A namespace of the test's own; its jobs are deleted afterwards, and the operator lets them go."""
    name = bare.make_namespace("team")
    yield name
    for job in bare.kubectl("get", "perseusjobs", "-n", name, "-o", "name").split():
        bare.kubectl("delete", job, "-n", name, "--timeout=60s")


def unprofiled(name: str = "train", labels: dict[str, str] | None = None, **spec: Any) -> dict[str, Any]:
    """A job without a profile."""
    job = perseus_job(name, accounting={"baselineIterations": 3}, **spec)
    job["spec"].pop("profiling") if "profiling" not in spec else None
    job["metadata"]["labels"] = labels or {}
    return job


def own_profile(bare: BareCluster, namespace: str, job: str = "train") -> Profile | None:
    """The profile that was measured for a job."""
    found = bare.find("configmap", namespace, names.profile_config_map_name(job))
    return parse_profile(found["data"]["profile.csv"], found["data"]["header.json"]) if found else None


def optimise(bare: BareCluster, namespace: str, job: str = "train") -> None:
    """Play the optimisation pod for the measured profile."""
    eventually("the frontier's ConfigMap", lambda: bare.find("configmap", namespace, f"{job}-frontier"))
    data = (bare.find("configmap", namespace, names.profile_config_map_name(job)) or {})["data"]
    texts = data["profile.csv"], data["header.json"]
    made = frontier(parse_profile(*texts), Pipeline(2, 4), plans=10, profile_checksum=profile_checksum(*texts))
    bare.optimise(namespace, job, made)


def reason(bare: BareCluster, namespace: str, job: str = "train") -> str:
    """The reason of ProfileValid."""
    return bare.conditions(namespace, job).get("ProfileValid", {}).get("reason", "")


def test_a_job_without_a_profile_trains_and_is_measured_meanwhile(
    bare: BareCluster, operator: OperatorProcess, home: str, agents: Callable[[str], Agents]
) -> None:
    bare.apply(home, unprofiled())
    eventually("it says that it measures", lambda: reason(bare, home) == "Profiling")
    assert bare.find("job", home, "train"), "the job trains meanwhile"
    node = agents("train")
    node.train()
    eventually("a sweep", lambda: (plan := bare.plan(home, "train")) is not None and plan.sweep is not None)
    first = bare.plan(home, "train")
    assert first is not None
    assert first.first_iteration > 3, "the baseline is measured first"
    # Killed in the middle, it goes on where it was.
    operator.kill()
    operator.start()
    eventually("the profile", lambda: own_profile(bare, home), 90)
    profile = own_profile(bare, home)
    assert profile is not None
    assert profile.header.blocking_power_watts == pytest.approx(BLOCKING_WATTS, rel=0.01)
    assert profile.header.image == IMAGE
    for (stage, instruction), rows in profile.measurements.items():
        assert len(rows) >= 5
        for row in rows:
            expected = cost(stage, instruction, row.frequency_megahertz)
            assert (row.time_seconds, row.energy_joules) == pytest.approx(expected, rel=1e-6)
    optimise(bare, home)
    eventually("a plan", lambda: (plan := bare.plan(home, "train")) is not None and plan.sweep is None)
    plan = bare.plan(home, "train")
    assert plan is not None
    assert plan.generation > first.generation
    told = (bare.find("perseusjob", home, "train") or {})["status"]["profile"]
    assert told["source"] == "Measured"
    assert told["sweepSlowdownPermille"] == 50
    assert bare.conditions(home, "train")["ProfileValid"]["reason"] == "ProfileLoaded"


def test_a_script_that_trains_otherwise_is_told_while_it_is_measured(
    bare: BareCluster, operator: OperatorProcess, home: str, agents: Callable[[str], Agents]
) -> None:
    bare.apply(home, unprofiled())
    node = agents("train")
    node.mismatch = "iteration 9, instruction 8: forward came where nothing follows in the plan"
    node.train()
    eventually("it is told", lambda: reason(bare, home) == "PlanNotFollowed", 60)
    words = bare.conditions(home, "train")["ProfileValid"]["message"]
    assert node.mismatch in words
    assert "spec.schedule Recorded" in words
    node.mismatch = ""
    eventually("the profile", lambda: own_profile(bare, home), 90)


def test_a_profile_is_found_again_only_in_the_same_circumstances(
    bare: BareCluster, operator: OperatorProcess, home: str, agents: Callable[[str], Agents]
) -> None:
    bare.apply(home, unprofiled("first", MODEL))
    agents("first").train()
    eventually("it is measured", lambda: own_profile(bare, home, "first"), 90)
    listed = bare.kubectl("get", "configmap", "-n", home, "-l", f"{names.LABEL_MODEL}=tiny", "-o", "name").split()
    assert len(listed) == 1
    bare.apply(home, unprofiled("second", MODEL))
    agents("second").train()
    eventually("it is found", lambda: own_profile(bare, home, "second"))
    second = (bare.find("perseusjob", home, "second") or {})["status"]
    eventually("it says so", lambda: "from the cache" in bare.conditions(home, "second")["ProfileValid"]["message"])
    assert "plan" not in second, "nothing was measured"
    assert own_profile(bare, home, "second") == own_profile(bare, home, "first")
    # Another image is another software: it is measured.
    bare.apply(home, unprofiled("third", MODEL))
    other = agents("third")
    other.train(image=IMAGE.replace("1", "2"))
    eventually("a sweep", lambda: (plan := bare.plan(home, "third")) is not None and plan.sweep is not None)
    # Removed, it is not found any more.
    bare.kubectl("delete", "-n", home, *listed)
    bare.apply(home, unprofiled("fourth", MODEL))
    agents("fourth").train()
    eventually("a sweep", lambda: (plan := bare.plan(home, "fourth")) is not None and plan.sweep is not None)


def test_a_dry_run_predicts_and_locks_nothing(bare: BareCluster, operator: OperatorProcess, home: str) -> None:
    bare.apply(home, profile_config_map(), perseus_job(mode="DryRun"))
    eventually("the frontier's ConfigMap", lambda: bare.find("configmap", home, "train-frontier"))
    bare.optimise(home, "train")
    eventually(
        "the prediction", lambda: bare.conditions(home, "train").get("PlanApplied", {}).get("reason") == "DryRun"
    )
    status = (bare.find("perseusjob", home, "train") or {})["status"]
    assert status["plan"]["predictedSavingsPermille"] > 0
    assert len(status["frontier"]) >= 2
    assert bare.find("job", home, "train"), "it trains as without Perseus"
    assert bare.plan(home, "train") is None
    events = bare.kubectl("get", "events", "-n", home, "-o", "jsonpath={.items[*].message}")
    assert "dry run: the plan would save" in events


def test_a_dry_run_cannot_be_measured_in_the_job_and_says_what_to_do(
    bare: BareCluster, operator: OperatorProcess, home: str, agents: Callable[[str], Agents]
) -> None:
    bare.apply(home, unprofiled(mode="DryRun"))
    agents("train").train()
    eventually("it says so", lambda: reason(bare, home) == "ProfileMissing")
    message = bare.conditions(home, "train")["ProfileValid"]["message"]
    assert "spec.profiling.profileRef" in message
    assert "Pods" in message
    assert bare.plan(home, "train") is None


def test_profiling_pods_come_before_the_training_and_go(
    bare: BareCluster, operator: OperatorProcess, home: str, agents: Callable[[str], Agents]
) -> None:
    bare.apply(home, unprofiled(profiling={"mode": "Pods"}))
    eventually("the profiling Job", lambda: bare.find("job", home, "train-profiling"))
    assert (bare.find("job", home, "train-profiling") or {})["spec"]["completions"] == 2, "one pipeline of two stages"
    assert bare.find("job", home, "train") is None
    agents("train").train(pipelines=1, component="profiler")
    eventually("the profile", lambda: own_profile(bare, home), 90)
    eventually("the training Job", lambda: bare.find("job", home, "train"))
    assert bare.plan(home, "train") is None, "the sweep's clocks are given back"
    gone = bare.find("job", home, "train-profiling")
    assert gone is None or gone["metadata"].get("deletionTimestamp")


def test_a_config_map_of_somebody_else_is_never_taken_for_the_jobs_own(
    bare: BareCluster, operator: OperatorProcess, home: str
) -> None:
    bare.apply(home, profile_config_map("train-profile"), unprofiled())
    eventually("it says so", lambda: reason(bare, home) == "ProfileInvalid")
    assert "spec.profiling.profileRef.name" in bare.conditions(home, "train")["ProfileValid"]["message"]
