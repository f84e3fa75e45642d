"""Shadowing methods of one object, so that the class and its other objects stay as they are, and giving them back."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from perseus_trainer.adapters import AdapterProblem

Function = Callable[..., Any]
_MISSING = object()


class Shadows:
    """The attributes that an adapter has put in front of others'."""

    def __init__(self) -> None:
        self._put: list[tuple[Any, str, Any]] = []

    def put(self, target: Any, name: str, make: Callable[[Function], Function]) -> None:
        """Put `make(original)` in the place of a function of an object or a module.

        Raises:
            AdapterProblem: there is no such function.
        """
        original = getattr(target, name, None)
        if not callable(original):
            raise AdapterProblem(
                f"{getattr(target, '__name__', type(target).__name__)} has no {name}: this version of the framework "
                "is not known to perseus_trainer; use the hooks themselves"
            )
        self.replace(target, name, make(original))

    def replace(self, target: Any, name: str, value: Any) -> None:
        """Set an attribute, and remember what the object itself had in its place."""
        self._put.append((target, name, vars(target).get(name, _MISSING)))
        setattr(target, name, value)

    def take_away(self) -> None:
        """Give back what was there."""
        while self._put:
            target, name, before = self._put.pop()
            if before is _MISSING:
                delattr(target, name)
            else:
                setattr(target, name, before)


def argument(arguments: tuple[Any, ...], named: dict[str, Any], position: int, name: str, default: Any) -> Any:
    """Return an argument that a caller may have given by position or by name."""
    return arguments[position] if position < len(arguments) else named.get(name, default)
