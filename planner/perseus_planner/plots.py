"""Pictures of a frontier and of an iteration, as PNG and SVG. Needs matplotlib (the extra `plots`)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from perseus_planner.errors import PlanningError
from perseus_planner.problem import PlannedStep

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

FORMATS = ("png", "svg")


def frontier_picture(
    base: Path, seconds: Sequence[float], joules: Sequence[float], plans: Sequence[tuple[float, float]],
    fastest: tuple[float, float], chosen: tuple[float, float] | None = None,
) -> list[Path]:  # fmt: skip
    """Draw the exact frontier, the plans realised on it and the reference.

    Args:
        base: path without suffix; one file for each of `FORMATS` is written.
        seconds: times of the breakpoints.
        joules: their energies.
        plans: realised plans as (seconds, joules).
        fastest: every instruction at its highest clock.
        chosen: the plan that the picture is about.

    Raises:
        PlanningError: matplotlib is missing.
    """
    figure, (axes,) = _figure(1, (8, 5))
    axes.plot(seconds, joules, color="tab:blue", label="exact relaxation")
    if plans:
        axes.plot(*zip(*plans, strict=True), ".", color="tab:green", markersize=4, label="realised plans")
    axes.plot(*fastest, "s", color="tab:red", label="every instruction at its highest clock")
    if chosen is not None:
        axes.plot(*chosen, "*", color="black", markersize=11, label="this plan")
    axes.set_xlabel("iteration time (s)")
    axes.set_ylabel("iteration energy (J)")
    axes.legend()
    axes.grid(alpha=0.3)
    return _save(figure, base)


def timeline_picture(
    base: Path, before: Sequence[Sequence[PlannedStep]], after: Sequence[Sequence[PlannedStep]]
) -> list[Path]:
    """Draw an iteration at the highest clocks and under a plan, coloured by clock; white is waiting.

    Args:
        base: path without suffix; one file for each of `FORMATS` is written.
        before: by rank, the steps at the highest clocks.
        after: the steps of the plan.

    Raises:
        PlanningError: matplotlib is missing.
    """
    figure, panels = _figure(2, (14, 1.6 + 0.6 * len(before)))
    from matplotlib import colormaps
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import Normalize, to_hex

    clocks = [step.frequency_megahertz for rows in (before, after) for row in rows for step in row]
    clocks = [clock for clock in clocks if clock] or [0]
    scale = Normalize(min(clocks), max(clocks))

    def colour(clock: int) -> str:
        return to_hex(colormaps["viridis"](float(scale(clock)))) if clock else "0.8"

    end = max(step.begin_seconds + step.seconds for rows in (before, after) for row in rows for step in row)
    for axes, rows, title in zip(panels, (before, after), ("highest clocks", "plan"), strict=True):
        for rank, row in enumerate(rows):
            axes.barh(
                [rank] * len(row),
                [step.seconds for step in row],
                left=[step.begin_seconds for step in row],
                height=0.86,
                color=[colour(step.frequency_megahertz) for step in row],
                edgecolor="white",
                linewidth=0.3,
            )
        axes.set_title(title, loc="left")
        axes.set_xlim(0, end)
        axes.set_ylim(len(rows) - 0.5, -0.5)
        axes.set_ylabel("rank")
    panels[-1].set_xlabel("time (s)")
    figure.colorbar(ScalarMappable(scale, "viridis"), ax=panels, label="clock (MHz)")
    return _save(figure, base)


def _figure(panels: int, size: tuple[float, float]) -> tuple[Figure, list[Axes]]:
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise PlanningError("pictures need matplotlib: install perseus-operator[planner,plots]") from None
    figure = Figure(figsize=size, layout="constrained")
    return figure, [figure.add_subplot(panels, 1, 1 + index) for index in range(panels)]


def _save(figure: Figure, base: Path) -> list[Path]:
    found = []
    for suffix in FORMATS:
        path = base.with_name(f"{base.name}.{suffix}")
        figure.savefig(path, dpi=150)
        found.append(path)
    return found
