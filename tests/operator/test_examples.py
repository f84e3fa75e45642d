"""The example manifests are accepted by a real API server with this checkout's CRD."""

from __future__ import annotations

from pathlib import Path

import pytest
from bare import BareCluster

EXAMPLES = Path(__file__).parents[2] / "examples"
# Needs JobSet's CRD beside ours: test_workload_reference.py.
FOREIGN = {"jobset"}
FOLDERS = sorted({path.parent.name for path in EXAMPLES.glob("*/perseusjob.yaml")} - FOREIGN)


def test_there_are_examples() -> None:
    assert {"gpt3-175b", "torch-pipelining"} <= set(FOLDERS)


@pytest.mark.parametrize("name", FOLDERS)
def test_an_example_is_accepted(name: str, bare: BareCluster) -> None:
    said = bare.kubectl("apply", "--dry-run=server", "-n", "default", "-k", str(EXAMPLES / name))
    assert f"perseusjob.perseus.energy/{name} created (server dry run)" in said
