"""A rank in its plan (invariants 3 and 5): which plan holds in which iteration, and what doubt does to the clock."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from perseus_api.instructions import Instruction
from perseus_api.messages import Boundary, BoundaryKind
from perseus_daemonset.follower import Follower, RankPlan

BEGIN, END = BoundaryKind.ITERATION_BEGIN, BoundaryKind.ITERATION_END


def rank_plan(
    generation: int = 1, first: int = 1, order: str = "FB", clocks: tuple[int, ...] = (810, 1005)
) -> RankPlan:
    return RankPlan(generation, first, order, clocks, 80.0, 1.0, 5.0)


def iteration(follower: Follower, number: int, letters: str = "FB") -> list[int | None]:
    """Drive one whole iteration; the wishes after its begin, after each instruction's end, and after its end."""
    wishes = [follower.follow(Boundary(BEGIN, number, 0))]
    for letter in letters:
        instruction = Instruction.from_code(letter)
        follower.follow(Boundary(BoundaryKind.INSTRUCTION_BEGIN, number, 0, instruction))
        wishes.append(follower.follow(Boundary(BoundaryKind.INSTRUCTION_END, number, 0, instruction)))
    return [*wishes, follower.follow(Boundary(END, number, 0))]


def test_the_next_clock_is_wished_when_the_previous_instruction_ends() -> None:
    follower = Follower()
    follower.offer(rank_plan())
    assert iteration(follower, 1) == [810, 1005, 810, 810]


def test_a_fixed_instruction_already_has_the_clock_of_the_one_after_it() -> None:
    follower = Follower()
    follower.offer(rank_plan(order="FOB", clocks=(810, 0, 1005)))
    assert iteration(follower, 1, "FOB") == [810, 1005, 1005, 810, 810]


def test_before_its_first_iteration_a_plan_sets_nothing() -> None:
    follower = Follower()
    follower.offer(rank_plan(first=2))
    assert iteration(follower, 1) == [None] * 4
    assert iteration(follower, 2)[0] == 810
    assert follower.late == 0


def test_a_plan_that_arrives_late_holds_from_the_next_boundary_and_is_counted() -> None:
    follower = Follower()
    iteration(follower, 5)
    follower.follow(Boundary(BEGIN, 6, 0))
    assert follower.offer(rank_plan(first=3)) is None
    assert iteration(follower, 7)[0] == 810
    assert follower.late == 1


def test_a_new_generation_never_changes_the_clock_within_an_iteration() -> None:
    follower = Follower()
    follower.offer(rank_plan())
    follower.follow(Boundary(BEGIN, 4, 0))
    assert follower.offer(rank_plan(2, 1, clocks=(210, 210))) == 810
    assert follower.active_generation == 1
    assert iteration(follower, 5)[0] == 210


def test_a_mismatch_unlocks_until_a_whole_iteration_has_matched_again() -> None:
    follower = Follower()
    follower.offer(rank_plan())
    assert iteration(follower, 1, "BF") == [810, None, None, None]
    assert follower.mismatch == "iteration 1, instruction 0: backward came where forward follows in the plan"
    assert iteration(follower, 2) == [None, None, None, 810], "it is watched"
    assert (follower.mismatches, follower.mismatch) == (1, "")
    assert iteration(follower, 3) == [810, 1005, 810, 810]


def test_an_iteration_that_an_exception_left_gives_the_clock_back_until_one_has_matched() -> None:
    follower = Follower()
    follower.offer(rank_plan())
    follower.follow(Boundary(BEGIN, 1, 0))
    assert follower.follow(Boundary(BoundaryKind.ITERATION_BROKEN, 1, 0)) is None
    assert (follower.mismatch_kind, follower.mismatches) == ("broken", 1)
    assert follower.mismatch == "iteration 1, instruction 0: an exception left the iteration"
    assert iteration(follower, 1) == [None, None, None, 810], "the script tries the same iteration again"
    assert iteration(follower, 2) == [810, 1005, 810, 810]


def test_what_is_broken_outside_of_a_plan_or_an_iteration_is_no_mismatch() -> None:
    follower = Follower()
    follower.follow(Boundary(BEGIN, 1, 0))
    follower.follow(Boundary(BoundaryKind.ITERATION_BROKEN, 1, 0))
    follower.offer(rank_plan())
    assert follower.follow(Boundary(BoundaryKind.ITERATION_BROKEN, 1, 0)) is None
    assert (follower.mismatch, follower.mismatches) == ("", 0)
    assert iteration(follower, 2) == [810, 1005, 810, 810]


def test_a_trainer_that_never_matches_is_never_locked_again() -> None:
    follower = Follower()
    follower.offer(rank_plan())
    iteration(follower, 1, "BF")
    assert {wish for number in range(2, 9) for wish in iteration(follower, number, "FF")} == {None}
    assert follower.mismatches == 8


