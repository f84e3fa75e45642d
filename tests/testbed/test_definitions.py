"""A kind that was just defined is waited for, however early the first look comes."""

from __future__ import annotations

import json
from typing import Any

import pytest

from testbed import definitions
from testbed.definitions import wait_until_established
from testbed.errors import TestbedError

CREATED: dict[str, Any] = {"status": {"conditions": None}}  # as kube-apiserver 1.36 answers before its first condition
REFUSED: dict[str, Any] = {"status": {"conditions": [{"type": "Established", "status": "False"}]}}
SERVED: dict[str, Any] = {"status": {"conditions": [{"type": "Established", "status": "True"}]}}


class Told:
    """A kubectl that prints one document after the other, and stays at the last."""

    def __init__(self, *documents: dict[str, Any]) -> None:
        self._documents = list(documents)
        self.asked: list[tuple[str, ...]] = []

    def __call__(self, *arguments: str) -> str:
        self.asked.append(arguments)
        return json.dumps(self._documents.pop(0) if len(self._documents) > 1 else self._documents[0])


def test_a_definition_without_any_condition_yet_is_waited_for() -> None:
    kubectl = Told({}, CREATED, REFUSED, SERVED)
    wait_until_established(kubectl, "crd/perseusjobs.perseus.energy")
    assert kubectl.asked == [("get", "crd/perseusjobs.perseus.energy", "--output=json")] * 4


def test_a_file_of_definitions_is_served_when_all_of_them_are() -> None:
    kubectl = Told({"items": [SERVED, CREATED]}, {"items": [SERVED, SERVED]})
    wait_until_established(kubectl, "-f", "definitions.yaml")
    assert len(kubectl.asked) == 2


def test_a_definition_that_is_never_served_is_told_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(definitions, "_TIMEOUT_SECONDS", 0.2)
    with pytest.raises(TestbedError, match=r"crd/perseusjobs\.perseus\.energy to be served: not after"):
        wait_until_established(Told(REFUSED), "crd/perseusjobs.perseus.energy")
