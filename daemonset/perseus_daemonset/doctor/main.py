"""Runs the doctor's looks one after the other and prints what they find."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

from perseus_daemonset.doctor.findings import Finding, Level, well, wrong
from perseus_daemonset.doctor.gpus import look_at_gpus
from perseus_daemonset.doctor.node import look_at_journal, look_at_kubelet, look_at_processes, look_at_socket


def look(node: str, operator_namespace: str, socket: Path, journal: Path, pod_resources: Path) -> Iterator[Finding]:
    """Look at everything that the agent needs, in the order in which it needs it."""
    yield from look_at_gpus()
    yield from look_at_journal(journal)
    yield look_at_socket(socket)
    yield from look_at_processes()
    yield look_at_kubelet(pod_resources)
    yield from look_at_api(node, operator_namespace)


def look_at_api(node: str, operator_namespace: str) -> Iterator[Finding]:
    """Look whether the API server answers what the agent asks, with the agent's own rights."""
    if not node or not operator_namespace:
        yield wrong(
            "API", "PERSEUS_NODE_NAME and PERSEUS_OPERATOR_NAMESPACE are not set: run this in the agent's own container"
        )
        return
    # The client of the API takes longer to load than everything else takes to look at.
    from perseus_daemonset.cluster import ClusterAccess

    access = ClusterAccess(node, operator_namespace)
    problem = access.connect()
    if problem:
        yield wrong("API", problem)
        return
    for what, problem, told in access.probe():
        yield wrong(f"API, {what}", problem) if problem else well(f"API, {what}", told)


def tell(findings: Iterable[Finding]) -> int:
    """Print the findings as they come; return the exit status: 1 if anything is wrong."""
    bad = 0
    for finding in findings:
        bad += finding.level is Level.WRONG
        print(finding, flush=True)
    print(f"{bad} things are wrong." if bad else "Nothing is wrong. Nothing was changed.")
    return 1 if bad else 0
