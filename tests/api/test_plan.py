"""The plan document: what is written is read back; what is damaged, oversized or contradictory is refused in words."""

from __future__ import annotations

import gzip
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from perseus_api.encoding import MAXIMUM_COMPRESSED_BYTES, MAXIMUM_INFLATED_BYTES, encode
from perseus_api.errors import DocumentError
from perseus_api.plan import Plan

CLOCKS = st.sampled_from([210, 810, 1005, 1410])


@st.composite
def plans(draw: st.DrawFn) -> Plan:
    """Any plan of up to three stages, pipelines and variants, fixed instructions among the tunable ones."""
    orders = draw(st.lists(st.text("FBO", min_size=1, max_size=8), min_size=1, max_size=3))
    variants = [
        {
            "name": draw(st.sampled_from(["fastest", "objective", "stretched"])),
            "iterationSeconds": draw(st.floats(0.001, 100)),
            "iterationJoules": draw(st.floats(0.001, 1e6)),
            "clocks": [[0 if letter == "O" else draw(CLOCKS) for letter in order] for order in orders],
        }
        for _ in range(draw(st.integers(1, 3)))
    ]
    return Plan.model_validate(
        {
            "job": {"namespace": "research", "name": "gpt", "uid": "u-1"},
            "generation": draw(st.integers(1, 2**53)),
            "firstIteration": draw(st.integers(0, 2**53)),
            "order": orders,
            "chunks": draw(st.sampled_from([[], [[index % 3 for index in range(len(order))] for order in orders]])),
            "variants": variants,
            "pipelines": draw(st.lists(st.integers(0, len(variants) - 1), min_size=1, max_size=3)),
            "baseline": {"iterationSeconds": 1.0, "stageJoules": [5.0] * len(orders), "blockingPowerWatts": 80.0},
            "stageSeconds": draw(
                st.sampled_from([[], [{"F": {810: 0.25, 1410: 0.1}, "B1": {210: 2.0}}] * len(orders)])
            ),
        }
    )


def content() -> dict[str, Any]:
    """A good plan of two stages and two pipelines, to be spoilt by a test."""
    return {
        "schemaVersion": 1,
        "job": {"namespace": "research", "name": "gpt", "uid": "u-1"},
        "generation": 3,
        "firstIteration": 12,
        "order": ["FFBB", "FBFB"],
        "variants": [
            {"name": "fastest", "iterationSeconds": 1.0, "iterationJoules": 9.0, "clocks": [[1410] * 4, [1410] * 4]},
            {"name": "stretched", "iterationSeconds": 1.2, "iterationJoules": 7.0, "clocks": [[810] * 4, [1005] * 4]},
        ],
        "pipelines": [0, 1],
        "tensorParallel": 1,
        "baseline": {"iterationSeconds": 1.0, "stageJoules": [5.0, 4.0], "blockingPowerWatts": 80.0},
    }


@given(plans())
def test_what_is_written_is_read_back(plan: Plan) -> None:
    assert Plan.decode(plan.encode()) == plan


@given(plans())
def test_equal_plans_are_equal_bytes(plan: Plan) -> None:
    assert Plan.model_validate(plan.model_dump()).encode() == plan.encode()


