"""Warnings for what is legal and unwise in a PerseusJob: as `kubectl apply` shows them, by the chart's own policy.

Each expression is seen to speak and to be silent on a real API server: this one's, and the oldest that is supported
(`make test-older`). In the chart the policy ignores errors of its expressions; here they are told. Types are checked by
Kubernetes' own controller.
"""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml
from perseus_api import names

from harness.controlplane import ROOT, SYSTEM, ControlPlane, running
from harness.objects import perseus_job
from harness.release import Release
from harness.rights import CHART, RELEASE
from testbed.execution import wait_until

pytestmark = pytest.mark.cluster
POLICY = "perseus-advice"
FORE = f"Warning: Validation failed for ValidatingAdmissionPolicy '{POLICY}' with binding '{POLICY}': "
OPEN, CONFINED = "open", "confined"
EXAMPLES = sorted(each.parent for each in (ROOT / "examples").glob("*/kustomization.yaml"))


@dataclass(frozen=True)
class Advice:
    """One warning: what calls for it, and what does not.

    Attributes:
        sentence: exactly.
        unwise: spec of a job that is warned of.
        wise: the nearest that is not.
        namespace: of the job that is warned of.
        labels: of the job that is not warned of.
    """

    sentence: str
    unwise: dict[str, Any]
    wise: dict[str, Any]
    namespace: str = OPEN
    labels: tuple[str, ...] = ()


def referring(**spec: Any) -> dict[str, Any]:
    return {"template": None, "workloadRef": {"kind": "JobSet", "name": "big"}, **spec}


def shape(stages: int, pipelines: int) -> dict[str, Any]:
    return {"stages": stages, "pipelines": pipelines, "microbatches": 4}


def template(gpus: object) -> dict[str, Any]:
    limits = {"limits": {names.GPU_RESOURCE: gpus}}
    return {"spec": {"containers": [{"name": "sidecar"}, {"name": "trainer", "image": "trainer", "resources": limits}]}}


