"""The chart as Helm renders it: least privilege, names that agree with the code, and values that cannot be mistyped."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml
from perseus_api import metrics, names

from testbed import binaries as programs
from testbed.folders import Folders

pytestmark = pytest.mark.cluster
ROOT = Path(__file__).resolve().parents[2]
CHART = ROOT / "charts" / "perseus-operator"
Document = dict[str, Any]


def helm(*arguments: str) -> subprocess.CompletedProcess[str]:
    program = programs.build(Folders.from_environment().cache)["helm"]
    return subprocess.run([program, *arguments], capture_output=True, text=True, check=False)


def render(*settings: str) -> list[Document]:
    sets = [argument for each in settings for argument in ("--set", each)]
    done = helm("template", "perseus", str(CHART), "-n", "perseus-system", "--kube-version", "v1.36.1", *sets)
    assert done.returncode == 0, done.stderr
    return [each for each in yaml.safe_load_all(done.stdout) if each]


def pods(documents: list[Document]) -> dict[str, Document]:
    """Pod templates by kind and name."""
    found = {}
    for each in documents:
        if each["kind"] in ("Deployment", "DaemonSet", "Job"):
            found[f"{each['kind']}/{each['metadata']['name']}"] = each["spec"]["template"]
        elif each["kind"] == "Pod":
            found[f"Pod/{each['metadata']['name']}"] = each
    return found


@pytest.fixture(scope="module")
def rendered() -> list[Document]:
    """Everything, with simulated GPUs."""
    return render("simulator.enabled=true")


def test_the_chart_has_no_complaint_from_helms_linter() -> None:
    done = helm("lint", str(CHART), "--strict")
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize(
    "typo",
    [
        "agnet.privileged=false", "agent.priviledged=false", "image.tags=1", "simulator.enabled=maybe",
        "prometheus.url=prometheus:9090", "image.pullPolicy=Sometimes", "simulator.gpus=0",
    ],
)  # fmt: skip
def test_a_mistyped_value_is_refused(typo: str) -> None:
    done = helm("template", "perseus", str(CHART), "--kube-version", "v1.36.1", "--set", typo)
    assert done.returncode != 0
    assert any(part in done.stderr for part in typo.split("=")[0].split("."))


def test_an_older_cluster_is_told_what_to_set() -> None:
    done = helm("template", "perseus", str(CHART), "--kube-version", "v1.34.0")
    assert "set mutatingAdmissionPolicy.enabled=false" in done.stderr
    done = helm(
        "template", "perseus", str(CHART), "--kube-version", "v1.34.0", "--set", "mutatingAdmissionPolicy.enabled=false"
    )
    assert done.returncode == 0, done.stderr
    assert "MutatingAdmissionPolicy" not in done.stdout


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        (["simulator.enabled=true", "agent.runtimeClassName=nvidia"], "unset one of them"),
        (["networkPolicy.enabled=false", "networkPolicy.metricsFrom[0].podSelector.a=b"], "remove metricsFrom"),
        (["agent.privileged=false", "agent.capabilities={SYS_NICE}"], "add SYS_ADMIN"),
    ],
)
def test_values_that_are_wrong_together_are_refused_with_the_remedy(settings: list[str], sentence: str) -> None:
    sets = [argument for each in settings for argument in ("--set", each)]
    done = helm("template", "perseus", str(CHART), "--kube-version", "v1.36.1", *sets)
    assert done.returncode != 0
    assert sentence in done.stderr


def test_only_metrics_ports_are_open(rendered: list[Document]) -> None:
    policies = {each["metadata"]["name"]: each["spec"] for each in rendered if each["kind"] == "NetworkPolicy"}
    templates = pods(rendered)
    for name, workload in (("perseus-operator", "Deployment"), ("perseus-agent", "DaemonSet")):
        template = templates[f"{workload}/{name}"]
        chosen = policies[name]["podSelector"]["matchLabels"]
        assert chosen.items() <= template["metadata"]["labels"].items(), "the policy chooses no pod"
        served = [port["containerPort"] for each in template["spec"]["containers"] for port in each.get("ports", [])]
        (rule,) = policies[name]["ingress"]
        assert [port["port"] for port in rule["ports"]] == served
        assert "from" not in rule


def test_whoever_may_read_metrics_can_be_named_and_the_operator_may_ask_agents() -> None:
    rendered = render("networkPolicy.metricsFrom[0].namespaceSelector.matchLabels.team=monitoring")
    policies = {each["metadata"]["name"]: each["spec"] for each in rendered if each["kind"] == "NetworkPolicy"}
    named = {"namespaceSelector": {"matchLabels": {"team": "monitoring"}}}
    assert policies["perseus-operator"]["ingress"][0]["from"] == [named]
    given, operator = policies["perseus-agent"]["ingress"][0]["from"]
    assert given == named
    labels = pods(rendered)["Deployment/perseus-operator"]["metadata"]["labels"]
    assert operator["podSelector"]["matchLabels"].items() <= labels.items(), "the operator reads measurements"


def test_users_get_rights_on_perseusjobs_with_the_roles_they_have(rendered: list[Document]) -> None:
    roles = {each["metadata"]["name"]: each for each in rendered if each["kind"] == "ClusterRole"}
    prefix = "rbac.authorization.k8s.io/aggregate-to-"
    view, edit = roles["perseus-view"], roles["perseus-edit"]
    assert {verb for rule in view["rules"] for verb in rule["verbs"]} == {"get", "list", "watch"}
    assert f"{prefix}view" not in edit["metadata"]["labels"]
    assert {f"{prefix}edit", f"{prefix}admin"} <= edit["metadata"]["labels"].keys()
    assert {resource for rule in edit["rules"] for resource in rule["resources"]} == {"perseusjobs"}


def test_nobody_requests_a_gpu(rendered: list[Document]) -> None:
    """The agent least of all: it would take one away from training on every node."""
    assert names.GPU_RESOURCE not in str([pod["spec"]["containers"] for pod in pods(rendered).values()])


def test_all_but_the_agent_are_unprivileged(rendered: list[Document]) -> None:
    for name, pod in pods(rendered).items():
        spec = pod["spec"]
        privileged = [each["name"] for each in spec["containers"] if each["securityContext"].get("privileged")]
        assert bool(privileged) == (name == "DaemonSet/perseus-agent"), name
        assert spec.get("hostPID", False) == (name == "DaemonSet/perseus-agent"), name
        assert not spec.get("hostNetwork"), name
        for container in spec["containers"]:
            context = container["securityContext"]
            assert context["readOnlyRootFilesystem"] is True, name
            if not context.get("privileged"):
                assert context["capabilities"] == {"drop": ["ALL"]}, name
                assert context["allowPrivilegeEscalation"] is False, name


def test_one_operator_at_a_time(rendered: list[Document]) -> None:
    operator = next(each for each in rendered if each["kind"] == "Deployment")
    assert operator["spec"]["replicas"] == 1
    assert operator["spec"]["strategy"] == {"type": "Recreate"}


def test_the_agent_reads_and_writes_nothing(rendered: list[Document]) -> None:
    for each in rendered:
        if each["kind"] in ("Role", "ClusterRole") and each["metadata"]["name"] == "perseus-agent":
            assert {verb for rule in each["rules"] for verb in rule["verbs"]} <= {"get", "list", "watch"}
            resources = {resource for rule in each["rules"] for resource in rule["resources"]}
            assert resources == ({"configmaps"} if each["kind"] == "Role" else {"pods", "resourceslices"})


def test_no_right_is_a_wildcard(rendered: list[Document]) -> None:
    for each in rendered:
        if each["kind"] in ("Role", "ClusterRole"):
            for rule in each["rules"]:
                assert "*" not in [*rule["apiGroups"], *rule["resources"], *rule["verbs"]], each["metadata"]["name"]
                assert "secrets" not in rule["resources"]


def test_names_agree_with_the_code(rendered: list[Document]) -> None:
    policy = next(each for each in rendered if each["kind"] == "MutatingAdmissionPolicy")
    text = yaml.safe_dump(policy, width=10_000)
    for name in (
        names.LABEL_JOB, names.LABEL_COMPONENT, names.SOCKET_FOLDER, names.SOCKET_PATH, names.ENV_SOCKET,
        names.ENV_JOB, names.ENV_NAMESPACE,
    ):  # fmt: skip
        assert name in text, name
    agent = pods(rendered)["DaemonSet/perseus-agent"]
    mounts = {each["mountPath"] for each in agent["spec"]["containers"][0]["volumeMounts"]}
    assert {names.SOCKET_FOLDER, names.JOURNAL_FOLDER, names.POD_RESOURCES_FOLDER} <= mounts


def test_both_agent_containers_share_the_journal(rendered: list[Document]) -> None:
    agent, watchdog = pods(rendered)["DaemonSet/perseus-agent"]["spec"]["containers"]
    assert watchdog["command"] == ["perseus-agent", "watchdog"]
    journal = [each for each in agent["volumeMounts"] if each["mountPath"] == names.JOURNAL_FOLDER]
    assert journal == [each for each in watchdog["volumeMounts"] if each["mountPath"] == names.JOURNAL_FOLDER]


def test_without_simulated_gpus_nothing_of_the_simulator_is_left() -> None:
    assert "simulator" not in yaml.safe_dump_all(render()).lower().replace("perseus_simulator", "")


def test_every_metric_named_in_a_document_exists() -> None:
    known = {*metrics.AGENT_METRICS, *metrics.OPERATOR_METRICS}
    packages = {"perseus_api", "perseus_planner", "perseus_trainer", "perseus_daemonset", "perseus_operator"}
    for path in [ROOT / "README.md", *(ROOT / "docs").glob("*.md")]:
        for name in re.findall(r"\bperseus_[a-z_]+\b", path.read_text()):
            if name not in packages | {"perseus_simulator"}:
                assert name in known, f"{path.name}: {name}"
