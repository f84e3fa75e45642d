"""A process that uses the real pynvml over the simulated library, and answers one call a line.

A process of its own, because one process loads one libnvidia-ml and keeps it, and because tests kill it.
"""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

from perseus_simulator.node import SimulatedNode
from perseus_simulator.testing import simulator_environment

# Device functions get their handle by UUID first, as the agent's do.
PROGRAM = """
import json, sys
import pynvml

def plain(value):
    if isinstance(value, (list, tuple)):
        return [plain(each) for each in value]
    if isinstance(value, bytes):
        return value.decode()
    if hasattr(value, "_fields_"):
        return {name: getattr(value, name) for name, *_ in value._fields_}
    return vars(value) if type(value).__name__ == "nvmlFriendlyObject" else value

for line in sys.stdin:
    name, uuid, arguments = json.loads(line)
    try:
        handle = [] if uuid is None else [pynvml.nvmlDeviceGetHandleByUUID(uuid)]
        value = getattr(pynvml, name)(*handle, *arguments)
        if name.startswith("nvmlDeviceGetHandle"):
            value = pynvml.nvmlDeviceGetUUID(value)
        print(json.dumps({"value": plain(value)}), flush=True)
    except pynvml.NVMLError as error:
        print(json.dumps({"error": type(error).__name__, "text": str(error)}), flush=True)
"""


class NvmlRefused(Exception):
    """pynvml raised; `error` is the name of its class, the text is the library's."""

    def __init__(self, error: str, text: str) -> None:
        super().__init__(f"{error}: {text}")
        self.error = error
        self.text = text


class NvmlProcess:
    """The process; `call` runs a function of pynvml in it."""

    def __init__(self, node: SimulatedNode, *, init: bool = True, **environment: str) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", PROGRAM],
            env={**simulator_environment(node), **environment},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        if init:
            self.call("nvmlInit")

    def call(self, name: str, uuid: str | None = None, *arguments: Any) -> Any:
        """Return what pynvml's function answers; raise NvmlRefused if it raises."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(json.dumps([name, uuid, arguments]) + "\n")
        self.process.stdin.flush()
        answer = json.loads(self.process.stdout.readline())
        if "error" in answer:
            raise NvmlRefused(answer["error"], answer["text"])
        return answer["value"]

    def kill(self) -> None:
        """SIGKILL it, and wait until it is gone."""
        self.process.kill()
        self.process.communicate()
