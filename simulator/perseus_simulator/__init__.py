"""Simulated GPUs: a libnvidia-ml.so.1 over a power model, a device plugin for it, and a simulated training job."""
