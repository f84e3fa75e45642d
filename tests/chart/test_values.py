"""values.schema.json knows every name on every level: what is mistyped is refused, wherever it stands."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.chart.rendering import CHART, helm

pytestmark = pytest.mark.cluster
TYPO = "mistyped"
SCHEMA = json.loads((CHART / "values.schema.json").read_text())
# Names of the user's own; what only Kubernetes itself knows (its API server refuses it); what Helm shares among charts.
FREE = (
    r"/global", r".*/(labels|annotations|podAnnotations|nodeSelector|requests|limits)",
    r".*/affinity/\w+", r".*/metricsFrom/0/\w+", r".*/extraEnv/0/valueFrom",
)  # fmt: skip


def levels(schema: dict[str, Any], place: str = "") -> Iterator[tuple[str, dict[str, Any]]]:
    """Every object that values may hold, lists with one item, and where it stands."""
    if "$ref" in schema:
        schema = SCHEMA["definitions"][schema["$ref"].rpartition("/")[2]]
    for choice in schema.get("anyOf", []):
        yield from levels(choice, place)
    if "items" in schema:
        yield from levels(schema["items"], f"{place}/0")
    if "object" in schema.get("type", ""):
        yield place, schema
        for name, each in schema.get("properties", {}).items():
            yield from levels(each, f"{place}/{name}")


CLOSED = [place for place, schema in levels(SCHEMA) if schema.get("additionalProperties") is False]
OPEN = [place for place, schema in levels(SCHEMA) if schema.get("additionalProperties") is not False]


def put(values: Any, place: str) -> None:
    """Put the mistyped name into values."""
    path = [int(each) if each == "0" else each for each in place.split("/")[1:]]
    for name, following in zip(path, [*path[1:], TYPO], strict=False):
        empty: Any = [] if following == 0 else {}
        if name == 0 and not values:
            values.append(empty)
        values = values[0] if name == 0 else values.setdefault(name, empty)
    values[TYPO] = "1"


def test_a_mistyped_name_is_refused_on_every_level(tmp_path: Path) -> None:
    values: dict[str, Any] = {}
    for place in CLOSED:
        put(values, place)
    path = tmp_path / "values.yaml"
    path.write_text(yaml.safe_dump(values))
    done = helm("template", "perseus", str(CHART), "--kube-version", "v1.36.1", "-f", str(path))
    assert done.returncode != 0
    told = re.findall(rf"at '([^']*)': additional properties '{TYPO}' not allowed", done.stderr)
    assert sorted(told) == sorted(CLOSED)
    assert len(CLOSED) > 30


def test_only_names_of_users_and_of_kubernetes_are_free() -> None:
    assert [place for place in OPEN if not any(re.fullmatch(each, place) for each in FREE)] == []
    assert [each for each in FREE if not any(re.fullmatch(each, place) for place in OPEN)] == []


def test_the_values_file_lists_every_name() -> None:
    listed = yaml.safe_load((CHART / "values.yaml").read_text())

    def is_listed(place: str) -> bool:
        found: Any = listed
        for name in place.split("/")[1:]:
            if not isinstance(found, dict) or name not in found:
                return False
            found = found[name]
        return True

    named = {
        f"{place}/{name}"
        for place, schema in levels(SCHEMA)
        for name in schema.get("properties", {})
        if not re.search(r"/0(/|$)|/affinity$|/rollingUpdate$", place)
    }
    assert sorted(each for each in named if not is_listed(each)) == ["/global"]


@pytest.mark.parametrize(
    ("values", "told"),
    [
        ({"agent": {"tolerations": [{"key": "a", "operater": "Exists"}]}}, "operater"),
        ({"agent": {"updateStrategy": {"rollingUpdate": {"maxUnavailable": "ten"}}}}, "maxUnavailable"),
        ({"agent": {"resources": {"limits": {"nvidia.com/gpu": 1}}}}, "nvidia.com/gpu"),
        ({"networkPolicy": {"metricsFrom": [{}]}}, "metricsFrom"),
    ],
)
def test_what_cannot_be_meant_is_refused(values: dict[str, Any], told: str, tmp_path: Path) -> None:
    path = tmp_path / "values.yaml"
    path.write_text(yaml.safe_dump(values))
    done = helm("template", "perseus", str(CHART), "--kube-version", "v1.36.1", "-f", str(path))
    assert done.returncode != 0
    assert told in done.stderr


def test_what_kubernetes_knows_is_taken(tmp_path: Path) -> None:
    values = {
        "agent": {
            "tolerations": [{"operator": "Exists"}, {"key": "a", "effect": "NoExecute", "tolerationSeconds": 60}],
            "updateStrategy": {"type": "OnDelete", "rollingUpdate": None},
            "affinity": {"nodeAffinity": {"preferredDuringSchedulingIgnoredDuringExecution": []}},
            "extraEnv": [{"name": "A", "valueFrom": {"fieldRef": {"fieldPath": "spec.nodeName"}}}],
        },
        "operator": {"tolerations": [{"key": "a", "operator": "Equal", "value": "b"}]},
        "networkPolicy": {"metricsFrom": [{"ipBlock": {"cidr": "10.0.0.0/8"}}]},
    }
    path = tmp_path / "values.yaml"
    path.write_text(yaml.safe_dump(values))
    done = helm("template", "perseus", str(CHART), "--kube-version", "v1.36.1", "-f", str(path))
    assert done.returncode == 0, done.stderr
