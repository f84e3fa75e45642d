"""The straggler loop with real parts: API server, Prometheus, the operator as a process. Only training is metrics."""

from __future__ import annotations

import base64
import json
import re
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from perseus_api import names
from perseus_api.plan import Plan
from perseus_operator.children import CORRECTIONS_KEY, ENV_CHECKSUM, ENV_CORRECTIONS, ENV_SHAPE
from perseus_operator.optimiser.main import compute
from perseus_operator.planning import STRETCHED

sys.path.insert(0, str(Path(__file__).parent))
from bare import BareCluster, OperatorProcess, eventually, perseus_job, profile_config_map
from training import MetricsPage, Training, labels

from harness.prometheus_server import PrometheusServer

pytestmark = pytest.mark.cluster
QUICK = {"accounting": {"baselineIterations": 1}}
Begin = Callable[..., Training]


@pytest.fixture
def begin(bare: BareCluster, page: MetricsPage, home: str) -> Begin:
    """Apply a job, play its optimisation pod, and let it train under its first plan."""

    def started(job: str = "train", namespace: str = home, **straggler: Any) -> Training:
        policy = {"dwellSeconds": 2, "holdSeconds": 10, **straggler}
        bare.apply(namespace, profile_config_map(), perseus_job(job, straggler=policy, **QUICK))
        eventually("the frontier's ConfigMap", lambda: bare.find("configmap", namespace, f"{job}-frontier"))
        bare.optimise(namespace, job)
        training = Training(namespace, job, lambda: bare.plan(namespace, job))
        page.trainings.append(training)
        eventually("generation 1 is active", lambda: training.active is not None)
        eventually("all agents are seen", lambda: reason(bare, namespace, job, "PlanApplied") == "AllAgents")
        time.sleep(10)  # Long enough for the noise of this job to be known.
        return training

    return started


def begin_with_straggler(begin: Begin, **straggler: Any) -> Training:
    """Let pipeline 1 straggle, and wait until the training runs the plan for that."""
    training = begin(**straggler)
    training.slowdowns = {1: 1.3}
    eventually("the stretched plan", lambda: is_stretched(training.active))
    return training


def reason(bare: BareCluster, namespace: str, job: str, condition: str) -> str:
    return bare.conditions(namespace, job).get(condition, {}).get("reason", "")


def is_stretched(plan: Plan | None, slow: int = 1) -> bool:
    return plan is not None and any(
        plan.variants[variant].name == STRETCHED and index != slow for index, variant in enumerate(plan.pipelines)
    )


def test_a_straggler_is_answered_its_cause_named_and_its_recovery_answered(
    bare: BareCluster, watching: OperatorProcess, begin: Begin, home: str
) -> None:
    training = begin()
    training.slowdowns, training.reasons = {1: 1.3}, {(1, 1): "sw_thermal_slowdown"}
    eventually("the stretched plan", lambda: is_stretched(bare.plan(home, "train")))
    eventually("the agents have it", lambda: is_stretched(training.active))
    eventually("the cause", lambda: reason(bare, home, "train", "Straggling") == "Heat")
    told = bare.conditions(home, "train")["Straggling"]["message"]
    assert "pipeline 1 is slow by 30 %" in told
    assert "heat: pod train-3" in told
    assert "GPU GPU-11" in told
    (straggler,) = (bare.find("perseusjob", home, "train") or {})["status"]["stragglers"]
    assert (straggler["cause"], straggler["pod"], straggler["gpu"]) == ("Heat", "train-3", "GPU-11")
    assert 270 <= straggler["slowdownPermille"] <= 330
    events = json.loads(bare.kubectl("get", "events", "-n", home, "-o", "json"))["items"]
    assert any(each["reason"] == "Heat" and "GPU-11" in each["message"] for each in events)
    page = watching.page("metrics")[1]
    assert re.search(r'perseus_job_straggler_cause_ratio\{cause="Heat",gpu="GPU-11",.*pod="train-3"', page)
    assert re.search(r"perseus_operator_plan_confirmation_seconds_count [4-9]", page), "one for each rank"
    training.slowdowns, training.reasons = {}, {}
    eventually("the plan without stragglers", lambda: not is_stretched(bare.plan(home, "train")))
    eventually("it is told", lambda: reason(bare, home, "train", "Straggling") == "NoStraggler")
    assert "cause_ratio{" not in watching.page("metrics")[1]


