"""The agent as a process that can be killed, trainers that talk to it, and a kubelet that answers over real gRPC."""

from __future__ import annotations

import base64
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc
from perseus_api.instructions import Instruction
from perseus_api.messages import MAXIMUM_MESSAGE_BYTES, Boundary, BoundaryKind, Hello, Verdict, Welcome
from perseus_api.names import plan_config_map_name
from perseus_api.plan import Plan
from perseus_daemonset.kubelet import podresources_pb2 as messages
from perseus_daemonset.kubelet import podresources_pb2_grpc as services

from tests.agent.agent_nursery import PROGRAM, AgentNursery, ForkedProcess

PLAN_NAME = plan_config_map_name("research", "gpt")
RELEASE_SECONDS = 5.0  # the promise of invariant 1
DEADLINE_SECONDS = 60.0


def eventually(condition: Callable[[], bool], what: str, seconds: float = DEADLINE_SECONDS) -> None:
    """Wait until a condition holds; fail, naming it, if it does not in time."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"not within {seconds} s: {what}"
        time.sleep(0.01)


def waits_for_lock(pid: int) -> bool:
    """Whether a process is blocked on a file lock."""
    return any(f" {pid} " in line and "->" in line for line in Path("/proc/locks").read_text().splitlines())


def uid(number: int) -> str:
    """The UID of the pod of a rank."""
    return f"00000000-0000-4000-8000-{number:012d}"


BASELINE: dict[str, Any] = {"iterationSeconds": 1.0, "stageJoules": [5.0, 4.0], "blockingPowerWatts": 80.0}


def variant_of(*clocks: int) -> dict[str, Any]:
    """A plan's variant that runs both stages at these clocks."""
    return {"name": "objective", "iterationSeconds": 1.0, "iterationJoules": 9.0, "clocks": [[*clocks]] * 2}


def make_plan(generation: int = 1, first: int = 1, clock: int = 810, **changed: Any) -> Plan:
    """A plan of two stages: forward at a clock, backward at the next faster one."""
    document = {
        "job": {"namespace": "research", "name": "gpt", "uid": "job-1"},
        "generation": generation,
        "firstIteration": first,
        "order": ["FB", "FB"],
        "variants": [variant_of(clock, 1005)],
        "pipelines": [0],
        "baseline": BASELINE,
    }
    return Plan.model_validate({**document, **changed})


class Kubelet(services.PodResourcesListerServicer):
    """The PodResources API over a real socket; a test writes what it says."""

    def __init__(self, folder: Path) -> None:
        """Serve in a folder."""
        self.devices: list[tuple[str, str, str]] = []  # pod, resource, device
        self.dynamic: list[tuple[str, str, str, str, str | None]] = []  # pod, driver, pool, device, share
        self.asked, self.gate = threading.Event(), threading.Event()
        self.gate.set()
        self._server = grpc.server(ThreadPoolExecutor(2))
        services.add_PodResourcesListerServicer_to_server(self, self._server)
        self._server.add_insecure_port(f"unix:{folder / 'kubelet.sock'}")
        self._server.start()

    def List(self, _request: Any, _context: Any) -> Any:  # noqa: N802 - gRPC's name
        """Answer as the kubelet does, when the test lets it."""
        self.asked.set()
        self.gate.wait(DEADLINE_SECONDS)
        return messages.ListPodResourcesResponse(
            pod_resources=[
                messages.PodResources(
                    namespace="research",
                    name=pod,
                    containers=[
                        messages.ContainerResources(
                            name="trainer",
                            devices=[messages.ContainerDevices(resource_name=resource, device_ids=[device])],
                        )
                    ],
                )
                for pod, resource, device in self.devices
            ]
            + [
                messages.PodResources(
                    namespace="research",
                    name=pod,
                    containers=[
                        messages.ContainerResources(
                            name="trainer",
                            dynamic_resources=[
                                messages.DynamicResource(
                                    claim_name="gpu",
                                    claim_namespace="research",
                                    claim_resources=[
                                        messages.ClaimResource(
                                            driver_name=driver, pool_name=pool, device_name=device, share_id=share
                                        )
                                    ],
                                )
                            ],
                        )
                    ],
                )
                for pod, driver, pool, device, share in self.dynamic
            ]
        )

    def stop(self) -> None:
        """Go away as a restarting kubelet does."""
        self._server.stop(None).wait()


