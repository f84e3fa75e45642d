"""What all commands take: a profile and the shape of a pipeline, checked, with errors that name file and fix."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import click
from perseus_api.errors import DocumentError
from perseus_api.profile import MAXIMUM_PROFILE_BYTES, Profile, parse_profile
from perseus_api.schedules import Schedule

from perseus_planner.pipeline import Pipeline

Command = TypeVar("Command", bound=Callable[..., Any])
PROGRESS_AFTER_SECONDS = 2.0
_PATH = click.Path(path_type=Path)
_WATTS = click.FloatRange(0, 10_000)
_MAXIMUM_INSTRUCTIONS = 4_000_000


class BadInput(click.ClickException):
    """What the user gave cannot be used; one sentence says why and what to change."""

    exit_code = 2


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
            click.option("--microbatches", type=click.IntRange(1, 4096), required=True, help="Of one iteration."),
            click.option("--schedule", help="1F1B (the default), GPipe, ...; docs/planner.md lists them."),
            click.option("--tensor-parallel", type=click.IntRange(1, 1024), default=1, help="GPUs of each rank."),
            click.option("--blocking-power-watts", type=_WATTS, help="Of a waiting GPU; by default the header's."),
        )
    ):
        command = option(command)
    return command


def read_inputs(
    profile: Path,
    stages: int | None,
    microbatches: int,
    schedule: str | None,
    tensor_parallel: int,
    blocking_power_watts: float | None,
) -> Inputs:
    """Read and check the options of `problem_options`.

    Raises:
        BadInput: a file cannot be read or is not valid, or the shape is none.
    """
    found = read_profile(profile, blocking_power_watts)
    pipeline = Pipeline(stages or found.stages, microbatches, _schedule(schedule), tensor_parallel)
    if 2 * pipeline.stages * microbatches > _MAXIMUM_INSTRUCTIONS:
        raise BadInput(
            f"--stages {pipeline.stages} with --microbatches {microbatches} is more than {_MAXIMUM_INSTRUCTIONS} "
            "instructions: lower one of them"
        )
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


def _schedule(text: str | None) -> Schedule:
    if text is None:
        return Schedule.ONE_FORWARD_ONE_BACKWARD
    for each in Schedule:
        if each.value.lower() == text.lower():
            return each
    raise BadInput(f"--schedule {text[:40]} is unknown: use one of {', '.join(each.value for each in Schedule)}")
