"""The product on the testbed: images, Prometheus, ``helm install`` with simulated GPUs; ``make up`` and the demo.

It acts through the doors that users have (kubectl, helm, metrics pages); what a user could not do, heating a GPU, goes
through the simulator's own command in its pod. The cluster itself is the business of the rest of `testbed`.
"""

from __future__ import annotations

import json
import sys
import threading
from collections.abc import Callable
from pathlib import Path

from perseus_api import names

from testbed.cluster import bring_up
from testbed.definitions import define
from testbed.errors import RequirementError, TestbedError
from testbed.execution import run
from testbed.images import build_images
from testbed.observation import Sample, read_sample
from testbed.prometheus import start_prometheus
from testbed.site import Site

ROOT = Path(__file__).resolve().parent.parent
CHART = ROOT / "charts" / "perseus-operator"
RELEASE = "perseus"
SYSTEM_NAMESPACE = "perseus-system"
GPUS = 16
SCRAPE_INTERVAL_SECONDS = 5.0
AGENT_PORT, OPERATOR_PORT = 9410, 9411
Progress = Callable[[str], None]


class Installation:
    """A cluster on which the operator is installed.

    Attributes:
        tag: of the project's images.
        scrape_interval_seconds: how often Prometheus reads each pod.
    """

    def __init__(self, site: Site, kubectl: Path, helm: Path, tag: str) -> None:
        self._site = site
        self._kubectl = kubectl
        self._helm = helm
        self.tag = tag
        self.scrape_interval_seconds = SCRAPE_INTERVAL_SECONDS
        self._addresses: dict[str, list[str]] = {}
        self._addresses_lock = threading.Lock()

    @property
    def prometheus_url(self) -> str:
        """Where the Prometheus that scrapes the pods answers."""
        return self._site.prometheus_url

    @property
    def kubeconfig(self) -> Path:
        """The administrator's credentials."""
        return self._site.folders.kubeconfig

    def kubectl(self, *arguments: str, input_text: str | None = None, timeout_seconds: float = 120.0) -> str:
        """Run kubectl and return what it printed.

        Raises:
            TestbedError: it failed; the message holds its error output.
        """
        return run(
            [self._kubectl, "--kubeconfig", self.kubeconfig, *arguments],
            text_input=input_text,
            timeout_seconds=timeout_seconds,
        )

    def helm(self, *arguments: str, timeout_seconds: float = 300.0) -> str:
        """Run helm and return what it printed.

        Raises:
            TestbedError: it failed; the message holds its error output.
        """
        return run([self._helm, "--kubeconfig", self.kubeconfig, *arguments], timeout_seconds=timeout_seconds)

    def install_chart(self, *settings: str, gpus: int = GPUS) -> None:
        """Install or upgrade the chart with simulated GPUs and wait until its pods are ready."""
        values = [
            f"image.tag={self.tag}",
            f"prometheus.url={self._site.prometheus_url}",
            "simulator.enabled=true",
            f"simulator.gpus={gpus}",
            *settings,
        ]
        sets = [argument for value in values for argument in ("--set", value)]
        self.helm(
            "upgrade", "--install", RELEASE, str(CHART), "--namespace", SYSTEM_NAMESPACE, "--create-namespace",
            "--wait", "--timeout", "3m", *sets,
        )  # fmt: skip
        # Helm installs CRDs and never upgrades them: a cluster that was up before would keep its old one.
        define(self.kubectl, ROOT / "crds")
        self._wait_for_gpus(gpus)
        self.forget_addresses()

    def uninstall_chart(self) -> None:
        """Remove the release as documented, if it is there, and wait until its pods are gone."""
        self.helm(
            "uninstall", RELEASE, "--namespace", SYSTEM_NAMESPACE, "--ignore-not-found", "--wait", "--timeout", "2m"
        )
        self.forget_addresses()

    def overlay(self, example: Path) -> Path:
        """Return a kustomize folder of an example with this installation's image tag."""
        folder = ROOT / "build" / "overlays" / example.name
        folder.mkdir(parents=True, exist_ok=True)
        base = Path("..") / ".." / ".." / example.relative_to(ROOT)
        document = {
            "apiVersion": "kustomize.config.k8s.io/v1beta1",
            "kind": "Kustomization",
            "resources": [str(base)],
            "images": [{"name": "localhost/perseus-simulator", "newTag": self.tag}],
        }
        (folder / "kustomization.yaml").write_text(json.dumps(document, indent=2) + "\n")
        return folder

    def pods(self, component: str) -> list[str]:
        """Return the names of the running pods of one part of the product: operator, agent or simulator."""
        return [pod["metadata"]["name"] for pod in self._pod_list(component)]

    def forget_addresses(self) -> None:
        """Look the pods' addresses up again at the next sample: pods were replaced."""
        with self._addresses_lock:
            self._addresses.clear()

    def read_sample(self, namespace: str, job: str) -> Sample:
        """Read the metrics pages of all agents and of the operator once.

        Raises:
            OSError: a page does not answer; the addresses are looked up again at the next call.
        """
        try:
            agents = [f"http://{address}:{AGENT_PORT}/metrics" for address in self._addresses_of("agent")]
            operators = [f"http://{address}:{OPERATOR_PORT}/metrics" for address in self._addresses_of("operator")]
            return read_sample(agents, operators[0] if operators else None, namespace, job)
        except (OSError, TestbedError):
            self.forget_addresses()
            raise

    def heat(self, slowdown: float, *gpus: str) -> None:
        """Slow simulated GPUs down by a factor, as heat does, all at once."""
        self._simulator("inject", *gpus, "--slowdown", str(slowdown))

    def cool(self, *gpus: str) -> None:
        """Take every fault from simulated GPUs, from all at once."""
        self._simulator("clear", *gpus)

    def cool_all(self) -> None:
        """Take every fault from every simulated GPU."""
        self._simulator("clear", "--all")

    def locked_gpus(self) -> list[str]:
        """Return the UUIDs of the GPUs whose clocks are locked, by the device's own state."""
        locked: list[str] = json.loads(self._simulator("locks", "--json"))
        return locked

    def perseus_objects(self, namespace: str, job: str) -> list[str]:
        """Return everything that still exists of a job, as kind/name: its children, and its plan."""
        kinds = "perseusjobs,jobs,pods,configmaps,services,serviceaccounts,roles,rolebindings"
        selector = f"{names.LABEL_JOB}={job}"
        found = self.kubectl("get", kinds, "-n", namespace, "-l", selector, "-o", "name").split()
        own = self.kubectl("get", "perseusjob", job, "-n", namespace, "-o", "name", "--ignore-not-found").split()
        plan = names.plan_config_map_name(namespace, job)
        plans = self.kubectl("get", "configmap", plan, "-n", SYSTEM_NAMESPACE, "-o", "name", "--ignore-not-found")
        return sorted({*found, *own, *plans.split()})

    def kubernetes_version(self) -> str:
        """Return the API server's version, such as v1.36.1."""
        version: str = json.loads(self.kubectl("version", "-o", "json"))["serverVersion"]["gitVersion"]
        return version

    def _pod_list(self, component: str) -> list[dict[str, dict[str, str]]]:
        selector = f"app.kubernetes.io/part-of=perseus-operator,{names.LABEL_COMPONENT}={component}"
        pods = json.loads(self.kubectl("get", "pods", "-n", SYSTEM_NAMESPACE, "-l", selector, "-o", "json"))
        return [
            pod
            for pod in pods["items"]
            if pod["status"].get("phase") == "Running" and "deletionTimestamp" not in pod["metadata"]
        ]

    def _addresses_of(self, component: str) -> list[str]:
        with self._addresses_lock:
            if not self._addresses.get(component):
                self._addresses[component] = [pod["status"]["podIP"] for pod in self._pod_list(component)]
            return self._addresses[component]

    def _simulator(self, *arguments: str) -> str:
        pod = self.pods("simulator")[0]
        return self.kubectl("exec", "-n", SYSTEM_NAMESPACE, pod, "--", "perseus-simulator", *arguments)

    def _wait_for_gpus(self, gpus: int) -> None:
        path = f"jsonpath={{.status.allocatable.nvidia\\.com/gpu}}={gpus}"
        self.kubectl("wait", "node", "--all", f"--for={path}", "--timeout=60s")


def install(progress: Progress) -> Installation:
    """Bring the cluster, the images and Prometheus up and install the chart; what is there already is kept.

    Raises:
        RequirementError: this machine lacks something.
        TestbedError: a step failed.
    """
    cluster = bring_up(progress)
    tag = build_images(progress)
    start_prometheus(SCRAPE_INTERVAL_SECONDS)
    installation = Installation(cluster.site, cluster.kubectl_path, cluster.helm_path, tag)
    progress(f"helm install {RELEASE} charts/perseus-operator, {GPUS} simulated GPUs")
    installation.install_chart()
    return installation


def main() -> int:
    """``make up``: install everything and say how to reach it; return the exit status."""
    try:
        installation = install(lambda text: print(text, flush=True))
    except RequirementError as error:
        print(f"make up: {error}", file=sys.stderr)
        return 2
    except TestbedError as error:
        print(f"make up: {error}", file=sys.stderr)
        return 1
    print(f"export KUBECONFIG={installation.kubeconfig}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
