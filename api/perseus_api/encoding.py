"""How documents travel in ConfigMaps: canonical JSON with a checksum, gzip-compressed, bounded when inflated.

The checksum is SHA-256 over the canonical JSON without the checksum itself. Nothing executable is ever loaded
(invariant 7): JSON only, sizes checked before anything is inflated or parsed.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import zlib
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from perseus_api.errors import DocumentError

Model = TypeVar("Model", bound=BaseModel)

MAXIMUM_COMPRESSED_BYTES = 1024 * 1024
MAXIMUM_INFLATED_BYTES = 64 * 1024 * 1024


def encode(document: dict[str, Any]) -> bytes:
    """Return the compressed bytes of a JSON object with its checksum added. Equal objects give equal bytes."""
    unsigned = {key: value for key, value in document.items() if key != "checksum"}
    signed = {**unsigned, "checksum": checksum(unsigned)}
    return gzip.compress(_canonical(signed), compresslevel=6, mtime=0)


def decode(data: bytes, what: str) -> dict[str, Any]:
    """Return the JSON object of compressed bytes, its checksum verified and removed.

    Args:
        data: gzip-compressed JSON, at most `MAXIMUM_COMPRESSED_BYTES`.
        what: name of the document for error texts, such as ``plan``.

    Raises:
        DocumentError: too large, not gzip, not a JSON object, or a wrong checksum.
    """
    if len(data) > MAXIMUM_COMPRESSED_BYTES:
        raise DocumentError(f"the {what} has {len(data)} bytes; at most {MAXIMUM_COMPRESSED_BYTES} are read")
    inflater = zlib.decompressobj(wbits=31)
    try:
        text = inflater.decompress(data, MAXIMUM_INFLATED_BYTES)
    except zlib.error:
        raise DocumentError(f"the {what} is not gzip data: write it again with the same version's tools") from None
    if inflater.unconsumed_tail or not inflater.eof:
        raise DocumentError(f"the {what} is cut short or inflates to more than {MAXIMUM_INFLATED_BYTES} bytes")
    try:
        document = json.loads(text, parse_constant=_no_number)
    except (ValueError, RecursionError):
        raise DocumentError(f"the {what} is not JSON: write it again with the same version's tools") from None
    if not isinstance(document, dict):
        raise DocumentError(f"the {what} must be a JSON object")
    claimed = document.pop("checksum", None)
    if claimed != checksum(document):
        raise DocumentError(f"the {what}'s checksum does not match its content: it was changed or damaged on its way")
    return document


def checksum(document: dict[str, Any]) -> str:
    """Return ``sha256:HEX`` over the canonical JSON of an object that carries no checksum itself."""
    return "sha256:" + hashlib.sha256(_canonical(document)).hexdigest()


def first_problem(error: ValidationError) -> str:
    """Return the first problem of a pydantic error as ``field.path: what is wrong``."""
    problem = error.errors()[0]
    path = ".".join(str(part) for part in problem["loc"]) or "document"
    return f"{path}: {problem['msg']}"


def validated(model: type[Model], document: dict[str, Any], what: str) -> Model:
    """Return the document as its model.

    Raises:
        DocumentError: it does not fit; the text names the first field that is wrong.
    """
    try:
        return model.model_validate(document)
    except ValidationError as error:
        raise DocumentError(f"the {what} is not valid: {first_problem(error)}") from None


def _no_number(name: str) -> float:
    raise ValueError(f"{name} is no number of JSON")  # Python reads NaN and Infinity, and then cannot write them


def _canonical(document: dict[str, Any]) -> bytes:
    return json.dumps(document, sort_keys=True, separators=(",", ":"), allow_nan=False).encode()
