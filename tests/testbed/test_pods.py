"""What pods find on the testbed's cluster: the things that the product and its tests take for granted."""

from __future__ import annotations

import json
import textwrap
import time
import urllib.parse
import urllib.request
import uuid
from pathlib import Path
from typing import Any

import grpc
import pytest

from testbed.cluster import Cluster
from testbed.errors import TestbedError
from testbed.node import PAUSE_IMAGE

pytestmark = pytest.mark.cluster

RESTRICTED = {
    "allowPrivilegeEscalation": False,
    "capabilities": {"drop": ["ALL"]},
    "readOnlyRootFilesystem": True,
    "runAsNonRoot": True,
    "runAsUser": 65532,
    "runAsGroup": 65532,
    "seccompProfile": {"type": "RuntimeDefault"},
}
# Each pod of the pair greets the other by its name, asks the API server, and says what it may do.
PAIR = """
import json, os, re, socket, ssl, threading, time, urllib.request

rank = int(os.environ["RANK"])
server = socket.create_server(("", 7000))

def greet():
    while True:
        connection, _ = server.accept()
        connection.sendall(b"rank %d" % rank)
        connection.close()

threading.Thread(target=greet, daemon=True).start()
deadline = time.monotonic() + 45
while True:
    try:
        with socket.create_connection((f"pair-{1 - rank}.pair", 7000), timeout=2) as connection:
            greeting = connection.recv(100).decode()
        break
    except OSError:
        if time.monotonic() > deadline:
            raise
        time.sleep(0.1)
account = "/var/run/secrets/kubernetes.io/serviceaccount"
request = urllib.request.Request(
    "https://kubernetes.default.svc/version",
    headers={"Authorization": "Bearer " + open(account + "/token").read()},
)
context = ssl.create_default_context(cafile=account + "/ca.crt")
version = json.load(urllib.request.urlopen(request, context=context, timeout=10))["gitVersion"]
try:
    open("/written", "w")
    written = "yes"
except OSError as error:
    written = error.strerror
capabilities = re.search("CapEff:\\\\s*(\\\\w+)", open("/proc/self/status").read())[1]
print(json.dumps({"rank": rank, "greeting": greeting, "version": version, "user": os.getuid(),
                  "written": written, "capabilities": int(capabilities, 16)}))
time.sleep(2)  # The other one may still want to be greeted.
"""
METRICS = """
import http.server

class Page(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200 if self.path == "/energy" else 404)
        self.end_headers()
        self.wfile.write(b'probe_joules{job="gpt-3",namespace="team",pod="gpt-3-0"} 42\\n')

http.server.HTTPServer(("", 9410), Page).serve_forever()
"""


def apply(cluster: Cluster, namespace: str, *documents: dict[str, Any]) -> None:
    text = json.dumps({"apiVersion": "v1", "kind": "List", "items": list(documents)})
    cluster.kubectl("apply", "-n", namespace, "-f", "-", input_text=text)


def idle_pod(name: str, **labels: str) -> dict[str, Any]:
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name, "labels": labels},
        "spec": {
            "containers": [{"name": "only", "image": PAUSE_IMAGE, "imagePullPolicy": "Never"}],
            "terminationGracePeriodSeconds": 0,
        },
    }


def python_container(image: str, code: str) -> dict[str, Any]:
    return {
        "name": "only",
        "image": image,
        "imagePullPolicy": "Never",
        "command": ["python3", "-c", textwrap.dedent(code)],
        "securityContext": RESTRICTED,
    }


