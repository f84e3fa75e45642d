"""torch.distributed.pipelining, in one line: ``attach(schedule)``.

Every schedule class of torch runs its stages by the same three methods, so these are what is wrapped, on the schedule's
own stage objects:

- `forward_one_chunk` is a forward; on the last stage it ends after the loss, which is computed by the schedule;
- `backward_one_chunk` is a backward, or a backward_input where the schedule splits them (``full_backward=False``);
- `backward_weight_one_chunk` is a backward_weight.

`step` is an iteration, unless the script has begun one itself (with `iteration()` around the optimiser's step too).
What `eval` runs is no training and is not told. Waiting for a neighbour is outside: schedules wait before they call a
stage.

A rank's model chunk is the place of its stage among the rank's own: chunk c of rank r holds stage c x ranks + r in
loops, and every other one backwards in V-schedules (ZBV, DualPipeV), which is how the planner counts them.
"""

from __future__ import annotations

import contextlib
import functools
import json
from typing import Any

from perseus_api.instructions import Instruction

from perseus_trainer.adapters import AdapterProblem
from perseus_trainer.adapters.cuda import BoundaryAt, place
from perseus_trainer.adapters.wrapping import Function, Shadows, argument
from perseus_trainer.hooks import INSTRUCTION_BEGIN, INSTRUCTION_END, run
from perseus_trainer.recording import Recorded, RecordedOrder
from perseus_trainer.session import Session, default_session

_FORWARD, _BACKWARD, _INPUT, _WEIGHT = (
    ord(each.code)
    for each in (
        Instruction.FORWARD,
        Instruction.BACKWARD,
        Instruction.BACKWARD_INPUT,
        Instruction.BACKWARD_WEIGHT,
    )
)
_MARK = "_perseus_attached"


