"""Orders that a person wrote or a trainer recorded: JSON in one of two forms, checked before anything is planned.

The long form is for people::

    {"stages": [[{"instruction": "forward", "microbatch": 0, "chunk": 0}, ...], ...]}

the compact one is what frontier documents hold (letters as in `perseus_api.instructions`)::

    {"order": ["FFBB", ...], "microbatches": [[0, 1, 0, 1], ...], "chunks": [[0, 0, 0, 0], ...]}

``chunk`` and ``chunks`` may be left out. Bad input is answered with one sentence that names stage and entry, both
counted from 0. What an order may not do (run something twice, wait for what never runs, wait in a circle) is known to
the graph (`dag`): it is built once to find out.
"""

from __future__ import annotations

import json
from typing import Any

from perseus_api.errors import DocumentError
from perseus_api.instructions import LONGEST_ORDER, Instruction
from perseus_api.profile import MAXIMUM_STAGES

from perseus_planner.dag import build_dag
from perseus_planner.pipeline import Order, Pipeline, Step

MAXIMUM_BYTES = 64 * 1024 * 1024
MAXIMUM_ALL_ENTRIES = 4 * 1024 * 1024
MAXIMUM_MICROBATCH = 4095
MAXIMUM_CHUNK = 255
_STEP_KEYS = frozenset({"instruction", "microbatch", "chunk"})


def load_orders(text: str | bytes, v_shape: bool = False) -> tuple[Order, ...]:
    """Load and check the orders of a pipeline's stages.

    Args:
        text: JSON, at most `MAXIMUM_BYTES`.
        v_shape: odd chunks run through the stages backwards (see `Pipeline.virtual_stage`).

    Raises:
        DocumentError: what is wrong, in one sentence that names stage and entry.
    """
    data = text.encode(errors="surrogatepass") if isinstance(text, str) else text
    if len(data) > MAXIMUM_BYTES:
        raise DocumentError(f"the orders have {len(data)} bytes; at most {MAXIMUM_BYTES} are read")
    try:
        document = json.loads(data)
    except (ValueError, RecursionError):
        raise DocumentError("the orders are not JSON") from None
    if not isinstance(document, dict):
        raise DocumentError("the orders must be a JSON object with stages, or with order and microbatches")
    if "stages" in document:
        _check_keys(document, {"stages"})
        orders = _long(document["stages"])
    else:
        _check_keys(document, {"order", "microbatches", "chunks"})
        orders = _compact(document)
    _check_graph(orders, v_shape)
    return orders


def _check_keys(document: dict[str, Any], known: set[str]) -> None:
    unknown = sorted(set(document) - known)
    if unknown:
        raise DocumentError(f"the orders have the unknown field {unknown[0][:40]!r}; use {', '.join(sorted(known))}")


def _long(stages: object) -> tuple[Order, ...]:
    lists = _lists(stages, "stages")
    return tuple(
        tuple(_step(stage, entry, each) for entry, each in enumerate(order)) for stage, order in enumerate(lists)
    )


def _step(stage: int, entry: int, given: object) -> Step:
    place = f"stage {stage} entry {entry}"
    if not isinstance(given, dict) or not {"instruction", "microbatch"} <= set(given) <= _STEP_KEYS:
        raise DocumentError(f"{place} must be an object with instruction, microbatch and, where there are any, chunk")
    name = given["instruction"]
    try:
        instruction = Instruction(name)
    except ValueError:
        known = ", ".join(each.value for each in Instruction)
        raise DocumentError(f"{place}: instruction {str(name)[:40]!r} is unknown; use one of {known}") from None
    return Step(
        instruction,
        _number(place, "microbatch", given["microbatch"], MAXIMUM_MICROBATCH),
        _number(place, "chunk", given.get("chunk", 0), MAXIMUM_CHUNK),
    )


def _compact(document: dict[str, Any]) -> tuple[Order, ...]:
    letters = document.get("order")
    if not isinstance(letters, list) or not all(isinstance(each, str) for each in letters):
        raise DocumentError("the orders must have stages, or order: a list of one string of letters for each stage")
    names = _lists([list(each) for each in letters], "order")
    microbatches = _beside(names, document.get("microbatches"), "microbatches")
    # As in a frontier document, an empty list says that all are 0.
    chunks = _beside(names, document["chunks"], "chunks") if document.get("chunks") else None
    found = []
    for stage, order in enumerate(names):
        steps = []
        for entry, letter in enumerate(order):
            place = f"stage {stage} entry {entry}"
            try:
                instruction = Instruction.from_code(letter)
            except KeyError:
                known = ", ".join(f"{each.code} ({each.value})" for each in Instruction)
                raise DocumentError(f"{place}: instruction {letter!r} is unknown; use one of {known}") from None
            microbatch = _number(place, "microbatch", microbatches[stage][entry], MAXIMUM_MICROBATCH)
            chunk = _number(place, "chunk", chunks[stage][entry], MAXIMUM_CHUNK) if chunks else 0
            steps.append(Step(instruction, microbatch, chunk))
        found.append(tuple(steps))
    return tuple(found)


def _lists(given: object, name: str) -> list[list[Any]]:
    """Check that something is a list of a list for each stage, within bounds and none empty."""
    if not isinstance(given, list) or not 1 <= len(given) <= MAXIMUM_STAGES:
        raise DocumentError(f"{name} must be a list of 1 to {MAXIMUM_STAGES} stages")
    for stage, each in enumerate(given):
        if not isinstance(each, list) or not 1 <= len(each) <= LONGEST_ORDER:
            raise DocumentError(f"{name}: stage {stage} must have from 1 to {LONGEST_ORDER} entries")
    count = sum(len(each) for each in given)
    if count > MAXIMUM_ALL_ENTRIES:
        raise DocumentError(f"{name} has {count} entries; at most {MAXIMUM_ALL_ENTRIES} are read")
    return given


def _beside(names: list[list[Any]], given: object, name: str) -> list[list[Any]]:
    """Check that a field has one list for each stage, with one entry for each letter."""
    if not isinstance(given, list) or len(given) != len(names):
        raise DocumentError(f"{name} must have one list for each of {len(names)} stages")
    for stage, (letters, each) in enumerate(zip(names, given, strict=True)):
        if not isinstance(each, list) or len(each) != len(letters):
            raise DocumentError(f"{name}: stage {stage} must have one entry for each of its {len(letters)} letters")
    return given


def _number(place: str, name: str, given: object, most: int) -> int:
    if not isinstance(given, int) or isinstance(given, bool) or not 0 <= given <= most:
        raise DocumentError(f"{place}: {name} must be a whole number from 0 to {most}, not {str(given)[:40]}")
    return given


def _check_graph(orders: tuple[Order, ...], v_shape: bool) -> None:
    pipeline = Pipeline.of_orders(orders, v_shape=v_shape)
    if pipeline.virtual_stages > MAXIMUM_STAGES:
        raise DocumentError(
            f"{pipeline.stages} stages of {pipeline.chunks} chunks are {pipeline.virtual_stages} virtual stages; "
            f"a profile measures at most {MAXIMUM_STAGES}"
        )
    lacking = pipeline.lacking_chunk()
    if lacking:
        raise DocumentError(lacking)
    try:
        build_dag(orders, pipeline)
    except ValueError as error:
        raise DocumentError(str(error)) from None
