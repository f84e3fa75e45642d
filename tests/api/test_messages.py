"""Socket messages: what is packed comes back, and a forged, cut or swollen packet is refused in one sentence."""

from __future__ import annotations

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st
from perseus_api.instructions import Instruction
from perseus_api.messages import (
    BOUNDARY_BYTES,
    HELLO_BYTES,
    MAXIMUM_MESSAGE_BYTES,
    WELCOME_BYTES,
    Boundary,
    BoundaryKind,
    Hello,
    MessageError,
    Verdict,
    Welcome,
    pack_boundary,
)

ITERATION_KINDS = [BoundaryKind.ITERATION_BEGIN, BoundaryKind.ITERATION_END, BoundaryKind.ITERATION_BROKEN]
# Surrogates are no UTF-8; NUL ends a text.
characters = st.characters(exclude_characters="\0", exclude_categories=["Cs"])
short_texts = st.text(characters, max_size=63).filter(lambda text: len(text.encode()) <= 63)
numbers = st.integers(0, 2**32 - 1)
hellos = st.builds(Hello, short_texts, short_texts, short_texts, numbers, numbers, numbers, numbers)
times = st.integers(0, 2**64 - 1)
boundaries = st.builds(
    Boundary,
    st.sampled_from([BoundaryKind.INSTRUCTION_BEGIN, BoundaryKind.INSTRUCTION_END]),
    times,
    times,
    st.sampled_from(Instruction),
    numbers,
    st.integers(0, 2**16 - 1),
) | st.tuples(st.sampled_from(ITERATION_KINDS), times, times).map(lambda fields: Boundary(*fields))
any_packet = (
    st.binary(max_size=2 * MAXIMUM_MESSAGE_BYTES)
    | st.binary(min_size=BOUNDARY_BYTES, max_size=BOUNDARY_BYTES)
    | st.binary(min_size=WELCOME_BYTES, max_size=WELCOME_BYTES)
    | st.binary(min_size=HELLO_BYTES, max_size=HELLO_BYTES)
    # The right beginning, and anything behind it: past the magic and version, into the fields.
    | st.binary(min_size=HELLO_BYTES - 6, max_size=HELLO_BYTES - 6).map(lambda rest: b"PRSH\x01\x00" + rest)
    | st.binary(min_size=WELCOME_BYTES - 6, max_size=WELCOME_BYTES - 6).map(lambda rest: b"PRSW\x01\x00" + rest)
)


@given(hellos)
def test_a_hello_comes_back(hello: Hello) -> None:
    packet = hello.pack()
    assert len(packet) == HELLO_BYTES
    assert Hello.unpack(packet) == hello


@given(boundaries)
def test_a_boundary_comes_back_and_has_one_size(boundary: Boundary) -> None:
    packet = boundary.pack()
    assert len(packet) == BOUNDARY_BYTES
    assert Boundary.unpack(packet) == boundary


@given(st.sampled_from(Verdict), st.text(characters))
def test_a_welcome_comes_back_with_its_reason_cut_at_a_character(verdict: Verdict, reason: str) -> None:
    packet = Welcome(verdict, reason).pack()
    back = Welcome.unpack(packet)
    assert len(packet) == WELCOME_BYTES
    assert back.verdict is verdict
    assert reason.startswith(back.reason)
    # As much as fits: the next character would not have.
    assert back.reason == reason or len(reason[: len(back.reason) + 1].encode()) > 120


@given(any_packet)
def test_a_forged_packet_is_refused_or_packs_to_the_same_meaning(packet: bytes) -> None:
    for kind in (Hello, Boundary, Welcome):
        with contextlib.suppress(MessageError):
            message = kind.unpack(packet)
            assert kind.unpack(message.pack()) == message


@given(hellos, boundaries, st.data())
def test_a_half_or_a_glued_packet_is_refused(hello: Hello, boundary: Boundary, data: st.DataObject) -> None:
    for kind, packet in ((Hello, hello.pack()), (Boundary, boundary.pack())):
        with pytest.raises(MessageError, match=r"has \d+ bytes, this packet has"):
            kind.unpack(packet[: data.draw(st.integers(0, len(packet) - 1))])
        with pytest.raises(MessageError, match="this packet has"):
            kind.unpack(packet + boundary.pack())


@given(hellos, st.integers(0, 3), st.integers(1, 255))
def test_another_protocol_is_not_mistaken_for_ours(hello: Hello, place: int, change: int) -> None:
    packet = bytearray(hello.pack())
    packet[place] ^= change
    with pytest.raises(MessageError, match="must be a hello"):
        Hello.unpack(bytes(packet))


def test_a_newer_protocol_is_told_what_to_update() -> None:
    packet = bytearray(Hello("default", "gpt", "", 0, 0, 0, 1).pack())
    packet[4:6] = (2).to_bytes(2, "little")
    with pytest.raises(MessageError, match="version 2 is not 1: update the trainer library"):
        Hello.unpack(bytes(packet))


@given(boundaries, st.integers(0, 255))
def test_a_boundary_of_an_unknown_kind_is_refused(boundary: Boundary, kind: int) -> None:
    packet = bytearray(boundary.pack())
    packet[0] = kind
    of_instruction = kind in (BoundaryKind.INSTRUCTION_BEGIN, BoundaryKind.INSTRUCTION_END)
    if kind in set(BoundaryKind) and of_instruction == (boundary.instruction is not None):
        assert Boundary.unpack(bytes(packet)).kind == kind
    else:
        with pytest.raises(MessageError):
            Boundary.unpack(bytes(packet))


@pytest.mark.parametrize(
    "arguments",
    [
        (1, -1, 0),
        (1, 2**64, 0),
        (1, 0, -1),
        (2, 0, 0, ord("F"), -1),
        (2, 0, 0, ord("F"), 2**32),
        (2, 0, 0, ord("F"), 0, 2**16),
        (2, 0, 0, 256),
        (2, 0, 0, ord("F"), "3"),
        (2, 0, 0, ord("F"), 0.5),
    ],
)
def test_numbers_that_do_not_fit_are_named_before_they_are_sent(arguments: tuple[int, ...]) -> None:
    with pytest.raises(MessageError, match="does not fit"):
        pack_boundary(*arguments)


@pytest.mark.parametrize("text", ["x" * 64, "ä" * 32])
def test_a_text_that_is_too_long_is_refused(text: str) -> None:
    with pytest.raises(MessageError, match="at most 63 bytes"):
        Hello(text, "gpt", "", 0, 0, 0, 1).pack()


@pytest.mark.parametrize("number", [-1, 2**32])
def test_a_hellos_number_that_does_not_fit_is_refused(number: int) -> None:
    with pytest.raises(MessageError, match="must fit 32 bits"):
        Hello("default", "gpt", "", 0, number, 0, 1).pack()
