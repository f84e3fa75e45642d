"""What a dashboard's panels show of a run: their queries, as the chart ships them, asked of the real Prometheus.

Variables and intervals are put in as Grafana does. Every query is asked over the whole run, those of numbers and tables
too: a job that was deleted at the end has no present.
"""

from __future__ import annotations

import json
import math
import urllib.parse
import urllib.request
from dataclasses import dataclass
from pathlib import Path
from typing import Any

DASHBOARDS = Path(__file__).resolve().parent.parent / "charts" / "perseus-operator" / "dashboards"
STEP_SECONDS = 5
_GLOBALS = {"$__rate_interval": "35s", "$__interval": f"{STEP_SECONDS}s"}
_TIMEOUT_SECONDS = 20.0


@dataclass(frozen=True)
class Window:
    """The time of a run, as seconds since the epoch, and its job."""

    begin_seconds: float
    end_seconds: float
    namespace: str
    job: str

    @property
    def values(self) -> dict[str, str]:
        """What a person would choose on the dashboards."""
        return {"$namespace": self.namespace, "$job": self.job, "$node": ".+", "$price": "0.15", "$grams": "400"}


@dataclass(frozen=True)
class Series:
    """One line: times (seconds since the epoch), values, and labels."""

    times: tuple[float, ...]
    values: tuple[float, ...]
    labels: dict[str, str]
    legend: str


@dataclass(frozen=True)
class Answer:
    """What a query of a panel brought."""

    expression: str
    series: tuple[Series, ...]


def load_dashboard(name: str) -> dict[str, Any]:
    """Return a dashboard of the chart."""
    found: dict[str, Any] = json.loads((DASHBOARDS / f"{name}.json").read_text())
    return found


def ask_panel(url: str, panel: dict[str, Any], window: Window) -> list[Answer]:
    """Return the answers to a panel's queries (or those of an annotation, which has one).

    Raises:
        OSError: Prometheus does not answer, or refuses a query.
    """
    targets = panel.get("targets") or [panel]
    return [_ask(url, target["expr"], target.get("legendFormat", ""), window) for target in targets]


def _ask(url: str, expression: str, legend: str, window: Window) -> Answer:
    for name, value in {**_GLOBALS, **window.values}.items():
        expression = expression.replace(name, value)
    question = {
        "query": expression,
        "start": f"{window.begin_seconds:.3f}",
        "end": f"{window.end_seconds:.3f}",
        "step": str(STEP_SECONDS),
    }
    address = f"{url}/api/v1/query_range?{urllib.parse.urlencode(question)}"
    with urllib.request.urlopen(address, timeout=_TIMEOUT_SECONDS) as response:  # noqa: S310 - the testbed's own
        result = json.load(response)["data"]["result"]
    found = []
    for each in result:
        points = [(float(when), float(text)) for when, text in each["values"]]
        finite = [(when, value) for when, value in points if math.isfinite(value)]
        if finite:
            times, values = zip(*finite, strict=True)
            found.append(Series(times, values, each["metric"], _legend(legend, each["metric"])))
    return Answer(expression, tuple(sorted(found, key=lambda series: series.legend)))


def _legend(form: str, labels: dict[str, str]) -> str:
    if not form:
        return ", ".join(f"{name}={value}" for name, value in labels.items() if name != "__name__")
    for name in sorted(labels, key=len, reverse=True):
        form = form.replace(f"{{{{{name}}}}}", labels[name])
    return form.strip()
