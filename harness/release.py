"""The chart's release on a control plane without nodes: helm is real, and what its pods would run is run as a process.

Each process has the service account that the chart gives its pod, so that nothing works here by the administrator's
rights.
"""

from __future__ import annotations

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from perseus_api import names

from harness.controlplane import SYSTEM, ControlPlane
from harness.objects import batch_path
from testbed import binaries as programs
from testbed.definitions import wait_until_established
from testbed.errors import TestbedError
from testbed.execution import run, wait_until
from testbed.folders import Folders
from testbed.installation import CHART, RELEASE

_HOOK = f"{RELEASE}-uninstall"
_HOOK_SECONDS = 60.0
_NOW = "2026-01-01T00:00:00Z"
# Lists of what no release makes: states of components, and events, which speak of objects after these are gone.
_UNASKED = {"componentstatuses", "events", "events.events.k8s.io"}


class Release:
    """The release on a control plane."""

    def __init__(self, plane: ControlPlane) -> None:
        """Install nothing yet."""
        self.plane = plane
        self.helm_path = programs.build(Folders.from_environment().cache, only={"helm"})["helm"]

    def helm(self, *arguments: str) -> str:
        """Run helm.

        Raises:
            TestbedError: it failed.
        """
        return run([self.helm_path, "--kubeconfig", self.plane.kubeconfig, *arguments])

    def install(self, *settings: str) -> None:
        """Install the chart, and wait for its CRD.

        Raises:
            TestbedError: Helm or the API server refuses it.
        """
        sets = [argument for each in settings for argument in ("--set", each)]
        self.helm("install", RELEASE, str(CHART), "--namespace", SYSTEM, "--create-namespace", *sets)
        wait_until_established(self.plane.kubectl, "crd/perseusjobs.perseus.energy")

    def uninstall(self) -> None:
        """Uninstall it, and run the hook's program when its Job is there, as a node would.

        Raises:
            TestbedError: Helm or the hook's program fails.
        """
        path = batch_path(SYSTEM, _HOOK)
        with ThreadPoolExecutor(1) as pool:
            done = pool.submit(self.helm, "uninstall", RELEASE, "--namespace", SYSTEM, "--timeout", "1m")
            wait_until(
                "the uninstall hook's Job",
                lambda: done.done() or self.plane.client.get(path) is not None,
                timeout_seconds=_HOOK_SECONDS,
            )
            hook = self.plane.client.get(path)
            if hook is not None:
                self._run_hook(hook)
                self.plane.client.merge(f"{path}/status", {"status": _succeeded()})
            done.result()

    def left(self) -> list[str]:
        """Return everything that is still there of the release: by its label, plans, and Helm's own record."""
        kinds = set(self.plane.kubectl("api-resources", "--verbs=list", "-o", "name").split()) - _UNASKED
        found = self._names(",".join(sorted(kinds)), f"app.kubernetes.io/instance={RELEASE}")
        found += self._names("configmaps", f"{names.LABEL_DOCUMENT}={names.DOCUMENT_PLAN}")
        return sorted(found + self._names("secrets", f"owner=helm,name={RELEASE}"))

    def _names(self, kinds: str, selector: str) -> list[str]:
        return self.plane.kubectl("get", kinds, "-A", "-l", selector, "-o", "name").split()

    def _run_hook(self, hook: dict[str, Any]) -> None:
        pod = hook["spec"]["template"]["spec"]
        (container,) = pod["containers"]
        kubeconfig = self.plane.credentials(self.plane.folder / "hook-kubeconfig", pod["serviceAccountName"])
        told = {each["name"]: each.get("value", SYSTEM) for each in container["env"]}
        program, *arguments = container["command"]
        if program != "perseus-operator":
            raise TestbedError(f"the uninstall hook runs {program}: this control plane can play perseus-operator alone")
        done = subprocess.run(
            [sys.executable, "-m", "perseus_operator.main", *arguments],
            env={**os.environ, **told, "KUBECONFIG": str(kubeconfig)},
            capture_output=True, text=True, check=False, timeout=_HOOK_SECONDS,
        )  # fmt: skip
        if done.returncode:
            raise TestbedError(f"the uninstall hook failed: {done.stderr[-2000:]}")


def _succeeded() -> dict[str, Any]:
    conditions = [
        {"type": kind, "status": "True", "reason": "CompletionsReached", "lastTransitionTime": _NOW}
        for kind in ("SuccessCriteriaMet", "Complete")
    ]
    return {"conditions": conditions, "startTime": _NOW, "completionTime": _NOW, "succeeded": 1}
