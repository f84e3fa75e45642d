"""Each program's rights: what the chart grants is what it uses, neither more nor less, by the API server's audit log.

The operator lives a job's whole life, has another one measured on pods of its own, looks at workloads of other
projects' kinds, sees an optimisation fail, and finds an orphan; the agent watches; the optimisation pod fills its
ConfigMap; `helm test` asks; the uninstall hook takes everything back. Once with the whole cluster's jobs to serve, and
once with those of three namespaces and of no other. The tables are printed (`pytest -s`).

That they use nothing else is seen wherever they run: every control plane of the harness looks at its end
(`ControlPlane.check_rights`), and the cluster at that of the session (tests/cluster/conftest.py).
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from perseus_api import names
from perseus_operator.profiles import profile_checksum
from perseus_operator.selftest import ENV_DAEMON_SET

from harness import rights, scenario
from harness.audit import AuditLog
from harness.client import Client, Refused
from harness.controlplane import SYSTEM
from harness.objects import HEADER, batch_path, core_path, csv_of, job_path, perseus_job, profile_config_map
from harness.rights import Right
from harness.scenario import FORWARD_SECONDS, Life, Stage
from testbed.execution import wait_until
from testbed.installation import RELEASE

sys.path.insert(0, str(Path(__file__).parent))
from bare import BareCluster, eventually
from kinds import KINDS
from measured import Agents

pytestmark = pytest.mark.cluster
PROGRAMS = ("operator", "agent", "selftest", "uninstall")
SERVED = ("life", "failed", "left")
_AGENT = """
import sys, threading, time
from perseus_daemonset.cluster import ClusterWatch
from perseus_daemonset.plans import PlanStore
from perseus_daemonset.pods import PodTable
watch = ClusterWatch("node", sys.argv[1], PodTable(), PlanStore())
watch.start()
deadline = time.monotonic() + 30
while not watch.ready:
    assert time.monotonic() < deadline, "the agent saw nothing"
    time.sleep(0.1)
watch.resource_slices()
time.sleep(2)
"""
_OPTIMISER = """
import sys
from perseus_operator.optimiser import main
main.PROFILE_FOLDER = sys.argv[1]
sys.exit(main.main())
"""


@pytest.fixture(scope="module", params=[(), SERVED], ids=["whole-cluster", "named-namespaces"])
def watched(request: pytest.FixtureRequest) -> tuple[str, ...]:
    """The namespaces that the chart is told to serve; none: all."""
    return tuple(request.param)


@pytest.fixture(scope="module")
def release(watched: tuple[str, ...]) -> str:
    """The release's name: another than that of the harness where it serves named namespaces."""
    return "confined" if watched else RELEASE


@pytest.fixture(scope="module")
def chart(watched: tuple[str, ...], release: str) -> tuple[dict[str, Any], ...]:
    """What the chart grants."""
    return rights.rendered(watched, release)


@pytest.fixture(scope="module")
def lived(
    tmp_path_factory: pytest.TempPathFactory, chart: tuple[dict[str, Any], ...], watched: tuple[str, ...], release: str
) -> Iterator[Stage]:
    """A stage on which all programs have done everything that they do, with their own accounts."""
    folder = tmp_path_factory.mktemp("rights")
    with scenario.stage(folder, PERSEUS_WATCH_NAMESPACES=",".join(watched)) as stage:
        for each in (*watched, "elsewhere"):
            namespace = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": each}}
            stage.client.post("/api/v1/namespaces", namespace)
        stage.client.post(core_path("configmaps", "elsewhere"), profile_config_map())
        stage.client.post(job_path("elsewhere"), perseus_job())
        stage.plane.grant(chart)
        stage.plane.credentials(folder / "proxied", f"{release}-operator", stage.proxy.url)
        outcome = Life(stage, "life").play()
        assert not outcome.trouble, outcome.trouble
        _fail_an_optimisation(stage)
        _leave_a_job(stage)
        _damage_a_frontier(stage)
        _refer_to_workloads(stage)
        _measure_on_pods(stage)
        if watched:
            _find_a_finalizer(stage)
        _place_a_pod(stage)
        _run(stage, f"{release}-agent", ["-c", _AGENT, SYSTEM])
        stage.operator.kill()
        BareCluster(stage.plane).show_release(release)
        told = {
            "PERSEUS_OPERATOR_DEPLOYMENT": f"{release}-operator",
            ENV_DAEMON_SET: f"{release}-agent",
            "PERSEUS_WATCH_NAMESPACES": ",".join(watched),
        }
        for program in ("selftest", "uninstall"):
            _run(stage, f"{release}-{program}", ["-m", "perseus_operator.main", program], **told)
        yield stage


