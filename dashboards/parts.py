"""Builders that all dashboards share: variables, panels, queries. One look, one data source."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any

from grafana_foundation_sdk.builders import common as common_builders
from grafana_foundation_sdk.builders import dashboard as builders
from grafana_foundation_sdk.builders import prometheus, stat, table, timeseries
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.models import common, dashboard
from grafana_foundation_sdk.models.prometheus import PromQueryFormat

SOURCE = dashboard.DataSourceRef(type_val="prometheus", uid="$datasource")
TAG = "perseus"
FULL_WIDTH = 24
# An iteration of a large model takes tens of seconds: rates over less would show its beat, not its mean.
LEAST_INTERVAL = "30s"


@dataclass(frozen=True)
class Query:
    """A query of a panel.

    Attributes:
        expression: PromQL.
        legend: Grafana's legend format.
        reference: its name among the panel's queries.
    """

    expression: str
    legend: str = ""
    reference: str = "A"


@dataclass
class Look:
    """How a time series panel draws.

    Attributes:
        stacked: series upon each other.
        lines: legends (regular expression) that are drawn as unstacked lines over a stack.
        lowest: of the axis.
        points: draw points, for what is there only now and then.
    """

    stacked: bool = False
    lines: str = ""
    lowest: float | None = None
    points: bool = False
    height: int = 8
    width: int = 12
    decimals: int | None = None


@dataclass
class Column:
    """A column of a table that is made of several instant queries.

    Attributes:
        query: its values.
        title: its heading.
        unit: of its values.
    """

    query: Query
    title: str
    unit: str
    decimals: int | None = field(default=None)


def document(made: builders.Dashboard) -> dict[str, Any]:
    """Return a dashboard's JSON as a dictionary."""
    found: dict[str, Any] = json.loads(JSONEncoder(sort_keys=True).encode(made.build()))
    return found


def new_dashboard(uid: str, title: str, description: str) -> builders.Dashboard:
    """Return a dashboard without panels, with its data source variable and links to the others."""
    return (
        builders.Dashboard(title)
        .uid(uid)
        .description(description)
        .tags([TAG])
        .readonly()
        .refresh("10s")
        .time("now-1h", "now")
        .timezone("browser")
        .tooltip(dashboard.DashboardCursorSync.CROSSHAIR)
        .link(
            builders.DashboardLink("Perseus")
            .type(dashboard.DashboardLinkType.DASHBOARDS)
            .tags([TAG])
            .include_vars(True)
            .keep_time(True)
        )
        .with_variable(builders.DatasourceVariable("datasource").label("Data source").type("prometheus"))
    )


def label_variable(name: str, label: str, series: str, several: bool = False) -> builders.QueryVariable:
    """Return a variable with the values of a label of a series."""
    made = (
        builders.QueryVariable(name)
        .label(label)
        .query({"query": f"label_values({series}, {name})", "refId": "A"})
        .datasource(SOURCE)
        .refresh(dashboard.VariableRefresh.ON_TIME_RANGE_CHANGED)
        .sort(dashboard.VariableSort.ALPHABETICAL_ASC)
    )
    return made.multi(True).include_all(True).all_value(".+") if several else made


def number_variable(name: str, label: str, description: str, value: str) -> builders.TextBoxVariable:
    """Return a variable that a person types a number into."""
    return builders.TextBoxVariable(name).label(label).description(description).default_value(value)


