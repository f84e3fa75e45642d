"""The chart as Helm renders it: least privilege, names that agree with the code, and values that cannot be mistyped."""

from __future__ import annotations

import json
import re

import pytest
import yaml
from perseus_api import metrics, names
from perseus_operator.settings import Settings

from tests.chart.rendering import CHART, ROOT, Document, helm, pods, render

pytestmark = pytest.mark.cluster
OPERATOR = "perseus-operator"


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
        "watchNamespaces={Team}", "watchNamespaces={team,team}", "watchNamespaces=team",
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
        (["prometheus.bearerToken.secret=a", "prometheus.basicAuth.secret=b"], "unset the other"),
        (["prometheus.tls.caConfigMap=a", "prometheus.url=http://b"], "nothing would be checked by it"),
    ],
)
def test_values_that_are_wrong_together_are_refused_with_the_remedy(settings: list[str], sentence: str) -> None:
    sets = [argument for each in settings for argument in ("--set", each)]
    done = helm("template", "perseus", str(CHART), "--kube-version", "v1.36.1", *sets)
    assert done.returncode != 0
    assert sentence in done.stderr


def test_prometheus_is_asked_with_what_is_mounted() -> None:
    documents = render(
        "prometheus.url=https://prometheus:9090",
        "prometheus.tls.caConfigMap=bundle",
        "prometheus.basicAuth.secret=login",
    )
    spec = pods(documents)["Deployment/perseus-operator"]["spec"]
    (container,) = spec["containers"]
    mounts = {each["name"]: each["mountPath"] for each in container["volumeMounts"]}
    for name in ("CA", "USER", "PASSWORD"):
        path = next(each["value"] for each in container["env"] if each["name"] == f"PERSEUS_PROMETHEUS_{name}_FILE")
        assert path.rpartition("/")[0] == mounts["prometheus-ca" if name == "CA" else "prometheus-login"]
    assert "TOKEN" not in str(container["env"])
    assert spec["securityContext"]["fsGroup"] == 65532, "a Secret's files are readable by their group alone"
    assert all(each["name"] != "login" for each in container["env"]), "a password stands in no variable"


def test_the_prometheus_rule_carries_the_rules_of_the_files() -> None:
    rendered = render("prometheus.rules.enabled=true", "prometheus.rules.labels.release=kps")
    rule = next(each for each in rendered if each["kind"] == "PrometheusRule")
    assert rule["metadata"]["labels"]["release"] == "kps"
    groups = [
        group
        for path in sorted((CHART / "rules").glob("*.yaml"))
        for group in yaml.safe_load(path.read_text())["groups"]
    ]
    assert rule["spec"]["groups"] == groups
    assert not any(each["kind"] == "PrometheusRule" for each in render())


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


def test_nobody_is_privileged_and_the_agent_has_one_capability(rendered: list[Document]) -> None:
    for name, pod in pods(rendered).items():
        spec = pod["spec"]
        is_agent = name == "DaemonSet/perseus-agent"
        assert spec.get("hostPID", False) == is_agent, name
        assert not spec.get("hostNetwork"), name
        for container in spec["containers"]:
            context = container["securityContext"]
            assert not context.get("privileged"), name
            assert context["readOnlyRootFilesystem"] is True, name
            assert context["allowPrivilegeEscalation"] is False, name
            wanted = {"drop": ["ALL"], "add": ["SYS_ADMIN"]} if is_agent else {"drop": ["ALL"]}
            assert context["capabilities"] == wanted, name
        if name != "DaemonSet/perseus-simulator":
            confined = spec["containers"][0]["securityContext"] if is_agent else spec["securityContext"]
            assert confined["seccompProfile"] == {"type": "RuntimeDefault"}, name


def test_only_the_agent_is_privileged_and_only_if_that_is_asked_for() -> None:
    for name, pod in pods(render("agent.privileged=true")).items():
        for container in pod["spec"]["containers"]:
            is_privileged = bool(container["securityContext"].get("privileged"))
            assert is_privileged == (name == "DaemonSet/perseus-agent"), name
            assert container["securityContext"]["readOnlyRootFilesystem"] is True, name


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


def test_the_operator_may_watch_what_it_watches(rendered: list[Document]) -> None:
    """What it may not list ends it at its start."""
    role = next(each for each in rendered if each["kind"] == "ClusterRole" and each["metadata"]["name"] == OPERATOR)
    source = (ROOT / "operator" / "perseus_operator" / "handlers.py").read_text()
    watched = re.findall(r'kopf\.on\.event\("([a-z0-9]+)", (?:"v1", )?"([a-z]+)"', source)
    watched.append((names.GROUP, names.PLURAL))
    assert len(watched) >= 4, "the handlers are written another way: this test does not see them"
    for group, resource in watched:
        own = [
            rule["verbs"]
            for rule in role["rules"]
            if resource in rule["resources"] and ("" if group == "v1" else group) in rule["apiGroups"]
        ]
        assert any({"list", "watch"} <= set(verbs) for verbs in own), f"{group} {resource}"


