"""What surrounds an iteration or an instruction: context managers that are decorators too.

The hot path is two system calls an instruction and no allocation beyond the packet. What does nothing is one shared
object; as a decorator it returns the function itself, so that a script without an agent calls what it wrote.

What an exception leaves has not ended: the end of the instruction is not told, and the iteration is told as broken, so
that neither counts as whole.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import TYPE_CHECKING, ParamSpec, Protocol, TypeVar

from perseus_api.messages import BoundaryKind

if TYPE_CHECKING:
    from perseus_trainer.session import Session

P = ParamSpec("P")
R = TypeVar("R")
ITERATION_BEGIN, ITERATION_END = int(BoundaryKind.ITERATION_BEGIN), int(BoundaryKind.ITERATION_END)
ITERATION_BROKEN = int(BoundaryKind.ITERATION_BROKEN)
INSTRUCTION_BEGIN, INSTRUCTION_END = int(BoundaryKind.INSTRUCTION_BEGIN), int(BoundaryKind.INSTRUCTION_END)
_NONE = (0, 0, 0)


class Hook(Protocol):
    """A context manager that is a decorator too."""

    def __enter__(self) -> None:
        """Begin."""

    def __exit__(self, raised: object, *_: object) -> None:
        """End, or break off; an exception of the training passes."""

    def __call__(self, function: Callable[P, R]) -> Callable[P, R]:
        """Return the function with the hook around each of its calls."""


class Nothing:
    """Without an agent, and with nothing to record."""

    __slots__ = ()

    def __enter__(self) -> None:
        return None

    def __exit__(self, *_: object) -> None:
        return None

    def __call__(self, function: Callable[P, R]) -> Callable[P, R]:
        """Return the function itself."""
        return function


class IterationHook:
    """Tells the begin and the end of an iteration, or that it was broken off."""

    __slots__ = ("_index", "_session")

    def __init__(self, session: Session, index: int | None) -> None:
        self._session = session
        self._index = index

    def __enter__(self) -> None:
        self._session.begin_iteration(self._index)

    def __exit__(self, raised: object, *_: object) -> None:
        if raised is None:
            self._session.end_iteration()
        else:
            self._session.break_iteration()

    def __call__(self, function: Callable[P, R]) -> Callable[P, R]:
        """Make each call of the function an iteration."""

        @functools.wraps(function)
        def iterating(*arguments: P.args, **named: P.kwargs) -> R:
            with self._session.iteration():
                return function(*arguments, **named)

        return iterating


class InstructionHook:
    """Tells the begin and the end of an instruction."""

    __slots__ = ("_arguments", "_session")

    def __init__(self, session: Session, arguments: tuple[int, int, int]) -> None:
        self._session = session
        self._arguments = arguments

    def __enter__(self) -> None:
        self._session.mark(INSTRUCTION_BEGIN, self._arguments)

    def __exit__(self, raised: object, *_: object) -> None:
        if raised is None:
            self._session.mark(INSTRUCTION_END, self._arguments)
        else:
            self._session.break_instruction()

    def __call__(self, function: Callable[P, R]) -> Callable[P, R]:
        """Make each call of the function this instruction."""
        return _instructing(self._session, self._arguments, function, False)


class CountingHook:
    """An instruction whose microbatches are counted: its first one in an iteration is microbatch 0, and so on."""

    __slots__ = ("_arguments", "_session", "_told")

    def __init__(self, session: Session, code: int, chunk: int) -> None:
        self._session = session
        self._arguments = (code, 0, chunk)
        self._told = _NONE

    def __enter__(self) -> None:
        code, _, chunk = self._arguments
        session = self._session
        counter = session.counters.get((code, chunk))
        self._told = told = (code, session.count(code, chunk) if counter is None else next(counter), chunk)
        session.mark(INSTRUCTION_BEGIN, told)

    def __exit__(self, raised: object, *_: object) -> None:
        if raised is None:
            self._session.mark(INSTRUCTION_END, self._told)
        else:
            self._session.break_instruction()

    def __call__(self, function: Callable[P, R]) -> Callable[P, R]:
        """Make each call of the function this instruction, of the next microbatch."""
        return _instructing(self._session, self._arguments, function, True)


def run(
    session: Session, told: tuple[int, int, int], function: Callable[P, R], *arguments: P.args, **named: P.kwargs
) -> R:
    """Call a function as an instruction; adapters do."""
    session.mark(INSTRUCTION_BEGIN, told)
    try:
        result = function(*arguments, **named)
    except BaseException:
        session.break_instruction()
        raise
    session.mark(INSTRUCTION_END, told)
    return result


def _instructing(
    session: Session, arguments: tuple[int, int, int], function: Callable[P, R], counts: bool
) -> Callable[P, R]:
    code, microbatch, chunk = arguments

    @functools.wraps(function)
    def instructing(*given: P.args, **named: P.kwargs) -> R:
        told = (code, session.count(code, chunk), chunk) if counts else (code, microbatch, chunk)
        return run(session, told, function, *given, **named)

    return instructing


NOTHING = Nothing()
