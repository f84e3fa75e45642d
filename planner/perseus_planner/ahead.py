"""``python -m perseus_planner.ahead``: compile the planner's loops into an extension module beside their sources.

Made once, for an image or a checkout; needs numba, setuptools, C and C++ compilers and Python's headers; what it makes
needs none of them. numba's own compiler for this (numba.pycc) writes a module that any Python of the same version can
import. Its code is for any processor of the architecture, not for the one that it is made on.
"""

from __future__ import annotations

import os
import sys
import warnings
from importlib import import_module
from pathlib import Path
from typing import Any

from perseus_planner import loops


def main() -> int:
    """Make the extension."""
    if loops.FORCE_NUMBA not in os.environ:
        # An extension made before may be in use already: begin anew without it.
        environment = {**os.environ, loops.FORCE_NUMBA: "1"}
        os.execve(sys.executable, [sys.executable, "-m", "perseus_planner.ahead"], environment)  # noqa: S606
    for name in loops.MODULES:
        import_module(f"perseus_planner.{name}")
    make(Path(__file__).parent)
    return 0


def make(folder: Path) -> Path:
    """Compile everything that Python calls of the loops into a folder; return the extension's path."""
    with warnings.catch_warnings():
        # Its authors announce a successor that does not exist yet; without either, loops are compiled on first use.
        warnings.simplefilter("ignore")
        from numba.pycc import CC, compiler

    class Releasing(compiler.Flags):  # type: ignore[misc]
        """Loops let other threads run: progress is told while they work."""

        def __init__(self, values: Any = None) -> None:
            super().__init__(values)
            if values is None:
                self.release_gil = True

    compiler.Flags = Releasing
    number = loops.stamp()

    def stamp() -> int:
        return number

    made = CC(loops.EXTENSION)
    made.output_dir = str(folder)
    made.target_cpu = ""
    made.export("stamp", "i8()")(stamp)
    for name, (signature, function) in loops.doors.items():
        made.export(name, signature)(function.py_func)
    made.compile()
    return Path(made.output_dir) / str(made.output_file)


if __name__ == "__main__":
    sys.exit(main())
