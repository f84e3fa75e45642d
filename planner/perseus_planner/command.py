"""``perseus``: the planner at the command line, for an engineer with a profile and a minute."""

from __future__ import annotations

import json
from pathlib import Path

import click
from perseus_api.errors import DocumentError
from perseus_api.frontier import Frontier, RealisedPlan
from perseus_api.profile import MAXIMUM_PROFILE_BYTES, Profile, parse_profile
from perseus_api.schedules import Schedule

from perseus_planner.lookup import plan_for_deadline, select
from perseus_planner.objective import MaximumSlowdown, MinimumEnergy, NoSlowdown, Objective
from perseus_planner.pipeline import Pipeline, PipelineError
from perseus_planner.planning import PlanningError, frontier


@click.group()
def main() -> None:
    """Plan the clocks of a training pipeline: the least energy in a given time."""


@main.command("plan")
@click.argument("profile", type=click.Path(exists=True, path_type=Path))
@click.option("--stages", type=click.IntRange(1, 256), help="Pipeline stages; by default all that the profile has.")
@click.option("--microbatches", type=click.IntRange(1, 4096), required=True, help="Of one iteration.")
@click.option("--schedule", type=click.Choice([each.value for each in Schedule]), default="1F1B", show_default=True)
@click.option("--max-slowdown", type=click.FloatRange(0, 1000), metavar="PERCENT", help="Allow that much more time.")
@click.option("--minimum-energy", is_flag=True, help="The least energy at any time.")
@click.option("--deadline", type=click.FloatRange(0, min_open=True), metavar="SECONDS", help="A straggler's time.")
@click.option("--blocking-watts", type=click.FloatRange(0), help="Of a waiting GPU; by default the header's.")
@click.option("--output", type=click.Path(dir_okay=False, path_type=Path), help="Write the plan's clocks as JSON.")
def plan_command(
    profile: Path,
    stages: int | None,
    microbatches: int,
    schedule: str,
    max_slowdown: float | None,
    minimum_energy: bool,
    deadline: float | None,
    blocking_watts: float | None,
    output: Path | None,
) -> None:
    """Plan for a PROFILE: a folder with profile.csv and header.json, or a CSV file."""
    if sum((max_slowdown is not None, minimum_energy, deadline is not None)) > 1:
        raise click.UsageError("--max-slowdown, --minimum-energy and --deadline exclude each other: give one of them")
    found = _frontier(profile, blocking_watts, stages, microbatches, schedule)
    if deadline is not None:
        chosen, limit = plan_for_deadline(found, deadline), deadline
    else:
        objective: Objective = NoSlowdown()
        if minimum_energy:
            objective = MinimumEnergy()
        elif max_slowdown is not None:
            objective = MaximumSlowdown(max_slowdown)
        chosen = select(found, objective)
        limit = chosen.iteration_seconds
    _tell(found, chosen, max(limit, chosen.iteration_seconds))
    if output is not None:
        output.write_text(json.dumps({"order": found.order, **chosen.model_dump(mode="json", by_alias=True)}) + "\n")


@main.command("frontier")
@click.argument("profile", type=click.Path(exists=True, path_type=Path))
@click.option("--stages", type=click.IntRange(1, 256), help="Pipeline stages; by default all that the profile has.")
@click.option("--microbatches", type=click.IntRange(1, 4096), required=True, help="Of one iteration.")
@click.option("--schedule", type=click.Choice([each.value for each in Schedule]), default="1F1B", show_default=True)
@click.option("--blocking-watts", type=click.FloatRange(0), help="Of a waiting GPU; by default the header's.")
def frontier_command(
    profile: Path, stages: int | None, microbatches: int, schedule: str, blocking_watts: float | None
) -> None:
    """Print the time-energy frontier of a PROFILE as CSV: realised plans and the bound at each one's time."""
    found = _frontier(profile, blocking_watts, stages, microbatches, schedule)
    click.echo("seconds,joules,bound_joules")
    for each in found.plans:
        click.echo(f"{each.iteration_seconds:.9f},{each.iteration_joules:.3f},{each.bound_joules:.3f}")


def _frontier(
    path: Path, blocking_watts: float | None, stages: int | None, microbatches: int, schedule: str
) -> Frontier:
    try:
        profile = _read(path, blocking_watts)
        return frontier(profile, Pipeline(stages or profile.stages, microbatches, Schedule(schedule)))
    except (DocumentError, PipelineError, PlanningError) as error:
        raise click.ClickException(str(error)) from None


def _read(path: Path, blocking_watts: float | None) -> Profile:
    csv_path = path / "profile.csv" if path.is_dir() else path
    header_path = csv_path.parent / "header.json"
    for each in (csv_path, header_path):
        if each.exists() and each.stat().st_size > MAXIMUM_PROFILE_BYTES:
            raise DocumentError(f"{each} is larger than {MAXIMUM_PROFILE_BYTES} bytes")
    try:
        header = header_path.read_text() if header_path.exists() and (path.is_dir() or blocking_watts is None) else None
        return parse_profile(csv_path.read_text(), header, blocking_watts)
    except OSError as error:
        raise DocumentError(f"{csv_path} cannot be read: {error.strerror}") from None


def _tell(found: Frontier, chosen: RealisedPlan, limit_seconds: float) -> None:
    """Print what a plan brings against every instruction at its highest clock, in the same time."""
    watts = found.blocking_power_watts * found.shape.stages
    fastest = found.fastest
    full = fastest.iteration_joules + watts * max(0.0, limit_seconds - fastest.iteration_seconds)
    waiting = watts * (limit_seconds - chosen.iteration_seconds)
    savings = 100 * (1 - (chosen.iteration_joules + waiting) / full)
    bound = 100 * (1 - (chosen.bound_joules + waiting) / full)
    slowdown = 100 * (chosen.iteration_seconds / fastest.iteration_seconds - 1)
    click.echo(f"full speed   {fastest.iteration_seconds:10.4f} s  {fastest.iteration_joules:12.1f} J")
    click.echo(
        f"plan         {chosen.iteration_seconds:10.4f} s  {chosen.iteration_joules:12.1f} J  ({slowdown:+.2f} % time)"
    )
    click.echo(f"saves        {savings:10.2f} %  (no plan can save more than {bound:.2f} %)")


if __name__ == "__main__":
    main()
