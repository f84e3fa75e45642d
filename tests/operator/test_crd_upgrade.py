"""The CRD is upgraded under jobs that are stored: `kubectl apply -f crds/`, as docs/install.md says.

The earlier CRD is today's without fields that came later, without the rules that speak of them, and with fewer choices.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from typing import Any

import pytest
import yaml

from harness.client import Refused
from harness.controlplane import ROOT, ControlPlane, running
from harness.objects import job_path, perseus_job
from testbed.definitions import wait_until_established
from testbed.execution import wait_until

pytestmark = pytest.mark.cluster
CRD = ROOT / "crds" / "perseusjobs.perseus.energy.yaml"
PLAN = {"generation": 7, "firstIteration": 3, "iterationMilliseconds": 5600, "predictedSavingsPermille": 151}
DEFAULTS_OF_LATER_FIELDS = {"chunks": 1, "onDrift": "Correct", "maxRepeats": 3}


def earlier() -> dict[str, Any]:
    """The CRD of an earlier release."""
    crd: dict[str, Any] = copy.deepcopy(yaml.safe_load(CRD.read_text()))
    spec = crd["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]["spec"]
    del spec["x-kubernetes-validations"]
    for part in spec["properties"].values():
        for name in DEFAULTS_OF_LATER_FIELDS:
            part.get("properties", {}).pop(name, None)
        part.pop("x-kubernetes-validations", None)
    spec["properties"]["schedule"]["enum"] = ["1F1B", "GPipe"]
    return crd


@pytest.fixture(scope="module")
def upgraded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ControlPlane]:
    """A control plane on which a job with a status was stored before the upgrade."""
    with running(tmp_path_factory.mktemp("upgrade"), empty=True) as plane:
        plane.kubectl("apply", "-f", "-", input_text=json.dumps(earlier()))
        wait_until_established(plane.kubectl, "crd/perseusjobs.perseus.energy")
        plane.client.post(job_path("default"), perseus_job())
        status = {"observedGeneration": 1, "plan": PLAN}
        plane.client.merge(f"{job_path('default', 'train')}/status", {"status": status})
        stored = job_of(plane)
        assert "chunks" not in stored["spec"]["parallelism"]
        plane.kubectl("apply", "-f", str(ROOT / "crds"))
        wait_until(
            "the new fields", lambda: "chunks" in job_of(plane)["spec"]["parallelism"], timeout_seconds=60
        )  # fmt: skip
        yield plane


def test_a_stored_job_keeps_what_it_says_and_gets_the_new_fields_defaults(upgraded: ControlPlane) -> None:
    job = job_of(upgraded)
    spec = job["spec"]
    assert (job["metadata"]["generation"], job["status"]["plan"]["generation"]) == (1, 7)
    assert spec["schedule"] == "1F1B"
    told = {**spec["parallelism"], **spec["profiling"]}
    assert {name: told[name] for name in DEFAULTS_OF_LATER_FIELDS} == DEFAULTS_OF_LATER_FIELDS


def test_it_can_be_edited_under_the_new_rules(upgraded: ControlPlane) -> None:
    edited = upgraded.client.merge(job_path("default", "train"), {"spec": {"objective": {"type": "MinimumEnergy"}}})
    assert edited["metadata"]["generation"] == 2
    drift = {"profiling": {"onDrift": "Measure"}, "straggler": {"driftPercent": 0}}
    with pytest.raises(Refused, match="driftPercent above 0"):
        upgraded.client.merge(job_path("default", "train"), {"spec": drift})


def job_of(plane: ControlPlane) -> dict[str, Any]:
    found = plane.client.get(job_path("default", "train"))
    assert found is not None
    return found
