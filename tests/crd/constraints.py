"""Every constraint of the CRD, read from its schema, with a value that keeps it and one that breaks it.

The list is made from the schema itself: a constraint that is added to the CRD is tested from then on, or fails the
test that asks for its case.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parents[2]
CRD = ROOT / "crds" / "perseusjobs.perseus.energy.yaml"
ROOT_CHART_COPY = ROOT / "charts" / "perseus-operator" / "crds" / CRD.name
ITEM, VALUE = "[]", "{}"  # path elements: an item of a list, a value of a map
Document = dict[str, Any]
Place = tuple[str, ...]
_BOUNDS = (
    "minimum", "maximum", "minLength", "maxLength", "pattern", "enum", "required", "minItems", "maxItems",
    "maxProperties",
)  # fmt: skip


@dataclass(frozen=True)
class Constraint:
    """One bound of one field; a `required` list is one constraint for each of its fields."""

    place: Place
    keyword: str
    value: Any

    def __str__(self) -> str:
        return f"{'.'.join(self.place) or 'object'}:{self.keyword}:{str(self.value)[:30]}"

    @property
    def is_status(self) -> bool:
        """Whether it is a constraint of the status."""
        return self.place[:1] == ("status",)


def schema() -> Document:
    """The CRD's one schema."""
    document: Document = yaml.safe_load(CRD.read_text())
    found: Document = document["spec"]["versions"][0]["schema"]["openAPIV3Schema"]
    return found


def constraints() -> list[Constraint]:
    """Every bound in the schema."""
    return list(_walk(schema(), ()))


def rules() -> list[tuple[Place, str, str]]:
    """Every CEL rule: place, rule, message."""
    return list(_walk_rules(schema(), ()))


def valid_job() -> Document:
    """A job in which every field of the spec is set."""
    return {
        "apiVersion": "perseus.energy/v1alpha1",
        "kind": "PerseusJob",
        "metadata": {"name": "valid"},
        "spec": {
            "suspend": True,
            "mode": "Train",
            "parallelism": {
                "stages": 8,
                "pipelines": 2,
                "tensorParallel": 1,
                "microbatches": 12,
                "chunks": 1,
                "rankOrder": "PipelineStageTensor",
            },
            "schedule": "1F1B",
            "objective": {"type": "MaxSlowdown", "maxSlowdownPercent": 5},
            "profiling": {
                "profileRef": {"name": "profile"},
                "mode": "InJob",
                "sweep": "Adaptive",
                "maxSlowdownPercent": 10,
                "cache": "Use",
                "onDrift": "Correct",
                "maxRepeats": 3,
            },
            "straggler": {
                "enabled": True,
                "enterPercent": 3,
                "leavePercent": 2,
                "windowIterations": 15,
                "dwellSeconds": 20,
                "holdSeconds": 120,
                "query": "site:slowdown:ratio",
                "driftPercent": 5,
            },
            "accounting": {"baselineIterations": 10},
            "ttlSecondsAfterFinished": 600,
            "template": {
                "metadata": {"labels": {"team": "a"}, "annotations": {"note": "b"}},
                "spec": {
                    "restartPolicy": "Never",
                    "containers": [
                        {"name": "trainer", "image": "trainer", "resources": {"limits": {"nvidia.com/gpu": 1}}}
                    ],
                },
            },
        },
    }


def referring_job() -> Document:
    """A job that names a workload instead of a template."""
    job = valid_job()
    job["metadata"]["name"] = "referring"
    del job["spec"]["template"]
    job["spec"]["workloadRef"] = {"kind": "JobSet", "name": "big"}
    return job


def valid_status() -> Document:
    """A status in which every field is set."""
    return {
        "observedGeneration": 1,
        "conditions": [
            {
                "type": "Ready",
                "status": "True",
                "reason": "Running",
                "message": "training runs under the plan",
                "observedGeneration": 1,
                "lastTransitionTime": "2026-01-01T00:00:00Z",
            }
        ],
        "plan": {
            "generation": 1,
            "firstIteration": 11,
            "iterationMilliseconds": 2837,
            "predictedSavingsPermille": 159,
        },
        "stragglers": [
            {
                "pipeline": 1,
                "slowdownPermille": 129,
                "cause": "Heat",
                "pod": "train-15",
                "node": "node-1",
                "gpu": "GPU-00000000-0000-0000-0000-000000000000",
            }
        ],
        "savings": {"permille": 158, "energyJoules": 84, "baselineJoules": 100, "source": "Measured"},
        "frontier": [{"iterationMilliseconds": 2837, "predictedSavingsPermille": 159}],
        "profile": {
            "name": "profile",
            "checksum": "sha256:" + "0" * 64,
            "source": "Measured",
            "clocks": 10,
            "sweepIterations": 58,
            "sweepSlowdownPermille": 61,
            "repeats": 1,
        },
        "report": {
            "outcome": "Succeeded",
            "ended": "2026-01-01T00:00:00Z",
            "iterations": 100,
            "energyJoules": 84,
            "baselineJoules": 100,
            "savedJoules": 16,
            "savedIntrinsicJoules": 15,
            "savedStragglerJoules": 1,
            "savingsPermille": 160,
            "slowdownPermille": 2,
            "planSlowdownPermille": 1,
            "source": "Measured",
        },
    }


