"""The agent without the API server: everything real but the two watches, which this program's stdin stands for.

One JSON command a line (``pod``, ``gone``, ``plan``, ``withdraw``, ``measurements``, ``stop``), each answered with a
line of JSON: the agent's own counters, or its page of measurements. Run as ``agent_program.py FOLDER RATE``.
"""

from __future__ import annotations

import base64
import json
import sys
from pathlib import Path

from perseus_daemonset.identity import identify
from perseus_daemonset.journal import Journal, sole_holder
from perseus_daemonset.measuring.reporter import Reporter
from perseus_daemonset.measuring.sampler import Sampler
from perseus_daemonset.metrics import METRICS, AgentCollector
from perseus_daemonset.nvml import Nvml
from perseus_daemonset.ownership import PodResources
from perseus_daemonset.plans import PlanStore
from perseus_daemonset.pods import Pod, PodTable
from perseus_daemonset.registry import Registry
from perseus_daemonset.release import release_journalled
from perseus_daemonset.server import Server
from prometheus_client import generate_latest


def main() -> None:
    """Serve until stdin says stop."""
    folder = Path(sys.argv[1])
    journal = Journal(folder / "journal")
    with sole_holder(folder / "journal"):
        nvml = Nvml()
        release_journalled(journal, nvml)
        plans, pods = PlanStore(), PodTable()
        registry = Registry(nvml, journal, plans, float(sys.argv[2]))
        pods.on_gone = registry.pod_gone
        METRICS.register(AgentCollector(registry, plans))
        reporter, sampler = Reporter(registry, nvml), Sampler(registry.leases)
        sampler.start()
        server = Server(
            folder / "agent.sock",
            registry,
            pods,
            PodResources(folder).claims,
            # The kernel's credentials are real; only the control groups of the test's processes are written by it.
            lambda connection: identify(connection, folder / "proc"),
        )
        server.start()
        print("{}", flush=True)
        for line in sys.stdin:
            command = json.loads(line)
            match command["do"]:
                case "pod":
                    pods.put(Pod(**command["pod"]))
                case "gone":
                    pods.remove(command["uid"])
                case "plan":
                    plans.put(command["name"], ("research", "gpt"), base64.b64decode(command["data"]))
                case "withdraw":
                    plans.remove(command["name"])
                case "measurements":
                    print(json.dumps({"page": reporter.page("research", "gpt").decode()}), flush=True)
                    continue
                case "stop":
                    break
            answer = {
                "leases": len(registry.leases()),
                "refusals": registry.refusals,
                "rejected": [[*key, count] for key, count in plans.rejected.items()],
                "metrics": generate_latest(METRICS).decode(),
            }
            print(json.dumps(answer), flush=True)
        server.close()
        sampler.stop()
        registry.end_all()
        release_journalled(journal, nvml)


if __name__ == "__main__":
    main()