class AgentProcess:
    """The agent in a folder, and what the kernel would say of its peers' pods."""

    def __init__(
        self,
        folder: Path,
        environment: dict[str, str],
        changes_per_second: float = 1000.0,
        nursery: AgentNursery | None = None,
    ) -> None:
        """Prepare; see `start`. Without a nursery it is a program that loads everything itself."""
        self.folder = folder
        self._environment = environment
        self._rate = changes_per_second
        self._nursery = nursery
        self._process: subprocess.Popen[str] | ForkedProcess | None = None
        self.prefix: tuple[str, ...] = ()  # of its command: how it is scheduled
        self.is_in_pod(os.getpid(), uid(0))

    @property
    def path(self) -> Path:
        """The agent's socket."""
        return self.folder / "agent.sock"

    @property
    def journalled(self) -> list[str]:
        """File names of the journal's entries."""
        return sorted(path.name for path in (self.folder / "journal").glob("*.lock.json"))

    def start(self) -> None:
        """Start the process and wait until it serves."""
        if self._nursery is not None:
            self._process = self._nursery.start(self.folder, self._rate, self._environment)
        else:
            command = [*self.prefix, sys.executable, str(PROGRAM), str(self.folder), str(self._rate)]
            self._process = subprocess.Popen(
                command, env=self._environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
            )
        assert self._read() == {}

    def is_in_pod(self, pid: int, pod: str | None) -> None:
        """Let a process be in a pod by its control group (systemd's names, version 2), or in none."""
        folder = self.folder / "proc" / str(pid)
        folder.mkdir(parents=True, exist_ok=True)
        slice_name = f"kubepods-burstable-pod{pod.replace('-', '_')}.slice" if pod else "user.slice"
        (folder / "cgroup").write_text(f"0::/kubepods.slice/{slice_name}/x.scope\n" if pod else "0::/user.slice\n")

    def pod(self, number: int, *, job: str = "gpt", rank: int | None = None, phase: str = "Running") -> None:
        """Let the API know a pod of the job."""
        known = {
            "uid": uid(number), "namespace": "research", "name": f"gpt-{number}", "phase": phase, "job": job,
            "job_uid": "job-1", "rank": number if rank is None else rank, "stages": 2, "tensor_parallel": 1,
        }  # fmt: skip
        self.ask(do="pod", pod=known)

    def plan(self, plan: Plan | bytes, name: str = PLAN_NAME) -> dict[str, Any]:
        """Push a plan."""
        data = plan if isinstance(plan, bytes) else plan.encode()
        return self.ask(do="plan", name=name, data=base64.b64encode(data).decode())

    def ask(self, **command: Any) -> dict[str, Any]:
        """Give a command; return the agent's counters after it."""
        assert self._process is not None
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(command) + "\n")
        self._process.stdin.flush()
        return self._read()

    def counters(self) -> dict[str, Any]:
        """The agent's counters."""
        return self.ask(do="look")

    def signal(self, number: int) -> None:
        """Send a signal."""
        if self._process is not None:
            self._process.send_signal(number)

    def kill(self) -> None:
        """SIGKILL."""
        if self._process is not None:
            self._process.send_signal(signal.SIGKILL)
            self._process.communicate()
            self._process = None

    def stop(self) -> None:
        """Stop as SIGTERM does."""
        assert self._process is not None
        self._process.communicate('{"do": "stop"}\n', timeout=DEADLINE_SECONDS)
        self._process = None

    def _read(self) -> dict[str, Any]:
        assert self._process is not None
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        assert line, "the agent has died"
        answer: dict[str, Any] = json.loads(line)
        return answer


class Trainer:
    """A rank's side of the socket, packet by packet."""

    def __init__(self, path: Path) -> None:
        """Connect."""
        self.connection = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.connection.settimeout(DEADLINE_SECONDS)
        self.connection.connect(str(path))

    def hello(self, gpu: str, stage: int = 0, job: str = "gpt", pipeline: int = 0) -> Welcome:
        """Say who we are; return the answer."""
        self.connection.send(Hello("research", job, gpu, pipeline, stage, 0, os.getpid()).pack())
        return Welcome.unpack(self.connection.recv(MAXIMUM_MESSAGE_BYTES))

    def served(self, gpu: str, stage: int = 0) -> Trainer:
        """Say who we are, and be served."""
        welcome = self.hello(gpu, stage)
        assert welcome.verdict is Verdict.SERVED, welcome.reason
        return self

    def begin(self, iteration: int) -> None:
        """Begin an iteration."""
        self._send(BoundaryKind.ITERATION_BEGIN, iteration)

    def run(self, iteration: int, letters: str) -> None:
        """Begin and end instructions."""
        for letter in letters:
            self._send(BoundaryKind.INSTRUCTION_BEGIN, iteration, Instruction.from_code(letter))
            self._send(BoundaryKind.INSTRUCTION_END, iteration, Instruction.from_code(letter))

    @contextmanager
    def instruction(self, iteration: int, instruction: Instruction) -> Iterator[None]:
        """Tell of an instruction around what it does."""
        self._send(BoundaryKind.INSTRUCTION_BEGIN, iteration, instruction)
        yield
        self._send(BoundaryKind.INSTRUCTION_END, iteration, instruction)

    def end(self, iteration: int) -> None:
        """End an iteration."""
        self._send(BoundaryKind.ITERATION_END, iteration)

    def close(self) -> None:
        """Hang up."""
        self.connection.close()

    def _send(self, kind: BoundaryKind, iteration: int, instruction: Instruction | None = None) -> None:
        self.connection.send(Boundary(kind, iteration, time.monotonic_ns(), instruction).pack())
