"""The frontier document: it travels unharmed, and what does not fit together is refused."""

from __future__ import annotations

from typing import Any

import pytest
from perseus_api.encoding import encode
from perseus_api.errors import DocumentError
from perseus_api.frontier import Frontier


def document(**changed: Any) -> dict[str, Any]:
    plan = {"iterationSeconds": 2.0, "iterationJoules": 10.0, "boundJoules": 9.0, "clocks": [[1410, 1200], [1410, 990]]}
    slower = {**plan, "iterationSeconds": 3.0}
    return {
        "schemaVersion": 1,
        "shape": {"stages": 2, "microbatches": 1, "tensorParallel": 1, "schedule": "1F1B"},
        "profileChecksum": "sha256:0",
        "blockingPowerWatts": 80.0,
        "order": ["FB", "FB"],
        "microbatches": [[0, 0], [0, 0]],
        "fastest": plan,
        "fastestStageJoules": [5.0, 5.0],
        "plans": [plan, slower],
        "breakpointSeconds": [2.0, 3.0],
        "breakpointJoules": [9.0, 8.0],
        "toolVersion": "1",
        **changed,
    }


def test_a_frontier_comes_back_as_it_was_sent() -> None:
    found = Frontier.decode(encode(document()))
    assert Frontier.decode(found.encode()) == found
    assert found.plans[1].iteration_seconds == 3.0


def test_chunks_and_the_stages_own_powers_come_back() -> None:
    given = document(chunks=[[0, 1], [1, 0]], stageBlockingPowerWatts=[60.0, 100.0])
    found = Frontier.decode(Frontier.decode(encode(given)).encode())
    assert found.chunks == ((0, 1), (1, 0))
    assert found.stage_blocking_power_watts == (60.0, 100.0)


@pytest.mark.parametrize(
    ("changed", "sentence"),
    [
        ({"schemaVersion": 2}, "schemaVersion"),
        ({"order": ["FB"]}, "one entry for each of 2 stages"),
        ({"microbatches": [[0], [0, 0]]}, "one entry for each instruction"),
        ({"chunks": [[0], [0, 0]]}, "chunks must be empty or have one entry for each instruction"),
        ({"chunks": [[0, -1], [0, 0]]}, "chunks.0.1"),
        ({"stageBlockingPowerWatts": [80.0]}, "stageBlockingPowerWatts must be empty or have one entry for each of 2"),
        ({"plans": []}, "plans"),
        ({"plans": list(reversed(document()["plans"]))}, "growing iterationSeconds"),
        ({"breakpointJoules": [1.0]}, "same length"),
        ({"blockingPowerWatts": -1}, "blockingPowerWatts"),
        ({"fastest": {**document()["fastest"], "clocks": [[1410, 0], [1410, 990]]}}, "instruction B with clock 0"),
        ({"fastest": {**document()["fastest"], "iterationSeconds": 0}}, "iterationSeconds"),
        ({"code": "import os"}, "code"),
    ],
)
def test_what_does_not_fit_together_is_refused(changed: dict[str, Any], sentence: str) -> None:
    with pytest.raises(DocumentError, match=sentence):
        Frontier.decode(encode(document(**changed)))