@given(plans(), st.data())
def test_a_flipped_bit_never_passes_as_another_plan(plan: Plan, data: st.DataObject) -> None:
    encoded = bytearray(plan.encode())
    place = data.draw(st.integers(0, len(encoded) * 8 - 1))
    encoded[place // 8] ^= 1 << place % 8
    try:
        found = Plan.decode(bytes(encoded))
    except DocumentError:
        return
    # gzip's own header (time, system) is covered by no checksum, and changes nothing of the plan.
    assert found == plan


@given(plans(), st.data())
def test_a_plan_cut_short_is_refused(plan: Plan, data: st.DataObject) -> None:
    encoded = plan.encode()
    with pytest.raises(DocumentError):
        Plan.decode(encoded[: data.draw(st.integers(0, len(encoded) - 1))])


@given(st.binary(max_size=300))
def test_noise_is_refused_and_nothing_else_is_raised(noise: bytes) -> None:
    with pytest.raises(DocumentError):
        Plan.decode(noise)


def test_a_pipeline_runs_its_own_variant() -> None:
    plan = Plan.decode(encode(content()))
    assert plan.clocks_of(0, 1) == (1410,) * 4
    assert plan.clocks_of(1, 0) == (810,) * 4
    with pytest.raises(IndexError):
        plan.clocks_of(2, 0)


@pytest.mark.parametrize(
    ("field", "value", "named"),
    [
        ("generation", 0, "generation"),
        ("generation", 2**53 + 1, "generation"),
        ("firstIteration", -1, "firstIteration"),
        ("schemaVersion", 2, "schemaVersion"),
        ("pipelines", [0, 2], "names variant 2"),
        ("pipelines", [], "pipelines"),
        ("order", ["FFBB", "fbfb"], "order"),
        ("order", ["FFBB", "FBF"], "stage 1 has 3 instructions but 4 clocks"),
        ("order", ["FFBB"], "one list for each of 1 stages"),
        ("tensorParallel", 0, "tensorParallel"),
        ("stageSeconds", [{}], "stageSeconds must be empty or have one entry for each of 2 stages"),
        ("stageSeconds", [{}, {"F": {"810": 0}}], "stageSeconds"),
        ("stageSeconds", [{}, {"forward": {"810": 1}}], "stageSeconds"),
        ("command", "rm -rf /", "command"),
    ],
)
def test_a_wrong_field_is_refused_and_named(field: str, value: object, named: str) -> None:
    with pytest.raises(DocumentError, match=named):
        Plan.decode(encode({**content(), field: value}))


def test_a_missing_baseline_stage_is_refused() -> None:
    spoilt = content()
    spoilt["baseline"]["stageJoules"] = [5.0]
    with pytest.raises(DocumentError, match="stageJoules"):
        Plan.decode(encode(spoilt))


def test_a_stages_own_blocking_power_holds_where_there_is_one() -> None:
    mixed = content()
    assert Plan.decode(encode(mixed)).baseline.blocking_power_of(1) == 80.0
    mixed["baseline"]["stageBlockingPowerWatts"] = [60.0, 100.0]
    assert Plan.decode(encode(mixed)).baseline.blocking_power_of(1) == 100.0
    mixed["baseline"]["stageBlockingPowerWatts"] = [60.0]
    with pytest.raises(DocumentError, match="stageBlockingPowerWatts must be empty or have one entry for each of 2"):
        Plan.decode(encode(mixed))


def test_a_plan_says_what_instructions_take_where_it_is_known() -> None:
    plan = Plan.decode(encode({**content(), "stageSeconds": [{"F": {"1410": 0.1}}, {"F1": {"810": 0.25}}]}))
    assert plan.seconds_of(1) == {"F1": {810: 0.25}}
    assert Plan.decode(encode(content())).seconds_of(1) == {}


def test_a_clock_of_zero_is_refused_where_the_instruction_has_one() -> None:
    spoilt = content()
    spoilt["variants"][1]["clocks"][0][2] = 0
    with pytest.raises(DocumentError, match="stage 0"):
        Plan.decode(encode(spoilt))


def test_a_changed_clock_under_the_old_checksum_is_refused() -> None:
    text = json.loads(gzip.decompress(encode(content())))
    text["variants"][0]["clocks"][0][0] = 210
    with pytest.raises(DocumentError, match="checksum"):
        Plan.decode(gzip.compress(json.dumps(text).encode()))


def test_an_oversized_plan_is_refused_before_it_is_inflated() -> None:
    with pytest.raises(DocumentError, match="bytes"):
        Plan.decode(b"\0" * (MAXIMUM_COMPRESSED_BYTES + 1))


def test_a_bomb_is_not_inflated() -> None:
    bomb = gzip.compress(b" " * (MAXIMUM_INFLATED_BYTES + 1))
    assert len(bomb) < MAXIMUM_COMPRESSED_BYTES
    with pytest.raises(DocumentError, match="inflates to more"):
        Plan.decode(bomb)


def test_chunks_are_told_only_where_there_are_any() -> None:
    """An agent of an older version knows no such field, and reads every other plan."""
    plain = Plan.model_validate(content())
    assert b"chunks" not in gzip.decompress(plain.encode())
    chunked = Plan.model_validate({**content(), "chunks": [[0, 1, 1, 0], [0, 0, 1, 1]]})
    assert Plan.decode(chunked.encode()).chunks == ((0, 1, 1, 0), (0, 0, 1, 1))


@pytest.mark.parametrize("chunks", [[[0, 1, 1, 0]], [[0, 1, 1], [0, 0, 1, 1]], [[0, 1, 1, 256], [0, 0, 1, 1]]])
def test_chunks_that_do_not_stand_beside_the_order_are_refused(chunks: list[list[int]]) -> None:
    with pytest.raises(DocumentError, match="chunks"):
        Plan.decode(encode({**content(), "chunks": chunks}))
