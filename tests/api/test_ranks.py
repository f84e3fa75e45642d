"""Ranks and places: each rank has one place and each place one rank, in every order that frameworks use."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from perseus_api.ranks import RankOrder, RankShape

SIZES = st.integers(1, 6)
SHAPES = st.builds(RankShape, SIZES, SIZES, SIZES, st.sampled_from(RankOrder))


@given(SHAPES)
def test_every_rank_has_a_place_of_its_own(shape: RankShape) -> None:
    places = [shape.place(rank) for rank in range(shape.ranks)]
    assert len(set(places)) == shape.ranks
    assert [shape.rank(*place) for place in places] == list(range(shape.ranks))


def test_a_pipelines_ranks_stand_together_by_default() -> None:
    shape = RankShape(stages=3, pipelines=2, tensor_parallel=2)
    assert [shape.place(rank)[0] for rank in range(12)] == [0] * 6 + [1] * 6
    assert shape.place(7) == (1, 0, 1)


def test_megatrons_order_puts_a_stages_ranks_together() -> None:
    # Megatron-LM's default order tp-cp-ep-dp-pp: with tp 2, dp 2, pp 3 the ranks of stage 0 are 0 to 3.
    shape = RankShape(stages=3, pipelines=2, tensor_parallel=2, order=RankOrder.STAGE_PIPELINE_TENSOR)
    assert [shape.place(rank)[1] for rank in range(12)] == [0] * 4 + [1] * 4 + [2] * 4
    assert shape.place(2) == (1, 0, 0)


@given(SHAPES, st.integers(-5, 300))
def test_a_rank_that_does_not_exist_has_no_place(shape: RankShape, rank: int) -> None:
    if not 0 <= rank < shape.ranks:
        with pytest.raises(ValueError, match="is not one of the"):
            shape.place(rank)


def test_a_place_that_does_not_exist_has_no_rank() -> None:
    with pytest.raises(ValueError, match="no place of this job"):
        RankShape(2, 2).rank(0, 2)
    with pytest.raises(ValueError, match="at least 1"):
        RankShape(0, 1)
