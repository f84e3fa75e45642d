"""The rules of Grafana's dashboard linter, by their published names, over a dashboard's JSON.

The linter itself is a Go program that no registry serves as a module version, so its rules are written anew here from
their descriptions; PromQL is judged by Prometheus's own parser. Each rule yields sentences; none is no objection.
"""

from __future__ import annotations

import re
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import yaml

Dashboard = dict[str, Any]
# Units of Grafana's value formats that the dashboards use or might; an unknown one would be shown as a suffix.
UNITS = {
    "none", "string", "short", "percent", "percentunit", "bytes", "watt", "kwatt", "watth", "kwatth", "joule", "massg",
    "masskg", "celsius", "hertz", "s", "ms", "ops", "reqps", "dtdurations", "bool_yes_no", "currencyUSD", "currencyEUR",
}  # fmt: skip
PANELS_WITH_UNITS = frozenset({"stat", "table", "timeseries", "gauge"})
GLOBALS = {"$__rate_interval": "35s", "$__interval": "30s", "$__range": "1h"}
RANGE_FUNCTIONS = re.compile(r"\b(rate|irate|increase)\(")


def substituted(expression: str, values: dict[str, str]) -> str:
    """Put values into a query as Grafana does."""
    for name, value in {**GLOBALS, **{f"${name}": value for name, value in values.items()}}.items():
        expression = expression.replace(name, value)
    return expression


def panels(dashboard: Dashboard) -> Iterator[dict[str, Any]]:
    """Every panel but rows, those within rows included."""
    for panel in dashboard["panels"]:
        if panel["type"] == "row":
            yield from panel.get("panels", [])
        else:
            yield panel


def queries(dashboard: Dashboard) -> Iterator[tuple[str, str]]:
    """Every query with the title of its panel, annotations included."""
    for panel in panels(dashboard):
        for target in panel["targets"]:
            yield panel["title"], target["expr"]
    for each in (dashboard.get("annotations") or {}).get("list", []):
        yield f"annotation {each['name']}", each["expr"]


def variables(dashboard: Dashboard) -> list[dict[str, Any]]:
    """The template variables."""
    found: list[dict[str, Any]] = dashboard["templating"]["list"]
    return found


def template_datasource_rule(dashboard: Dashboard) -> Iterator[str]:
    sources = [each for each in variables(dashboard) if each["type"] == "datasource"]
    named = [(each["name"], each["label"], each["query"]) for each in sources]
    if named != [("datasource", "Data source", "prometheus")]:
        yield "there is not exactly one variable datasource, labelled Data source, of Prometheus"


def template_label_promql_rule(dashboard: Dashboard) -> Iterator[str]:
    for each in variables(dashboard):
        if each["type"] == "query":
            found = re.fullmatch(r"label_values\((.+), (\w+)\)", each["query"]["query"])
            if not found or not is_promql(substituted(found[1], {"namespace": "x"})):
                yield f"variable {each['name']}: {each['query']['query']}"


def template_on_time_change_reload_rule(dashboard: Dashboard) -> Iterator[str]:
    for each in variables(dashboard):
        if each["type"] == "query" and each["refresh"] != 2:
            yield f"variable {each['name']} is not read again when the time range changes"


def panel_datasource_rule(dashboard: Dashboard) -> Iterator[str]:
    for panel in panels(dashboard):
        for where in (panel, *panel["targets"]):
            if where["datasource"] != {"type": "prometheus", "uid": "$datasource"}:
                yield f"{panel['title']}: {where['datasource']}"


def panel_title_description_rule(dashboard: Dashboard) -> Iterator[str]:
    for panel in panels(dashboard):
        if not panel.get("title") or not panel.get("description"):
            yield f"{panel.get('title')}: title or description is missing"


def panel_units_rule(dashboard: Dashboard) -> Iterator[str]:
    for panel in panels(dashboard):
        overrides = [
            each["value"]
            for override in panel["fieldConfig"]["overrides"]
            for each in override["properties"]
            if each["id"] == "unit"
        ]
        if panel["type"] in PANELS_WITH_UNITS:
            for unit in (panel["fieldConfig"]["defaults"].get("unit"), *overrides):
                if unit not in UNITS:
                    yield f"{panel['title']}: unit {unit}"