@pytest.mark.parametrize("program", PROGRAMS)
def test_a_program_uses_every_right_that_it_has_and_has_every_right_that_it_uses(
    lived: Stage, chart: tuple[dict[str, Any], ...], watched: tuple[str, ...], release: str, program: str
) -> None:
    account = f"{release}-{program}"
    granted = rights.granted(chart, account)
    log = AuditLog(lived.plane.audit_log, whole=True)
    user = rights.user(account)
    had = rights.folded({each for each in granted if each.resource != rights.FINALIZERS}, watched)
    used = rights.folded(rights.used(log.uses(user), granted), watched)
    print("\n" + "\n".join(rights.table(account, had, used)))
    assert log.refusals(user) == []
    assert sorted(map(str, used - had)) == [], "used, not granted"
    assert sorted(map(str, had - used)) == [], "granted, not used"


def test_the_right_that_no_request_shows_is_asked_for_by_an_admission_plugin(
    lived: Stage, chart: tuple[dict[str, Any], ...], release: str
) -> None:
    """Whoever makes a child that blocks its owner's deletion must be allowed to touch the owner's finalizers."""
    service = lived.client.get(core_path("services", "left", "train"))
    assert service is not None
    owners = service["metadata"]["ownerReferences"]
    child = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "child", "ownerReferences": owners}}
    token = lived.plane.account_token(SYSTEM, f"{release}-operator")
    operator = Client(lived.plane.url, token, lived.plane.certificate)

    def answer() -> int:
        try:
            operator.call("POST", core_path("configmaps", "left"), child, {"dryRun": "All"})
        except Refused as refusal:
            return refusal.status
        return 0

    assert answer() == 0
    try:
        rights.install(lived.client, [_without_finalizers(each) for each in chart if "rules" in each])
        wait_until("it is refused without that right", lambda: answer() == 403, timeout_seconds=60)
    finally:
        rights.install(lived.client, chart)


def test_a_job_is_served_where_the_chart_says_and_left_alone_elsewhere(lived: Stage, watched: tuple[str, ...]) -> None:
    """`life` and `left` went through their lives in the fixture."""
    job = lived.client.get(job_path("elsewhere", "train"))
    assert job is not None
    children = lived.client.items(batch_path("elsewhere"))
    if watched:
        assert "status" not in job
        assert "finalizers" not in job["metadata"]
        assert children == []
    else:
        assert job["status"]["observedGeneration"] == 1
        assert children != []


def test_the_optimisation_pod_may_fill_its_own_configmap_and_nothing_else(lived: Stage, tmp_path: Path) -> None:
    namespace, account = "left", "train-optimiser"
    role = lived.client.get(f"/apis/rbac.authorization.k8s.io/v1/namespaces/{namespace}/roles/{account}")
    assert role is not None
    (rule,) = role["rules"]
    had = {Right("", "configmaps", verb, namespace) for verb in rule["verbs"]}
    assert rule["resourceNames"] == [names.frontier_config_map_name("train")]
    profile = tmp_path / "profile"
    profile.mkdir()
    (profile / names.PROFILE_CSV_KEY).write_text(csv_of(seconds=FORWARD_SECONDS))
    (profile / names.PROFILE_HEADER_KEY).write_text(HEADER)
    log = AuditLog(lived.plane.audit_log)
    environment = {
        "PERSEUS_SHAPE": json.dumps({"stages": 2, "microbatches": 4, "tensorParallel": 1, "schedule": "1F1B"}),
        "PERSEUS_PROFILE_CHECKSUM": profile_checksum(csv_of(seconds=FORWARD_SECONDS), HEADER),
        "PERSEUS_FRONTIER_CONFIG_MAP": names.frontier_config_map_name("train"),
        names.ENV_NAMESPACE: namespace,
    }
    token = lived.plane.account_token(namespace, account)
    _run(lived, account, ["-c", _OPTIMISER, str(profile)], token, **environment)
    time.sleep(0.5)
    user = f"system:serviceaccount:{namespace}:{account}"
    used = rights.used(log.uses(user), had)
    print("\n" + "\n".join(rights.table(account, had, used)))
    assert used == had


def _fail_an_optimisation(stage: Stage) -> None:
    """The operator reads the last words of the pod of an optimisation that failed."""
    client = stage.client
    namespace = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "failed"}}
    client.apply("/api/v1/namespaces/failed", namespace, "user")
    client.post(core_path("configmaps", "failed"), profile_config_map())
    client.post(job_path("failed"), perseus_job())
    life = Life(stage, "failed")
    jobs = batch_path("failed")
    life.wait("the optimisation Job", lambda: [each for each in client.items(jobs) if _is_optimiser(each)])
    (job,) = (each for each in client.items(jobs) if _is_optimiser(each))
    now = "2026-01-01T00:00:00Z"
    conditions = [
        {"type": kind, "status": "True", "reason": "BackoffLimitExceeded", "lastTransitionTime": now}
        for kind in ("FailureTarget", "Failed")
    ]
    status = {"conditions": conditions, "startTime": now, "failed": 1}
    client.merge(f"{jobs}/{job['metadata']['name']}/status", {"status": status})

    def told() -> bool:
        conditions = ((client.get(job_path("failed", "train")) or {}).get("status") or {}).get("conditions") or []
        return any(each["reason"] == "OptimisationFailed" for each in conditions)

    life.wait("the failure is told", told)
    client.delete(job_path("failed", "train"))
    life.wait("the job is gone", lambda: client.get(job_path("failed", "train")) is None)


