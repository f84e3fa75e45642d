"""The loops compiled ahead of time: used where they are of these sources, and only there, without numba."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from perseus_planner import loops

ROOT = Path(__file__).resolve().parents[2]
PROFILE = ROOT / "examples" / "profiles" / "gpt3-175b-a100-sxm"
PLAN = f"""
import json, sys
if "--no-numba" in sys.argv:
    sys.modules["numba"] = None
from pathlib import Path
from perseus_api.profile import parse_profile
from perseus_planner import MaximumSlowdown, Pipeline, SwitchBound, plan
folder = Path({str(PROFILE)!r})
profile = parse_profile((folder / "profile.csv").read_text(), (folder / "header.json").read_text())
found = plan(profile, Pipeline(3, 4), MaximumSlowdown(1.0), steps=300, switches=SwitchBound(4.0, 0.005, 0.1))
print(json.dumps([found.free.clocks, found.free.iteration_joules, found.plan.clocks, found.iteration_joules]))
"""
needs_extension = pytest.mark.skipif(
    importlib.util.find_spec(f"perseus_planner.{loops.EXTENSION}") is None,
    reason="make loops was not run: here numba compiles the loops",
)


def planned(*arguments: str, **variables: str) -> object:
    done = subprocess.run(
        [sys.executable, "-c", PLAN, *arguments],
        capture_output=True, text=True, check=True, env={**os.environ, **variables},
    )  # fmt: skip
    return json.loads(done.stdout)


@needs_extension
def test_the_extension_needs_no_numba_and_plans_what_the_sources_say() -> None:
    """The sources run uncompiled here: slowly, and by Python's own rules of integers."""
    assert planned("--no-numba") == planned(**{loops.FORCE_NUMBA: "1", "NUMBA_DISABLE_JIT": "1"})


@needs_extension
def test_an_extension_of_other_sources_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    assert loops._extension() is not None
    monkeypatch.setattr(loops, "stamp", lambda: 0)
    assert loops._extension() is None


def test_each_source_of_loops_changes_the_stamp(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in loops.MODULES:
        (tmp_path / f"{name}.py").write_text((Path(loops.__file__).parent / f"{name}.py").read_text())
    monkeypatch.setattr(loops, "_HERE", tmp_path)
    stamps = {loops.stamp()}
    for name in loops.MODULES:
        with (tmp_path / f"{name}.py").open("a") as file:
            file.write("\n")
        stamps.add(loops.stamp())
    assert len(stamps) == 1 + len(loops.MODULES)


def test_all_modules_with_loops_are_compiled_ahead() -> None:
    """A loop in a module that the extension does not know would be compiled at start, where no numba is."""
    package = Path(loops.__file__).parent
    using = {path.stem for path in package.glob("*.py") if "from perseus_planner.loops import" in path.read_text()}
    assert using == set(loops.MODULES)
