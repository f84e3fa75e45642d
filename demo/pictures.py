"""``make pictures``: play the demonstration, then draw what the dashboards show of it into docs/pictures.

Grafana itself is no part of this project's machine: matplotlib draws the panels from the same queries, the same layout
and the real Prometheus's answers, and each picture says so.
"""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
from matplotlib.axes import Axes

from demo.narration import Narrator
from demo.panels import Answer, Window, ask_panel, load_dashboard
from demo.scenario import JOB, Run, run_scenario
from testbed.errors import TestbedError
from testbed.installation import install

FOLDER = Path("docs/pictures")
WINDOW = Path("build/demo/window.json")
_WIDTH_INCHES, _ROW_INCHES = 0.62, 0.36  # of a cell of Grafana's grid
_COLOURS = plt.get_cmap("tab20").colors  # type: ignore[attr-defined]
_MAXIMUM_LEGEND = 10
# Unit to divisor and suffix.
_UNITS = {
    "percentunit": (0.01, "%"), "watt": (1000.0, "kW"), "joule": (1000.0, "kJ"), "hertz": (1e9, "GHz"),
    "celsius": (1.0, "°C"), "s": (1.0, "s"), "ops": (1.0, "/s"), "watth": (1.0, "Wh"), "massg": (1.0, "g"),
}  # fmt: skip


def main() -> int:
    """Play and draw, or draw a run again that was played before; return the exit status."""
    parser = argparse.ArgumentParser(prog="python -m demo.pictures")
    parser.add_argument("--again", action="store_true", help="draw the last demonstration once more")
    again = parser.parse_args().again
    narrator = Narrator()
    try:
        installation = install(narrator.say)
        if again:
            window = Window(**json.loads(WINDOW.read_text()))
        else:
            window = keep_window(run_scenario(installation, narrator))
    except (TestbedError, TimeoutError) as error:
        print(f"make pictures: {error}", file=sys.stderr)
        return 1
    for name in ("job", "fleet", "node"):
        path = FOLDER / f"dashboard-{name}.png"
        draw_dashboard(installation.prometheus_url, load_dashboard(name), window, path)
        narrator.say(f"drawn: {path}")
    return 0


def keep_window(run: Run) -> Window:
    """Write down when a run was, so that it can be drawn again; return it."""
    window = Window(run.samples[0].time_seconds, run.samples[-1].time_seconds, "default", JOB)
    WINDOW.parent.mkdir(parents=True, exist_ok=True)
    WINDOW.write_text(json.dumps(asdict(window)))
    return window


def draw_dashboard(url: str, dashboard: dict[str, Any], window: Window, path: Path) -> None:
    """Draw a dashboard as PNG."""
    panels = dashboard["panels"]
    rows = max(panel["gridPos"]["y"] + panel["gridPos"]["h"] for panel in panels)
    height = rows * _ROW_INCHES + 0.9
    figure = plt.figure(figsize=(24 * _WIDTH_INCHES, height))
    marks = [
        (series.times, each["iconColor"])
        for each in (dashboard.get("annotations") or {}).get("list", [])
        for answer in ask_panel(url, each, window)
        for series in answer.series
    ]
    for panel in panels:
        place = panel["gridPos"]
        left, width = place["x"] / 24, place["w"] / 24
        bottom = 1 - (place["y"] + place["h"]) * _ROW_INCHES / height - 0.55 / height
        inner = place["h"] * _ROW_INCHES / height
        top = 0.32 / height
        numeric = panel["type"] != "timeseries"
        low = 0.05 / height if numeric else (0.3 + 0.19 * _legend_rows(panel)) / height
        axes = figure.add_axes((left + (0.004 if numeric else 0.035), bottom + low,
                                width - (0.008 if numeric else 0.045), inner - low - top))  # fmt: skip
        axes.set_title(panel["title"], fontsize=9, fontweight="bold", loc="left")
        _draw_panel(axes, panel, ask_panel(url, panel, window), window, marks)
    caption = (
        f"{dashboard['title']}: drawn by matplotlib from the dashboard's own queries and a real Prometheus's answers, "
        "over one run of make demo (GPT-3 175B, 16 simulated A100s). Not a picture of Grafana."
    )
    figure.text(0.005, 1 - 0.3 / height, caption, fontsize=10)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=80)
    plt.close(figure)


