"""``perseus``: the planner at the command line, for an engineer with a profile and a minute."""

from __future__ import annotations

import click

from perseus_planner.command.frontier import frontier_command
from perseus_planner.command.plan import plan_command
from perseus_planner.command.show import show_command
from perseus_planner.command.verify import verify_command


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
def main() -> None:
    """Plan the clocks of a training pipeline: the least energy in a given time."""


main.add_command(frontier_command)
main.add_command(plan_command)
main.add_command(show_command)
main.add_command(verify_command)
