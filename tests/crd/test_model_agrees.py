"""The CRD and the model that programs read it with: the same fields, bounds, defaults and choices."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import annotated_types
import pytest
from perseus_api.job import PerseusJobSpec
from pydantic import BaseModel
from pydantic.fields import FieldInfo

sys.path.insert(0, str(Path(__file__).parent))
from constraints import CRD, ROOT_CHART_COPY, schema, valid_job


def fields(model: type[BaseModel], part: dict[str, Any], place: str) -> list[tuple[str, FieldInfo, dict[str, Any]]]:
    found = []
    for field in model.model_fields.values():
        name = field.alias or ""
        assert name in part["properties"], f"{place}.{name} is in the model but not in the CRD"
        child = part["properties"][name]
        found.append((f"{place}.{name}", field, child))
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            found += fields(field.annotation, child, f"{place}.{name}")
    known = {field.alias for field in model.model_fields.values()}
    assert set(part["properties"]) == known, f"{place}: the CRD has fields that the model lacks"
    return found


SPEC = fields(PerseusJobSpec, schema()["properties"]["spec"], "spec")


@pytest.mark.parametrize(("place", "field", "part"), SPEC, ids=[place for place, _, _ in SPEC])
def test_a_field_has_the_same_bounds_and_default(place: str, field: FieldInfo, part: dict[str, Any]) -> None:
    metadata = list(field.metadata)
    for argument in getattr(field.annotation, "__args__", ()):
        metadata += getattr(argument, "__metadata__", ())
    flat = [each for entry in metadata for each in (getattr(entry, "metadata", None) or [entry])]
    bounds = {type(each): each for each in flat}
    for kind, attribute, keyword in (
        (annotated_types.Ge, "ge", "minimum"),
        (annotated_types.Le, "le", "maximum"),
        (annotated_types.MinLen, "min_length", "minLength"),
        (annotated_types.MaxLen, "max_length", "maxLength"),
    ):
        if part.get("type") in ("integer", "string"):
            assert (getattr(bounds[kind], attribute) if kind in bounds else None) == part.get(keyword), place
    if "enum" in part:
        assert isinstance(field.annotation, type)
        assert [str(each.value) for each in field.annotation] == part["enum"]  # type: ignore[attr-defined]
    if part.get("type") in ("integer", "string", "boolean") and "default" in part:
        assert field.default == part["default"], place


def test_the_model_reads_what_the_crd_accepts() -> None:
    spec = PerseusJobSpec.parse(valid_job()["spec"])
    assert spec.parallelism.ranks == 16


def test_the_charts_copy_is_the_same_file() -> None:
    assert ROOT_CHART_COPY.read_bytes() == CRD.read_bytes(), "run make crds"


def test_kubectl_explain_has_a_sentence_for_every_field() -> None:
    assert list(undescribed(schema()["properties"]["spec"], "spec")) == []
    assert list(undescribed(schema()["properties"]["status"], "status")) == []


def undescribed(part: dict[str, Any], place: str) -> Iterator[str]:
    for name, field in part.get("properties", {}).items():
        if not field.get("description", "").endswith("."):
            yield f"{place}.{name}"
        yield from undescribed(field, f"{place}.{name}")
        yield from undescribed(field.get("items", {}), f"{place}.{name}[]")
