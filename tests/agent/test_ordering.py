"""The order that a rank ran, from its boundaries: only what whole iterations repeat, and nothing that was cut short."""

from __future__ import annotations

import json

from perseus_api.instructions import LONGEST_ORDER, Instruction
from perseus_api.measurements import MAXIMUM_REPORT_BYTES, NodeReport, RankOrder
from perseus_api.messages import Boundary, BoundaryKind, ChunkPlacement
from perseus_daemonset.ordering import OrderBooks

BEGIN, END = BoundaryKind.INSTRUCTION_BEGIN, BoundaryKind.INSTRUCTION_END
STEPS = (("F", 0, 0), ("F", 0, 1), ("B", 0, 1), ("B", 0, 0))


def boundaries(
    number: int, steps: tuple[tuple[str, int, int], ...] = STEPS, placement: ChunkPlacement = ChunkPlacement.V
) -> list[Boundary]:
    found = [Boundary(BoundaryKind.ITERATION_BEGIN, number, 0, chunk=placement)]
    for letter, microbatch, chunk in steps:
        told = Instruction.from_code(letter), microbatch, chunk
        found += [Boundary(BEGIN, number, 0, *told), Boundary(END, number, 0, *told)]
    return [*found, Boundary(BoundaryKind.ITERATION_END, number, 0)]


def fed(books: OrderBooks, told: list[Boundary]) -> RankOrder | None:
    for each in told:
        books.take(each)
    return books.order()


def test_the_order_of_the_last_whole_iteration_is_told_with_how_often_it_came() -> None:
    books = OrderBooks()
    assert books.order() is None
    for number in range(3):
        found = fed(books, boundaries(number))
    assert found == RankOrder(
        letters="FFBB", microbatches=(0, 0, 0, 0), chunks=(0, 1, 1, 0), placement=ChunkPlacement.V, repeats=3
    )


def test_another_order_or_another_placement_begins_anew() -> None:
    books = OrderBooks()
    fed(books, boundaries(0))
    other = fed(books, boundaries(1, STEPS[:1] + STEPS[3:]))
    assert other is not None
    assert (other.letters, other.chunks, other.repeats) == ("FB", (), 1)
    fed(books, boundaries(2, placement=ChunkPlacement.LOOP))
    told = fed(books, boundaries(3, placement=ChunkPlacement.V))
    assert told is not None
    assert (told.placement, told.repeats) == (ChunkPlacement.V, 1)


def test_a_message_that_was_dropped_costs_its_iteration_and_no_more() -> None:
    books = OrderBooks()
    fed(books, boundaries(0))
    for place in range(1, 9):
        whole = boundaries(place)
        del whole[place]
        fed(books, whole)
    found = fed(books, boundaries(20))
    assert found is not None
    assert (found.letters, found.repeats) == ("FFBB", 2)


def test_an_iteration_that_the_connection_did_not_outlive_is_none() -> None:
    books = OrderBooks()
    fed(books, boundaries(0)[:5])
    books.interrupted()
    assert fed(books, boundaries(0)[5:]) is None
    fed(books, boundaries(1)[:-1])
    assert fed(books, [Boundary(BoundaryKind.ITERATION_END, 2, 0)]) is None, "the end of another one"


def test_what_a_document_cannot_hold_is_neither_kept_nor_told() -> None:
    books = OrderBooks()
    fed(books, boundaries(0))
    endless = boundaries(1, (("F", 0, 0),) * (LONGEST_ORDER + 5))
    found = fed(books, endless)
    assert found is not None
    assert found.letters == "FFBB"
    assert books.order(most=3) is None


def test_the_longest_order_fits_a_page_for_each_gpu_of_a_node() -> None:
    order = RankOrder(letters="FB" * 4096, microbatches=tuple(range(4096)) * 2, chunks=(255,) * 8192, repeats=9)
    size = len(json.dumps(order.model_dump(mode="json", by_alias=True)))
    assert 16 * size < MAXIMUM_REPORT_BYTES
    assert NodeReport().ranks == ()
