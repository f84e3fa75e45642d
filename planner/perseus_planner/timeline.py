"""A pipeline's iteration and its frontier as text, for a terminal. Knows steps, not how they were planned."""

from __future__ import annotations

from collections.abc import Sequence

from perseus_planner.problem import PlannedStep

_HEIGHTS = "▁▂▃▄▅▆▇█"
_WAITING = " "
_FIXED = "░"


def clock_range(steps: Sequence[Sequence[PlannedStep]]) -> tuple[int, int]:
    """Return the lowest and the highest clock in MHz; (0, 0) where nothing has a clock."""
    clocks = [step.frequency_megahertz for row in steps for step in row if step.frequency_megahertz]
    return (min(clocks), max(clocks)) if clocks else (0, 0)


def timeline(steps: Sequence[Sequence[PlannedStep]], clocks: tuple[int, int] | None = None, columns: int = 96) -> str:
    """Draw one row for each rank: the height of a column is the clock, a blank is a wait.

    Args:
        steps: by rank, in order of execution.
        clocks: lowest and highest clock of the scale in MHz; by default those of the steps.
        columns: width of the drawing in characters.
    """
    end = max(step.begin_seconds + step.seconds for row in steps for step in row)
    lowest, highest = clocks or clock_range(steps)
    lines = []
    for rank, row in enumerate(steps):
        cells = [_WAITING] * columns
        for step in row:
            first = int(step.begin_seconds / end * columns)
            last = max(first + 1, int((step.begin_seconds + step.seconds) / end * columns))
            for place in range(first, min(last, columns)):
                cells[place] = _height(step.frequency_megahertz, lowest, highest)
        lines.append(f"rank {rank:3d} |{''.join(cells)}|")
    lines.append(f"         0 s{f'{end:.3f} s':>{columns - 1}}")
    lines.append(f"         {_HEIGHTS[0]} {lowest} MHz ... {_HEIGHTS[-1]} {highest} MHz, blank: waiting")
    return "\n".join(lines)


def curve(
    seconds: Sequence[float], joules: Sequence[float], marks: Sequence[tuple[float, float, str]],
    columns: int = 72, rows: int = 18,
) -> str:  # fmt: skip
    """Draw a frontier.

    Args:
        seconds: times of its points, growing.
        joules: energies.
        marks: single points on top: (seconds, joules, one letter).
        columns: width of the drawing in characters.
        rows: its height.
    """
    points = [*zip(seconds, joules, strict=True), *((x, y) for x, y, _ in marks)]
    left, right = min(x for x, _ in points), max(x for x, _ in points)
    low, high = min(y for _, y in points), max(y for _, y in points)
    cells = [[" "] * columns for _ in range(rows)]

    def put(x: float, y: float, letter: str) -> None:
        column = round((x - left) / ((right - left) or 1.0) * (columns - 1))
        row = round((high - y) / ((high - low) or 1.0) * (rows - 1))
        cells[row][column] = letter

    for x, y in zip(seconds, joules, strict=True):
        put(x, y, "·")
    for x, y, letter in marks:
        put(x, y, letter)
    lines = [
        f"{high - (high - low) * row / (rows - 1):>12.1f} J |{''.join(line)}" if row % 4 == 0 or row == rows - 1
        else f"{'':>14} |{''.join(line)}"
        for row, line in enumerate(cells)
    ]  # fmt: skip
    lines.append(f"{'':>15}{left:<{columns // 2}.3f}{f'{right:.3f} s':>{columns - columns // 2 + 1}}")
    return "\n".join(lines)


def _height(clock: int, lowest: int, highest: int) -> str:
    if not clock:
        return _FIXED
    share = (clock - lowest) / (highest - lowest) if highest > lowest else 1.0
    return _HEIGHTS[round(share * (len(_HEIGHTS) - 1))]
