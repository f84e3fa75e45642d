"""Profiling against a simulated device whose truth is known, with the real agent, trainer library and NVML binding."""
