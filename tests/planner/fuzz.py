"""Fuzzes the loaders of files with atheris; `make fuzz` runs it, no test suite does.

Whatever the bytes, a loader returns or raises its one kind of error: anything else ends the run with the input.
"""

from __future__ import annotations

import sys
from collections.abc import Callable

import atheris

with atheris.instrument_imports(include=["perseus_api", "perseus_planner"]):
    from perseus_api.errors import DocumentError
    from perseus_api.frontier import Frontier
    from perseus_api.profile import parse_profile
    from perseus_planner.given import load_orders

_CSV = "stage,instruction,frequency,time,energy\n0,forward,1000,1,1\n0,forward,900,2,0.9\n"


def _profile(data: bytes) -> None:
    text = data.decode(errors="replace")
    # Half of the inputs begin with the right columns, so that rows are reached at once.
    parse_profile(text if len(data) % 2 else _CSV + text, None, 50.0)


def _header(data: bytes) -> None:
    parse_profile(_CSV, data.decode(errors="replace"), None)


def _orders(data: bytes) -> None:
    load_orders(data)


def _frontier(data: bytes) -> None:
    Frontier.decode(data)


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