def test_a_restricted_indexed_job_finds_its_peers_by_name_and_the_api_server(
    cluster: Cluster, namespace: str, python_image: str
) -> None:
    rank = {"fieldRef": {"fieldPath": "metadata.labels['batch.kubernetes.io/job-completion-index']"}}
    container = python_container(python_image, PAIR) | {"env": [{"name": "RANK", "valueFrom": rank}]}
    apply(
        cluster,
        namespace,
        {
            "apiVersion": "v1",
            "kind": "Service",
            "metadata": {"name": "pair"},
            "spec": {"clusterIP": "None", "publishNotReadyAddresses": True, "selector": {"of": "pair"}},
        },
        {
            "apiVersion": "batch/v1",
            "kind": "Job",
            "metadata": {"name": "pair"},
            "spec": {
                "completionMode": "Indexed",
                "completions": 2,
                "parallelism": 2,
                "backoffLimit": 0,
                "template": {
                    "metadata": {"labels": {"of": "pair"}},
                    "spec": {"subdomain": "pair", "restartPolicy": "Never", "containers": [container]},
                },
            },
        },
    )
    try:
        cluster.kubectl("wait", "-n", namespace, "--for=condition=Complete", "job/pair", "--timeout=60s")
    except TestbedError as error:
        raise AssertionError(cluster.kubectl("logs", "-n", namespace, "-l", "of=pair", "--tail=20")) from error
    told = [json.loads(line) for line in cluster.kubectl("logs", "-n", namespace, "-l", "of=pair").splitlines()]
    version = json.loads(cluster.kubectl("version", "-o", "json"))["serverVersion"]["gitVersion"]
    assert sorted(told, key=lambda each: int(each["rank"])) == [
        {
            "rank": own,
            "greeting": f"rank {1 - own}",
            "version": version,
            "user": 65532,
            "written": "Read-only file system",
            "capabilities": 0,
        }
        for own in (0, 1)
    ]


def test_a_mutating_admission_policy_changes_labelled_pods_only(cluster: Cluster, namespace: str) -> None:
    name = f"testbed-{uuid.uuid4().hex[:8]}"
    expression = """Object{spec: Object.spec{
        volumes: [Object.spec.volumes{name: "added", emptyDir: Object.spec.volumes.emptyDir{}}],
        containers: object.spec.containers.map(each, Object.spec.containers{
            name: each.name,
            env: [Object.spec.containers.env{name: "ADDED", value: object.metadata.labels["marked"]}],
            volumeMounts: [Object.spec.containers.volumeMounts{name: "added", mountPath: "/added"}]})}}"""
    rule = {"apiGroups": [""], "apiVersions": ["v1"], "operations": ["CREATE"], "resources": ["pods"]}
    selectors = {
        "namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": namespace}},
        "objectSelector": {"matchExpressions": [{"key": "marked", "operator": "Exists"}]},
    }
    group = "admissionregistration.k8s.io/v1"
    policy = {
        "apiVersion": group,
        "kind": "MutatingAdmissionPolicy",
        "metadata": {"name": name},
        "spec": {
            "failurePolicy": "Fail",
            "reinvocationPolicy": "Never",
            "matchConstraints": {"resourceRules": [rule], **selectors},
            "mutations": [{"patchType": "ApplyConfiguration", "applyConfiguration": {"expression": expression}}],
        },
    }
    binding = {
        "apiVersion": group,
        "kind": "MutatingAdmissionPolicyBinding",
        "metadata": {"name": name},
        "spec": {"policyName": name},
    }

    def admitted(pod: dict[str, Any]) -> dict[str, Any]:
        answer = cluster.kubectl(
            "create", "-n", namespace, "--dry-run=server", "-o", "json", "-f", "-", input_text=json.dumps(pod)
        )
        container: dict[str, Any] = json.loads(answer)["spec"]["containers"][0]
        return container

    apply(cluster, namespace, policy, binding)
    try:
        deadline = time.monotonic() + 30  # A policy takes seconds to come into force, and nothing says when.
        while "env" not in (container := admitted(idle_pod("probe", marked="yes"))):
            assert time.monotonic() < deadline, "the policy never came into force"
            time.sleep(0.3)
        assert container["env"] == [{"name": "ADDED", "value": "yes"}]
        assert {"name": "added", "mountPath": "/added"} in container["volumeMounts"]
        assert "env" not in admitted(idle_pod("probe"))
    finally:
        for kind in ("mutatingadmissionpolicybinding", "mutatingadmissionpolicy"):
            cluster.kubectl("delete", kind, name, "--ignore-not-found")


