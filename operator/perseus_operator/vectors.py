"""Answers with ten thousands of samples, decoded at once into what is looked at: most of a straggler round's time.

What has another shape than that of an instant vector is refused as a whole; labels that nobody asked for are skipped
without becoming objects.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Literal

import msgspec

from perseus_operator.transport import NoAnswer


class Labels(msgspec.Struct, gc=False):
    """The labels of a sample that speaks of a pipeline; empty where it has none."""

    name: str = msgspec.field(name="__name__", default="")
    namespace: str = ""
    job: str = ""
    pipeline: str = ""
    pod: str = ""
    instance: str = ""


class _Sample(msgspec.Struct, gc=False):
    metric: Labels
    value: tuple[float, str]


class _Vector(msgspec.Struct):
    kind: Literal["vector"] = msgspec.field(name="resultType")
    result: list[_Sample]


class _Answer(msgspec.Struct):
    status: Literal["success"]
    data: _Vector


_DECODER = msgspec.json.Decoder(_Answer)


def decode_vector(body: bytes) -> tuple[float, Iterator[tuple[Labels, float]]]:
    """Return the time of an answer, and labels and value of each sample; what is no finite number is left out.

    Raises:
        NoAnswer: this is no instant vector of Prometheus's.
    """
    try:
        found = _DECODER.decode(body).data.result
    except (msgspec.MsgspecError, RecursionError):
        raise NoAnswer("this is no instant vector of Prometheus") from None
    return found[0].value[0] if found else 0.0, _finite(found)


def _finite(found: list[_Sample]) -> Iterator[tuple[Labels, float]]:
    for sample in found:
        _, text = sample.value
        try:
            value = float(text)
        except ValueError:
            raise NoAnswer("this is no instant vector of Prometheus") from None
        if math.isfinite(value):
            yield sample.metric, value
