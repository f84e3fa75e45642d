"""The straggler loop measured: false alarms, detection, scale. ``python -m benchmarks.stragglers``."""
