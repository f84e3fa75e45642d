"""The agent's life: take the journal, give back what is left in it, watch, serve, give everything back at the end."""

from __future__ import annotations

import gc
import logging
import sys
import threading
from dataclasses import dataclass
from pathlib import Path

from perseus_daemonset.cluster import ClusterWatch
from perseus_daemonset.identity import identify
from perseus_daemonset.journal import sole_holder
from perseus_daemonset.metrics import METRICS
from perseus_daemonset.node_agent import SWITCH_INTERVAL_SECONDS, NodeAgent
from perseus_daemonset.nvml import Nvml
from perseus_daemonset.pod_resources import PodResources
from perseus_daemonset.web import serve_pages

_READY_WAIT_SECONDS = 0.2
_LOOK_SECONDS = 0.5
logger = logging.getLogger("perseus.agent")


@dataclass(frozen=True)
class AgentSettings:
    """Where the agent finds things.

    Attributes:
        node: name of this node.
        operator_namespace: where the plans are.
        socket: the agent's own socket.
        journal: folder of the journal, on the host.
        pod_resources: folder of the kubelet's PodResources socket.
        port: of the metrics page.
        changes_per_second: bound on clock changes of each GPU.
    """

    node: str
    operator_namespace: str
    socket: Path
    journal: Path
    pod_resources: Path
    port: int
    changes_per_second: float


def run_agent(settings: AgentSettings, stopped: threading.Event) -> None:
    """Run until told to stop.

    Raises:
        HardwareError: NVML does not answer; the pod restarts, which is what helps.
    """
    sys.setswitchinterval(SWITCH_INTERVAL_SECONDS)
    with sole_holder(settings.journal):
        agent = NodeAgent(Nvml(), settings.journal, settings.changes_per_second)
        cluster = ClusterWatch(settings.node, settings.operator_namespace, agent.pods, agent.plans)
        cluster.start()

        def ready() -> str:
            return agent.healthy() or ("" if cluster.ready else "pods and plans are not listed yet")

        pages = serve_pages(settings.port, METRICS, agent.healthy, ready, agent.report, agent.measurements)
        # A trainer that connects before the pods are known would be refused for nothing.
        while not cluster.ready and not stopped.is_set():
            stopped.wait(_READY_WAIT_SECONDS)
        if cluster.ready:
            agent.pods_listed()
        agent.serve(settings.socket, PodResources(settings.pod_resources).claims, cluster.resource_slices, identify)
        # What the start has made stays: no collection looks through it again while boundaries wait.
        gc.collect()
        gc.freeze()
        logger.info("serving %s on node %s", settings.socket, settings.node)
        try:
            wait_until_told(stopped)
        finally:
            agent.end()
            cluster.stop()
            pages.shutdown()
            logger.info("every clock was given back")


def wait_until_told(stopped: threading.Event) -> None:
    """Wait for a signal's handler to set the event.

    Python runs handlers in the main thread alone, and a signal that the kernel gives to another one does not wake it:
    waiting without a look now and then, it would hear of it never, and be killed with its clocks locked.
    """
    while not stopped.wait(_LOOK_SECONDS):
        pass
