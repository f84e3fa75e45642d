"""The library's own unit tests in C: under the sanitizers, under valgrind, and with many processes at once."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

NATIVE = Path(__file__).resolve().parents[2] / "simulator" / "native"


def make(target: str, build: Path) -> list[str]:
    done = subprocess.run(
        ["make", "-s", "-C", str(NATIVE), target, f"BUILD={build}", "SECONDS=1"],
        capture_output=True, text=True, timeout=600, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    return [line for line in done.stdout.splitlines() if line.startswith("ok ")]


def test_units_and_many_processes_under_the_sanitizers(tmp_path: Path) -> None:
    passed = make("check", tmp_path)
    assert len(passed) == 16
    assert "processes killed" in passed[-1]


@pytest.mark.skipif(shutil.which("valgrind") is None, reason="valgrind is not installed")
def test_units_under_valgrind(tmp_path: Path) -> None:
    assert len(make("valgrind", tmp_path)) == 15