def test_the_kubelets_sockets_for_agents_and_device_plugins_answer(cluster: Cluster, namespace: str) -> None:
    apply(cluster, namespace, idle_pod("listed"))
    cluster.kubectl("wait", "-n", namespace, "--for=condition=Ready", "pod/listed", "--timeout=30s")

    def call(socket: str, method: str) -> bytes:
        with grpc.insecure_channel(f"unix://{cluster.site.kubelet_root}/{socket}/kubelet.sock") as channel:
            answer: bytes = channel.unary_unary(method)(b"", timeout=10)
            return answer

    resources = call("pod-resources", "/v1.PodResourcesLister/List")
    assert b"listed" in resources
    assert namespace.encode() in resources
    with pytest.raises(grpc.RpcError, match=r"(?i)version"):  # An empty registration names no API version.
        call("device-plugins", "/v1beta1.Registration/Register")


def test_the_node_has_no_label_that_a_stranger_would_have_to_set(cluster: Cluster) -> None:
    assert "nvidia" not in cluster.kubectl("get", "nodes", "-o", "jsonpath={.items[*].metadata.labels}")


def test_access_rules_are_enforced_and_the_audit_log_tells_who_asked(cluster: Cluster, namespace: str) -> None:
    user = f"nosy-{uuid.uuid4().hex[:8]}"
    with pytest.raises(TestbedError, match="forbidden"):
        cluster.kubectl("get", "secrets", "-n", namespace, f"--as={user}")
    with cluster.site.folders.audit_log.open("rb") as log:
        events = [json.loads(line) for line in log if user.encode() in line]
    assert [(event["verb"], event["objectRef"]["resource"], event["responseStatus"]["code"]) for event in events] == [
        ("list", "secrets", 403)
    ]
    assert events[0]["impersonatedUser"]["username"] == user


def test_helm_reads_the_clusters_version_and_installs(cluster: Cluster, namespace: str, tmp_path: Path) -> None:
    (tmp_path / "templates").mkdir()
    (tmp_path / "Chart.yaml").write_text(
        'apiVersion: v2\nname: tiny\nversion: 0.1.0\nkubeVersion: ">=1.36.0-0 <2.0.0-0"\n'
    )
    (tmp_path / "templates" / "note.yaml").write_text(
        "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: note}\n"
        "data:\n"
        '  policies: "{{ .Capabilities.APIVersions.Has "admissionregistration.k8s.io/v1/MutatingAdmissionPolicy" }}"\n'
    )
    cluster.helm("install", "tiny", str(tmp_path), "--namespace", namespace, "--wait", "--timeout", "30s")
    assert cluster.kubectl("get", "configmap", "note", "-n", namespace, "-o", "jsonpath={.data.policies}") == "true"
    cluster.helm("uninstall", "tiny", "--namespace", namespace, "--wait")
    assert cluster.kubectl("get", "configmap", "note", "-n", namespace, "--ignore-not-found") == ""


def test_prometheus_scrapes_annotated_pods_and_keeps_their_own_labels(
    cluster: Cluster, namespace: str, prometheus: str, python_image: str
) -> None:
    annotations = {f"prometheus.io/{key}": value for key, value in
                   {"scrape": "true", "port": "9410", "path": "/energy"}.items()}  # fmt: skip
    pod = idle_pod("metrics")
    pod["metadata"]["annotations"] = annotations
    pod["spec"]["containers"] = [python_container(python_image, METRICS)]
    apply(cluster, namespace, pod)
    cluster.kubectl("wait", "-n", namespace, "--for=condition=Ready", "pod/metrics", "--timeout=30s")
    address = cluster.kubectl("get", "pod", "metrics", "-n", namespace, "-o", "jsonpath={.status.podIP}")
    query = urllib.parse.urlencode({"query": f'probe_joules{{instance="{address}:9410"}}'})
    deadline = time.monotonic() + 30
    while True:
        with urllib.request.urlopen(f"{prometheus}/api/v1/query?{query}", timeout=5) as answer:
            found = json.load(answer)["data"]["result"]
        if found:
            break
        assert time.monotonic() < deadline, "Prometheus never scraped the pod"
        time.sleep(0.3)
    (series,) = found
    assert series["metric"] | {"__name__": ""} == {
        "__name__": "", "instance": f"{address}:9410", "job": "gpt-3", "namespace": "team", "pod": "gpt-3-0",
    }  # fmt: skip
    assert float(series["value"][1]) == 42
