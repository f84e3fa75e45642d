"""The agent's parts put together, all but the API's watches, which feed `pods` and `plans` (as the tests do)."""

from __future__ import annotations

import json
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

from perseus_daemonset.baselines import Baselines
from perseus_daemonset.debts import pay_first
from perseus_daemonset.hardware import Gpus
from perseus_daemonset.health import what_a_restart_would_cure
from perseus_daemonset.identity import Peer
from perseus_daemonset.journal import Journal
from perseus_daemonset.measuring.reporter import Reporter
from perseus_daemonset.measuring.sampler import Sampler
from perseus_daemonset.metrics import METRICS, AgentCollector
from perseus_daemonset.ownership import Ownership
from perseus_daemonset.plans import PlanStore
from perseus_daemonset.pod_resources import Claim
from perseus_daemonset.pods import PodTable
from perseus_daemonset.registry import Registry
from perseus_daemonset.release import release_journalled
from perseus_daemonset.server import Server
from perseus_daemonset.slices import Slices
from perseus_daemonset.state import report_of

# A boundary must not wait 5 ms (Python's default) for a scrape's computing thread to hand over.
SWITCH_INTERVAL_SECONDS = 0.0001
END_SECONDS = 2.0
LAST_SECONDS = 1.0


class NodeAgent:
    """Serves the ranks of one node.

    Attributes:
        pods: of this node.
        plans: of all jobs.
        registry: of leases.
    """

    def __init__(self, gpus: Gpus, folder: Path, changes_per_second: float) -> None:
        """Give back what the journal names, before anything else."""
        self._gpus = gpus
        self._journal = journal = Journal(folder)
        self._debts = pay_first(journal, gpus)
        self._baselines = Baselines(folder / "baselines")
        self.plans, self.pods = PlanStore(), PodTable()
        self.registry = Registry(gpus, journal, self.plans, self._debts, self._baselines, changes_per_second)
        self.pods.on_gone = self.registry.pod_gone
        METRICS.register(AgentCollector(self.registry, self.plans))
        self._reporter = Reporter(self.registry, gpus)
        self._sampler = Sampler(self.registry.leases)
        self._server: Server | None = None

    def serve(
        self,
        path: Path,
        claims: Callable[[], list[Claim]],
        resource_slices: Callable[[], list[dict[str, Any]]],
        identify_peer: Callable[[socket.socket], Peer],
    ) -> None:
        """Accept trainers on a Unix socket.

        Args:
            path: of the socket.
            claims: asks the kubelet who holds which device.
            resource_slices: reads this node's ResourceSlices.
            identify_peer: says who is at the other end of a connection.
        """
        ownership = Ownership(claims, self._gpus, Slices(resource_slices), self.pods)
        self._server = Server(path, self.registry, self.pods, ownership, identify_peer)
        self._server.start()
        self._sampler.start()

    def pods_listed(self) -> None:
        """All pods of the node are known: what is kept of others is of no use any more."""
        self._baselines.sweep(self.pods.uids())

    def healthy(self) -> str:
        """Return what a restart would cure, empty if nothing."""
        return what_a_restart_would_cure(self._gpus, self.registry.caretakers())

    def report(self) -> bytes:
        """Return what a person wants to know of the ranks, as JSON."""
        ranks = [report_of(lease) for _, lease in self.registry.ranks()]
        return json.dumps({"ranks": ranks, "refusals": self.registry.refusals.counts}, indent=1).encode() + b"\n"

    def measurements(self, namespace: str, job: str, orders: bool = False) -> bytes:
        """Return what was measured of a job's ranks, as JSON, and the orders that they run if these are asked for."""
        return self._reporter.page(namespace, job, orders)

    def end(self) -> None:
        """Serve nobody any more and give every clock back; what hangs is left to the journal."""
        if self._server is not None:
            self._server.close()
        self._sampler.stop()
        self._debts.stop()
        self.registry.end_all(END_SECONDS)
        release_journalled(self._journal, self._gpus, LAST_SECONDS)
