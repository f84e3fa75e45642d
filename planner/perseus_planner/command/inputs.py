"""What all commands take: a profile and the shape of a pipeline, checked, with errors that name file and fix."""

from __future__ import annotations

import math
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import click
from perseus_api.errors import DocumentError
from perseus_api.profile import MAXIMUM_PROFILE_BYTES, Profile, parse_profile
from perseus_api.schedules import Schedule

from perseus_planner.errors import UnfitProfile
from perseus_planner.given import MAXIMUM_BYTES, load_orders
from perseus_planner.pipeline import Pipeline, PipelineError

Command = TypeVar("Command", bound=Callable[..., Any])
PROGRESS_AFTER_SECONDS = 2.0
_PATH = click.Path(path_type=Path)
_MAXIMUM_INSTRUCTIONS = 4_000_000


class BadInput(click.ClickException):
    """What the user gave cannot be used; one sentence says why and what to change."""

    exit_code = 2


def refused(error: ValueError, profile: Path) -> BadInput:
    """Return the answer to a problem that has no plan; what its profile lacks is said of the file."""
    return BadInput(f"{profile}: {error}" if isinstance(error, UnfitProfile) else str(error))


class Number(click.FloatRange):
    """A number in a range; what is not a number is in none, though it compares as if it were."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Return the number, or refuse it."""
        found = super().convert(value, param, ctx)
        if math.isnan(found):
            self.fail(f"{value} is not a number.", param, ctx)
        return found


@dataclass(frozen=True)
class Inputs:
    """The options that describe a problem."""

    profile: Profile
    pipeline: Pipeline


def problem_options(command: Command) -> Command:
    """Add the options that `read_inputs` reads."""
    for option in reversed(
        (
            click.option("--profile", type=_PATH, required=True, help="CSV, or folder of profile.csv and header.json."),
            click.option("--stages", type=click.IntRange(1, 256), help="Pipeline ranks; by default the profile's."),
            click.option("--microbatches", type=click.IntRange(1, 4096), help="Of one iteration."),
            click.option("--schedule", help="1F1B (the default), GPipe, ...; docs/planner.md lists them."),
            click.option(
                "--chunks", type=click.IntRange(1, 256), help="Model chunks of each rank, where it has several."
            ),
            click.option("--orders", type=_PATH, help="JSON of orders of your own, for the schedule Custom."),
            click.option("--v-shape", is_flag=True, help="With --orders: odd chunks run through the ranks backwards."),
            click.option("--tensor-parallel", type=click.IntRange(1, 1024), default=1, help="GPUs of each rank."),
            click.option(
                "--blocking-power-watts", type=Number(0, 10_000), help="Of a waiting GPU; by default the header's."
            ),
        )
    ):
        command = option(command)
    return command


def objective_options(command: Command) -> Command:
    """Add the options that say what a plan is for."""
    seconds = Number(0, 1e6, min_open=True)
    for option in reversed(
        (
            click.option(
                "--objective", type=click.Choice(["min-energy", "no-slowdown"]), help="no-slowdown is the default."
            ),
            click.option("--max-slowdown-percent", type=Number(0, 1000), help="Allow that much more time."),
            click.option("--deadline-seconds", type=seconds, help="Allow an iteration that long."),
            click.option("--straggler-seconds", type=seconds, help="Everybody waits that long."),
            click.option("--power-budget-watts", type=Number(0, 1e9, min_open=True), help="Average of all GPUs."),
        )
    ):
        command = option(command)
    return command


