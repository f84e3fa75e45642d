"""``perseus verify``: replays a plan with code that shares nothing with the solver."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import click
from perseus_api.instructions import Instruction

from perseus_planner.command.inputs import BadInput, Number, read_profile, read_text
from perseus_planner.replay import ReplayError, ReplayStep, replay

_MAXIMUM_PLAN_BYTES = 256 * 1024 * 1024
_TOLERANCE = 1e-6  # relative: the solver counts whole picoseconds


@click.command("verify")
@click.argument("plan", type=click.Path(path_type=Path))
@click.option("--profile", type=click.Path(path_type=Path), required=True, help="The profile it was planned from.")
@click.option("--blocking-power-watts", type=Number(0, 10_000), help="By default the header's.")
@click.option("--format", "form", type=click.Choice(["table", "json"]), default="table", show_default=True)
def verify_command(plan: Path, profile: Path, blocking_power_watts: float | None, form: str) -> None:
    """Replay PLAN, the JSON of `perseus plan --format json`; exit code 1 if its figures are not what it says."""
    found = read_profile(profile, blocking_power_watts)
    document = _read(plan)
    try:
        rows = [
            [_step(plan, rank, place, each) for place, each in enumerate(row)] for rank, row in _rows(plan, document)
        ]
        switching = document.get("switching", {})
        if not isinstance(switching, dict):
            raise BadInput(f"{plan}: switching must be an object as perseus plan writes it")
        dead, energy = (_number(plan, switching.get(name, 0.0), f"switching.{name}") for name in ("seconds", "joules"))
        if not (0 <= dead <= 10 and 0 <= energy <= 1e6):
            raise BadInput(f"{plan}: a switch takes from 0 to 10 seconds and from 0 to 1000000 joules")
        result = replay(found, rows, dead, energy)
    except ReplayError as error:
        raise BadInput(f"{plan}: {error}") from None
    ranks = _number(plan, document.get("tensor_parallel", 1), "tensor_parallel")
    pairs = {
        "iteration_seconds": (_number(plan, document.get("iteration_seconds"), "iteration_seconds"), result.seconds),
        "iteration_joules": (
            _number(plan, document.get("iteration_joules"), "iteration_joules"),
            ranks * result.joules,
        ),
    }
    bound = switching.get("bound_per_second")
    per_second = max(result.switches) / result.seconds
    few = bound is None or per_second <= _number(plan, bound, "switching.bound_per_second") * (1 + 1e-9)
    agrees = all(math.isclose(claimed, seen, rel_tol=_TOLERANCE) for claimed, seen in pairs.values())
    in_time = result.seconds <= _number(plan, document.get("limit_seconds", math.inf), "limit_seconds") * (1 + 1e-9)
    if form == "json":
        click.echo(
            json.dumps(
                {
                    "agrees": agrees,
                    "keeps_limit": in_time,
                    "keeps_switch_bound": few,
                    "switches_per_second": per_second,
                    **{name: seen for name, (_, seen) in pairs.items()},
                }
            )
        )
    else:
        for name, (claimed, seen) in pairs.items():
            click.echo(f"{name:<18} plan {claimed:>16.6f}   replayed {seen:>16.6f}")
        click.echo(
            f"figures {'agree' if agrees else 'DO NOT agree'}, limit {'kept' if in_time else 'NOT kept'}, "
            f"{per_second:.1f} switches a second{'' if few else ': MORE than the bound'}"
        )
    if not (agrees and in_time and few):
        raise SystemExit(1)


def _read(path: Path) -> dict[str, Any]:
    try:
        document = json.loads(read_text(path, _MAXIMUM_PLAN_BYTES))
    except (ValueError, RecursionError):
        raise BadInput(f"{path} is not JSON: write it with perseus plan --format json") from None
    if not isinstance(document, dict):
        raise BadInput(f"{path} is not a plan: write it with perseus plan --format json")
    return document


def _rows(path: Path, document: dict[str, Any]) -> list[tuple[int, list[Any]]]:
    stages = document.get("stages")
    if not isinstance(stages, list) or not stages or not all(isinstance(row, list) and row for row in stages):
        raise BadInput(f"{path}: stages must be a list with one list of instructions for each rank")
    return list(enumerate(stages))


def _step(path: Path, rank: int, place: int, entry: Any) -> ReplayStep:
    try:
        return ReplayStep(
            Instruction(entry["instruction"]),
            int(entry["microbatch"]),
            int(entry.get("stage", rank)),
            int(entry["frequency"]),
        )
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError):
        raise BadInput(
            f"{path}: stage {rank} entry {place} must have instruction, microbatch and frequency as perseus plan "
            "writes them"
        ) from None


def _number(path: Path, value: Any, name: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or math.isnan(value):
        raise BadInput(f"{path}: {name} must be a number")
    return float(value)