def test_long_gaps_between_normal_instructions_are_the_networks_or_the_inputs(
    bare: BareCluster, watching: OperatorProcess, begin: Begin, home: str
) -> None:
    training = begin()
    training.gaps = {0: 0.3}
    eventually("the stretched plan", lambda: is_stretched(bare.plan(home, "train"), slow=0))
    eventually("the cause", lambda: reason(bare, home, "train", "Straggling") == "NetworkOrInput")


def test_an_operator_killed_in_the_middle_of_a_straggler_goes_on_without_a_jump(
    bare: BareCluster, watching: OperatorProcess, begin: Begin, home: str
) -> None:
    training = begin_with_straggler(begin)
    time.sleep(4)
    before = bare.plan(home, "train")
    watching.kill()
    watching.start()
    time.sleep(10)
    assert bare.plan(home, "train") == before
    training.slowdowns = {}
    eventually("the plan without stragglers", lambda: not is_stretched(bare.plan(home, "train")))


def test_an_operator_that_starts_anew_answers_a_straggler_at_once_if_nobody_was_made_slower_lately(
    bare: BareCluster, watching: OperatorProcess, begin: Begin, home: str
) -> None:
    dwell = 25
    training = begin(dwellSeconds=dwell)
    time.sleep(dwell)
    watching.kill()
    training.slowdowns = {1: 1.3}
    watching.start()
    eventually("the stretched plan", lambda: is_stretched(bare.plan(home, "train")), dwell - 5)


def test_a_prometheus_that_restarts_is_not_noticed_and_one_that_stays_away_ends_the_plan(
    bare: BareCluster, watching: OperatorProcess, prometheus: PrometheusServer, begin: Begin, home: str
) -> None:
    begin_with_straggler(begin, holdSeconds=20)
    time.sleep(4)
    before, seen = bare.plan(home, "train"), bare.conditions(home, "train")["Observed"]
    prometheus.stop()
    time.sleep(5)
    answered = rounds(watching, "answered")
    prometheus.start()
    eventually("it is asked again", lambda: rounds(watching, "answered") > answered + 5)
    assert bare.plan(home, "train") == before
    assert bare.conditions(home, "train")["Observed"] == seen
    prometheus.stop()
    time.sleep(10)
    assert bare.plan(home, "train") == before, "the last plan holds for holdSeconds"
    eventually("the plan without stragglers", lambda: not is_stretched(bare.plan(home, "train")))
    eventually("it is told", lambda: "does not answer" in bare.conditions(home, "train")["Observed"]["message"])
    prometheus.start()
    eventually("the straggler is seen again", lambda: is_stretched(bare.plan(home, "train")))


def test_a_plan_that_ends_because_nobody_tells_the_iteration_still_begins_at_one_iteration_for_all(
    bare: BareCluster, watching: OperatorProcess, begin: Begin, home: str
) -> None:
    training = begin_with_straggler(begin)
    silent_since, training.silent_stages = training.iteration, {0}
    eventually("the plan without stragglers", lambda: not is_stretched(bare.plan(home, "train")))
    iteration, plan = training.iteration, bare.plan(home, "train")
    assert plan is not None
    # It held for ten seconds more, of iterations of about one.
    assert silent_since + 8 <= plan.first_iteration <= iteration + 5


def rounds(operator: OperatorProcess, outcome: str) -> float:
    """How often the operator has asked Prometheus with an outcome."""
    line = rf'^perseus_operator_straggler_rounds_total{{outcome="{outcome}"}} (.*)$'
    found = re.search(line, operator.page("metrics")[1], re.MULTILINE)
    return float(found.group(1)) if found else 0.0