def read_inputs(
    profile: Path,
    stages: int | None,
    microbatches: int | None,
    schedule: str | None,
    chunks: int | None,
    orders: Path | None,
    v_shape: bool,
    tensor_parallel: int,
    blocking_power_watts: float | None,
) -> Inputs:
    """Read and check the options of `problem_options`.

    Raises:
        BadInput: a file cannot be read or is not valid, or the shape is none.
    """
    found = read_profile(profile, blocking_power_watts)
    if orders is not None:
        pipeline = _given(orders, stages, microbatches, schedule, chunks, v_shape, tensor_parallel)
        return Inputs(found, pipeline)
    if microbatches is None:
        raise BadInput("--microbatches is missing: give the microbatches of one iteration, or --orders")
    kind = _schedule(schedule)
    if kind is Schedule.CUSTOM or v_shape:
        raise BadInput("--schedule Custom and --v-shape need --orders: give the file of the orders")
    chunks = chunks or (2 if kind in (Schedule.ZBV, Schedule.INTERLEAVED_1F1B) else 1)
    ranks = stages or max(1, found.stages // chunks)
    if 3 * ranks * chunks * microbatches > _MAXIMUM_INSTRUCTIONS:
        raise BadInput(
            f"--stages {ranks} with --chunks {chunks} and --microbatches {microbatches} is more than "
            f"{_MAXIMUM_INSTRUCTIONS} instructions: lower one of them"
        )
    try:
        pipeline = Pipeline(ranks, microbatches, kind, tensor_parallel, chunks)
        pipeline.orders()
    except PipelineError as error:
        raise BadInput(f"--schedule {kind.value}: {error}") from None
    return Inputs(found, pipeline)


def read_profile(path: Path, blocking_power_watts: float | None) -> Profile:
    """Read a profile: a CSV file with an optional header.json beside it, or the folder of both.

    Raises:
        BadInput: it cannot be read or is not valid.
    """
    csv_path = path / "profile.csv" if path.is_dir() else path
    header_path = csv_path.parent / "header.json"
    with_header = header_path.exists() and (path.is_dir() or blocking_power_watts is None)
    text = read_text(csv_path, MAXIMUM_PROFILE_BYTES)
    header = read_text(header_path, MAXIMUM_PROFILE_BYTES) if with_header else None
    if header is None and blocking_power_watts is None:
        raise BadInput(f"{csv_path} comes without header.json: give --blocking-power-watts")
    try:
        return parse_profile(text, header, blocking_power_watts)
    except DocumentError as error:
        raise BadInput(f"{csv_path}: {error}") from None


def read_text(path: Path, maximum_bytes: int) -> str:
    """Read a text file of a bounded size.

    Raises:
        BadInput: missing, too large or not UTF-8.
    """
    try:
        with path.open("rb") as file:
            data = file.read(maximum_bytes + 1)
    except OSError as error:
        raise BadInput(f"{path} cannot be read: {error.strerror}") from None
    if len(data) > maximum_bytes:
        raise BadInput(f"{path} is larger than {maximum_bytes} bytes: is it the right file?")
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        raise BadInput(f"{path} is not UTF-8 text at byte {error.start}: save it as UTF-8") from None


@contextmanager
def progress(text: str) -> Iterator[None]:
    """Tell on standard error that work goes on, once it has taken more than two seconds."""
    begin = time.monotonic()
    ended = threading.Event()

    def tell() -> None:
        told = False
        while not ended.wait(PROGRESS_AFTER_SECONDS):
            click.echo(f"\r{text} ... {time.monotonic() - begin:.0f} s", err=True, nl=not sys.stderr.isatty())
            told = True
        if told and sys.stderr.isatty():
            click.echo("", err=True)

    thread = threading.Thread(target=tell, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def _given(
    path: Path,
    stages: int | None,
    microbatches: int | None,
    schedule: str | None,
    chunks: int | None,
    v_shape: bool,
    tensor_parallel: int,
) -> Pipeline:
    """Read orders; what else is said of the shape must be what they are."""
    if schedule is not None and _schedule(schedule) is not Schedule.CUSTOM:
        raise BadInput(
            f"--orders gives the orders, --schedule {schedule[:40]} would make others: leave one of them out"
        )
    try:
        pipeline = Pipeline.of_orders(load_orders(read_text(path, MAXIMUM_BYTES), v_shape), v_shape=v_shape)
    except (DocumentError, PipelineError) as error:
        raise BadInput(f"{path}: {error}") from None
    said = {
        "--stages": (stages, pipeline.stages),
        "--microbatches": (microbatches, pipeline.microbatches),
        "--chunks": (chunks, pipeline.chunks),
    }
    for option, (given, there) in said.items():
        if given is not None and given != there:
            raise BadInput(f"{path} has orders for {option} {there}, not {given}: leave the option out")
    return replace(pipeline, tensor_parallel=tensor_parallel)


def _schedule(text: str | None) -> Schedule:
    if text is None:
        return Schedule.ONE_FORWARD_ONE_BACKWARD
    for each in Schedule:
        if each.value.lower() == text.lower():
            return each
    raise BadInput(f"--schedule {text[:40]} is unknown: use one of {', '.join(each.value for each in Schedule)}")
