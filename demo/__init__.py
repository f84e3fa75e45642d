"""The demonstration: one PerseusJob from `kubectl apply` to energy saved, on a real Kubernetes with simulated GPUs.

It is a customer of the product: it uses kubectl, helm, the metrics endpoints and the simulated GPUs' fault switch, and
imports no program. The cluster tests run the same scenario and hold its report to the figures that we promise.
"""
