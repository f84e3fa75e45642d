"""Defines kinds, and waits until the API server serves them.

``kubectl wait --for=condition=Established`` would be the command for it, but it fails at once where it looks before the
server has written the definition's first condition. Knows no kind of its own.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from testbed.execution import wait_until

_TIMEOUT_SECONDS = 30.0


def define(kubectl: Callable[..., str], path: Path) -> None:
    """Apply the CustomResourceDefinitions of a file or folder, whoever wrote them before, and wait for them.

    Args:
        kubectl: Runs kubectl with arguments and returns what it printed.
        path: Of the file or folder.

    Raises:
        TestbedError: one is refused, or is not served after 30 seconds.
    """
    kubectl("apply", "--server-side", "--force-conflicts", "-f", str(path))
    wait_until_established(kubectl, "-f", str(path))


def wait_until_established(kubectl: Callable[..., str], *which: str) -> None:
    """Wait until CustomResourceDefinitions are served.

    Args:
        kubectl: Runs kubectl with arguments and returns what it printed.
        which: The definitions in kubectl's words: a kind and a name, or ``-f`` and a file.

    Raises:
        TestbedError: one does not exist, or is not served after 30 seconds.
    """

    def established() -> bool:
        document = json.loads(kubectl("get", *which, "--output=json"))
        return all(_is_established(each) for each in document.get("items", [document]))

    wait_until(f"{' '.join(which)} to be served", established, timeout_seconds=_TIMEOUT_SECONDS)


def _is_established(definition: dict[str, Any]) -> bool:
    conditions = definition.get("status", {}).get("conditions") or []
    return any(each["type"] == "Established" and each["status"] == "True" for each in conditions)