PODS = {"mode": "Pods"}
MEASURED = {"mode": "InJob"}
GIVEN = {"name": "profile"}
ADVICE = [
    Advice(
        "metadata.namespace confined enforces the Pod Security level restricted, which keeps the agent's socket from "
        "pods: the job will train at full speed; create it in a namespace that enforces neither baseline nor "
        "restricted",
        {}, {}, CONFINED,
    ),
    Advice(
        "spec.template asks for 3 nvidia.com/gpu a pod, and 4 ranks do not divide into such pods: none will start; "
        "correct the limit of nvidia.com/gpu, or spec.parallelism",
        {"template": template(3)}, {"template": template("2")},
    ),
    Advice(
        "spec.template asks for 0 nvidia.com/gpu a pod, and 4 ranks do not divide into such pods: none will start; "
        "correct the limit of nvidia.com/gpu, or spec.parallelism",
        {"template": template("1500m")}, {"template": template(4)},
    ),
    Advice(
        "spec.template asks for 0 nvidia.com/gpu a pod, and 4 ranks do not divide into such pods: none will start; "
        "correct the limit of nvidia.com/gpu, or spec.parallelism",
        {"template": template("0")}, {"template": template("4")},
    ),
    Advice(
        "spec.template asks for 4 nvidia.com/gpu a pod, and 2 ranks do not divide into such pods: none will start; "
        "correct the limit of nvidia.com/gpu, or spec.parallelism",
        {"profiling": {**PODS, "cache": "Ignore"}, "template": template(4)},
        {"profiling": {**PODS, "cache": "Ignore"}, "template": template(2)},
    ),
    Advice(
        "spec.mode DryRun measures nothing in the job, and no profile is given or can be found: name one in "
        "spec.profiling.profileRef, or set spec.profiling.mode to Pods",
        {"mode": "DryRun", "profiling": MEASURED}, {"mode": "DryRun", "profiling": MEASURED},
        labels=(names.LABEL_MODEL,),
    ),
    Advice(
        "spec.parallelism.stages is 1, so no stage waits for another, and spec.objective.type NoSlowdown saves energy "
        "at most while a pipeline straggles; choose MaxSlowdown or MinimumEnergy",
        {"parallelism": shape(1, 2)}, {"parallelism": shape(1, 2), "objective": {"type": "MinimumEnergy"}},
    ),
    Advice(
        "spec.objective.maxSlowdownPercent lets the whole training take 21 % longer; lower it, unless that is meant",
        {"objective": {"type": "MaxSlowdown", "maxSlowdownPercent": 21}},
        {"objective": {"type": "MaxSlowdown", "maxSlowdownPercent": 20}},
    ),
    Advice(
        "spec.profiling.profileRef gives the profile, so spec.profiling.mode Pods measures nothing; remove one of them",
        {"profiling": {**PODS, "profileRef": GIVEN}}, {"profiling": {**MEASURED, "profileRef": GIVEN}},
    ),
    Advice(
        "metadata.labels lacks perseus.energy/model, so what spec.profiling.mode Pods measures is not found again by "
        "the next job of this model; add the label",
        {"profiling": PODS}, {"profiling": PODS}, labels=(names.LABEL_MODEL,),
    ),
    Advice(
        "spec.straggler.query changes nothing where spec.straggler.enabled is false or spec.parallelism.pipelines is "
        "1; remove it",
        {"straggler": {"query": "slow", "enabled": False}}, {"straggler": {"query": "slow"}},
    ),
    Advice(
        "spec.straggler.dwellSeconds is shorter than the time between two scrapes, so a straggler that comes and goes "
        "gets a plan each time; set it to 10 or more",
        {"straggler": {"dwellSeconds": 4}}, {"straggler": {"dwellSeconds": 5}},
    ),
    Advice(
        "spec.straggler.holdSeconds is so short that a missed scrape or two take a straggler's plan away (and "
        "spec.straggler.query is asked every 15 seconds only); set it to 30 or more",
        {"straggler": {"holdSeconds": 29}}, {"straggler": {"holdSeconds": 30}},
    ),
    Advice(
        "spec.suspend gives the clocks back and does not stop the JobSet of spec.workloadRef, which trains on at full "
        "speed; to stop training suspend the JobSet itself",
        referring(suspend=True), {"suspend": True},
    ),
    Advice(
        "spec.ttlSecondsAfterFinished does nothing for the JobSet of spec.workloadRef, which is never written; remove "
        "it, and say it there if it can",
        referring(ttlSecondsAfterFinished=60), {"ttlSecondsAfterFinished": 60},
    ),
]  # fmt: skip


@pytest.fixture(scope="module", params=["current", pytest.param("older", marks=pytest.mark.older)])
def plane(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ControlPlane]:
    """A control plane with the chart's policy in force, and two namespaces."""
    older = request.param == "older"
    checker = ["validatingadmissionpolicy-status-controller"]
    with running(tmp_path_factory.mktemp("advice"), controllers=checker, older=older) as found:
        chart = ("-s", "templates/advice-policy.yaml", "-n", SYSTEM)
        rendered = Release(found).helm("template", RELEASE, str(CHART), *chart)
        assert rendered.count("failurePolicy: Ignore") == 1
        strict = rendered.replace("failurePolicy: Ignore", "failurePolicy: Fail")
        found.kubectl("apply", "-f", "-", input_text=strict)
        for name, level in ((OPEN, "privileged"), (CONFINED, "restricted")):
            found.kubectl("create", "namespace", name)
            found.kubectl("label", "namespace", name, f"pod-security.kubernetes.io/enforce={level}")
        # A policy takes a few seconds to come into force.
        unwise = job_of({"straggler": {"dwellSeconds": 0}})
        wait_until("the policy", lambda: warnings(found, unwise), timeout_seconds=30)
        yield found


