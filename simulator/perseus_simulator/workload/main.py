"""One rank of the simulated training job: waits for its neighbours as a real one, computes on the simulated GPU.

It is the example of the trainer library's use: the hooks stand around each instruction, and nothing else of Perseus
is known here. When a peer is lost the rank ends, and the job's restart policy brings all of them back, from iteration
0.
"""

from __future__ import annotations

import logging
import os
import signal
import sys
import time
from collections.abc import Callable

import perseus_trainer
from perseus_api.instructions import Instruction

from perseus_simulator.library import ENV_STATE, SimulatorError
from perseus_simulator.node import KernelClient, SimulatedNode
from perseus_simulator.workload.links import Links, PeerLost
from perseus_simulator.workload.placement import Placement

MEET_TIMEOUT_SECONDS = 300.0
EXIT_PEER_LOST = 75  # EX_TEMPFAIL: try again
EXIT_TERMINATED = 143
# Activations go on to the next part of the model, gradients back; what is not here waits for nobody.
_DIRECTIONS = {Instruction.FORWARD: 1, Instruction.BACKWARD: -1, Instruction.BACKWARD_INPUT: -1}


def train(iterations: int) -> int:
    """Train `iterations` iterations, or until SIGTERM if 0; return the exit status.

    Raises:
        SimulatorError: the environment makes no sense, or the device failed.
    """
    # The first process of a container ignores SIGTERM unless it has a handler.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(EXIT_TERMINATED))
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stdout)
    placement = Placement.from_environment()
    state = os.environ.get(ENV_STATE)
    if not state:
        raise SimulatorError(f"{ENV_STATE} is not set: the device plugin sets it in containers with a GPU")
    session = perseus_trainer.connect(v_shape=placement.v_shape)
    with SimulatedNode.open(state) as node, KernelClient(node, placement.gpu_uuid) as gpu:
        try:
            links = Links.meet(placement, MEET_TIMEOUT_SECONDS)
            print(f"pipeline {placement.pipeline} stage {placement.stage}: all {len(placement.addresses)} ranks met")
            index = 0
            while iterations == 0 or index < iterations:
                begin = time.monotonic()
                _iterate(placement, links, session, gpu, index)
                print(f"iteration {index}: {time.monotonic() - begin:.3f} s", flush=True)
                index += 1
        except PeerLost as error:
            print(f"pipeline {placement.pipeline} stage {placement.stage} ends: {error}", file=sys.stderr)
            return EXIT_PEER_LOST
        finally:
            session.close()
    return 0


def _iterate(
    placement: Placement, links: Links, session: perseus_trainer.Session, gpu: KernelClient, index: int
) -> None:
    line = placement.line
    last = line.virtual_stages - 1
    with session.iteration(index):
        for instruction, microbatch, chunk in placement.order():
            stage = line.virtual_stage(placement.stage, chunk)
            step = _DIRECTIONS.get(instruction, 0)
            if step and 0 <= stage - step <= last:
                _message(placement, links.expect, stage - step, step, stage, microbatch)
            with session.instruction(instruction, microbatch=microbatch, chunk=chunk):
                gpu.run(stage, instruction)
            if step and 0 <= stage + step <= last:
                _message(placement, links.send, stage + step, step, stage + step, microbatch)
        links.synchronise(index)


def _message(
    placement: Placement, tell: Callable[[int, int], None], other: int, step: int, target: int, microbatch: int
) -> None:
    """Send or expect the message to a virtual stage, if another rank holds the one at its other end."""
    peer = placement.holder(other)
    if peer != placement.rank:
        tell(peer, (step < 0) << 24 | target << 12 | microbatch)