def over_time(title: str, description: str, unit: str, queries: list[Query], look: Look | None = None) -> Any:
    """Return a panel of time series."""
    look = look or Look()
    panel = (
        timeseries.Panel()
        .title(title)
        .description(description)
        .datasource(SOURCE)
        .unit(unit)
        .interval(LEAST_INTERVAL)
        .height(look.height)
        .span(look.width)
        .line_width(1)
        .fill_opacity(60 if look.stacked else 0)
        .show_points(common.VisibilityMode.ALWAYS if look.points else common.VisibilityMode.NEVER)
        .legend(
            common_builders.VizLegendOptions()
            .display_mode(common.LegendDisplayMode.LIST)
            .placement(common.LegendPlacement.BOTTOM)
            .show_legend(True)
        )
        .tooltip(
            common_builders.VizTooltipOptions().mode(common.TooltipDisplayMode.MULTI).sort(common.SortOrder.DESCENDING)
        )
    )
    if look.stacked:
        panel = panel.stacking(common_builders.StackingConfig().mode(common.StackingMode.NORMAL).group("A"))
    if look.lowest is not None:
        panel = panel.min(look.lowest)
    if look.decimals is not None:
        panel = panel.decimals(look.decimals)
    if look.lines:
        panel = panel.override_by_regexp(
            f"/{look.lines}/",
            [
                dashboard.DynamicConfigValue("custom.stacking", {"mode": "none", "group": "B"}),
                dashboard.DynamicConfigValue("custom.fillOpacity", 0),
                dashboard.DynamicConfigValue("custom.lineWidth", 2),
            ],
        )
    for query in _named(queries):
        panel = panel.with_target(
            prometheus.Dataquery()
            .expr(query.expression)
            .legend_format(query.legend)
            .ref_id(query.reference)
            .range()
            .datasource(SOURCE)
        )
    return panel


def number(title: str, description: str, unit: str, query: Query, width: int = 4, decimals: int | None = None) -> Any:
    """Return a panel with one number, the newest."""
    panel = (
        stat.Panel()
        .title(title)
        .description(description)
        .datasource(SOURCE)
        .unit(unit)
        .height(4)
        .span(width)
        .graph_mode(common.BigValueGraphMode.NONE)
        .color_mode(common.BigValueColorMode.NONE)
        .reduce_options(common_builders.ReduceDataOptions().calcs(["lastNotNull"]).fields("").values(False))
        .with_target(
            prometheus.Dataquery()
            .expr(query.expression)
            .legend_format(query.legend)
            .ref_id(query.reference)
            .instant()
            .datasource(SOURCE)
        )
    )
    return panel if decimals is None else panel.decimals(decimals)


def rows(
    title: str,
    description: str,
    columns: list[Column],
    labels: dict[str, str],
    width: int = FULL_WIDTH,
    height: int = 8,
) -> Any:
    """Return a table: a row for each set of labels, a column for each query.

    Args:
        title: of the panel.
        description: of the panel.
        columns: each an instant query with the same labels.
        labels: to show, with their headings; the others are hidden.
        width: of the panel.
        height: of the panel.
    """
    panel = (
        table.Panel()
        .title(title)
        .description(description)
        .datasource(SOURCE)
        .unit(columns[0].unit)
        .height(height)
        .span(width)
        .with_transformation(dashboard.DataTransformerConfig(id_val="merge", options={}))
        .with_transformation(
            dashboard.DataTransformerConfig(
                id_val="organize",
                options={
                    "excludeByName": {"Time": True},
                    "indexByName": {name: index for index, name in enumerate(labels)},
                    "renameByName": labels,
                },
            )
        )
    )
    for query, column in zip(_named([each.query for each in columns]), columns, strict=True):
        panel = panel.with_target(
            prometheus.Dataquery()
            .expr(query.expression)
            .ref_id(query.reference)
            .format(PromQueryFormat.TABLE)
            .instant()
            .datasource(SOURCE)
        )
        properties = [
            dashboard.DynamicConfigValue("displayName", column.title),
            dashboard.DynamicConfigValue("unit", column.unit),
        ]
        if column.decimals is not None:
            properties.append(dashboard.DynamicConfigValue("decimals", column.decimals))
        name = f"Value #{query.reference}" if len(columns) > 1 else "Value"
        panel = panel.override_by_name(name, properties)
    return panel


def annotation(name: str, colour: str, query: str, title: str, text: str) -> dict[str, Any]:
    """Return an annotation: a mark over all time series where a query has a value.

    A dictionary, since the SDK's type lacks the titles that Prometheus annotations have.
    """
    return {
        "name": name,
        "enable": True,
        "hide": False,
        "iconColor": colour,
        "builtIn": 0,
        "datasource": {"type": "prometheus", "uid": "$datasource"},
        "expr": query,
        "step": LEAST_INTERVAL,
        "titleFormat": title,
        "textFormat": text,
    }


def _named(queries: list[Query]) -> list[Query]:
    return [Query(each.expression, each.legend, chr(ord("A") + index)) for index, each in enumerate(queries)]