class Attached:
    """A schedule whose instructions are told.

    Attributes:
        session: that tells them.
    """

    def __init__(self, schedule: Any, stages: list[Any], session: Session) -> None:
        """Use `attach`."""
        self.session = session
        self._schedule = schedule
        self._stages = sorted(stages, key=lambda stage: int(stage.stage_index))
        self._shadows = Shadows()
        # The forward of the last stage whose loss is still to come.
        self._open: tuple[int, int, int] | None = None
        try:
            for chunk, stage in enumerate(self._stages):
                for name, wrap in (
                    ("forward_one_chunk", self._forward),
                    ("backward_one_chunk", self._backward),
                    ("backward_weight_one_chunk", self._weight),
                ):
                    self._shadows.put(stage, name, functools.partial(wrap, stage, chunk))
            self._shadows.put(schedule, "_maybe_compute_loss", self._loss)
            self._shadows.put(schedule, "step", self._step)
        except AdapterProblem:
            self._shadows.take_away()
            raise
        setattr(schedule, _MARK, self)
        with contextlib.suppress(AdapterProblem):  # The agent is told nothing then.
            session.v_shape = self.v_shape

    def detach(self) -> None:
        """Give the schedule its own methods back."""
        self._shadows.take_away()
        delattr(self._schedule, _MARK)

    @property
    def v_shape(self) -> bool:
        """Whether every other chunk runs through the ranks backwards.

        Raises:
            AdapterProblem: the stages lie on the ranks in a way that the planner does not know.
        """
        ranks = int(self._stages[0].group_size)
        lies = {int(index): int(rank) for index, rank in self._stages[0].stage_index_to_group_rank.items()}
        if all(rank == index % ranks for index, rank in lies.items()):
            return False
        if all(rank == _place_in_v(index, ranks) for index, rank in lies.items()):
            return True
        raise AdapterProblem(f"stages lie on ranks neither in a loop nor in a V ({lies}): there is no plan for that")

    def recorded_orders(self) -> tuple[RecordedOrder, ...]:
        """Return the orders that all ranks of this pipeline ran in their last iteration, from rank 0 on.

        Every rank of the pipeline has to call it, as with any collective of torch. What is exchanged is JSON.
        """
        import torch
        import torch.distributed as dist

        stage = self._stages[0]
        mine = json.dumps([tuple(step) for step in self.session.recorded_order()]).encode()
        size = torch.tensor([len(mine)], dtype=torch.int64, device=stage.device)
        sizes = [torch.zeros_like(size) for _ in range(stage.group_size)]
        dist.all_gather(sizes, size, group=stage.group)
        longest = max(int(each) for each in sizes)
        padded = torch.zeros(longest, dtype=torch.uint8, device=stage.device)
        padded[: len(mine)] = torch.tensor(list(mine), dtype=torch.uint8)
        gathered = [torch.zeros_like(padded) for _ in sizes]
        dist.all_gather(gathered, padded, group=stage.group)
        texts = [bytes(each[: int(size)].tolist()) for each, size in zip(gathered, sizes, strict=True)]
        return tuple(
            tuple(Recorded(Instruction(name), microbatch, chunk) for name, microbatch, chunk in json.loads(text))
            for text in texts
        )

    def _forward(self, stage: Any, chunk: int, original: Function) -> Function:
        def forward_one_chunk(*arguments: Any, **named: Any) -> Any:
            if not stage.has_backward:
                return original(*arguments, **named)
            told = (_FORWARD, argument(arguments, named, 0, "fwd_chunk_id", 0), chunk)
            self._close()
            if not (stage.is_last and self._schedule._loss_fn is not None):
                return run(self.session, told, original, *arguments, **named)
            self.session.mark(INSTRUCTION_BEGIN, told)
            self._open = told
            try:
                return original(*arguments, **named)
            except BaseException:
                self._break()
                raise

        return forward_one_chunk

    def _loss(self, original: Function) -> Function:
        def compute_loss(*arguments: Any, **named: Any) -> Any:
            try:
                result = original(*arguments, **named)
            except BaseException:
                self._break()
                raise
            self._close()
            return result

        return compute_loss

    def _backward(self, stage: Any, chunk: int, original: Function) -> Function:
        def backward_one_chunk(*arguments: Any, **named: Any) -> Any:
            self._close()
            if not stage.has_backward:
                return original(*arguments, **named)
            code = _BACKWARD if argument(arguments, named, 2, "full_backward", True) else _INPUT
            told = (code, argument(arguments, named, 0, "bwd_chunk_id", 0), chunk)
            return run(self.session, told, original, *arguments, **named)

        return backward_one_chunk

    def _weight(self, stage: Any, chunk: int, original: Function) -> Function:
        def backward_weight_one_chunk(*arguments: Any, **named: Any) -> Any:
            self._close()
            if not stage.has_backward:
                return original(*arguments, **named)
            told = (_WEIGHT, argument(arguments, named, 0, "bwd_chunk_id", 0), chunk)
            return run(self.session, told, original, *arguments, **named)

        return backward_weight_one_chunk

    def _step(self, original: Function) -> Function:
        def step(*arguments: Any, **named: Any) -> Any:
            self._open = None  # An exception may have come between a forward and its loss.
            if self.session.in_iteration or not self._schedule._has_backward:
                return original(*arguments, **named)
            with self.session.iteration():
                result = original(*arguments, **named)
                self._close()
                return result

        return step

    def _close(self) -> None:
        told, self._open = self._open, None
        if told is not None:
            self.session.mark(INSTRUCTION_END, told)

    def _break(self) -> None:
        if self._open is not None:
            self._open = None
            self.session.break_instruction()


def attach(schedule: Any, session: Session | None = None, *, boundary: BoundaryAt | str = BoundaryAt.AUTO) -> Attached:
    """Tell the agent of everything that a schedule runs, from its next step on.

    Args:
        schedule: of torch.distributed.pipelining, of any class; attached to once, however often this is called.
        session: by default this process's own, connected by the environment.
        boundary: where boundaries are on an accelerator.

    Returns:
        What was attached: to detach it, or to ask for the order that ran.

    Raises:
        AdapterProblem: this is no schedule, or of a version of torch that is not known.
    """
    attached = getattr(schedule, _MARK, None)
    if isinstance(attached, Attached):
        return attached
    stages = getattr(schedule, "_stages", None) or [getattr(schedule, "_stage", None)]
    if None in stages or not hasattr(schedule, "_has_backward"):
        raise AdapterProblem(f"{type(schedule).__name__} is no schedule of torch.distributed.pipelining")
    used = session or default_session()
    place(used, boundary, stages[0].device.type)
    return Attached(schedule, list(stages), used)


def _place_in_v(index: int, ranks: int) -> int:
    chunk, within = divmod(index, ranks)
    return ranks - 1 - within if chunk % 2 else within
