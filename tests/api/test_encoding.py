"""Documents in ConfigMaps: whatever is damaged, cut or swollen is refused in one sentence (invariant 7)."""

from __future__ import annotations

import contextlib
import gzip
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from perseus_api.encoding import MAXIMUM_COMPRESSED_BYTES, MAXIMUM_INFLATED_BYTES, checksum, decode, encode
from perseus_api.errors import DocumentError

values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)
documents = st.dictionaries(st.text(min_size=1).filter(lambda key: key != "checksum"), values, max_size=5)


@given(documents)
def test_what_is_encoded_comes_back(document: dict[str, Any]) -> None:
    assert decode(encode(document), "plan") == document


@given(documents)
def test_equal_documents_give_equal_bytes(document: dict[str, Any]) -> None:
    assert encode(document) == encode(dict(reversed(document.items())))


@given(documents, st.data())
def test_a_flipped_byte_is_never_read_as_another_document(document: dict[str, Any], data: st.DataObject) -> None:
    good = encode(document)
    place = data.draw(st.integers(0, len(good) - 1))
    bad = bytes([*good[:place], good[place] ^ data.draw(st.integers(1, 255)), *good[place + 1 :]])
    with contextlib.suppress(DocumentError):
        assert decode(bad, "plan") == document  # only gzip's own header fields may differ


@given(documents, st.data())
def test_a_cut_document_is_refused(document: dict[str, Any], data: st.DataObject) -> None:
    good = encode(document)
    with pytest.raises(DocumentError):
        decode(good[: data.draw(st.integers(0, len(good) - 1))], "plan")


def test_a_changed_field_breaks_the_checksum() -> None:
    document = json.loads(gzip.decompress(encode({"generation": 3})))
    forged = gzip.compress(json.dumps({**document, "generation": 4}).encode())
    with pytest.raises(DocumentError, match="checksum does not match"):
        decode(forged, "plan")


def test_a_bomb_is_not_inflated_beyond_the_bound() -> None:
    bomb = gzip.compress(b"0" * (MAXIMUM_INFLATED_BYTES + 1))
    assert len(bomb) < MAXIMUM_COMPRESSED_BYTES
    with pytest.raises(DocumentError, match="inflates to more than"):
        decode(bomb, "frontier")


def test_more_bytes_than_a_config_map_holds_are_not_looked_at() -> None:
    with pytest.raises(DocumentError, match="at most"):
        decode(b"\x1f" * (MAXIMUM_COMPRESSED_BYTES + 1), "frontier")


@pytest.mark.parametrize("text", [b"[1, 2]", b'"plan"', b"{", b"[" * 100_000, b"\xff\xfe"])
def test_what_is_not_a_json_object_is_refused(text: bytes) -> None:
    with pytest.raises(DocumentError, match="JSON"):
        decode(gzip.compress(text), "plan")


def test_not_a_number_has_no_place_in_a_document() -> None:
    with pytest.raises(ValueError, match="JSON"):
        checksum({"seconds": float("nan")})


@pytest.mark.parametrize("number", ["NaN", "Infinity", "-Infinity"])
def test_numbers_that_json_does_not_know_are_refused(number: str) -> None:
    with pytest.raises(DocumentError, match="not JSON"):
        decode(gzip.compress(f'{{"a": {number}}}'.encode()), "plan")