def kept_and_broken(constraint: Constraint) -> tuple[list[Document], Document]:
    """Whole objects: some that keep a constraint to its edge, and one that breaks it and nothing else."""
    base = _base(constraint)
    kept, broken = _values(base, constraint)
    return [_with(base, constraint.place, value) for value in kept], _with(base, constraint.place, broken)


def _base(constraint: Constraint) -> Document:
    if constraint.is_status:
        return {"status": valid_status()}
    return referring_job() if constraint.place[:2] == ("spec", "workloadRef") else valid_job()


def _values(base: Document, constraint: Constraint) -> tuple[list[Any], Any]:
    present = _get(base, constraint.place)
    value, keyword = constraint.value, constraint.keyword
    if keyword == "minimum":
        return [value], value - 1
    if keyword == "maximum":
        return [value], value + 1
    if keyword == "enum":
        return list(value), "no-such-value"
    if keyword == "pattern":
        return [present], "-not a match-"
    if keyword == "minLength":
        return ["a" * value], "a" * (value - 1)
    if keyword == "maxLength":
        # A rule allows two words for the restart policy: none is as long as its bound.
        longest = present if constraint.place[-1] == "restartPolicy" else "a" * value
        return [longest], "a" * (value + 1)
    if keyword == "required":
        return [present], {key: each for key, each in present.items() if key != value}
    if keyword == "minItems":
        return [present[:1] * value], present[: value - 1]
    if keyword == "maxItems":
        return [_items(present[0], value)], _items(present[0], value + 1)
    if keyword == "maxProperties":
        first = next(iter(present.values()))
        return [_entries(present, first, value)], _entries(present, first, value + 1)
    raise AssertionError(f"no case for the keyword {keyword}")


def _items(item: Document, count: int) -> list[Document]:
    """Items that differ in what lists of the schema are keyed by."""
    keys: dict[str, Any] = {"type": "Type{}", "name": "name-{}"}
    found = []
    for index in range(count):
        each = copy.deepcopy(item)
        for key, form in keys.items():
            if key in each:
                each[key] = form.format(index)
        if "pipeline" in each:
            each["pipeline"] = index
        found.append(each)
    return found


def _entries(present: Document, value: Any, count: int) -> Document:
    return {**present, **{f"key-{index}": value for index in range(count - len(present))}}


def _get(document: Any, place: Place) -> Any:
    for element in place:
        if element == ITEM:
            document = document[0]
        elif element == VALUE:
            document = next(iter(document.values()))
        else:
            document = document[element]
    return document


def _with(document: Document, place: Place, value: Any) -> Document:
    changed = copy.deepcopy(document)
    if not place:
        whole: Document = value
        return whole
    holder = _get(changed, place[:-1])
    last = place[-1]
    if last == ITEM:
        holder[0] = value
    elif last == VALUE:
        holder[next(iter(holder))] = value
    else:
        holder[last] = value
    return _consistent(changed, place)


def _consistent(document: Document, place: Place) -> Document:
    """Move the neighbours that rules tie to a field, so that only the field's own bound is at stake."""
    spec = document.get("spec", {})
    if place == ("spec", "objective", "type") and spec["objective"]["type"] != "MaxSlowdown":
        del spec["objective"]["maxSlowdownPercent"]
    if place == ("spec", "straggler", "enterPercent"):
        spec["straggler"]["leavePercent"] = 0
    if place == ("spec", "straggler", "leavePercent"):
        spec["straggler"]["enterPercent"] = 100
    if place[:2] == ("spec", "parallelism") and len(place) == 3:
        for name in ("stages", "pipelines", "tensorParallel"):
            if name != place[2]:
                spec["parallelism"][name] = 1
        if place[2] == "chunks":
            spec["schedule"] = "ZBH1"
    if place == ("spec", "schedule"):
        spec["parallelism"]["chunks"] = {"Interleaved1F1B": 3, "ZBV": 2, "ZBH1": 2}.get(spec["schedule"], 1)
    return document


def _walk(part: Document, place: Place) -> Iterator[Constraint]:
    for keyword in _BOUNDS:
        if keyword == "required":
            yield from (Constraint(place, keyword, name) for name in part.get(keyword, []))
        elif keyword in part:
            yield Constraint(place, keyword, part[keyword])
    for element, child in _children(part):
        yield from _walk(child, (*place, element))


def _walk_rules(part: Document, place: Place) -> Iterator[tuple[Place, str, str]]:
    for rule in part.get("x-kubernetes-validations", []):
        yield place, rule["rule"], rule["message"]
    for element, child in _children(part):
        yield from _walk_rules(child, (*place, element))


def _children(part: Document) -> Iterator[tuple[str, Document]]:
    yield from part.get("properties", {}).items()
    if isinstance(part.get("items"), dict):
        yield ITEM, part["items"]
    extra = part.get("additionalProperties")
    if isinstance(extra, dict):
        yield VALUE, extra
