"""Every command that README and docs tell a person to run, and where a test runs it as it is written.

A command that fits no room fails tests/house/test_documented_commands.py: give it a room, or an exemption with its
reason. A block is run as one script, for its lines build on each other.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from dataclasses import dataclass
from enum import Enum
from pathlib import Path

from testbed import binaries
from testbed.folders import Folders

ROOT = Path(__file__).resolve().parents[1]
_SHELLS = {"", "sh", "bash", "shell", "console"}
_PROGRAMS = (
    "apt-get", "buildah", "curl", "docker", "git", "go", "helm", "kind", "kubectl", "kwok", "make", "mkdocs",
    "nvidia-smi", "perseus", "perseus-agent", "perseus-operator", "perseus-optimiser", "perseus-simulator", "pip",
    "pre-commit", "pytest", "python", "python3", "uv",
)  # fmt: skip


class Room(Enum):
    """Who runs a command, or what is looked at where it cannot be run."""

    MENTION = "a program and its verb, in a sentence: the verb exists"
    MAKE = "the targets, variables, modules and files exist: the recipes are the suite, the benchmarks, a build"
    PROCESS = "run as it is, in tests/house"
    PARSED = "its arguments are accepted: what it needs is made by something that takes minutes"
    PLANE = "run as it is on a control plane, in tests/operator"
    CLUSTER = "run as it is on the real cluster, in tests/cluster"
    EXEMPT = "cannot be run here"


# The first that fits the whole command holds.
ROOMS = (
    (r"make .*", Room.MAKE),
    (r"(helm|kubectl( rollout)?|perseus|perseus-agent|perseus-operator|perseus-simulator) [a-z-]+", Room.MENTION),
    (r"helm test .*", Room.CLUSTER),
    (r"kubectl (exec|get --raw|(get|delete) pods? -n perseus-system|-n perseus-system rollout) .*", Room.CLUSTER),
    (r"(helm|kubectl) .*", Room.PLANE),
    (r"(perseus|perseus-simulator|export PERSEUS_SIMULATOR_STATE=\S+) .*", Room.PROCESS),
    (r"python -m demo\.pictures .*", Room.PARSED),
    (r"for program in .* docker build .* kind load .*", Room.EXEMPT),
    (r"nvidia-smi .*", Room.EXEMPT),
    (r"pytest -s", Room.EXEMPT),
)
EXEMPTIONS = {
    "for program in operator optimiser agent simulator; do docker build --target $program --tag "
    "localhost/perseus-$program:0.1.0 . kind load docker-image localhost/perseus-$program:0.1.0 done": (
        "needs Docker and kind, which the testbed's containerd is not; the same targets are built by buildah"
    ),
    "nvidia-smi -i UUID --reset-gpu-clocks": "belongs to NVIDIA's driver, which a simulated GPU has not",
    "nvidia-smi -q -d POWER": "belongs to NVIDIA's driver, which a simulated GPU has not",
    "pytest -s": "is this suite",
}


@dataclass(frozen=True)
class Command:
    """A command, or a block of them, as a page has it."""

    page: str
    text: str

    @property
    def line(self) -> str:
        """The text without line breaks."""
        return " ".join(self.text.replace("\\\n", " ").split())

    @property
    def room(self) -> Room | None:
        """Where it belongs, None if nobody has said."""
        return next((room for pattern, room in ROOMS if re.fullmatch(pattern, self.line)), None)

    def __str__(self) -> str:
        return f"{self.page}: {self.line[:70]}"


def commands() -> list[Command]:
    """Every command of every page, each once a page."""
    found = {}
    for page in (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))):
        for text in commands_in(page.read_text()):
            command = Command(str(page.relative_to(ROOT)), text)
            found[command.page, command.line] = command
    return list(found.values())


def commands_in(page: str) -> list[str]:
    """The commands of a page: blocks without a language or of a shell, and those in the text."""
    fence = re.compile(r"^```(\w*)\n(.*?)^```", re.MULTILINE | re.DOTALL)
    # An arrow makes a block a picture.
    blocks = [text for language, text in fence.findall(page) if language in _SHELLS and "->" not in text]
    spans = (" ".join(each.split()) for each in re.findall(r"`([^`]+)`", fence.sub("", page)))
    return blocks + [each for each in spans if " " in each and each.split()[0] in _PROGRAMS]


def of(room: Room) -> list[Command]:
    """The commands of a room."""
    return [each for each in commands() if each.room is room]


def run_as_written(text: str, folder: Path = ROOT, **variables: str) -> str:
    """Run a text in a shell that knows our programs; return what it printed.

    Raises:
        AssertionError: it failed.
    """
    ours = [Path(sys.executable).parent, *binaries.locate(Folders.from_environment().cache).folders]
    path = os.pathsep.join([*map(str, ours), os.environ["PATH"]])
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", text], cwd=folder, env={**os.environ, "PATH": path, **variables},
        capture_output=True, text=True, check=False, timeout=240,
    )  # fmt: skip
    assert done.returncode == 0, f"{text}\n{done.stdout}{done.stderr}"
    return done.stdout
