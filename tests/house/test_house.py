"""The house rules that no linter knows: the README's length, names of machines, the size of files, the licence."""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

from perseus_api.conditions import Condition, Reason

ROOT = Path(__file__).resolve().parents[2]


def tracked(suffix: str) -> list[Path]:
    listed = subprocess.run(["git", "ls-files", f"*{suffix}"], cwd=ROOT, capture_output=True, text=True, check=True)
    return [ROOT / line for line in listed.stdout.splitlines() if (ROOT / line).exists()]


def test_the_readme_stays_short_and_names_commands_that_exist() -> None:
    text = (ROOT / "README.md").read_text()
    assert len(text.splitlines()) <= 200
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), flags=re.MULTILINE))
    named = set(re.findall(r"\bmake ([a-z-]+)", text))
    assert {"demo", "test"} <= named <= targets


def test_no_python_file_outgrows_a_reader() -> None:
    generated = ("_pb2.py", "_pb2_grpc.py")
    long = {
        str(path.relative_to(ROOT)): lines
        for path in tracked(".py")
        if not path.name.endswith(generated) and (lines := len(path.read_text().splitlines())) > 520
    }
    assert long == {}


def test_every_module_says_why_it_exists() -> None:
    silent = [
        str(path.relative_to(ROOT))
        for path in tracked(".py")
        if "_pb2" not in path.name and path.stat().st_size and not ast.get_docstring(ast.parse(path.read_text()))
    ]
    assert silent == []


def test_nothing_beside_a_script_stands_in_for_the_standard_library() -> None:
    """Python looks beside the script that it runs first."""
    beside = [
        path for path in tracked(".py") if path.relative_to(ROOT).parts[0] in ("benchmarks", "examples", "scripts")
    ]
    assert len(beside) > 10
    assert [str(path) for path in beside if path.stem in sys.stdlib_module_names] == []


def test_documents_point_at_files_that_exist() -> None:
    broken = []
    for path in tracked(".md"):
        for target in re.findall(r"\]\((?!https?:|#|mailto:)([^)#\s]+)", path.read_text()):
            if not (path.parent / target).exists():
                broken.append(f"{path.relative_to(ROOT)}: {target}")
    assert broken == []


def test_each_program_of_the_distribution_has_an_extra_or_needs_none() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert project["dependencies"] == [], "the trainer library must install without any dependency"
    assert {"planner", "trainer", "agent", "operator", "simulator"} <= set(project["optional-dependencies"])


def test_the_api_reference_is_the_crds() -> None:
    written = ROOT / "docs" / "reference.md"
    program = ROOT / "scripts" / "api_reference"
    made = subprocess.run([sys.executable, program, "/dev/stdout"], capture_output=True, text=True, check=True).stdout
    assert written.read_text() == made, "run `make crds`"


def test_every_reason_of_a_condition_has_its_remedy() -> None:
    told = set(
        re.findall(r"^\| [A-Za-z, ]+ \| `(\w+)` \|", (ROOT / "docs" / "troubleshooting.md").read_text(), re.MULTILINE)
    )
    assert told == {reason.value for reason in Reason}


def test_the_reasons_of_a_condition_are_one_list_on_both_pages() -> None:
    api, remedies = ((ROOT / "docs" / name).read_text() for name in ("api.md", "troubleshooting.md"))
    listed: dict[str, set[str]] = {}
    for condition, *cells in re.findall(r"^\| `(\w+)` \| (.*) \| (.*) \|$", api, re.MULTILINE):
        if condition in set(Condition):
            listed[condition] = set(re.findall(r"`(\w+)`", " ".join(cells)))
    told: dict[str, set[str]] = {condition: set() for condition in Condition}
    for conditions, reason in re.findall(r"^\| ([A-Za-z, ]+) \| `(\w+)` \|", remedies, re.MULTILINE):
        for condition in set(conditions.split(", ")) & told.keys():
            told[condition].add(reason)
    assert listed == {**told, Condition.READY: told[Condition.READY] | {Reason.TRAINING_FINISHED}}


def test_the_documentation_is_a_site_without_a_broken_link(tmp_path: Path) -> None:
    environment = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path)],
        cwd=ROOT, env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert (tmp_path / "reference" / "index.html").exists()
