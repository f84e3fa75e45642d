"""The picture of a run: power of all GPUs and iteration time, with what happened when."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt

from demo.figures import Phase, iteration_begins
from testbed.observation import Sample


def draw_run(samples: list[Sample], phases: list[Phase], events: list[tuple[float, str]], path: Path) -> None:
    """Write the picture as PNG.

    Args:
        samples: the whole recording.
        phases: the measured phases, shaded.
        events: wall-clock time and text of what happened.
        path: file to write.
    """
    zero = samples[0].time_seconds
    figure, (power, iteration) = plt.subplots(2, 1, sharex=True, figsize=(11, 6.5), layout="constrained")
    for pipeline in sorted({rank[0] for sample in samples for rank in sample.ranks}):
        times, watts = _mean_power(samples, pipeline, window_seconds=2.8)
        power.plot([time - zero for time in times], [watt / 1000 for watt in watts], label=f"pipeline {pipeline}")
        begins = sorted(iteration_begins(samples, pipeline).items())
        ends = [(begin, following - begin) for (_, begin), (_, following) in pairwise(begins)]
        iteration.step([begin - zero for begin, _ in ends], [length for _, length in ends], where="post")
    power.set_ylabel("GPU power (kW, mean of an iteration)")
    power.set_ylim(bottom=0)
    power.legend(loc="lower right")
    iteration.set_ylabel("iteration time (s)")
    iteration.set_ylim(bottom=0)
    iteration.set_xlabel("time (s)")
    for phase in phases:
        for axis in (power, iteration):
            axis.axvspan(phase.begin_seconds - zero, phase.end_seconds - zero, alpha=0.08, color="black")
        middle = (phase.begin_seconds + phase.end_seconds) / 2 - zero
        power.text(middle, power.get_ylim()[1] * 0.02, phase.name, ha="center", va="bottom", fontsize=9)
    for index, (when, text) in enumerate(events):
        for axis in (power, iteration):
            axis.axvline(when - zero, color="tab:red", linewidth=0.8, linestyle="--")
        iteration.text(
            when - zero, iteration.get_ylim()[1] * (0.05 + 0.09 * (index % 4)), " " + text, fontsize=8, color="tab:red"
        )
    figure.suptitle("GPT-3 175B, 8 stages x 2 pipelines, simulated A100s: power and time of a run under Perseus")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)
    plt.close(figure)


def _mean_power(samples: list[Sample], pipeline: int, window_seconds: float) -> tuple[list[float], list[float]]:
    """Mean of the power readings over a window (single readings jump with each instruction)."""
    energies = [
        (sample.time_seconds, [each.power_watts for rank, each in sample.ranks.items() if rank[0] == pipeline])
        for sample in samples
    ]
    known = [(when, sum(watts)) for when, watts in energies if watts]
    times, means = [], []
    begin = 0
    for index, (when, _) in enumerate(known):
        while known[begin][0] < when - window_seconds:
            begin += 1
        values = [watts for _, watts in known[begin : index + 1]]
        times.append(when)
        means.append(sum(values) / len(values))
    return times, means
