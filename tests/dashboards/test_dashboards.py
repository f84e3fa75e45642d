"""The dashboards: what is checked in is what the code makes, Grafana's types take it, no linter's rule objects."""

from __future__ import annotations

import copy
import json
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.models.dashboard import Dashboard
from perseus_api import metrics

from dashboards.__main__ import FOLDER, all_dashboards, text_of

sys.path.insert(0, str(Path(__file__).parent))
from linting import RULES, exclusions, panels, queries, variables

ROOT = Path(__file__).resolve().parents[2]
NAMES = sorted(all_dashboards())
needs_promtool = pytest.mark.cluster


def checked_in(name: str) -> dict[str, Any]:
    document: dict[str, Any] = json.loads((FOLDER / name).read_text())
    return document


def test_what_is_checked_in_is_what_the_code_makes() -> None:
    assert sorted(path.name for path in FOLDER.glob("*.json")) == NAMES
    for name, dashboard in all_dashboards().items():
        assert (FOLDER / name).read_text() == text_of(dashboard), "run make dashboards"


@pytest.mark.parametrize("name", NAMES)
def test_grafanas_schema_types_hold_all_of_it(name: str) -> None:
    """What the types do not know would be lost on the way through them; annotations' texts alone are beyond them."""
    found = checked_in(name)
    known = json.loads(JSONEncoder().encode(Dashboard.from_json(copy.deepcopy(found))))
    for each in (found.get("annotations") or {}).get("list", []):
        for beyond in ("titleFormat", "textFormat", "step"):
            del each[beyond]
    assert known == found


@needs_promtool
@pytest.mark.parametrize("rule", sorted(RULES))
@pytest.mark.parametrize("name", NAMES)
def test_the_linter_has_no_objection(name: str, rule: str) -> None:
    objections = list(RULES[rule](checked_in(name)))
    if rule in exclusions(FOLDER):
        assert exclusions(FOLDER)[rule], "an exclusion has its reason"
        return
    assert objections == []


def test_every_exclusion_is_of_a_rule_that_objects() -> None:
    for rule in exclusions(FOLDER):
        assert any(list(RULES[rule](checked_in(name))) for name in NAMES), f"{rule} is excluded for nothing"


def _panel(change: Callable[[dict[str, Any]], object]) -> Callable[[dict[str, Any]], None]:
    def apply(dashboard: dict[str, Any]) -> None:
        change(next(panels(dashboard)))

    return apply


FAULTS: dict[str, Callable[[dict[str, Any]], object]] = {
    "template-datasource-rule": lambda each: variables(each)[0].update(name="source"),
    "template-label-promql-rule": lambda each: variables(each)[1]["query"].update(query="label_values(a{, node)"),
    "template-on-time-change-reload-rule": lambda each: variables(each)[1].update(refresh=1),
    "panel-datasource-rule": _panel(lambda panel: panel.update(datasource={"type": "prometheus", "uid": "mine"})),
    "panel-title-description-rule": _panel(lambda panel: panel.pop("description")),
    "panel-units-rule": _panel(lambda panel: panel["fieldConfig"]["defaults"].update(unit="furlongs")),
    "panel-no-targets-rule": _panel(lambda panel: panel.update(targets=[])),
    "target-promql-rule": _panel(lambda panel: panel["targets"][0].update(expr="sum(")),
    "target-rate-interval-rule": _panel(lambda panel: panel["targets"][0].update(expr="rate(a_total[5m])")),
    "target-counter-agg-rule": _panel(lambda panel: panel["targets"][0].update(expr="sum(a_total)")),
    "uneditable-dashboard": lambda each: each.update(editable=True),
}


@needs_promtool
@pytest.mark.parametrize("rule", sorted(FAULTS))
def test_each_rule_objects_to_its_fault(rule: str) -> None:
    dashboard = checked_in("node.json")
    FAULTS[rule](dashboard)
    assert list(RULES[rule](dashboard))


def test_each_rule_has_a_fault_or_an_exclusion() -> None:
    assert set(RULES) == set(FAULTS) | set(exclusions(FOLDER))


@pytest.mark.parametrize("name", NAMES)
def test_queries_name_metrics_and_labels_that_exist(name: str) -> None:
    known = {*metrics.AGENT_METRICS, *metrics.OPERATOR_METRICS}
    known |= {f"{each}_bucket" for each in known}
    rules = "".join(path.read_text() for path in (ROOT / "charts" / "perseus-operator" / "rules").glob("*.yaml"))
    recorded = set(re.findall(r"record: (\S+)", rules))
    texts = [expression for _, expression in queries(checked_in(name))]
    texts += [each["query"]["query"] for each in variables(checked_in(name)) if each["type"] == "query"]
    assert texts
    for text in texts:
        for found in re.findall(r"\bperseus_[a-z_]+\b", text):
            assert found in known, found
        for found in re.findall(r"\bperseus:[a-z_:]+\b", text):
            assert found in recorded, found


def test_panels_do_not_overlap() -> None:
    for name in NAMES:
        taken: dict[tuple[int, int], str] = {}
        for panel in panels(checked_in(name)):
            place = panel["gridPos"]
            assert place["x"] + place["w"] <= 24, panel["title"]
            for x in range(place["x"], place["x"] + place["w"]):
                for y in range(place["y"], place["y"] + place["h"]):
                    assert taken.setdefault((x, y), panel["title"]) == panel["title"]
