"""The agent without the API server: everything real but the two watches, which this program's stdin stands for.

One JSON command a line (``pod``, ``gone``, ``plan``, ``withdraw``, ``bound``, ``measurements``, ``stop``), each
answered with a line of JSON: the agent's own counters, or its page of measurements. Run as ``agent_program.py FOLDER
CHANGES_PER_SECOND``. As ``perseus-agent run`` does, it gives back what a dead agent left before it loads what takes
long to load. As ``agent_program.py --nursery DESCRIPTOR`` it loads first, and is an agent in each of its forks.
"""

from __future__ import annotations

import base64
import json
import os
import signal
import socket
import sys
from pathlib import Path
from typing import Any

from perseus_api.ranks import MANY_PIPELINES, RankShape
from perseus_daemonset.journal import Journal, sole_holder
from perseus_daemonset.nvml import Nvml
from perseus_daemonset.pods import Pod
from perseus_daemonset.release import release_journalled


def slices(folder: Path) -> list[dict[str, Any]]:
    """The node's ResourceSlices, which a test writes into a file."""
    path = folder / "slices.json"
    found: list[dict[str, Any]] = json.loads(path.read_text()) if path.exists() else []
    return found


def pod_of(told: dict[str, Any]) -> Pod:
    """The pod that a test tells of: its index, stages and tensor parallel degree beside what a pod says of itself."""
    index, stages, degree = told.pop("rank"), told.pop("stages"), told.pop("tensor_parallel")
    shape = None if stages is None else RankShape(stages, MANY_PIPELINES, degree or 1)
    return Pod(**told, index=index, shape=shape)


def main() -> None:
    """Be an agent, or a nursery of agents."""
    if sys.argv[1] == "--nursery":
        bear(socket.socket(fileno=int(sys.argv[2])))
    else:
        serve(Path(sys.argv[1]), float(sys.argv[2]))


def bear(requests: socket.socket) -> None:
    """Fork an agent for each request, until nobody asks any more."""
    from perseus_daemonset.node_agent import NodeAgent  # noqa: F401 - that it is loaded is all

    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # the kernel buries the dead
    while True:
        packet, pipes, _, _ = socket.recv_fds(requests, 65_536, 2)
        if not packet:
            return
        child = os.fork()
        if child == 0:
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            requests.close()
            for number, pipe in enumerate(pipes):
                os.dup2(pipe, number)
                os.close(pipe)
            request = json.loads(packet)
            os.environ.update(request["environment"])
            serve(Path(request["folder"]), request["rate"])
            sys.stdout.flush()
            os._exit(0)
        for pipe in pipes:
            os.close(pipe)
        requests.send(str(child).encode())


def serve(folder: Path, rate: float) -> None:
    """Serve until stdin says stop."""
    with sole_holder(folder / "journal"):
        release_journalled(Journal(folder / "journal"), Nvml())

    from perseus_daemonset.bounds import Rate
    from perseus_daemonset.identity import identify
    from perseus_daemonset.metrics import METRICS
    from perseus_daemonset.node_agent import SWITCH_INTERVAL_SECONDS, NodeAgent
    from perseus_daemonset.pod_resources import PodResources
    from prometheus_client import generate_latest

    sys.setswitchinterval(SWITCH_INTERVAL_SECONDS)
    with sole_holder(folder / "journal"):
        agent = NodeAgent(Nvml(), folder / "journal", rate)
        # The kernel's credentials are real; only the control groups of the test's processes are written by it.
        agent.serve(
            folder / "agent.sock",
            PodResources(folder).claims,
            lambda: slices(folder),
            lambda peer: identify(peer, folder / "proc"),
        )
        print("{}", flush=True)
        for line in sys.stdin:
            command = json.loads(line)
            match command["do"]:
                case "pod":
                    agent.pods.put(pod_of(command["pod"]))
                case "gone":
                    agent.pods.remove(command["uid"])
                case "plan":
                    agent.plans.put(command["name"], ("research", "gpt"), base64.b64decode(command["data"]))
                case "withdraw":
                    agent.plans.remove(command["name"])
                case "bound":
                    for lease in agent.registry.leases():
                        lease.rate = Rate(command["messages_per_second"])
                case "measurements":
                    page = agent.measurements("research", "gpt", bool(command.get("orders")))
                    print(json.dumps({"page": page.decode()}), flush=True)
                    continue
                case "stop":
                    break
            answer = {
                "leases": len(agent.registry.leases()),
                "refusals": agent.registry.refusals.counts,
                "rejected": [[*key, count] for key, count in agent.plans.rejected.items()],
                "metrics": generate_latest(METRICS).decode(),
                "report": json.loads(agent.report()),
                "healthy": agent.healthy(),
            }
            print(json.dumps(answer), flush=True)
        agent.end()


if __name__ == "__main__":
    main()
