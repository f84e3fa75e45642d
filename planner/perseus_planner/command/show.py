"""``perseus show``: the frontier and the pipeline's timeline, before and after, on the terminal and as pictures."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from perseus_planner.command.inputs import BadInput, objective_options, problem_options, progress, read_inputs, refused
from perseus_planner.command.plan import choose
from perseus_planner.errors import PlanningError
from perseus_planner.pipeline import PipelineError
from perseus_planner.planning import exact_frontier, frontier, plan
from perseus_planner.plots import frontier_picture, timeline_picture
from perseus_planner.timeline import clock_range, curve, timeline

_PLANS = 64


@click.command("show")
@problem_options
@objective_options
@click.option("--output", type=click.Path(file_okay=False, path_type=Path), help="Folder for PNG and SVG pictures.")
def show_command(
    objective: str | None,
    max_slowdown_percent: float | None,
    deadline_seconds: float | None,
    straggler_seconds: float | None,
    power_budget_watts: float | None,
    output: Path | None,
    **options: Any,
) -> None:
    """Show the frontier, and an iteration before and after."""
    chosen = choose(objective, max_slowdown_percent, deadline_seconds, straggler_seconds, power_budget_watts)
    inputs = read_inputs(**options)
    try:
        with progress("planning"):
            found = plan(inputs.profile, inputs.pipeline, chosen)
            seconds, joules = exact_frontier(inputs.profile, inputs.pipeline)
        fastest = (found.fastest.iteration_seconds, found.fastest_joules)
        mine = (found.iteration_seconds, found.iteration_joules)
        clocks = clock_range([*found.fastest_steps, *found.steps])
        click.echo(curve(seconds.tolist(), joules.tolist(), [(*fastest, "F"), (*mine, "P")]))
        click.echo("F: every instruction at its highest clock, P: this plan, ·: the exact relaxation\n")
        click.echo(f"highest clocks\n{timeline(found.fastest_steps, clocks)}\n")
        click.echo(
            f"plan: {found.savings_percent:.2f} % saved at {found.slowdown_percent:+.2f} % time\n"
            f"{timeline(found.steps, clocks)}"
        )
        if output is None:
            return
        with progress("drawing"):
            output.mkdir(parents=True, exist_ok=True)
            realised = frontier(inputs.profile, inputs.pipeline, _PLANS).plans
            ranks = inputs.pipeline.tensor_parallel
            points = [(each.iteration_seconds, ranks * each.iteration_joules) for each in realised]
            files = frontier_picture(output / "frontier", seconds.tolist(), joules.tolist(), points, fastest, mine)
            files += timeline_picture(output / "timeline", found.fastest_steps, found.steps)
    except (PlanningError, PipelineError) as error:
        raise refused(error, options["profile"]) from None
    except OSError as error:
        raise BadInput(f"{output} cannot be written: {error.strerror}") from None
    for each in files:
        click.echo(f"wrote {each}")
