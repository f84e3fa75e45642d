"""A real Kubernetes on one Linux machine, for tests and demonstrations.

Why: the operator, the agent and the chart are only believable if a real API server validates the objects, a real
kubelet hands out devices, and real containers start. This package builds the programs from their Go modules, starts
them in a network namespace of their own, and takes every trace away again. Run it as ``python -m testbed``.

It uses only the standard library, so that it runs before anything of the project is installed. It must not import any
``perseus_*`` package: it knows container images and Kubernetes, not what the project does with them.
"""