def _draw_panel(
    axes: Axes, panel: dict[str, Any], answers: list[Answer], window: Window, marks: list[tuple[tuple[float, ...], str]]
) -> None:
    divisor, suffix = _UNITS.get(panel["fieldConfig"]["defaults"].get("unit", "none"), (1.0, ""))
    if panel["type"] == "stat":
        axes.axis("off")
        last = [series for answer in answers for series in answer.series]
        text = f"{last[0].values[-1] / divisor:.4g} {suffix}" if last else "no data"
        axes.text(0.5, 0.5, text, ha="center", va="center", fontsize=18, transform=axes.transAxes)
    elif panel["type"] == "table":
        _draw_table(axes, panel, answers)
    else:
        _draw_lines(axes, panel, answers, divisor, suffix, window)
        for times, colour in marks:
            for when in times:
                axes.axvspan(when - window.begin_seconds, when - window.begin_seconds + 5, color=colour, alpha=0.06)


def _draw_lines(
    axes: Axes, panel: dict[str, Any], answers: list[Answer], divisor: float, suffix: str, window: Window
) -> None:
    found = [series for answer in answers for series in answer.series]
    custom = panel["fieldConfig"]["defaults"].get("custom", {})
    stacked = custom.get("stacking", {}).get("mode") == "normal"
    apart = [each["matcher"]["options"].strip("/") for each in panel["fieldConfig"]["overrides"]]
    stack = [series for series in found if stacked and not any(name in series.legend for name in apart)]
    if stack:
        times = sorted({when for series in stack for when in series.times})
        values = [dict(zip(series.times, series.values, strict=True)) for series in stack]
        heights = [[each.get(when, 0.0) / divisor for when in times] for each in values]
        axes.stackplot([when - window.begin_seconds for when in times], heights,
                       labels=[series.legend for series in stack], colors=_COLOURS, alpha=0.7)  # fmt: skip
    for index, series in enumerate(each for each in found if each not in stack):
        axes.plot([when - window.begin_seconds for when in series.times], [each / divisor for each in series.values],
                  label=series.legend, linewidth=1.2, marker="." if len(series.times) < 3 else None,
                  color="black" if stack else _COLOURS[2 * index % 20 + (index >= 10)])  # fmt: skip
    if panel["fieldConfig"]["defaults"].get("min") == 0:
        axes.set_ylim(bottom=0)
    axes.set_xlim(0, window.end_seconds - window.begin_seconds)
    axes.set_ylabel(suffix, fontsize=8)
    axes.tick_params(labelsize=7)
    axes.grid(alpha=0.3)
    if found:
        handles, labels = axes.get_legend_handles_labels()
        shown = [_short(label, 40) for label in labels[:_MAXIMUM_LEGEND]]
        columns = 4 if max(map(len, shown)) < 24 else 2
        axes.legend(handles[:_MAXIMUM_LEGEND], shown, fontsize=7, ncols=columns, loc="upper center",
                    bbox_to_anchor=(0.5, -0.1), frameon=False)  # fmt: skip


def _draw_table(axes: Axes, panel: dict[str, Any], answers: list[Answer]) -> None:
    """Rows by their labels, each with the last value of each query, as the merge of the panel makes them."""
    axes.axis("off")
    titles = {
        override["matcher"]["options"]: {each["id"]: each["value"] for each in override["properties"]}
        for override in panel["fieldConfig"]["overrides"]
    }
    order = panel["transformations"][1]["options"]["renameByName"]
    rows: dict[tuple[str, ...], dict[int, float]] = {}
    for index, answer in enumerate(answers):
        for series in answer.series:
            key = tuple(series.labels.get(name, "") for name in order)
            rows.setdefault(key, {})[index] = series.values[-1]
    shown = [titles.get(f"Value #{chr(65 + index)}") or titles.get("Value", {}) for index in range(len(answers))]
    cells = []
    for key, values in sorted(rows.items(), key=lambda item: -item[1].get(0, 0.0))[:16]:
        texts = []
        for index, properties in enumerate(shown):
            divisor, suffix = _UNITS.get(properties.get("unit", "none"), (1.0, ""))
            texts.append(f"{values[index] / divisor:.4g} {suffix}" if index in values else "")
        cells.append([_short(each, 22) for each in key] + texts)
    if not cells:
        axes.text(0.5, 0.5, "no data", ha="center", va="center", transform=axes.transAxes)
        return
    headings = [*order.values(), *(each.get("displayName", "") for each in shown)]
    drawn = axes.table(cells, colLabels=headings, loc="upper center", cellLoc="left")
    drawn.auto_set_font_size(False)
    drawn.set_fontsize(7)


def _short(text: str, length: int) -> str:
    return text if len(text) <= length else text[: length - 1] + "…"


def _legend_rows(panel: dict[str, Any]) -> int:
    return 3 if panel["gridPos"]["h"] > 4 else 1


if __name__ == "__main__":
    sys.exit(main())