def panel_no_targets_rule(dashboard: Dashboard) -> Iterator[str]:
    for panel in panels(dashboard):
        if not panel.get("targets"):
            yield f"{panel['title']} asks nothing"


def target_promql_rule(dashboard: Dashboard) -> Iterator[str]:
    values = {each["name"]: "1" for each in variables(dashboard)}
    for title, expression in queries(dashboard):
        if not is_promql(substituted(expression, values)):
            yield f"{title}: {expression}"


def target_rate_interval_rule(dashboard: Dashboard) -> Iterator[str]:
    for title, expression in queries(dashboard):
        for found in re.finditer(r"\[([^\]]+)\]", expression):
            if found[1] != "$__rate_interval":
                yield f"{title}: [{found[1]}]"


def target_counter_agg_rule(dashboard: Dashboard) -> Iterator[str]:
    for title, expression in queries(dashboard):
        for found in re.finditer(r"\b\w+_total\b", expression):
            if not RANGE_FUNCTIONS.search(expression[max(0, found.start() - 9) : found.start()]):
                yield f"{title}: {found[0]} without rate"


def uneditable_dashboard_rule(dashboard: Dashboard) -> Iterator[str]:
    if dashboard["editable"]:
        yield "it can be edited, and the edit would be lost"


def template_job_rule(dashboard: Dashboard) -> Iterator[str]:
    yield from _has_multi_variable(dashboard, "job")


def template_instance_rule(dashboard: Dashboard) -> Iterator[str]:
    yield from _has_multi_variable(dashboard, "instance")


def target_job_rule(dashboard: Dashboard) -> Iterator[str]:
    yield from (title for title, expression in queries(dashboard) if 'job=~"$job"' not in expression)


def target_instance_rule(dashboard: Dashboard) -> Iterator[str]:
    yield from (title for title, expression in queries(dashboard) if 'instance=~"$instance"' not in expression)


RULES: dict[str, Callable[[Dashboard], Iterator[str]]] = {
    "template-datasource-rule": template_datasource_rule,
    "template-job-rule": template_job_rule,
    "template-instance-rule": template_instance_rule,
    "template-label-promql-rule": template_label_promql_rule,
    "template-on-time-change-reload-rule": template_on_time_change_reload_rule,
    "panel-datasource-rule": panel_datasource_rule,
    "panel-title-description-rule": panel_title_description_rule,
    "panel-units-rule": panel_units_rule,
    "panel-no-targets-rule": panel_no_targets_rule,
    "target-promql-rule": target_promql_rule,
    "target-rate-interval-rule": target_rate_interval_rule,
    "target-counter-agg-rule": target_counter_agg_rule,
    "target-job-rule": target_job_rule,
    "target-instance-rule": target_instance_rule,
    "uneditable-dashboard": uneditable_dashboard_rule,
}


def exclusions(folder: Path) -> dict[str, str]:
    """The rules that the folder's .lint file excludes, with their reasons."""
    document = yaml.safe_load((folder / ".lint").read_text())
    return {name: each["reason"] for name, each in document["exclusions"].items()}


def is_promql(expression: str) -> bool:
    """Whether Prometheus's parser takes an expression."""
    rules = {"groups": [{"name": "g", "rules": [{"record": "a:b:c", "expr": expression}]}]}
    with tempfile.NamedTemporaryFile("w", suffix=".yaml") as file:
        yaml.safe_dump(rules, file)
        file.flush()
        command = ["/usr/bin/promtool", "check", "rules", file.name]
        return subprocess.run(command, capture_output=True, check=False).returncode == 0


def _has_multi_variable(dashboard: Dashboard, name: str) -> Iterator[str]:
    if not any(each["name"] == name and each.get("multi") for each in variables(dashboard)):
        yield f"there is no variable {name} of several values"
