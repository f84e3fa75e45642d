"""NVIDIA's container runtime as far as NVML goes: runc, after the driver's library was added to the container.

The real one reads the same two variables of the container, and takes the library from the same place where NVIDIA's GPU
operator runs the driver in a container. It adds device nodes too, which simulated GPUs have not. A container that does
not ask for GPUs is left as it is.
"""

import sys
from pathlib import Path

DRIVER_ROOT = Path("/run/nvidia/driver")
LIBRARY = Path("/usr/lib/x86_64-linux-gnu/libnvidia-ml.so.1")

_PROGRAM = """#!{python} -IS
import json, os, sys

if "create" in sys.argv and "--bundle" in sys.argv:
    path = os.path.join(sys.argv[sys.argv.index("--bundle") + 1], "config.json")
    with open(path) as file:
        container = json.load(file)
    variables = dict(each.split("=", 1) for each in container["process"].get("env", []))
    asked = variables.get("NVIDIA_VISIBLE_DEVICES", "") not in ("", "none", "void")
    capabilities = variables.get("NVIDIA_DRIVER_CAPABILITIES", "utility").split(",")
    if asked and {{"all", "utility"}} & set(capabilities):
        source = os.path.realpath("{root}{library}")
        options = ["ro", "nosuid", "nodev", "rbind", "rprivate"]
        mount = {{"destination": "{library}", "type": "bind", "source": source, "options": options}}
        container["mounts"].append(mount)
        with open(path, "w") as file:
            json.dump(container, file)
os.execvp("runc", ["runc", *sys.argv[1:]])
"""


def write(path: Path) -> Path:
    """Write the program and return where it is."""
    # The cluster outlives the environment that starts it; what that was made from stays.
    python = Path(sys.executable).resolve()
    path.write_text(_PROGRAM.format(python=python, root=DRIVER_ROOT, library=LIBRARY))
    path.chmod(0o755)
    return path
