"""Fuzzes the loaders of files with atheris; `make fuzz` runs it, no test suite does.

Whatever the bytes, a loader returns or raises its one kind of error: anything else ends the run with the input.
"""

from __future__ import annotations

import json
import random
import sys
from collections.abc import Callable
from typing import Any

import atheris

with atheris.instrument_imports(include=["perseus_api", "perseus_planner"]):
    from perseus_api.encoding import encode
    from perseus_api.errors import DocumentError
    from perseus_api.frontier import Frontier
    from perseus_api.profile import parse_profile
    from perseus_planner.given import load_orders

_CSV = "stage,instruction,frequency,time,energy\n0,forward,1000,1,1\n0,forward,900,2,0.9\n"


class _Dice:
    """Values drawn by chance, the bytes being the seed: compiled code checks documents and guides no fuzzer."""

    def __init__(self, data: bytes) -> None:
        self._random = random.Random(data)

    def ConsumeBool(self) -> bool:  # noqa: N802
        return self._random.random() < 0.5

    def ConsumeIntInRange(self, low: int, high: int) -> int:  # noqa: N802
        return self._random.randint(low, high)

    def ConsumeFloat(self) -> float:  # noqa: N802
        return self._random.choice([0.0, -1.0, 1e-300, 1e300, float("inf"), self._random.uniform(-1, 1e6)])

    def PickValueInList(self, values: list[Any]) -> Any:  # noqa: N802
        return self._random.choice(values)

    def ConsumeUnicodeNoSurrogates(self, count: int) -> str:  # noqa: N802
        return "".join(chr(self._random.choice([10, 13, 0, 34, 955, 128512, 97])) for _ in range(count))


def _source(data: bytes) -> Any:
    return _Dice(data) if len(data) % 4 else atheris.FuzzedDataProvider(data)


_HEADER_KEYS = ["gpuModel", "blockingPowerWatts", "stageGpus", "stages", "tensorParallel", "schedule", "model", "x"]
_FRONTIER_KEYS = ["schemaVersion", "shape", "plans", "fastest", "order", "microbatches", "chunks", "breakpointSeconds"]


def _json(source: Any, keys: list[str], depth: int = 4) -> Any:
    """A JSON value that the fuzzer's bytes choose."""
    kind = source.ConsumeIntInRange(0, 7)
    if kind == 0 and depth:
        count = source.ConsumeIntInRange(0, 6)
        return {source.PickValueInList(keys): _json(source, keys, depth - 1) for _ in range(count)}
    if kind <= 2 and depth:
        return [_json(source, keys, depth - 1) for _ in range(source.ConsumeIntInRange(0, 6))]
    if kind <= 4:
        return source.ConsumeIntInRange(-2, 300)
    if kind == 5:
        return source.ConsumeFloat()
    if kind == 6:
        return source.PickValueInList([None, True, False, "forward", "FB", "1F1B", 2**70, float("nan")])
    return source.ConsumeUnicodeNoSurrogates(8)


def _profile(data: bytes) -> None:
    text = data.decode(errors="replace")
    # Half of the inputs begin with the right columns, so that rows are reached at once.
    parse_profile(text if len(data) % 2 else _CSV + text, None, 50.0)


def _header(data: bytes) -> None:
    source = _source(data)
    if source.ConsumeBool():
        parse_profile(_CSV, data.decode(errors="replace"), None)
    entries = {key: _json(source, _HEADER_KEYS) for key in _HEADER_KEYS if source.ConsumeBool()}
    parse_profile(_CSV, json.dumps({"blockingPowerWatts": 50.0, **entries}), None)


def _orders(data: bytes) -> None:
    source = _source(data)
    if source.ConsumeBool():
        load_orders(data)
    letters, numbers = [], []
    for _ in range(source.ConsumeIntInRange(0, 4)):
        count = source.ConsumeIntInRange(0, 8)
        letters.append("".join(source.PickValueInList(list("FBIWRLPAO?")) for _ in range(count)))
        numbers.append([source.ConsumeIntInRange(-1, 3) for _ in range(count)])
    document: dict[str, Any] = {"order": letters, "microbatches": numbers}
    if source.ConsumeBool():
        document["chunks"] = [[source.ConsumeIntInRange(0, 1) for _ in row] for row in numbers]
    if source.ConsumeBool():
        document[source.PickValueInList(["order", "microbatches", "chunks", "stages"])] = _json(source, ["instruction"])
    load_orders(json.dumps(document), source.ConsumeBool())


def _frontier(data: bytes) -> None:
    source = _source(data)
    if source.ConsumeBool():
        Frontier.decode(data)
    document = {key: _json(source, _FRONTIER_KEYS) for key in _FRONTIER_KEYS if source.ConsumeBool()}
    try:
        encoded = encode(document)
    except ValueError:
        return  # no JSON: not a number
    Frontier.decode(encoded)


_TARGETS: dict[str, Callable[[bytes], None]] = {
    "profile": _profile,
    "header": _header,
    "orders": _orders,
    "frontier": _frontier,
}


def main() -> None:
    """Fuzz the target that the command line names; the rest is libFuzzer's."""
    target = _TARGETS[sys.argv.pop(1)]

    def one(data: bytes) -> None:
        try:
            target(data)
        except DocumentError as error:
            if "\n" in str(error).strip():
                raise AssertionError(f"not one line: {error}") from error

    atheris.Setup(sys.argv, one)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