def test_by_namespace_the_operator_has_no_right_anywhere_else() -> None:
    everywhere = render("watchNamespaces=null")
    rendered = render("watchNamespaces={team-a,team-b}")
    programs = (OPERATOR, "perseus-uninstall")
    for each in rendered:
        assert not (each["kind"].startswith("ClusterRole") and each["metadata"]["name"] in programs), each["kind"]
    (cluster_role,) = (
        each for each in everywhere if each["kind"] == "ClusterRole" and each["metadata"]["name"] == OPERATOR
    )
    of_cluster = [["customresourcedefinitions"], ["nodes"]]
    wanted = [rule for rule in cluster_role["rules"] if rule["resources"] not in of_cluster]
    roles = roles_of(rendered, OPERATOR)
    assert roles["team-a"] == roles["team-b"] == wanted
    plans = [(rule["resources"], "create" in rule["verbs"]) for rule in roles["perseus-system"]]
    assert plans == [(["configmaps"], True), (["pods"], False)]
    bound = {
        each["metadata"]["namespace"]: each["subjects"]
        for each in rendered
        if each["kind"] == "RoleBinding" and each["metadata"]["name"] == OPERATOR
    }
    account = {"kind": "ServiceAccount", "name": OPERATOR, "namespace": "perseus-system"}
    assert bound == {namespace: [account] for namespace in roles}


def test_the_releases_namespace_may_be_one_of_those_that_are_served() -> None:
    roles = roles_of(render("watchNamespaces={perseus-system,team}"), OPERATOR)
    assert roles["perseus-system"] == roles["team"]


def test_every_pod_may_pull_from_a_private_registry_and_the_operator_knows_for_its_optimisers() -> None:
    documents = render(
        "image.pullSecrets[0].name=registry", "image.pullSecrets[1].name=mirror", "simulator.enabled=true"
    )
    for name, template in pods(documents).items():
        assert template["spec"]["imagePullSecrets"] == [{"name": "registry"}, {"name": "mirror"}], name
    (container,) = pods(documents)["Deployment/perseus-operator"]["spec"]["containers"]
    told = {each["name"]: each.get("value") for each in container["env"]}
    settings = Settings.from_environment({**told, "PERSEUS_OPERATOR_NAMESPACE": "perseus-system"})
    assert settings.image_pull_secrets == ("registry", "mirror")


def test_by_namespace_programs_and_policy_know_which() -> None:
    rendered = render("watchNamespaces={team-a,team-b}")
    for name in ("Deployment/perseus-operator", "Job/perseus-uninstall"):
        (container,) = pods(rendered)[name]["spec"]["containers"]
        told = {each["name"]: each.get("value") for each in container["env"]}
        assert Settings.from_environment({**told, "PERSEUS_OPERATOR_NAMESPACE": "perseus-system"}).watch_namespaces == (
            "team-a", "team-b",
        )  # fmt: skip
    policy = next(each for each in rendered if each["kind"] == "MutatingAdmissionPolicy")
    expressions = policy["spec"]["matchConstraints"]["namespaceSelector"]["matchExpressions"]
    assert {"key": "kubernetes.io/metadata.name", "operator": "In", "values": ["team-a", "team-b"]} in expressions
    assert len(expressions) == 2, "namespaces whose pods may not have the socket stay left out"


def test_the_policy_that_warns_can_be_left_out_and_is_there_for_values_that_do_not_know_it() -> None:
    def policies(*settings: str) -> list[Document]:
        return [each for each in render(*settings) if each["kind"].startswith("ValidatingAdmissionPolicy")]

    policy, binding = policies("watchNamespaces={team-a}")
    (served,) = policy["spec"]["matchConstraints"]["namespaceSelector"]["matchExpressions"]
    assert served["values"] == ["team-a"]
    assert binding["spec"]["validationActions"] == ["Warn"], "nothing is refused"
    # What `helm upgrade --reuse-values` brings from an older release.
    assert len(policies("validatingAdmissionPolicy=null")) == 2
    assert policies("validatingAdmissionPolicy.enabled=false") == []


def roles_of(documents: list[Document], name: str) -> dict[str, list[Document]]:
    """Rules of the Roles of a name, by namespace; no two of them in one."""
    found = [each for each in documents if each["kind"] == "Role" and each["metadata"]["name"] == name]
    by_namespace = {each["metadata"]["namespace"]: each["rules"] for each in found}
    assert len(by_namespace) == len(found)
    return by_namespace


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


