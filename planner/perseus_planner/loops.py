"""Compiled loops: ahead of time where that was done, by numba on first use everywhere else.

numba compiles in half a minute, keeps what it compiled on disk, and takes a second to load it again, most of that its
own start. Images therefore carry the loops as an extension module that `ahead` makes from the same sources with the
same compiler: it needs no numba to run, no folder to write to, and loads in a millisecond. Whoever changes a loop and
runs it gets the change: an extension of other sources is left alone.

Where numba is needed, its cache is too. It takes only folders that it can write to, and fails outright where it finds
none: on a read-only file system, or for a user without a home. There it gets a folder of the process's own, made with
this user's rights only, into which a cache that was baked (`NUMBA_CACHE_DIR`) is copied first.
"""

from __future__ import annotations

import atexit
import hashlib
import os
import shutil
import tempfile
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any, TypeVar

Function = TypeVar("Function", bound=Callable[..., Any])
EXTENSION = "_ahead"
# Modules whose loops are compiled; all their text decides whether an extension is of these sources.
MODULES = ("descent", "realise", "ruin", "sweep", "switching")
FORCE_NUMBA = "PERSEUS_PLANNER_NUMBA"  # set while an extension is made
_HERE = Path(__file__).parent

doors: dict[str, tuple[str, Any]] = {}
"""What Python calls of the loops, when numba compiles them: signature and numba's function by name."""


def stamp() -> int:
    """Return a number that changes with the sources of the loops."""
    digest = hashlib.sha256()
    for name in MODULES:
        digest.update((_HERE / f"{name}.py").read_bytes())
    return int.from_bytes(digest.digest()[:7], "big")


def _extension() -> ModuleType | None:
    if os.environ.get(FORCE_NUMBA):
        return None
    try:
        found = import_module(f"perseus_planner.{EXTENSION}")
    except ImportError:  # None was made, or for another Python.
        return None
    return found if found.stamp() == stamp() else None


_made = _extension()


def loop(signature: str) -> Callable[[Function], Function]:
    """Compile a function that Python calls.

    Args:
        signature: its types, for compiling ahead of time; arrays must be contiguous.
    """

    def compiled(function: Function) -> Function:
        if _made is not None:
            ready: Function = getattr(_made, function.__name__)
            return ready
        ready = _numba().njit(cache=True, nogil=True)(function)
        doors[function.__name__] = (signature, ready)
        return ready

    return compiled


def inner(function: Function) -> Function:
    """Compile a function that only loops call."""
    if _made is not None:
        return function
    ready: Function = _numba().njit(cache=True)(function)
    return ready


def inlined(function: Function) -> Function:
    """Compile a function that only loops call, as a part of them: passing arrays costs more than a short loop."""
    if _made is not None:
        return function
    ready: Function = _numba().njit(cache=True, inline="always")(function)
    return ready


def _numba() -> Any:
    _prepare()
    return import_module("numba")


def _usable(folder: Path) -> bool:
    return folder.is_dir() and os.access(folder, os.W_OK)


def _prepare() -> None:
    """Give numba a folder for its cache, if it has none that it can use; it reads its settings once."""
    baked = os.environ.get("NUMBA_CACHE_DIR", "")
    if baked:
        if _usable(Path(baked)) or not Path(baked).is_dir():
            return
    elif _usable(_HERE) or _usable(_HERE / "__pycache__") or _usable(Path.home()):
        return
    own = Path(tempfile.mkdtemp(prefix="perseus-loops-"))
    atexit.register(shutil.rmtree, own, ignore_errors=True)
    if baked:
        shutil.copytree(baked, own, dirs_exist_ok=True, copy_function=shutil.copy2)
    os.environ["NUMBA_CACHE_DIR"] = str(own)
