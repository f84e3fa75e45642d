"""Runs a script in a DeepSpeed that compiles nothing: deepspeed_uncompiled.py SCRIPT ARGUMENTS.

On CPU it would compile an optimisation of reductions at its first start, for a minute and with a C++ compiler.
"""

from __future__ import annotations

import runpy
import sys

import deepspeed

if __name__ == "__main__":
    deepspeed.ops.__compatible_ops__ = {}
    sys.argv = sys.argv[1:]
    runpy.run_path(sys.argv[0], run_name="__main__")
