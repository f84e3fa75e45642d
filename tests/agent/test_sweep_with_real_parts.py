"""A sweep with everything real but the API server: agent, NVML binding, trainer library, one process for each rank.

The processes run with real-time priority (root may), since a simulated GPU takes the processor's time to be on time.
"""

from __future__ import annotations

from benchmarks.profiling.measure import count_wrong_labels


def test_every_label_is_right_at_every_window_size() -> None:
    assert count_wrong_labels(clocks=(1410, 1380, 1005), windows=(1, 3)) == 0
