"""``perseus-agent``: the DaemonSet's two containers, and a person's ways to find what is wrong and to free clocks.

What takes long to load (the clients of the API and of the kubelet, the models of the plans) is loaded by the command
that needs it, after the clocks that a dead agent left were given back: on a busy node loading takes seconds, and the
watchdog never needs it.
"""

from __future__ import annotations

import argparse
import logging
import os
import signal
import sys
import threading
from pathlib import Path
from typing import TYPE_CHECKING

from perseus_api import names

from perseus_daemonset.hardware import HardwareError
from perseus_daemonset.journal import Journal, holder_if_free, sole_holder
from perseus_daemonset.nvml import Nvml
from perseus_daemonset.release import release_journalled
from perseus_daemonset.watchdog import watch

if TYPE_CHECKING:
    from perseus_daemonset.agent import AgentSettings

ENV_JOURNAL = "PERSEUS_JOURNAL_FOLDER"
ENV_POD_RESOURCES = "PERSEUS_POD_RESOURCES_FOLDER"
ENV_NODE = "PERSEUS_NODE_NAME"
ENV_OPERATOR_NAMESPACE = "PERSEUS_OPERATOR_NAMESPACE"
ENV_PORT = "PERSEUS_METRICS_PORT"
ENV_RATE = "PERSEUS_CLOCK_CHANGES_PER_SECOND"
DEFAULT_PORT = 9410
DEFAULT_CHANGES_PER_SECOND = 20.0


def main() -> int:
    """Run a command; return the exit status."""
    parser = argparse.ArgumentParser(prog="perseus-agent", description="Sets GPU clocks as the plan says.")
    parser.add_argument("command", choices=["run", "watchdog", "release", "doctor"])
    command = parser.parse_args().command
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    journal = Path(os.environ.get(ENV_JOURNAL, names.JOURNAL_FOLDER))
    stopped = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stopped.set())
    try:
        if command == "run":
            _run(journal, stopped)
        elif command == "watchdog":
            watch(journal)
        elif command == "doctor":
            return _doctor(journal)
        else:
            return _release(journal)
    except (HardwareError, ValueError, OSError) as error:
        print(f"perseus-agent {command}: {error}", file=sys.stderr)
        return 1
    return 0


def _run(folder: Path, stopped: threading.Event) -> None:
    with sole_holder(folder):
        release_journalled(Journal(folder), Nvml())
    from perseus_daemonset.agent import run_agent

    run_agent(_settings(folder), stopped)


def _doctor(folder: Path) -> int:
    from perseus_daemonset.doctor.main import look, tell

    logging.disable()
    return tell(look(*_places(folder)))


def _places(journal: Path) -> tuple[str, str, Path, Path, Path]:
    return (
        os.environ.get(ENV_NODE, ""),
        os.environ.get(ENV_OPERATOR_NAMESPACE, ""),
        Path(os.environ.get(names.ENV_SOCKET, names.SOCKET_PATH)),
        journal,
        Path(os.environ.get(ENV_POD_RESOURCES, names.POD_RESOURCES_FOLDER)),
    )


def _release(folder: Path) -> int:
    journal = Journal(folder)
    with holder_if_free(folder) as free:
        if not free:
            raise ValueError("an agent runs and gives the clocks back itself: stop it first, or delete its pod")
        return 1 if release_journalled(journal, Nvml()) else 0


def _settings(journal: Path) -> AgentSettings:
    from perseus_daemonset.agent import AgentSettings

    return AgentSettings(
        node=_variable(ENV_NODE),
        operator_namespace=_variable(ENV_OPERATOR_NAMESPACE),
        socket=Path(os.environ.get(names.ENV_SOCKET, names.SOCKET_PATH)),
        journal=journal,
        pod_resources=Path(os.environ.get(ENV_POD_RESOURCES, names.POD_RESOURCES_FOLDER)),
        port=int(os.environ.get(ENV_PORT, DEFAULT_PORT)),
        changes_per_second=float(os.environ.get(ENV_RATE, DEFAULT_CHANGES_PER_SECOND)),
    )


def _variable(name: str) -> str:
    value = os.environ.get(name, "")
    if not value:
        raise ValueError(f"{name} is not set: the chart sets it")
    return value


if __name__ == "__main__":
    sys.exit(main())
