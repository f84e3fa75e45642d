"""What Megatron-Core needs to run where there is no GPU: torch's idea of the device, and nothing of Megatron-Core.

``device="cuda"`` is the CPU, `torch.cuda.current_device` too, and `torch.cuda.synchronize` returns. Run as a program it
runs another one like this: on_cpu.py SCRIPT ARGUMENTS.
"""

from __future__ import annotations

import runpy
import sys
from typing import Any

import torch
from torch.overrides import TorchFunctionMode


class OnCpu(TorchFunctionMode):
    """Tensors that are asked for on CUDA are made on the CPU."""

    def __enter__(self) -> Any:
        torch.cuda.current_device = lambda: "cpu"  # type: ignore[assignment,return-value]
        torch.cuda.synchronize = lambda *_: None
        return super().__enter__()

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        named = dict(kwargs or {})
        if named.get("device") == "cuda":
            named["device"] = "cpu"
        return function(*args, **named)


if __name__ == "__main__":
    sys.argv = sys.argv[1:]
    torch.set_num_threads(1)
    with OnCpu():
        runpy.run_path(sys.argv[0], run_name="__main__")
