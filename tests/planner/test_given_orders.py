"""Orders from a file: both forms, what fits, and one sentence for everything that does not."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from perseus_api.errors import DocumentError
from perseus_api.instructions import Instruction
from perseus_api.schedules import Schedule
from perseus_planner import Pipeline, Step, frontier, load_orders, waiting
from perseus_planner import given as given_orders

sys.path.insert(0, str(Path(__file__).parent))
from conftest import GENERATED, random_profile, shaped
from player import play


def long_form(orders: tuple[tuple[Step, ...], ...]) -> str:
    stages = [
        [{"instruction": step.instruction.value, "microbatch": step.microbatch, "chunk": step.chunk} for step in order]
        for order in orders
    ]
    return json.dumps({"stages": stages})


def compact(*orders: str, **changed: Any) -> str:
    """Orders written as F0 F1 B0 B1."""
    split = [order.split() for order in orders]
    document = {
        "order": ["".join(each[0] for each in order) for order in split],
        "microbatches": [[int(each[1:]) for each in order] for order in split],
    }
    return json.dumps({**document, **changed})


@given(st.integers(1, 5), st.integers(1, 8), st.sampled_from(GENERATED))
@settings(deadline=None)
def test_what_is_generated_loads_from_both_forms(stages: int, microbatches: int, schedule: Schedule) -> None:
    pipeline = shaped(stages, microbatches, schedule)
    orders = pipeline.orders()
    v_shape = schedule is Schedule.ZBV
    assert load_orders(long_form(orders), v_shape) == orders
    letters = ["".join(step.instruction.code for step in order) for order in orders]
    document = {
        "order": letters,
        "microbatches": [[step.microbatch for step in order] for order in orders],
        "chunks": [[step.chunk for step in order] for order in orders],
    }
    assert load_orders(json.dumps(document), v_shape) == orders


def test_a_frontiers_own_order_loads_and_gives_the_same_frontier() -> None:
    profile, pipeline = random_profile(4, 3, 5), Pipeline(3, 4)
    found = frontier(profile, pipeline, plans=8)
    text = json.dumps({"order": found.order, "microbatches": found.microbatches, "chunks": found.chunks})
    orders = load_orders(text)
    custom = Pipeline(3, 4, Schedule.CUSTOM, orders_given=orders)
    again = frontier(profile, custom, plans=8)
    assert again.plans == found.plans
    assert again.shape.schedule is Schedule.CUSTOM


def test_bytes_load_too_and_chunk_may_be_left_out() -> None:
    document = {"stages": [[{"instruction": "forward", "microbatch": 0}, {"instruction": "backward", "microbatch": 0}]]}
    assert load_orders(json.dumps(document).encode()) == (
        (Step(Instruction.FORWARD, 0), Step(Instruction.BACKWARD, 0)),
    )


def test_an_order_of_ones_own_is_planned_as_it_stands() -> None:
    """Two forwards, then backwards in reverse: no named schedule."""
    orders = load_orders(compact("F0 F1 B1 B0", "F0 F1 B1 B0"))
    pipeline = Pipeline(2, 2, Schedule.CUSTOM, orders_given=orders)
    profile = random_profile(2, 2, 5)
    found = frontier(profile, pipeline, plans=6)
    for each in found.plans:
        seconds, joules = play(profile, pipeline, orders, each.clocks)
        assert (each.iteration_seconds, each.iteration_joules) == pytest.approx((seconds, joules), rel=1e-5)


def test_several_transfers_of_a_microbatch_may_stand_in_an_order() -> None:
    orders = load_orders(compact("F0 P0 P0 B0", "P0 F0 B0 P0"))
    assert [step.instruction.code for step in orders[0]] == ["F", "P", "P", "B"]


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("", "not JSON"),
        ("[" * 100_000, "not JSON"),
        ("[]", "must be a JSON object"),
        ("{}", "must have stages, or order"),
        ('{"stages": []}', "1 to 256 stages"),
        ('{"stages": [[]]}', "stage 0 must have from 1"),
        (json.dumps({"stages": [[1]] * 257}), "1 to 256 stages"),
        (json.dumps({"stages": [[1] * 65_537]}), "stage 0 must have from 1 to 65536"),
        ('{"stages": [[1]], "order": []}', "unknown field 'order'"),
        ('{"stages": [[{"instruction": "forward"}]]}', "stage 0 entry 0 must be an object"),
        ('{"stages": [[{"instruction": "fly", "microbatch": 0}]]}', "stage 0 entry 0: instruction 'fly' is unknown"),
        ('{"stages": [[{"instruction": [], "microbatch": 0}]]}', "instruction '\\[\\]' is unknown"),
        ('{"stages": [[{"instruction": "forward", "microbatch": true}]]}', "microbatch must be a whole number"),
        ('{"stages": [[{"instruction": "forward", "microbatch": 0.5}]]}', "microbatch must be a whole number"),
        (compact("F0 B-1"), "stage 0 entry 1: microbatch must be a whole number from 0 to 4095, not -1"),
        (compact("F0 B0", chunks=[[0, 256]]), "chunk must be a whole number from 0 to 255"),
        (compact("F0 X0"), "stage 0 entry 1: instruction 'X' is unknown; use one of F \\(forward\\)"),
        (compact("F0 B0", microbatches=[[0]]), "stage 0 must have one entry for each of its 2 letters"),
        (compact("F0 B0", microbatches=[]), "one list for each of 1 stages"),
        (compact("F0 B0", order="FB"), "must have stages, or order"),
        (compact("F0 B0 B0"), "stage 0 runs backward of microbatch 0 twice: entries 1 and 2"),
        (compact("F0 I0 B0"), "stage 0 runs backward of microbatch 0 twice: entries 1 and 2"),
        (compact("F0 B0", "F0"), "stage 0 entry 1 .backward of microbatch 0. waits for backward .* on stage 1, which"),
        (
            compact("F0 B0", "F1 B1"),
            "stage 0 entry 1 .* waits for backward of microbatch 0 on stage 1, which never runs",
        ),
        (
            compact("F0 B0 W0"),
            "stage 0 entry 2 .* waits for backward_input of microbatch 0 on stage 0, which never runs",
        ),
        (compact("F0 R1 B0"), "stage 0 entry 1 .recompute of microbatch 1. waits for forward of microbatch 1"),
        (compact("F0 B0", chunks=[[0, 1]]), "stage 0 runs no forward of chunk 1"),
        (compact(*["F0 F0"] * 2, chunks=[[0, 200]] * 2), "201 chunks are 402 virtual stages"),
    ],
)
def test_bad_orders_are_answered_with_a_sentence(text: str, sentence: str) -> None:
    with pytest.raises(DocumentError, match=sentence):
        load_orders(text)


def test_orders_that_wait_for_each_other_are_named() -> None:
    with pytest.raises(DocumentError) as refused:
        load_orders(compact("F0 B0 F1 B1", "F1 F0 B0 B1"))
    assert str(refused.value) == (
        "the orders wait for each other: stage 0 entry 1 (backward of microbatch 0) waits for stage 1 entry 2 "
        "(backward of microbatch 0), which waits for stage 1 entry 0 (forward of microbatch 1), which waits for stage "
        "0 entry 2 (forward of microbatch 1), which waits for stage 0 entry 1 (backward of microbatch 0)"
    )


def test_a_recomputation_after_its_backward_waits_for_itself() -> None:
    with pytest.raises(DocumentError, match=r"entry 1 \(backward .*\) waits for stage 0 entry 2 \(recompute"):
        load_orders(compact("F0 B0 R0"))


def test_a_long_circle_is_cut_short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(waiting, "_MOST_NAMED", 3)
    with pytest.raises(DocumentError, match=r"stage 1 entry 0 \(forward of microbatch 1\), and so on through 1 more$"):
        load_orders(compact("F0 B0 F1 B1", "F1 F0 B0 B1"))


@given(st.integers(2, 5), st.integers(2, 6), st.data())
@settings(deadline=None)
def test_shuffled_orders_load_where_they_can_run(stages: int, microbatches: int, data: st.DataObject) -> None:
    """Loaded where they can be played, refused where not."""
    shuffled = []
    for order in Pipeline(stages, microbatches).orders():
        steps = list(order)
        for _ in range(data.draw(st.integers(0, 3))):
            place = data.draw(st.integers(0, len(steps) - 2))
            steps[place : place + 2] = steps[place + 1], steps[place]
        shuffled.append(tuple(steps))
    orders = tuple(shuffled)
    profile = random_profile(1, stages, 2)
    clock = max(each.frequency_megahertz for each in profile.measurements[0, Instruction.FORWARD])
    pipeline = Pipeline(stages, microbatches, Schedule.CUSTOM, orders_given=orders)
    try:
        play(profile, pipeline, orders, [[clock] * len(order) for order in orders])
    except AssertionError:
        with pytest.raises(DocumentError, match="wait for each other: stage"):
            load_orders(long_form(orders))
    else:
        assert load_orders(long_form(orders)) == orders


def test_too_large_is_refused_before_it_is_parsed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(given_orders, "MAXIMUM_BYTES", 10)
    with pytest.raises(DocumentError, match="have 11 bytes; at most 10"):
        load_orders(" " * 11)
    monkeypatch.undo()
    monkeypatch.setattr(given_orders, "MAXIMUM_ALL_ENTRIES", 3)
    with pytest.raises(DocumentError, match="order has 4 entries; at most 3"):
        load_orders(compact("F0 B0", "F0 B0"))
