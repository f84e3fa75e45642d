"""A training job on one machine without a cluster: simulated GPUs, the agent as a process, a process for each rank.

Everything is the product's own code; only the API server is away: plans go to the agent through the pipe that the
agent's tests use, and the sweep is decided here by the operator's own function.
"""

from __future__ import annotations

import base64
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from perseus_api import names
from perseus_api.measurements import NodeReport, RankReport
from perseus_api.orders import PipelineOrders
from perseus_api.plan import JobReference, Plan
from perseus_api.profile import Profile
from perseus_api.schedules import JobSchedule, Schedule
from perseus_operator.profiling.sweeping import (
    Finished,
    Push,
    SweepMemory,
    SweepSettings,
    Wait,
    decide,
    next_iteration,
    sweep_plan,
)
from perseus_planner import Pipeline
from perseus_planner.steps import letters
from perseus_simulator.node import SimulatedNode
from perseus_simulator.testing import simulator_environment
from perseus_simulator.workload.placement import ENV_ORDERS, ENV_PEER_ADDRESSES

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "tests" / "agent"))
from agent_process import PLAN_NAME, AgentProcess, Kubelet, uid

JOB = JobReference(namespace="research", name="gpt", uid="job-1")
FIRST_PORT = 29_500
# A real GPU needs no processor to compute, and a node's agent has one to itself: neither must wait for whatever else
# this machine does.
IN_TIME = ("chrt", "--fifo", "10")


@dataclass
class Rig:
    """A running job.

    Attributes:
        node: its simulated GPUs, one for each rank.
        pipeline: its shape.
        pipelines: data-parallel pipelines.
    """

    node: SimulatedNode
    pipeline: Pipeline
    pipelines: int
    agent: AgentProcess
    ranks: list[subprocess.Popen[bytes]] = field(default_factory=list)
    generation: int = 0

    def reports(self, orders: bool = False) -> tuple[RankReport, ...]:
        """Read the agent's page, with the orders that ranks run if these are wanted."""
        page = self.agent.ask(do="measurements", orders=orders)["page"]
        return NodeReport.decode(page.encode()).ranks

    def push(self, plan: Plan) -> None:
        """Give the agent a plan."""
        self.generation = plan.generation
        self.agent.ask(do="plan", name=PLAN_NAME, data=base64.b64encode(plan.encode()).decode())

    def sweep(
        self, settings: SweepSettings, measurement: str, first_iteration: int = 11,
        tell: Callable[[str], None] = lambda _: None,
    ) -> Finished:  # fmt: skip
        """Measure as the operator does.

        Raises:
            RuntimeError: nothing could be measured, or training ended; the text says why.
        """
        memory, running = SweepMemory(), None
        while True:
            if any(rank.poll() is not None for rank in self.ranks):
                raise RuntimeError("a rank ended")
            reports = self.reports()
            step = decide(self.pipeline, reports, measurement, running, settings, memory)
            if isinstance(step, Finished):
                return step
            if isinstance(step, Push):
                first = max(first_iteration, next_iteration(reports, time.time(), 0.3))
                running = sweep_plan(JOB, self.pipeline, step, self.pipelines, measurement, self.generation + 1, first)
                self.push(running)
                tell(f"iteration {first}: {step.message}; {step.iterations} iterations")
            elif not isinstance(step, Wait):
                raise RuntimeError(step.message)
            time.sleep(0.5)


@contextmanager
def running_job(
    folder: Path, profile: Profile, pipeline: Pipeline, pipelines: int = 1, **simulated: object
) -> Iterator[Rig]:
    """Run a job on simulated GPUs that cost what a profile says.

    Args:
        folder: for its files; its path must be short enough for a Unix socket.
        profile: the truth.
        pipeline: shape of one pipeline.
        pipelines: data-parallel pipelines.
        simulated: settings of `SimulatedNode.create`.
    """
    count = pipeline.stages * pipelines
    node = SimulatedNode.create(folder / "node", profile, count, **simulated)  # type: ignore[arg-type]
    kubelet = Kubelet(folder)
    kubelet.devices = [(f"gpt-{rank}", names.GPU_RESOURCE, node.gpus[rank].uuid) for rank in range(count)]
    environment = simulator_environment(node)
    agent = AgentProcess(folder, environment, changes_per_second=20.0)
    agent.prefix = IN_TIME
    agent.start()
    rig = Rig(node, pipeline, pipelines, agent)
    addresses = ",".join(f"127.0.0.1:{FIRST_PORT + os.getpid() % 1000 * 20 + rank}" for rank in range(count))
    try:
        for rank in range(count):
            pod = {
                "uid": uid(rank), "namespace": "research", "name": f"gpt-{rank}", "phase": "Running", "job": "gpt",
                "job_uid": JOB.uid, "rank": rank, "stages": pipeline.stages, "tensor_parallel": 1,
            }  # fmt: skip
            agent.ask(do="pod", pod=pod)
            variables = {
                names.ENV_SOCKET: agent.path, names.ENV_JOB: "gpt", names.ENV_NAMESPACE: "research",
                names.ENV_RANK: rank, names.ENV_STAGES: pipeline.stages, names.ENV_PIPELINES: pipelines,
                names.ENV_MICROBATCHES: pipeline.microbatches, names.ENV_SCHEDULE: pipeline.schedule.value,
                names.ENV_CHUNKS: pipeline.chunks, **_orders(pipeline),
                names.ENV_GPU_UUID: node.gpus[rank].uuid, ENV_PEER_ADDRESSES: addresses,
            }  # fmt: skip
            rig.ranks.append(_start(rank, folder, {**environment, **{k: str(v) for k, v in variables.items()}}, agent))
        yield rig
    finally:
        for process in rig.ranks:
            process.kill()
            process.wait()
        agent.kill()
        kubelet.stop()
        node.close()


def _orders(pipeline: Pipeline) -> dict[str, str]:
    """What a training is told that runs orders without a name."""
    if pipeline.schedule is not Schedule.CUSTOM:
        return {}
    orders = pipeline.orders()
    document = PipelineOrders(
        order=tuple(letters(order) for order in orders),
        microbatches=tuple(tuple(step.microbatch for step in order) for order in orders),
        chunks=tuple(tuple(step.chunk for step in order) for order in orders),
        v_shape=pipeline.v_shape,
    )
    return {names.ENV_SCHEDULE: JobSchedule.RECORDED.value, ENV_ORDERS: document.model_dump_json(by_alias=True)}


def _start(rank: int, folder: Path, environment: dict[str, str], agent: AgentProcess) -> subprocess.Popen[bytes]:
    """Start a rank that waits until its pod is known: the agent asks at its first message."""
    command = [*IN_TIME, "sh", "-c", f"read go && exec {sys.executable} -m perseus_simulator.main train"]
    with (folder / f"rank-{rank}.log").open("wb") as log:
        process = subprocess.Popen(command, env=environment, stdin=subprocess.PIPE, stdout=log, stderr=log)
    agent.is_in_pod(process.pid, uid(rank))
    assert process.stdin is not None
    process.stdin.write(b"go\n")
    process.stdin.close()
    return process
