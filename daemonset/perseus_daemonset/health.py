"""Whether the agent is well: the liveness probe fails where only a new container helps, and nowhere else.

A lost GPU, a missing permission or a GPU without locked clocks are told in metrics and in the report: a restart would
cure none of them, and would take the clocks of the healthy GPUs away for nothing.
"""

from __future__ import annotations

from collections.abc import Iterable

from perseus_daemonset.caretaker import Caretaker
from perseus_daemonset.hardware import CURED_BY_RESTART, Gpus, HardwareError


def what_a_restart_would_cure(gpus: Gpus, caretakers: Iterable[Caretaker]) -> str:
    """Return what is wrong, empty if nothing is that a new container would cure."""
    try:
        # Of the driver, not of a device: one that hangs must not have the others restarted.
        gpus.driver_version()
    except HardwareError as error:
        return str(error) if error.code in CURED_BY_RESTART else ""
    failures = [each.failure or each.controller.problem for each in caretakers]
    if failures and all(failure in CURED_BY_RESTART for failure in failures):
        return f"no GPU answers any more ({', '.join(sorted(set(failures)))}): the driver or its device nodes changed"
    return ""
