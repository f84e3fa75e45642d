"""Four ranks on this machine, each with a simulated GPU: ``make example``, or run.py with options.

No cluster and no agent: the GPUs run at their highest clock. With PERSEUS_SOCKET in the environment the ranks connect
to the agent behind it.
"""

from __future__ import annotations

import argparse
import os
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from perseus_simulator.library import ENV_STATE, SimulatorError
from perseus_simulator.main import read_profile
from perseus_simulator.node import SimulatedNode

STAGES = 4
FOLDER = Path(__file__).parent


def main() -> int:
    """Train; return the exit status."""
    parser = argparse.ArgumentParser(description="A GPT pipeline on four simulated GPUs")
    parser.add_argument("--iterations", type=int, default=20)
    parser.add_argument("--microbatches", type=int, default=8)
    parser.add_argument("--schedule", choices=["1F1B", "GPipe"], default="1F1B")
    parser.add_argument("--time-scale", type=float, default=5.0, help="simulated seconds in a real second")
    parser.add_argument("--order", type=Path, default=Path("build/example/order.json"), help="the order that ran")
    parser.add_argument("--script", type=Path, default=FOLDER / "train.py", help="what each rank runs")
    arguments = parser.parse_args()
    arguments.order.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        try:
            node = SimulatedNode.create(Path(folder) / "node", read_profile(), STAGES, time_scale=arguments.time_scale)
        except SimulatorError as error:
            print(f"run.py: {error}", file=sys.stderr)
            return 1
        with node:
            status = train(node, arguments)
            for stage, gpu in enumerate(node.gpus):
                print(f"stage {stage}: {gpu.energy_joules:.0f} J in all, the time before training included")
    if status == 0:
        print(f"the order that ran: {arguments.order}")
    return status


def train(node: SimulatedNode, arguments: argparse.Namespace) -> int:
    """Run the ranks; when one fails, end the others."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    ranks = []
    for rank, gpu in enumerate(node.gpus):
        environment = {
            **os.environ,
            ENV_STATE: str(node.path),
            # DeepSpeed sets it, and torch would then take the simulated NVML for a GPU to compute on.
            "PYTORCH_NVML_BASED_CUDA_CHECK": "0",
            "PERSEUS_NAMESPACE": "default",
            "PERSEUS_JOB": "torch-pipelining",
            "PERSEUS_RANK": str(rank),
            "PERSEUS_STAGES": str(STAGES),
            "PERSEUS_PIPELINES": "1",
            "PERSEUS_MICROBATCHES": str(arguments.microbatches),
            "PERSEUS_SCHEDULE": arguments.schedule,
            "PERSEUS_GPU_UUID": gpu.uuid,
            "PERSEUS_COORDINATOR": "127.0.0.1",
            "MASTER_PORT": str(port),
        }
        command = [sys.executable, str(arguments.script), "--iterations", str(arguments.iterations)]
        ranks.append(subprocess.Popen([*command, "--order", str(arguments.order)], env=environment))  # noqa: S603
    try:
        while any(rank.poll() is None for rank in ranks):
            if any(rank.poll() for rank in ranks):
                return 1
            time.sleep(0.1)
        return max(abs(rank.returncode) for rank in ranks)
    finally:
        for rank in ranks:
            rank.kill()
            rank.wait()


if __name__ == "__main__":
    sys.exit(main())