def test_a_query_of_the_spec_tells_of_a_straggler_and_its_error_is_told(
    bare: BareCluster, watching: OperatorProcess, page: MetricsPage, begin: Begin, home: str
) -> None:
    page.lines = [f"site_slowdown{labels(pipeline=0, team='a')} 1.25", f"site_slowdown{labels(pipeline=1, team='a')} 1"]
    begin(query='max by (pipeline) (site_slowdown{team="a"})')
    eventually("the stretched plan", lambda: is_stretched(bare.plan(home, "train"), slow=0))
    eventually("the cause", lambda: reason(bare, home, "train", "Straggling") == "Query")
    wrong = json.dumps({"spec": {"straggler": {"query": "max by (pipeline) (("}}})
    bare.kubectl("patch", "perseusjob", "train", "-n", home, "--type=merge", "-p", wrong)
    eventually("the error", lambda: reason(bare, home, "train", "Observed") == "QueryFailed", 40)
    assert "spec.straggler.query: Prometheus answered 400" in bare.conditions(home, "train")["Observed"]["message"]
    eventually("no plan rests on it", lambda: not is_stretched(bare.plan(home, "train"), slow=0))


def test_a_nodes_annotation_tells_before_anything_slows_down(
    bare: BareCluster, watching: OperatorProcess, begin: Begin, home: str
) -> None:
    begin()
    node = f"node-{home}"
    bare.apply(home, {"apiVersion": "v1", "kind": "Node", "metadata": {"name": node}}, training_pod(home, node, rank=3))
    bare.kubectl("annotate", "node", node, f"{names.ANNOTATION_EXPECTED_SLOWDOWN}=1.2")
    eventually("the stretched plan", lambda: is_stretched(bare.plan(home, "train")))
    eventually("the cause", lambda: reason(bare, home, "train", "Straggling") == "Announced")
    bare.kubectl("annotate", "node", node, "--overwrite", f"{names.ANNOTATION_EXPECTED_SLOWDOWN}=120%")
    eventually("what is wrong", lambda: reason(bare, home, "train", "Observed") == "AnnouncementInvalid")
    assert "'120%'; write a decimal number" in bare.conditions(home, "train")["Observed"]["message"]
    eventually("nobody is slowed by it", lambda: not is_stretched(bare.plan(home, "train")))
    bare.kubectl("delete", "node", node)


def training_pod(namespace: str, node: str, rank: int) -> dict[str, Any]:
    """What the Job controller would make of the template."""
    own = {
        names.LABEL_JOB: "train",
        names.LABEL_COMPONENT: "trainer",
        names.LABEL_COMPLETION_INDEX: str(rank),
    }
    container = {"name": "trainer", "image": "trainer", "resources": {"limits": {names.GPU_RESOURCE: 1}}}
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": f"train-{rank}", "namespace": namespace, "labels": own},
        "spec": {"nodeName": node, "containers": [container]},
    }


def test_two_jobs_of_one_name_in_two_namespaces_and_labels_that_try_to_break_out(
    bare: BareCluster, watching: OperatorProcess, page: MetricsPage, begin: Begin, home: str
) -> None:
    other = f"{home}-too"
    bare.kubectl("create", "namespace", other)
    mine, theirs = begin(), begin(namespace=other)
    evil = 'train"} or vector(1) or {job="'
    for name, value in (
        ("perseus_pipeline_iteration", 10), ("perseus_pipeline_seconds", 99), ("perseus_plan_generation_active", 1),
    ):  # fmt: skip
        page.lines.append(f"{name}{labels(namespace=home, job=evil, pipeline='1', pod=evil)} {value}")
        page.lines.append(f"{name}{labels(namespace=home, job='train', pipeline='1 or 2', pod=evil)} {value}")
        page.lines.append(f"{name}{labels(namespace=home, job='train', pipeline='٣', pod=evil)} NaN")
    mine.slowdowns = {1: 1.3}
    eventually("the straggler's own job", lambda: is_stretched(bare.plan(home, "train")))
    time.sleep(3)
    assert not is_stretched(bare.plan(other, "train"))
    assert not is_stretched(theirs.accepted)
    bare.free_jobs(other)


