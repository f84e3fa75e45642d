"""``perseus plan``: one plan for one objective."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

from perseus_planner.command.inputs import (
    BadInput,
    Number,
    objective_options,
    problem_options,
    progress,
    read_inputs,
    refused,
)
from perseus_planner.errors import PlanningError
from perseus_planner.objective import (
    Deadline,
    MaximumSlowdown,
    MinimumEnergy,
    NoSlowdown,
    Objective,
    PowerBudget,
    Straggler,
)
from perseus_planner.pipeline import PipelineError
from perseus_planner.planning import Planned, plan
from perseus_planner.switching import SwitchBound
from perseus_planner.timeline import timeline

_OBJECTIVES: dict[str, Objective] = {"no-slowdown": NoSlowdown(), "min-energy": MinimumEnergy()}


@click.command("plan")
@problem_options
@objective_options
@click.option("--switches-per-second", type=Number(0, 1e6), help="Clock changes of one GPU, at most.")
@click.option("--switch-seconds", type=Number(0, 10), help="By which a change of clock delays.")
@click.option("--switch-joules", type=Number(0, 1e6), help="That a change of clock costs one GPU.")
@click.option("--format", "form", type=click.Choice(["table", "json"]), default="table", show_default=True)
@click.option("--output", type=click.Path(dir_okay=False, path_type=Path), help="Write there instead of to the screen.")
def plan_command(
    objective: str | None,
    max_slowdown_percent: float | None,
    deadline_seconds: float | None,
    straggler_seconds: float | None,
    power_budget_watts: float | None,
    switches_per_second: float | None,
    switch_seconds: float | None,
    switch_joules: float | None,
    form: str,
    output: Path | None,
    **options: Any,
) -> None:
    """Plan the clocks of one iteration: the least energy for an objective."""
    chosen = choose(objective, max_slowdown_percent, deadline_seconds, straggler_seconds, power_budget_watts)
    switches = None
    if (switches_per_second, switch_seconds, switch_joules) != (None, None, None):
        switches = SwitchBound(switches_per_second, switch_seconds or 0.0, switch_joules or 0.0)
    inputs = read_inputs(**options)
    try:
        with progress("planning"):
            found = plan(inputs.profile, inputs.pipeline, chosen, switches=switches)
    except (PlanningError, PipelineError) as error:
        raise refused(error, options["profile"]) from None
    text = json.dumps(plan_document(found), indent=1) if form == "json" else table(found)
    if output is None:
        click.echo(text)
        return
    try:
        output.write_text(text + "\n")
    except OSError as error:
        raise BadInput(f"{output} cannot be written: {error.strerror}") from None


def choose(
    objective: str | None,
    max_slowdown_percent: float | None,
    deadline_seconds: float | None,
    straggler_seconds: float | None,
    power_budget_watts: float | None,
) -> Objective:
    """Return the one objective that the options name; the default is no slowdown.

    Raises:
        BadInput: they name several.
    """
    given: list[Objective] = []
    if objective is not None:
        given.append(_OBJECTIVES[objective])
    if max_slowdown_percent is not None:
        given.append(MaximumSlowdown(max_slowdown_percent))
    if deadline_seconds is not None:
        given.append(Deadline(deadline_seconds))
    if straggler_seconds is not None:
        given.append(Straggler(straggler_seconds))
    if power_budget_watts is not None:
        given.append(PowerBudget(power_budget_watts))
    if len(given) > 1:
        raise BadInput(
            "--objective, --max-slowdown-percent, --deadline-seconds, --straggler-seconds and --power-budget-watts "
            "exclude each other: give one of them"
        )
    return given[0] if given else NoSlowdown()


def plan_document(found: Planned) -> dict[str, Any]:
    """Return a plan as JSON objects: what `perseus verify` replays."""
    return {
        "iteration_seconds": found.iteration_seconds,
        "iteration_joules": found.iteration_joules,
        "fastest": {
            "iteration_seconds": found.fastest.iteration_seconds,
            "iteration_joules": found.fastest_joules,
        },
        "limit_seconds": found.limit_seconds,
        "savings_percent": found.savings_percent,
        "slowdown_percent": found.slowdown_percent,
        "bound_savings_percent": found.bound_savings_percent,
        "gap_points": found.gap_points,
        "switching": {
            "bound_per_second": found.switching.bound.per_second,
            "seconds": found.switching.bound.seconds,
            "joules": found.switching.bound.joules,
            "switches": list(found.switching.switches),
            "most_per_second": found.switching.per_second,
            "cost_points": found.switch_cost_points,
        },
        "schedule": found.pipeline.schedule.value,
        "tensor_parallel": found.pipeline.tensor_parallel,
        "stages": [
            [
                {
                    "instruction": step.instruction.value,
                    "microbatch": step.microbatch,
                    "chunk": step.chunk,
                    "stage": step.stage,
                    "frequency": step.frequency_megahertz,
                    "seconds": step.seconds,
                    "joules": step.joules,
                    "begin_seconds": step.begin_seconds,
                }
                for step in row
            ]
            for row in found.steps
        ],
    }


def table(found: Planned) -> str:
    """Return what a person wants to know of a plan."""
    rows = [
        ("highest clocks", found.fastest.iteration_seconds, found.fastest_joules, ""),
        ("plan", found.iteration_seconds, found.iteration_joules, f"{found.slowdown_percent:+.2f} % time"),
    ]
    lines = [f"{'':<16}{'seconds':>12}{'joules':>14}"]
    lines += [f"{name:<16}{seconds:>12.6f}{joules:>14.1f}  {note}".rstrip() for name, seconds, joules, note in rows]
    lines.append("")
    lines.append(
        f"saves {found.savings_percent:.2f} % (no plan in {found.limit_seconds:.6f} s can save more than "
        f"{found.bound_savings_percent:.2f} %; gap {found.gap_points:.2f} points)"
    )
    lines.append(
        f"changes the clock of a GPU {found.switching.per_second:.1f} times a second at most"
        + (f"; the bound on that costs {found.switch_cost_points:.2f} points" if found.free else "")
    )
    lines += ["", timeline(found.steps)]
    return "\n".join(lines)
