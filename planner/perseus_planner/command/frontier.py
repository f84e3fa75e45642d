"""``perseus frontier``: every breakpoint of the exact frontier, or the plans realised on it."""

from __future__ import annotations

import json
from typing import Any

import click

from perseus_planner.command.inputs import problem_options, progress, read_inputs, refused
from perseus_planner.errors import PlanningError
from perseus_planner.planning import DEFAULT_PLANS, exact_frontier, frontier


@click.command("frontier")
@problem_options
@click.option("--realised", is_flag=True, help="Plans with measured clocks instead of the exact relaxation.")
@click.option("--format", "form", type=click.Choice(["csv", "json", "table"]), default="csv", show_default=True)
def frontier_command(realised: bool, form: str, **options: Any) -> None:
    """Print the time-energy frontier from no slowdown to T*: joules of all GPUs of the pipeline in one iteration."""
    inputs = read_inputs(**options)
    try:
        with progress("computing the frontier"):
            if realised:
                ranks = inputs.pipeline.tensor_parallel
                found = frontier(inputs.profile, inputs.pipeline, DEFAULT_PLANS)
                points = [(each.iteration_seconds, ranks * each.iteration_joules) for each in found.plans]
            else:
                seconds, joules = exact_frontier(inputs.profile, inputs.pipeline)
                points = list(zip(seconds.tolist(), joules.tolist(), strict=True))
    except PlanningError as error:
        raise refused(error, options["profile"]) from None
    if form == "json":
        click.echo(json.dumps([{"time": time, "energy": energy} for time, energy in points]))
    elif form == "csv":
        click.echo("time,energy")
        click.echo("\n".join(f"{time:.9f},{energy!r}" for time, energy in points))
    else:
        click.echo(f"{'seconds':>14}{'joules':>16}{'watts':>10}")
        click.echo("\n".join(f"{time:>14.6f}{energy:>16.2f}{energy / time:>10.1f}" for time, energy in points))
