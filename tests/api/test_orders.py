"""Recorded orders as a document: what was written is read back, and what is damaged or out of bounds is refused."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from perseus_api.encoding import encode
from perseus_api.errors import DocumentError
from perseus_api.measurements import NodeReport
from perseus_api.orders import PipelineOrders

VALID: dict[str, Any] = {
    "schemaVersion": 1, "order": ["FB", "FBB"], "microbatches": [[0, 0], [0, 0, 1]], "chunks": [[0, 1], [0, 1, 1]],
    "vShape": True,
}  # fmt: skip


def test_orders_read_back_as_they_were_written() -> None:
    orders = PipelineOrders.model_validate(VALID)
    assert PipelineOrders.decode(orders.encode()) == orders
    assert PipelineOrders.decode(encode(VALID)) == orders
    assert len(orders.digest) == 16


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"order": ["FX", "FBB"]}, "the letter X, which is no instruction's"),
        ({"order": []}, "order"),
        ({"microbatches": [[0], [0, 0, 1]]}, "microbatches must have one entry for each instruction"),
        ({"microbatches": [[0, 4096], [0, 0, 1]]}, "microbatches"),
        ({"chunks": [[0, 1]]}, "chunks must be empty or have one entry for each instruction"),
        ({"chunks": [[0, 256], [0, 1, 1]]}, "chunks"),
        ({"schemaVersion": 2}, "schemaVersion"),
        ({"code": "import os"}, "code"),
    ],
)
def test_what_is_out_of_bounds_is_refused_by_field(change: dict[str, Any], problem: str) -> None:
    with pytest.raises(DocumentError, match=problem):
        PipelineOrders.decode(encode({**VALID, **change}))


@given(st.binary(max_size=200), st.integers(0, 80))
def test_damaged_orders_are_refused(noise: bytes, place: int) -> None:
    data = PipelineOrders.model_validate(VALID).encode()
    damaged = data[:place] + noise + data[place + len(noise) :]
    if damaged[10:] != data[10:]:  # The header says only when and where.
        with pytest.raises(DocumentError):
            PipelineOrders.decode(damaged)


@pytest.mark.parametrize(
    "order",
    [
        {"letters": "FX", "microbatches": [0, 0]},
        {"letters": "FB", "microbatches": [0]},
        {"letters": "FB", "microbatches": [0, 0], "chunks": [1]},
        {"letters": "FB", "microbatches": [0, 0], "placement": 3},
        {"letters": "", "microbatches": []},
        {"letters": "FB", "microbatches": [0, -1]},
    ],
)
def test_an_agent_that_tells_nonsense_of_an_order_is_not_believed(order: dict[str, Any]) -> None:
    rank = {
        "namespace": "a", "job": "b", "jobUid": "1", "pipeline": 0, "stage": 0, "tensorRank": 0, "gpu": "GPU-0",
        "gpuModel": "", "driver": "", "supportedClocks": [], "iteration": 1, "connected": True,
    }  # fmt: skip
    good = {"letters": "FB", "microbatches": [0, 0]}
    report = NodeReport.model_validate({"ranks": [{**rank, "order": good}]})
    assert NodeReport.decode(report.encode()) == report
    with pytest.raises(DocumentError):
        NodeReport.decode(json.dumps({"ranks": [{**rank, "order": order}]}).encode())
