"""The torch example as it is documented, and its training script under a real agent that has a real plan."""

from __future__ import annotations

import json
import re
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from agent_process import AgentProcess, Kubelet, uid
from perseus_api import names
from perseus_api.job import PerseusJobSpec
from perseus_api.plan import Plan
from perseus_planner import Pipeline, frontier
from perseus_planner.given import load_orders
from perseus_simulator.main import read_profile
from perseus_simulator.node import SimulatedNode
from perseus_simulator.testing import NodeFactory, simulator_environment

EXAMPLE = Path(__file__).parents[2] / "examples" / "torch-pipelining"
STAGES, MICROBATCHES, ITERATIONS = 4, 4, 4
TIMEOUT_SECONDS = 400.0  # on a machine that does much else


@pytest.mark.frameworks
@pytest.mark.usefixtures("simulator_library")
def test_the_documented_command_trains_and_writes_the_order_that_ran(tmp_path: Path) -> None:
    order = tmp_path / "made" / "order.json"
    command = [sys.executable, str(EXAMPLE / "run.py"), "--iterations", "3", "--time-scale", "50"]
    done = subprocess.run(
        [*command, "--order", str(order)], cwd=tmp_path, capture_output=True, text=True, timeout=TIMEOUT_SECONDS
    )
    assert done.returncode == 0, done.stderr
    losses = [float(each) for each in re.findall(r"^iteration \d: loss ([\d.]+)", done.stdout, flags=re.MULTILINE)]
    assert len(losses) == 3
    assert losses[-1] < losses[0]
    assert load_orders(order.read_text()) == Pipeline(STAGES, 8).orders()
    assert len(re.findall(r"^stage \d: \d+ J", done.stdout, flags=re.MULTILINE)) == STAGES


def plan() -> Plan:
    """The plan of least energy for the example's shape, from the profile that its devices have."""
    found = frontier(read_profile(), Pipeline(STAGES, MICROBATCHES), plans=3)
    slowest = found.plans[-1]
    document = {
        "job": {"namespace": "research", "name": "gpt", "uid": "job-1"},
        "generation": 1,
        "firstIteration": 1,
        "order": found.order,
        "variants": [
            {
                "name": "objective",
                "iterationSeconds": slowest.iteration_seconds,
                "iterationJoules": slowest.iteration_joules,
                "clocks": slowest.clocks,
            }
        ],
        "pipelines": [0],
        "baseline": {
            "iterationSeconds": found.fastest.iteration_seconds,
            "stageJoules": found.fastest_stage_joules,
            "blockingPowerWatts": found.blocking_power_watts,
        },
    }
    return Plan.model_validate(json.loads(json.dumps(document)))


class Job:
    """The ranks of the example's script, each in a pod of its own by what the kernel would say."""

    def __init__(self, node: SimulatedNode, agent: AgentProcess) -> None:
        with socket.create_server(("127.0.0.1", 0)) as free:
            port = free.getsockname()[1]
        self.ranks = []
        for rank, gpu in enumerate(node.gpus):
            environment = {
                **simulator_environment(node),
                # DeepSpeed sets it where it is imported, and torch would take the simulated NVML for a GPU.
                "PYTORCH_NVML_BASED_CUDA_CHECK": "0",
                names.ENV_SOCKET: str(agent.path),
                names.ENV_NAMESPACE: "research",
                names.ENV_JOB: "gpt",
                names.ENV_RANK: str(rank),
                names.ENV_STAGES: str(STAGES),
                names.ENV_PIPELINES: "1",
                names.ENV_MICROBATCHES: str(MICROBATCHES),
                names.ENV_GPU_UUID: gpu.uuid,
                names.ENV_COORDINATOR: "127.0.0.1",
                "MASTER_PORT": str(port),
            }
            process = subprocess.Popen(
                [sys.executable, str(EXAMPLE / "train.py"), "--iterations", str(ITERATIONS)],
                env=environment,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
            )
            agent.is_in_pod(process.pid, uid(rank))
            self.ranks.append(process)

    def finish(self) -> None:
        for rank in self.ranks:
            said, _ = rank.communicate(timeout=TIMEOUT_SECONDS)
            assert rank.returncode == 0, said

    def end(self) -> None:
        for rank in self.ranks:
            rank.kill()
            rank.communicate()


@pytest.fixture
def node(simulated_node: NodeFactory) -> SimulatedNode:
    return simulated_node(STAGES, profile=read_profile(), time_scale=10.0)


@pytest.fixture
def agent(node: SimulatedNode, tmp_path: Path) -> Iterator[AgentProcess]:
    kubelet = Kubelet(tmp_path)
    kubelet.devices = [(f"gpt-{rank}", names.GPU_RESOURCE, gpu.uuid) for rank, gpu in enumerate(node.gpus)]
    process = AgentProcess(tmp_path, simulator_environment(node))
    process.start()
    yield process
    process.kill()
    kubelet.stop()


@pytest.mark.frameworks
def test_real_torch_follows_the_plan_and_every_gpu_is_given_back(node: SimulatedNode, agent: AgentProcess) -> None:
    for rank in range(STAGES):
        known = {"uid": uid(rank), "namespace": "research", "name": f"gpt-{rank}", "phase": "Running", "job": "gpt"}
        agent.ask(do="pod", pod={**known, "job_uid": "job-1", "rank": rank, "stages": STAGES, "tensor_parallel": 1})
    agent.plan(plan())
    job = Job(node, agent)
    try:
        job.finish()
    finally:
        job.end()
    metrics = agent.counters()["metrics"]
    values = {
        name: [float(line.rsplit(" ", 1)[1]) for line in metrics.splitlines() if line.startswith(f"{name}{{")]
        for name in ("perseus_mismatches_total", "perseus_plan_generation_active", "perseus_iterations_total")
    }
    assert values["perseus_mismatches_total"] == [0.0] * STAGES
    assert values["perseus_plan_generation_active"] == [1.0] * STAGES
    assert min(values["perseus_iterations_total"]) >= 1
    for gpu in node.gpus:
        assert gpu.calls["set_locked_clocks"] >= 2, "clocks were set"
        assert gpu.locked_range() is None


def test_the_manifest_is_a_job_that_the_script_can_train() -> None:
    manifest = yaml.safe_load((EXAMPLE / "perseusjob.yaml").read_text())
    spec = PerseusJobSpec.model_validate(manifest["spec"])
    assert (spec.parallelism.stages, spec.schedule.value) == (STAGES, "1F1B")
    kustomization = yaml.safe_load((EXAMPLE / "kustomization.yaml").read_text())
    for resource in kustomization["resources"]:
        assert (EXAMPLE / resource).exists()
    assert spec.profiling.profile_ref is not None
    assert spec.profiling.profile_ref.name in kustomization["resources"][0]
    dockerfile = (EXAMPLE / "Dockerfile").read_text()
    for source in re.findall(r"^COPY (\S+) ", dockerfile, flags=re.MULTILINE):
        assert list(EXAMPLE.parents[1].glob(source)), source
