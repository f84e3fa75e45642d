"""Renders the chart with helm, for the tests beside this file."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

import yaml

from testbed import binaries as programs
from testbed.folders import Folders

ROOT = Path(__file__).resolve().parents[2]
CHART = ROOT / "charts" / "perseus-operator"
Document = dict[str, Any]


def helm(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Run helm, whatever comes of it."""
    program = programs.build(Folders.from_environment().cache)["helm"]
    return subprocess.run([program, *arguments], capture_output=True, text=True, check=False)


def render(*settings: str) -> list[Document]:
    """What the chart makes of values, on a cluster that has everything."""
    sets = [argument for each in settings for argument in ("--set", each)]
    versions = ["--kube-version", "v1.36.1", "--api-versions", "monitoring.coreos.com/v1"]
    done = helm("template", "perseus", str(CHART), "-n", "perseus-system", *versions, *sets)
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
