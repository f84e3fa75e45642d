"""Megatron-Core's pipeline schedules, in one line: ``attach()``, before ``get_forward_backward_func`` is called.

Its schedules are functions of one module, `megatron.core.pipeline_parallel.schedules`, which call `forward_step` and
`backward_step` by their names there; these are wrapped. A forward is told its microbatch and its model chunk by the
schedule; a backward is not, so it is known by the forward whose output it begins at. A call of a schedule is an
iteration, unless the script has begun one itself; with ``forward_only`` it is no training and is not told.

Not seen: the combined forward and backward of ``overlap_moe_expert_parallel_comm``, which runs both at once.
"""

from __future__ import annotations

import functools
from typing import Any

from perseus_api.instructions import Instruction

from perseus_trainer.adapters import AdapterProblem
from perseus_trainer.adapters.cuda import BoundaryAt, place
from perseus_trainer.adapters.wrapping import Function, Shadows, argument
from perseus_trainer.hooks import run
from perseus_trainer.session import Session, default_session

_FORWARD, _BACKWARD = ord(Instruction.FORWARD.code), ord(Instruction.BACKWARD.code)
_CURRENT_MICROBATCH, _VIRTUAL_STAGE = 11, 12  # positions of forward_step's arguments
_SCHEDULES = (
    "forward_backward_no_pipelining",
    "forward_backward_pipelining_without_interleaving",
    "forward_backward_pipelining_with_interleaving",
)


class Attached:
    """Megatron-Core's schedules, whose instructions are told.

    Attributes:
        session: that tells them.
    """

    def __init__(self, schedules: Any, session: Session) -> None:
        """Use `attach`."""
        self.session = session
        session.v_shape = False
        self._training = False
        # Microbatch and chunk of the forwards whose backward is still to come, by their output.
        self._outputs: dict[int, tuple[int, int]] = {}
        self._shadows = Shadows()
        try:
            self._shadows.put(schedules, "forward_step", self._forward)
            self._shadows.put(schedules, "backward_step", self._backward)
            for name in _SCHEDULES:
                self._shadows.put(schedules, name, self._schedule)
        except AdapterProblem:
            self._shadows.take_away()
            raise

    def detach(self) -> None:
        """Give Megatron-Core its own functions back."""
        global _attached
        self._shadows.take_away()
        _attached = None

    def _forward(self, original: Function) -> Function:
        @functools.wraps(original)
        def forward_step(*arguments: Any, **named: Any) -> Any:
            if not self._training:
                return original(*arguments, **named)
            chunk = argument(arguments, named, _VIRTUAL_STAGE, "vp_stage", None) or 0
            microbatch = argument(arguments, named, _CURRENT_MICROBATCH, "current_microbatch", None)
            if microbatch is None:
                microbatch = self.session.count(_FORWARD, chunk)
            result = run(self.session, (_FORWARD, microbatch, chunk), original, *arguments, **named)
            self._outputs[_identity(result[0])] = microbatch, chunk
            return result

        return forward_step

    def _backward(self, original: Function) -> Function:
        @functools.wraps(original)
        def backward_step(*arguments: Any, **named: Any) -> Any:
            if not self._training:
                return original(*arguments, **named)
            output = argument(arguments, named, 1, "output_tensor", None)
            microbatch, chunk = self._outputs.pop(_identity(output), (None, 0))
            if microbatch is None:
                microbatch = self.session.count(_BACKWARD, chunk)
            return run(self.session, (_BACKWARD, microbatch, chunk), original, *arguments, **named)

        return backward_step

    def _schedule(self, original: Function) -> Function:
        @functools.wraps(original)
        def forward_backward(*arguments: Any, **named: Any) -> Any:
            if named.get("forward_only", False):
                return original(*arguments, **named)
            self._outputs.clear()
            self._training = True
            try:
                if self.session.in_iteration:
                    return original(*arguments, **named)
                with self.session.iteration():
                    return original(*arguments, **named)
            finally:
                self._training = False

        return forward_backward


_attached: Attached | None = None


def attach(session: Session | None = None, *, boundary: BoundaryAt | str = BoundaryAt.AUTO) -> Attached:
    """Tell the agent of everything that Megatron-Core's schedules run in this process, from the next step on.

    Args:
        session: by default this process's own, connected by the environment.
        boundary: where boundaries are on an accelerator.

    Returns:
        What was attached: to detach it, or to ask its session for the order that ran.

    Raises:
        AdapterProblem: a version of Megatron-Core that is not known.
    """
    global _attached
    if _attached is None:
        import torch
        from megatron.core.pipeline_parallel import schedules

        used = session or default_session()
        place(used, boundary, "cuda" if torch.cuda.is_available() else "cpu")
        _attached = Attached(schedules, used)
    return _attached


def _identity(output: Any) -> int:
    """What a stage's output is known by: Megatron-Core passes on the tensor itself, alone or as the first of a list."""
    return id(output[0] if isinstance(output, list) else output)
