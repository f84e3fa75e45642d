"""numba, with a cache of compiled loops that it can use wherever the planner runs.

Compiling takes half a minute, loading what was compiled a fraction of a second; so images bake the cache in. numba,
however, takes only cache folders that it can write to, and fails outright where it finds none: in an image whose file
system is read-only, or for a user without a home. There the baked cache (`NUMBA_CACHE_DIR`) is copied to a folder of
the process's own, a few megabytes, before numba looks. Nothing is written into it by anybody else: the folder is made
with this user's rights only.

Compiled ahead of time as an extension, the loops would start faster by numba's import, about half a second, but each
platform and Python version would need a wheel of its own; researchers read and change these loops.
"""

from __future__ import annotations

import atexit
import os
import shutil
import tempfile
from pathlib import Path


def _usable(folder: Path) -> bool:
    return folder.is_dir() and os.access(folder, os.W_OK)


def _prepare() -> None:
    baked = os.environ.get("NUMBA_CACHE_DIR", "")
    here = Path(__file__).parent
    if baked:
        if _usable(Path(baked)) or not Path(baked).is_dir():
            return
    elif _usable(here) or _usable(here / "__pycache__") or _usable(Path.home()):
        return
    own = Path(tempfile.mkdtemp(prefix="perseus-loops-"))
    atexit.register(shutil.rmtree, own, ignore_errors=True)
    if baked:
        shutil.copytree(baked, own, dirs_exist_ok=True, copy_function=shutil.copy2)
    os.environ["NUMBA_CACHE_DIR"] = str(own)


_prepare()

from numba import njit  # noqa: E402 - it reads its settings once

__all__ = ["njit"]