def test_training_that_stops_or_answers_nonsense_slows_nobody(
    bare: BareCluster, watching: OperatorProcess, page: MetricsPage, begin: Begin, home: str
) -> None:
    training = begin()
    page.trainings.clear()
    for pipeline in range(2):
        own = labels(namespace=home, job="train", pipeline=pipeline, pod="x")
        page.lines += [
            f"perseus_pipeline_iteration{own} {training.iteration + 5}",
            f"perseus_pipeline_seconds{own} {'NaN' if pipeline else '-7'}",
            f"perseus_pipeline_iteration_begin_timestamp_seconds{own} +Inf",
        ]
    time.sleep(6)
    assert not is_stretched(bare.plan(home, "train"))
    assert (bare.plan(home, "train") or training.accepted) == training.accepted


def test_nodes_clocks_apart_by_minutes_do_not_matter(
    bare: BareCluster, watching: OperatorProcess, begin: Begin, home: str
) -> None:
    training = begin()
    training.clock_offsets = {0: -400.0, 1: 300.0}
    training.slowdowns = {1: 1.3}
    eventually("the stretched plan", lambda: is_stretched(bare.plan(home, "train")))
    plan = bare.plan(home, "train")
    assert plan is not None
    assert plan.first_iteration - training.iteration <= 6
    eventually("it is run", lambda: is_stretched(training.active))


def test_a_profile_that_no_longer_holds_is_corrected_and_the_frontier_made_anew(
    bare: BareCluster,
    watching: OperatorProcess,
    begin: Begin,
    home: str,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    training = begin()
    before = bare.plan(home, "train")
    assert before is not None
    training.slowdowns = {0: 1.1, 1: 1.1}

    def corrections() -> str:
        found = bare.find("configmap", home, "train-frontier") or {}
        return str((found.get("data") or {}).get(CORRECTIONS_KEY, ""))

    eventually("the corrections", corrections, 300)
    factors = json.loads(corrections())["factors"]
    assert list(factors) == ["1/forward"], "the training shows the slowness there"
    assert 1.05 <= factors["1/forward"] <= 1.11
    assert bare.plan(home, "train") == before, "the plan holds until there is a new frontier"
    environment = {each["name"]: each["value"] for each in optimiser_environment(bare, home)}
    for name in (ENV_SHAPE, ENV_CHECKSUM, ENV_CORRECTIONS):
        monkeypatch.setenv(name, environment[name])
    for key, text in profile_config_map()["data"].items():
        (tmp_path / key).write_text(text)
    data = {names.FRONTIER_KEY: base64.b64encode(compute(tmp_path).encode()).decode()}
    patch = json.dumps({"binaryData": data})
    bare.kubectl("patch", "configmap", "train-frontier", "-n", home, "--type=merge", "-p", patch)
    eventually("the corrected plan", lambda: (bare.plan(home, "train") or before).generation == 2)
    after = bare.plan(home, "train")
    assert after is not None
    assert after.baseline.iteration_seconds > before.baseline.iteration_seconds
    eventually("it is told", lambda: "corrected times" in bare.conditions(home, "train")["FrontierReady"]["message"])
    assert reason(bare, home, "train", "ProfileValid") == "ProfileDrifted"
    watching.kill()
    watching.start()
    time.sleep(5)
    assert json.loads(corrections())["factors"] == factors, "an operator that starts anew keeps them"
    assert bare.plan(home, "train") == after


def optimiser_environment(bare: BareCluster, namespace: str) -> list[dict[str, str]]:
    """The environment of the optimisation Job that carries corrections."""
    jobs = json.loads(bare.kubectl("get", "jobs", "-n", namespace, "-o", "json"))["items"]
    for job in jobs:
        environment: list[dict[str, str]] = job["spec"]["template"]["spec"]["containers"][0].get("env") or []
        if any(each["name"] == ENV_CORRECTIONS for each in environment):
            return environment
    raise AssertionError(f"no Job carries corrections: {[each['metadata']['name'] for each in jobs]}")