def test_a_new_plan_is_not_blamed_for_the_old_ones_mismatch() -> None:
    follower = Follower()
    follower.offer(rank_plan(order="BB"))
    iteration(follower, 1)
    follower.offer(rank_plan(2, 2))
    assert iteration(follower, 2) == [810, 1005, 810, 810]


def test_a_plan_that_did_not_match_while_it_waited_is_not_trusted_at_once() -> None:
    follower = Follower()
    follower.offer(rank_plan(first=2, order="FBFB", clocks=(810,) * 4))
    iteration(follower, 0)
    iteration(follower, 1)
    assert {*iteration(follower, 2)} == {None}


def test_an_iteration_cut_short_is_a_mismatch() -> None:
    follower = Follower()
    follower.offer(rank_plan())
    assert iteration(follower, 1, "F")[-1] is None
    assert follower.mismatches == 1


def test_one_instruction_too_many_is_a_mismatch() -> None:
    follower = Follower()
    follower.offer(rank_plan())
    assert iteration(follower, 1, "FBF")[-1] is None
    assert follower.mismatches == 1


def test_withdrawal_unlocks_within_the_iteration() -> None:
    follower = Follower()
    follower.offer(rank_plan())
    follower.follow(Boundary(BEGIN, 1, 0))
    assert follower.offer(None) is None
    assert iteration(follower, 2) == [None] * 4
    assert follower.active_generation == 0


def test_a_generation_that_waits_survives_the_arrival_of_one_for_later() -> None:
    """All agents of a pipeline must agree on iteration 10, whether generation 3 reached them before it or in it."""
    early, tardy = Follower(), Follower()
    for follower in (early, tardy):
        follower.offer(rank_plan(1, 1, clocks=(1410, 1410)))
        iteration(follower, 9)
        follower.offer(rank_plan(2, 10))
    early.offer(rank_plan(3, 12, clocks=(210, 210)))
    begun = [follower.follow(Boundary(BEGIN, 10, 0)) for follower in (early, tardy)]
    assert begun == [810, 810]


EVENTS = st.lists(
    st.one_of(
        st.builds(rank_plan, st.integers(1, 9), st.integers(0, 9)),
        st.none(),
        st.builds(Boundary, st.sampled_from([BEGIN, END]), st.integers(0, 12), st.just(0)),
        st.builds(
            Boundary,
            st.sampled_from([BoundaryKind.INSTRUCTION_BEGIN, BoundaryKind.INSTRUCTION_END]),
            st.integers(0, 12),
            st.just(0),
            st.sampled_from([Instruction.FORWARD, Instruction.BACKWARD, Instruction.RECOMPUTE]),
        ),
    ),
    max_size=60,
)


@given(EVENTS)
def test_whatever_comes_the_wish_is_a_clock_of_the_active_plan_or_none(
    events: list[RankPlan | Boundary | None],
) -> None:
    follower = Follower()
    for event in events:
        wish = follower.follow(event) if isinstance(event, Boundary) else follower.offer(event)
        assert wish in (None, 810, 1005)
        assert follower.active_generation or wish is None


def test_a_letter_of_a_later_version_is_nothing_that_this_trainer_can_do() -> None:
    follower = Follower()
    follower.offer(rank_plan(order="FZ"))
    assert iteration(follower, 1) == [810, 1005, None, None]
    assert follower.mismatch == "iteration 1, instruction 1: backward came where Z follows in the plan"


def chunked(follower: Follower, number: int, chunks: tuple[int, ...]) -> list[int | None]:
    """Drive an iteration of forwards and backwards of chunks; the wishes after each instruction's end."""
    follower.follow(Boundary(BEGIN, number, 0))
    wishes = []
    for instruction, chunk in zip("FFBB", chunks, strict=True):
        told = (Instruction.from_code(instruction), 0, chunk)
        follower.follow(Boundary(BoundaryKind.INSTRUCTION_BEGIN, number, 0, *told))
        wishes.append(follower.follow(Boundary(BoundaryKind.INSTRUCTION_END, number, 0, *told)))
    follower.follow(Boundary(END, number, 0))
    return wishes


def test_another_chunk_than_the_plans_is_another_order_though_the_letters_are_the_same() -> None:
    follower = Follower()
    clocks = (810, 825, 1005, 1020)
    follower.offer(RankPlan(1, 1, "FFBB", clocks, 80.0, 1.0, 5.0, chunks=(0, 1, 1, 0)))
    assert chunked(follower, 1, (0, 1, 1, 0)) == [825, 1005, 1020, 810]
    assert chunked(follower, 2, (0, 1, 0, 1)) == [825, 1005, None, None]
    assert follower.mismatch_kind == "order"
    assert "instruction 2: backward of chunk 0 came where that of chunk 1 follows" in follower.mismatch


def test_a_plan_that_says_no_chunks_is_followed_whatever_they_are() -> None:
    follower = Follower()
    follower.offer(rank_plan(order="FFBB", clocks=(810, 825, 1005, 1020)))
    assert chunked(follower, 1, (0, 1, 1, 0)) == [825, 1005, 1020, 810]
