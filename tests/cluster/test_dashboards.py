"""Every panel of every dashboard shows data of the demonstration, asked of the real Prometheus that watched it."""

from __future__ import annotations

from pathlib import Path

import pytest

from demo.panels import DASHBOARDS, Window, ask_panel, load_dashboard
from demo.pictures import draw_dashboard
from demo.scenario import JOB, Run
from testbed.installation import Installation

pytestmark = pytest.mark.cluster
NAMES = sorted(path.stem for path in DASHBOARDS.glob("*.json"))
# Empty is its good news, and here the job saves; tests/dashboards shows it with one that does not.
GOOD_NEWS = {"Jobs that do not save now, and why"}
SOURCES = [
    (name, each.get("title") or f"annotation {each['name']}", each)
    for name in NAMES
    for dashboard in [load_dashboard(name)]
    for each in [*dashboard["panels"], *(dashboard.get("annotations") or {}).get("list", [])]
    if each.get("title") not in GOOD_NEWS
]


@pytest.fixture(scope="module")
def window(demonstration: Run) -> Window:
    """The time of the demonstration."""
    samples = demonstration.samples
    return Window(samples[0].time_seconds, samples[-1].time_seconds, "default", JOB)


@pytest.mark.parametrize(("name", "title", "source"), SOURCES, ids=[f"{name}: {title}" for name, title, _ in SOURCES])
def test_a_panel_shows_data(
    installation: Installation, window: Window, name: str, title: str, source: dict[str, object]
) -> None:
    for answer in ask_panel(installation.prometheus_url, source, window):
        assert answer.series, f"{name}, {title}: no data for {answer.expression}"


def test_the_books_agree_with_the_agents_counters(
    installation: Installation, window: Window, demonstration: Run
) -> None:
    panel = {"expr": 'perseus_job_energy_joules{namespace=~"$namespace", job=~"$job"}'}
    (answer,) = ask_panel(installation.prometheus_url, panel, window)
    (series,) = answer.series
    assert list(series.values) == sorted(series.values), "what was told never goes back"
    # A look every 15 s at what was scraped 5 s before, and scraped again.
    sample = next(each for each in demonstration.samples if each.time_seconds >= series.times[-1] and each.ranks)
    counted = sum(rank.energy_joules for rank in sample.ranks.values())
    earlier = [each for each in demonstration.samples if each.ranks and each.time_seconds >= series.times[-1] - 40]
    least = sum(rank.energy_joules for rank in earlier[0].ranks.values())
    assert least * 0.99 <= series.values[-1] <= counted * 1.001


def test_what_was_saved_is_told_apart(installation: Installation, window: Window) -> None:
    panel = {"expr": 'perseus_job_saved_joules{namespace=~"$namespace", job=~"$job"}'}
    (answer,) = ask_panel(installation.prometheus_url, panel, window)
    saved = {series.labels["cause"]: series.values[-1] for series in answer.series}
    assert saved["intrinsic"] > 0
    assert saved["straggler"] > 0


@pytest.mark.parametrize("name", NAMES)
def test_a_picture_can_be_made(installation: Installation, window: Window, name: str, tmp_path: Path) -> None:
    draw_dashboard(installation.prometheus_url, load_dashboard(name), window, tmp_path / "dashboard.png")
    assert (tmp_path / "dashboard.png").stat().st_size > 20_000
