"""What makes the testbed build programs and images anew, and what a failed build leaves."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from testbed import binaries, images, versions
from testbed.binaries import ProgramGroup
from testbed.errors import TestbedError

ROOT = Path(__file__).resolve().parents[2]
needs_go = pytest.mark.skipif(shutil.which("go") is None, reason="Go is not on the PATH")


@pytest.fixture
def checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A small checkout whose images the testbed would build."""
    for name in ("Dockerfile", "pyproject.toml", "api/perseus_api/plan.py", "simulator/native/nvml.c"):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(name)
    monkeypatch.setattr(images, "ROOT", tmp_path)
    return tmp_path


@pytest.mark.parametrize("name", ["Dockerfile", "api/perseus_api/plan.py", "simulator/native/new.c"])
def test_a_changed_source_changes_the_images_tag(checkout: Path, name: str) -> None:
    before = images.content_tag()
    (checkout / name).write_text("changed")
    assert images.content_tag() != before
    assert re.fullmatch(r"[0-9a-f]{12}", before)


def test_what_does_not_enter_the_images_leaves_their_tag_alone(checkout: Path) -> None:
    before = images.content_tag()
    for name in (
        "docs/new.md",
        "tests/test_new.py",
        "api/perseus_api/__pycache__/plan.pyc",
        "simulator/native/build/x.so",
    ):
        (checkout / name).parent.mkdir(parents=True, exist_ok=True)
        (checkout / name).write_text("new")
    assert images.content_tag() == before


def test_a_renamed_source_changes_the_images_tag(checkout: Path) -> None:
    before = images.content_tag()
    (checkout / "api/perseus_api/plan.py").rename(checkout / "api/perseus_api/plans.py")
    assert images.content_tag() != before


def test_everything_that_the_dockerfile_copies_enters_the_tag_and_the_build_context() -> None:
    copies = re.findall(r"^COPY (?!--from)(.+) \S+$", (ROOT / "Dockerfile").read_text(), flags=re.MULTILINE)
    copied = {name for line in copies for name in line.split()}
    assert {"api", "simulator", "pyproject.toml"} <= copied
    sent = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    hashed = {path.relative_to(ROOT) for path in images._files()}
    for name in copied:
        assert any(Path(name).is_relative_to(each) for each in sent), f"{name} is not sent to the build"
        assert any(path.is_relative_to(name) for path in hashed), f"{name} does not enter the tag"


def test_the_dockerfile_has_a_target_for_each_image_and_only_the_agent_is_root() -> None:
    stages = re.split(r"^FROM ", (ROOT / "Dockerfile").read_text(), flags=re.MULTILINE)[1:]
    users = {
        stage.splitlines()[0].split(" AS ")[1]: re.findall(r"^USER (\S+)$", stage, flags=re.MULTILINE)
        for stage in stages
        if " AS " in stage.splitlines()[0]
    }
    assert {target: users[target] for target in images.TARGETS} == {
        "operator": ["65532:65532"],
        "optimiser": ["65532:65532"],
        "agent": [],
        "simulator": ["65532:65532"],
    }


def test_another_version_or_another_source_is_another_build() -> None:
    one = ProgramGroup("tool", {"example.org/tool": "v1.0.0"}, {"example.org/tool": "tool"})
    others = [
        ProgramGroup("tool", {"example.org/tool": "v1.0.1"}, one.packages),
        ProgramGroup("tool", one.requirements, one.packages, files={"main.go": "package main"}),
        ProgramGroup("tool", one.requirements, one.packages, tags="slim"),
        ProgramGroup("tool", one.requirements, one.packages, link_values={"main.version": "2"}),
    ]
    assert len({each.key() for each in [one, *others]}) == 5


def test_kubernetes_is_required_with_all_its_parts_at_the_matching_version() -> None:
    (kubernetes,) = [group for group in binaries.groups() if group.name == "kubernetes"]
    _, minor, patch = versions.KUBERNETES.split(".")
    text = kubernetes.module_file()
    assert text.count(f" v0.{minor}.{patch}\n") == len(versions.KUBERNETES_STAGING_MODULES) == 33
    assert f"k8s.io/kubernetes v{versions.KUBERNETES}\n" in text
    assert kubernetes.link_values["k8s.io/component-base/version.gitVersion"] == f"v{versions.KUBERNETES}"


def test_the_older_kubernetes_is_built_by_its_own_name_and_only_for_who_asks() -> None:
    (older,) = [group for group in binaries.optional_groups() if group.name == "kubernetes-older"]
    _, minor, patch = versions.KUBERNETES_OLDER.split(".")
    text = older.module_file()
    assert text.count(f" v0.{minor}.{patch}\n") == 31, "1.36 has two modules that it has not"
    assert older.link_values["k8s.io/component-base/version.gitVersion"] == f"v{versions.KUBERNETES_OLDER}"
    assert not any(set(older.packages.values()) & set(group.packages.values()) for group in binaries.groups())


@needs_go
def test_a_failed_build_leaves_nothing_that_looks_finished(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def use(source: str) -> ProgramGroup:
        group = ProgramGroup("tiny", {}, {".": "tiny"}, files={"main.go": source})
        monkeypatch.setattr(binaries, "groups", lambda: [group])
        return group

    use("package main\n\nfunc main() { undefined() }\n")
    with pytest.raises(TestbedError, match="undefined: undefined"):
        binaries.build(tmp_path)
    assert not binaries.is_built(tmp_path)
    good = use('package main\n\nfunc main() { print("works") }\n')
    assert not binaries.is_built(tmp_path)
    program = binaries.build(tmp_path)["tiny"]
    assert binaries.is_built(tmp_path)
    assert subprocess.run([program], capture_output=True, check=True).stderr == b"works"
    assert [path.name for path in (tmp_path / "binaries").iterdir()] == [good.key()]
