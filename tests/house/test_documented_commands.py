"""No command of README and docs is left alone: each has its room, and those that need no cluster are run here."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path

import pytest
from perseus_simulator.testing import simulator_library  # noqa: F401 - a fixture

from tests.documented import EXEMPTIONS, ROOMS, ROOT, Command, Room, commands, commands_in, of, run_as_written

# Given by the page as an example of what is to be filled in.
FIRST_GPU = "$(perseus-simulator status | head -n 1 | cut -d ' ' -f 1)"


def test_every_documented_command_has_its_room() -> None:
    assert [str(each) for each in commands() if each.room is None] == []
    assert sorted({each.line for each in of(Room.EXEMPT)}) == sorted(EXEMPTIONS)


def test_no_room_is_kept_for_commands_that_are_gone() -> None:
    lines = [each.line for each in commands()]
    assert [pattern for pattern, _ in ROOMS if not any(re.fullmatch(pattern, line) for line in lines)] == []


@pytest.mark.parametrize("text", ["```\ndocker run x\n```", "Type `docker run\nx` now.", "```sh\nfrobnicate\n```"])
def test_a_new_command_is_seen_and_asks_for_a_room(text: str) -> None:
    (found,) = commands_in(text)
    assert Command("new.md", found).room is None


@pytest.mark.cluster
@pytest.mark.parametrize("command", of(Room.MENTION), ids=str)
def test_a_verb_that_is_mentioned_exists(command: Command) -> None:
    run_as_written(f"{command.text} --help")


@pytest.mark.parametrize("command", of(Room.MAKE), ids=str)
def test_what_make_is_told_to_do_is_there(command: Command) -> None:
    recipe = run_as_written(command.text.replace("make", "make --dry-run", 1))
    makefile = (ROOT / "Makefile").read_text()
    assert [name for name in re.findall(r" ([A-Z_]+)=", command.line) if f"$({name})" not in makefile] == []
    programs = re.findall(r"python -m ([\w.]+)", recipe)
    assert [name for name in programs if importlib.util.find_spec(name) is None] == []
    files = re.findall(r"\b((?:scripts|examples)/[\w/.-]+)", recipe)
    assert [name for name in files if not (ROOT / name).exists()] == []


@pytest.mark.parametrize("command", of(Room.PARSED), ids=str)
def test_arguments_are_accepted(command: Command) -> None:
    run_as_written(f"{command.text} --help")


@pytest.mark.usefixtures("simulator_library")
@pytest.mark.parametrize("command", of(Room.PROCESS), ids=str)
def test_a_command_runs_as_it_is_written(command: Command, tmp_path: Path) -> None:
    for name in ("examples", "simulator"):
        (tmp_path / name).symlink_to(ROOT / name)
    text = command.text.replace("/tmp/gpus", str(tmp_path / "gpus")).replace("GPU-...", FIRST_GPU)
    assert run_as_written(text, tmp_path) != ""