@pytest.mark.parametrize("simulated", [True, False])
def test_agents_go_where_simulated_gpus_are_or_where_discovery_found_real_ones(simulated: bool) -> None:
    parts = pods(render(f"simulator.enabled={str(simulated).lower()}"))
    spec = parts["DaemonSet/perseus-agent"]["spec"]
    if simulated:
        own = parts["DaemonSet/perseus-simulator"]["spec"]
        assert spec["nodeSelector"] == own["nodeSelector"] == {"kubernetes.io/os": "linux"}
        assert "tolerations" not in spec
    else:
        assert spec["nodeSelector"] == {"nvidia.com/gpu.present": "true"}
        assert [each["key"] for each in spec["tolerations"]] == ["nvidia.com/gpu"]


def test_without_simulated_gpus_nothing_of_the_simulator_is_left() -> None:
    assert "simulator" not in yaml.safe_dump_all(render()).lower().replace("perseus_simulator", "")


def test_every_metric_named_in_a_document_exists() -> None:
    known = {*metrics.AGENT_METRICS, *metrics.OPERATOR_METRICS}
    packages = {"perseus_api", "perseus_planner", "perseus_trainer", "perseus_daemonset", "perseus_operator"}
    for path in [ROOT / "README.md", *(ROOT / "docs").glob("*.md")]:
        for name in re.findall(r"\bperseus_[a-z_]+\b", path.read_text()):
            if name not in packages | {"perseus_simulator"}:
                assert name in known, f"{path.name}: {name}"


def test_alerts_link_to_where_the_runbooks_are_served() -> None:
    documents = render("prometheus.rules.enabled=true", "prometheus.rules.runbookBaseUrl=https://docs.example/")
    rule = next(each for each in documents if each["kind"] == "PrometheusRule")
    links = [
        each["annotations"]["runbook_url"]
        for group in rule["spec"]["groups"]
        for each in group["rules"]
        if "alert" in each
    ]
    assert links
    assert all(re.fullmatch(r"https://docs\.example/runbooks\.md#perseus[a-z]+", each) for each in links)


def test_pod_monitors_keep_the_trainings_labels_and_tell_an_agents_node() -> None:
    documents = render("prometheus.podMonitors.enabled=true", "prometheus.podMonitors.labels.release=kps")
    monitors = {each["metadata"]["name"]: each for each in documents if each["kind"] == "PodMonitor"}
    assert sorted(monitors) == ["perseus-agent", "perseus-operator"]
    templates = pods(documents)
    for kind, name in (("DaemonSet", "perseus-agent"), ("Deployment", "perseus-operator")):
        spec = monitors[name]["spec"]
        labels = templates[f"{kind}/{name}"]["metadata"]["labels"]
        assert spec["selector"]["matchLabels"].items() <= labels.items()
        (endpoint,) = spec["podMetricsEndpoints"]
        ports = [
            port["name"] for each in templates[f"{kind}/{name}"]["spec"]["containers"] for port in each.get("ports", [])
        ]
        assert endpoint["port"] in ports
        assert endpoint["honorLabels"] is True
        assert ("relabelings" in endpoint) == (name == "perseus-agent")
        assert monitors[name]["metadata"]["labels"]["release"] == "kps"


@pytest.mark.parametrize("value", ["prometheus.rules.enabled=true", "prometheus.podMonitors.enabled=true"])
def test_a_cluster_without_the_prometheus_operator_is_told_what_to_do(value: str) -> None:
    done = helm("template", "perseus", str(CHART), "--kube-version", "v1.36.1", "--set", value)
    assert done.returncode != 0
    assert "install the Prometheus operator's CRDs" in done.stderr


def test_dashboards_come_with_the_label_that_grafana_looks_for() -> None:
    documents = render("dashboards.enabled=true", "dashboards.annotations.grafana_folder=Perseus")
    found = [each for each in documents if each["kind"] == "ConfigMap" and "dashboard" in each["metadata"]["name"]]
    contents = {name: text for each in found for name, text in each["data"].items()}
    files = sorted((CHART / "dashboards").glob("*.json"))
    assert sorted(contents) == [f"perseus-{path.name}" for path in files]
    assert len(files) == 3
    for path in files:
        assert json.loads(contents[f"perseus-{path.name}"]) == json.loads(path.read_text())
    for each in found:
        assert each["metadata"]["labels"]["grafana_dashboard"] == "1"
        assert each["metadata"]["annotations"] == {"grafana_folder": "Perseus"}
    assert not any("dashboard" in each["metadata"]["name"] for each in render())