def _leave_a_job(stage: Stage) -> None:
    """A job with a finalizer and a plan, for the uninstall hook."""
    life = Life(stage, "left")
    for step in ("create", "profile", "pods", "plan"):
        life.steps()[step]()


def _damage_a_frontier(stage: Stage) -> None:
    """The operator takes away what cannot be read, and has another one made."""
    path = core_path("configmaps", "left", names.frontier_config_map_name("train"))
    damaged = stage.client.merge(path, {"binaryData": {names.FRONTIER_KEY: "AAAA"}})["metadata"]["uid"]
    life = Life(stage, "left")
    life.wait("another frontier", lambda: _uid(stage.client.get(path)) not in ("", damaged))


def _refer_to_workloads(stage: Stage) -> None:
    """The operator looks for a workload of each kind that it serves and did not make."""
    cluster = BareCluster(stage.plane)

    def looked_for(name: str) -> bool:
        return cluster.conditions("left", name).get("WorkloadReady", {}).get("reason") == "WorkloadMissing"

    for kind in KINDS:
        if kind.module:
            cluster.kubectl("apply", "--server-side", "-f", str(kind.crd_file()))
            eventually("the kind is served", lambda kind=kind: cluster.serves(kind.api_version, kind.plural))  # type: ignore[misc]
        name = f"refers-{kind.name.lower()}"
        job = perseus_job(name, workloadRef={"kind": kind.name, "name": "big"})
        del job["spec"]["template"]
        cluster.apply("left", job)
        eventually(f"{kind.name} was looked for", lambda name=name: looked_for(name))  # type: ignore[misc]


def _measure_on_pods(stage: Stage) -> None:
    """The operator asks agents what they measured, and takes the profiling pods' Job away."""
    cluster = BareCluster(stage.plane)
    job = perseus_job("measured", accounting={"baselineIterations": 3}, profiling={"mode": "Pods"})
    cluster.apply("left", job)
    agents = Agents(cluster, "left", "measured")
    try:
        eventually("the profiling Job", lambda: cluster.find("job", "left", "measured-profiling"))
        agents.train(pipelines=1, component="profiler")
        profile = names.profile_config_map_name("measured")
        eventually("the profile", lambda: cluster.find("configmap", "left", profile), 90)
        eventually("the training Job", lambda: cluster.find("job", "left", "measured"))
    finally:
        agents.stop()


def _without_finalizers(role: dict[str, Any]) -> dict[str, Any]:
    """The role without the right that is meant, and all else as it is."""
    return {**role, "rules": [each for each in role["rules"] if each["resources"] != [rights.FINALIZERS]]}


def _place_a_pod(stage: Stage) -> None:
    """The agent reads the plan of a job that has a pod on its node."""
    metadata = {"name": "rank", "labels": {names.LABEL_JOB: "train"}}
    spec = {"nodeName": "node", "containers": [{"name": "rank", "image": "trainer"}]}
    pod = {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": spec}
    stage.client.post(core_path("pods", "left"), pod)


def _find_a_finalizer(stage: Stage) -> None:
    """An operator that served the whole cluster left one; the one by namespace takes it off."""
    life, path = Life(stage, "left"), job_path("left", "train")
    stage.client.merge(path, {"metadata": {"finalizers": [names.FINALIZER]}})
    life.wait("the finalizer is gone", lambda: "finalizers" not in (stage.client.get(path) or {})["metadata"])


def _uid(found: dict[str, Any] | None) -> str:
    return str(found["metadata"]["uid"]) if found else ""


def _is_optimiser(job: dict[str, Any]) -> bool:
    return "-optimiser-" in str(job["metadata"]["name"])


def _run(stage: Stage, account: str, arguments: list[str], token: str = "", **environment: str) -> None:
    kubeconfig = stage.plane.folder / f"{account}-kubeconfig"
    token = token or stage.plane.account_token(SYSTEM, account)
    stage.plane.write_kubeconfig(kubeconfig, token=token, user=account)
    variables = {
        "KUBECONFIG": str(kubeconfig),
        "PERSEUS_OPERATOR_NAMESPACE": SYSTEM,
        **environment,
    }
    done = subprocess.run(
        [sys.executable, *arguments], env={**os.environ, **variables}, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr[-2000:]
