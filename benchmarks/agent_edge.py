"""The agent's edge for benchmarks: the whole agent as it runs in its pod, before a small API server and a kubelet.

The API server of this file speaks just enough HTTP for the agent's real client (list and watch); the kubelet answers
over real gRPC. Only the control groups of this machine's processes are written by us, since no container runtime put
them into pods.
"""

from __future__ import annotations

import base64
import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import sysconfig
import threading
import urllib.request
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from perseus_api import names
from perseus_api.plan import Plan
from perseus_simulator.node import SimulatedNode
from perseus_simulator.testing import simulator_environment

from tests.agent.agent_process import Kubelet, eventually, uid

NAMESPACE, JOB, OPERATOR_NAMESPACE, PORT = "research", "gpt", "perseus-system", 19410
_TICKS = os.sysconf("SC_CLK_TCK")


def run_agent_of(folder: Path, changes_per_second: float) -> None:
    """Be the agent: `perseus-agent run` with the control groups of a folder."""
    import logging
    from functools import partial

    from perseus_daemonset import agent

    logging.basicConfig(level=logging.INFO)
    stopped = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stopped.set())
    agent.identify = partial(agent.identify, proc=folder / "proc")
    agent.run_agent(
        agent.AgentSettings(
            node="node",
            operator_namespace=OPERATOR_NAMESPACE,
            socket=folder / "agent.sock",
            journal=folder / "journal",
            pod_resources=folder,
            port=PORT,
            changes_per_second=changes_per_second,
        ),
        stopped,
    )


class Api:
    """Lists what it was given, and lets every watch wait for news that never come."""

    def __init__(self, plan: Plan) -> None:
        """Serve one pod that owns all GPUs, and one plan."""
        pod = {
            "metadata": {
                "uid": uid(0),
                "namespace": NAMESPACE,
                "name": "gpt-0",
                "labels": {names.LABEL_JOB: JOB, names.LABEL_JOB_UID: plan.job.uid},
            },
            "spec": {"containers": []},
            "status": {"phase": "Running"},
        }
        document = {
            "metadata": {
                "name": names.plan_config_map_name(NAMESPACE, JOB),
                "labels": {
                    names.LABEL_DOCUMENT: names.DOCUMENT_PLAN,
                    names.LABEL_JOB_NAMESPACE: NAMESPACE,
                    names.LABEL_JOB: JOB,
                },
            },
            "binaryData": {names.PLAN_KEY: base64.b64encode(plan.encode()).decode()},
        }
        lists: dict[str, list[dict[str, Any]]] = {"pods": [pod], "configmaps": [document]}
        ended = self._ended = threading.Event()

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                path, _, query = self.path.partition("?")
                self.send_response(200)
                self.send_header("Content-Type", "application/json")
                self.end_headers()
                if "watch=" in query:
                    ended.wait()
                else:
                    items = lists.get(path.rsplit("/", 1)[-1], [])
                    self.wfile.write(json.dumps({"metadata": {"resourceVersion": "1"}, "items": items}).encode())

            def log_message(self, *_: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def kubeconfig(self, folder: Path) -> Path:
        """Write how to reach it."""
        path = folder / "kubeconfig"
        cluster = {"name": "c", "cluster": {"server": f"http://127.0.0.1:{self._server.server_address[1]}"}}
        context = {"name": "c", "context": {"cluster": "c", "user": "u"}}
        document = {
            "clusters": [cluster],
            "contexts": [context],
            "users": [{"name": "u", "user": {}}],
            "current-context": "c",
        }
        path.write_text(json.dumps({"apiVersion": "v1", "kind": "Config", **document}))
        return path

    def close(self) -> None:
        """End every watch."""
        self._ended.set()
        self._server.shutdown()


class Agent:
    """The agent's process, serving this process as the pod that owns the given GPUs."""

    def __init__(self, folder: Path, node: SimulatedNode, gpus: list[str], plan: Plan, rate: float) -> None:
        """Start it with a bound on changes a second, and wait until it serves."""
        self.socket = folder / "agent.sock"
        self._api = Api(plan)
        self._kubelet = Kubelet(folder)
        self._kubelet.devices = [("gpt-0", "nvidia.com/gpu", gpu) for gpu in gpus]
        groups = folder / "proc" / str(os.getpid())
        groups.mkdir(parents=True)
        (groups / "cgroup").write_text(f"0::/kubepods.slice/kubepods-pod{uid(0).replace('-', '_')}.slice/x.scope\n")
        code = (
            "import sys; from pathlib import Path; from benchmarks.agent_edge import run_agent_of\n"
            "run_agent_of(Path(sys.argv[1]), float(sys.argv[2]))"
        )
        self._log = (folder / "agent.log").open("w")
        self._process = subprocess.Popen(
            [shipped_python(), "-c", code, str(folder), str(rate)],
            env={
                **simulator_environment(node),
                "PYTHONPATH": os.pathsep.join(_added_to_path()),
                "KUBECONFIG": str(self._api.kubeconfig(folder)),
            },
            stderr=self._log,
        )  # fmt: skip
        eventually(self.socket.exists, "the agent serves", 60)

    @property
    def pid(self) -> int:
        """Its process id."""
        return self._process.pid

    def scrape(self) -> str:
        """Read its metrics as Prometheus does."""
        with urllib.request.urlopen(f"http://127.0.0.1:{PORT}/metrics", timeout=10) as answer:
            return str(answer.read().decode())

    def stop(self) -> None:
        """End it, and its edge."""
        self._process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(10)
        self._process.kill()
        self._kubelet.stop()
        self._api.close()
        self._log.close()


def shipped_python() -> str:
    """Return the interpreter that the images carry (Debian's, `testbed.images`), if it is of our version; else ours.

    A Python that was built without profile-guided optimisation, as version managers build it, is half again as slow.
    """
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    theirs = Path(f"/usr/bin/python{version}")
    return str(theirs) if theirs.exists() else sys.executable


def _added_to_path() -> list[str]:
    """Where our packages and their dependencies are: all of the path but the interpreter's own standard library."""
    library = Path(sysconfig.get_path("stdlib")).parent
    return [each for each in sys.path if each and not Path(each).is_relative_to(library)]


READER = """
import socket, sys, threading
sys.setswitchinterval(0.0001)
def read(connection):
    while connection.recv(512):
        pass
threads = [threading.Thread(target=read, args=(socket.socket(fileno=int(each)),)) for each in sys.argv[1:]]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
"""


class Reader:
    """A process that reads from connections, a thread for each as in the agent, and does nothing: what that costs."""

    def __init__(self, count: int) -> None:
        """Start it."""
        pairs = [socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET) for _ in range(count)]
        theirs = [other.fileno() for _, other in pairs]
        command = [shipped_python(), "-c", READER, *(str(each) for each in theirs)]
        self._process = subprocess.Popen(command, pass_fds=theirs)
        self.connections = [ours for ours, _ in pairs]
        for _, other in pairs:
            other.close()

    @property
    def pid(self) -> int:
        """Its process id."""
        return self._process.pid

    def stop(self) -> None:
        """End it."""
        for connection in self.connections:
            connection.close()
        self._process.wait(10)


def cpu_seconds(pid: int) -> float:
    """Return the processor time of a process so far."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / _TICKS


def resident_megabytes(pid: int) -> float:
    """Return the memory of a process that is in use now."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) / 1024
    raise ProcessLookupError(pid)