@pytest.mark.parametrize("advice", ADVICE, ids=lambda advice: advice.sentence[:60])
def test_what_is_unwise_is_warned_of_in_one_sentence_and_what_is_not_is_not(
    plane: ControlPlane, advice: Advice
) -> None:
    assert warnings(plane, job_of(advice.unwise), advice.namespace) == [advice.sentence]
    assert warnings(plane, job_of(advice.wise, *advice.labels)) == []


def test_every_warning_has_a_case_and_a_line_in_the_docs(plane: ControlPlane) -> None:
    policy = json.loads(plane.kubectl("get", "validatingadmissionpolicy", POLICY, "-o", "json"))
    # The GPUs of a pod have four cases.
    assert len(policy["spec"]["validations"]) == len(ADVICE) - 3
    section = (ROOT / "docs" / "api.md").read_text().split("## Warnings")[1].split("\n## ")[0]
    for advice in ADVICE:
        field = advice.sentence.split()[0]
        assert f"`{field}`" in section, field


def test_the_expressions_name_fields_that_there_are(plane: ControlPlane) -> None:
    """Kubernetes' own check of the expressions' types, against the CRD; what it does not know it would name."""

    def status() -> dict[str, Any]:
        found = json.loads(plane.kubectl("get", "validatingadmissionpolicy", POLICY, "-o", "json"))
        return found.get("status") or {}

    wait_until("the check", lambda: "typeChecking" in status(), timeout_seconds=30)
    assert status()["typeChecking"] == {}


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda path: path.name)
def test_no_example_is_warned_of(plane: ControlPlane, example: Path) -> None:
    documents = yaml.safe_load_all(plane.kubectl("kustomize", str(example)))
    for job in (each for each in documents if each["kind"] == names.KIND):
        assert warnings(plane, job) == []


def test_a_stored_job_is_warned_of_again_only_when_its_spec_changes(plane: ControlPlane) -> None:
    unwise = job_of({"straggler": {"dwellSeconds": 0}})
    path = ("perseusjob", unwise["metadata"]["name"], "-n", OPEN)
    assert len(warnings(plane, unwise, dry=False)) == 1
    try:
        # What the operator writes, and what people write beside the spec.
        assert kubectl(plane, "patch", *path, "--type=merge", "-p", '{"metadata":{"finalizers":["a.b/c"]}}') == []
        assert kubectl(plane, "label", *path, "team=a") == []
        status = '{"status":{"observedGeneration":1}}'
        assert kubectl(plane, "patch", *path, "--subresource=status", "--type=merge", "-p", status) == []
        assert len(kubectl(plane, "patch", *path, "--type=merge", "-p", '{"spec":{"suspend":true}}')) == 1
        assert kubectl(plane, "patch", *path, "--type=merge", "-p", '{"metadata":{"finalizers":null}}') == []
    finally:
        plane.kubectl("delete", *path)


def job_of(spec: dict[str, Any], *labels: str) -> dict[str, Any]:
    """A job; what is None in the spec is left out."""
    job = perseus_job(**spec)
    job["spec"] = {key: value for key, value in job["spec"].items() if value is not None}
    job["metadata"]["labels"] = dict.fromkeys(labels, "gpt")
    return job


def warnings(plane: ControlPlane, job: dict[str, Any], namespace: str = OPEN, dry: bool = True) -> list[str]:
    """Return what is warned of when a job is applied; by default it is not stored."""
    server = ("--dry-run=server",) if dry else ()
    return kubectl(plane, "apply", "-n", namespace, "-f", "-", *server, text=json.dumps(job))


def kubectl(plane: ControlPlane, *arguments: str, text: str | None = None) -> list[str]:
    """Return the sentences that kubectl warns with; the command itself must succeed."""
    done = subprocess.run(
        [plane.kubectl_path, "--kubeconfig", plane.kubeconfig, *arguments],
        input=text, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    lines = done.stderr.splitlines()
    assert all(re.match(re.escape(FORE), line) for line in lines), lines
    return [line.removeprefix(FORE) for line in lines]
