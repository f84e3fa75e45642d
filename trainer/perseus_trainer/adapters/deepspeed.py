"""DeepSpeed's PipelineEngine, in one line: ``attach(engine)``.

The engine runs its schedule's commands through a map from command to method; this engine gets a map of its own, in
which the methods of ForwardPass and BackwardPass are wrapped. Commands name buffers, not microbatches, but each stage
runs both kinds in the order of the microbatches, so these are counted. The last stage's loss is computed in its
ForwardPass.

`train_batch` is an iteration, the gradients' reduction and the optimiser's step included, unless the script has begun
one itself; what `eval_batch` runs is no training and is not told.
"""

from __future__ import annotations

import functools
from typing import Any

from perseus_api.instructions import Instruction

from perseus_trainer.adapters import AdapterProblem
from perseus_trainer.adapters.cuda import BoundaryAt, place
from perseus_trainer.adapters.wrapping import Function, Shadows
from perseus_trainer.hooks import run
from perseus_trainer.session import Session, default_session

_MARK = "_perseus_attached"
_CODES = {"ForwardPass": ord(Instruction.FORWARD.code), "BackwardPass": ord(Instruction.BACKWARD.code)}


class Attached:
    """An engine whose instructions are told.

    Attributes:
        session: that tells them.
    """

    def __init__(self, engine: Any, session: Session) -> None:
        """Use `attach`."""
        self.session = session
        session.v_shape = False  # One chunk on each rank.
        self._engine = engine
        self._training = False
        self._shadows = Shadows()
        commands = {
            command: self._instruction(method, _CODES[command.__name__]) if command.__name__ in _CODES else method
            for command, method in engine._INSTRUCTION_MAP.items()
        }
        if not set(_CODES) <= {command.__name__ for command in commands}:
            raise AdapterProblem(
                f"{type(engine).__name__} runs no ForwardPass and BackwardPass: this version of DeepSpeed is not known "
                "to perseus_trainer; use the hooks themselves"
            )
        self._shadows.replace(engine, "_INSTRUCTION_MAP", commands)
        self._shadows.put(engine, "train_batch", self._train_batch)
        self._shadows.replace(engine, _MARK, self)

    def detach(self) -> None:
        """Give the engine its own methods back."""
        self._shadows.take_away()

    def _instruction(self, original: Function, code: int) -> Function:
        @functools.wraps(original)
        def execute(engine: Any, **named: Any) -> Any:
            if not self._training:
                return original(engine, **named)
            return run(self.session, (code, self.session.count(code, 0), 0), original, engine, **named)

        return execute

    def _train_batch(self, original: Function) -> Function:
        @functools.wraps(original)
        def train_batch(*arguments: Any, **named: Any) -> Any:
            self._training = True
            try:
                if self.session.in_iteration:
                    return original(*arguments, **named)
                with self.session.iteration():
                    return original(*arguments, **named)
            finally:
                self._training = False

        return train_batch


def attach(engine: Any, session: Session | None = None, *, boundary: BoundaryAt | str = BoundaryAt.AUTO) -> Attached:
    """Tell the agent of everything that a pipeline engine runs, from its next batch on.

    Args:
        engine: what ``deepspeed.initialize`` returned for a PipelineModule; attached to once, however often this is
            called.
        session: by default this process's own, connected by the environment.
        boundary: where boundaries are on an accelerator.

    Returns:
        What was attached: to detach it, or to ask its session for the order that ran.

    Raises:
        AdapterProblem: this is no pipeline engine, or of a version of DeepSpeed that is not known.
    """
    attached = getattr(engine, _MARK, None)
    if isinstance(attached, Attached):
        return attached
    if not isinstance(getattr(engine, "_INSTRUCTION_MAP", None), dict):
        raise AdapterProblem(f"{type(engine).__name__} is no PipelineEngine: give DeepSpeed a PipelineModule")
    used = session or default_session()
    place(used, boundary, str(getattr(engine.device, "type", engine.device)).partition(":")[0])
    return Attached(engine, used)
