"""``perseus-operator run`` as a process of its own, to be killed and started again."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import urllib.error
import urllib.request
from pathlib import Path
from typing import Self

from harness.controlplane import DIES_WITH_US, SYSTEM, resident_megabytes


class OperatorProcess:
    """The operator against a control plane, or against what stands before one."""

    def __init__(self, kubeconfig: Path, log: Path, port: int, **variables: str) -> None:
        """Run with credentials, with metrics on a port, and with further variables of the environment."""
        self.log = log
        self.port = port
        self.starts = 0
        self._kubeconfig = kubeconfig
        self._variables = variables
        self._process: subprocess.Popen[bytes] | None = None
        self._lock = threading.Lock()

    def __enter__(self) -> Self:
        """Start it."""
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        """SIGKILL it, if it runs."""
        self.kill()

    def start(self) -> None:
        """Start it."""
        environment = {
            **os.environ,
            "KUBECONFIG": str(self._kubeconfig),
            "PERSEUS_OPERATOR_NAMESPACE": SYSTEM,
            "PERSEUS_OPTIMISER_IMAGE": "optimiser:1",
            "PERSEUS_METRICS_PORT": str(self.port),
            **self._variables,
        }
        with self._lock, self.log.open("ab") as log:
            self.starts += 1
            self._process = subprocess.Popen(
                [*DIES_WITH_US, sys.executable, "-m", "perseus_operator.main", "run"],
                env=environment, stdout=log, stderr=subprocess.STDOUT,
            )  # fmt: skip

    def kill(self) -> None:
        """SIGKILL it, if it runs."""
        with self._lock:
            if self._process is not None:
                self._process.send_signal(signal.SIGKILL)
                self._process.wait()
                self._process = None

    def terminate(self, timeout_seconds: float = 20.0) -> int:
        """SIGTERM it, as the kubelet does; return its exit status (negative: the signal that it did not handle).

        Raises:
            subprocess.TimeoutExpired: it goes on.
        """
        assert self._process is not None, "it was not started"
        self._process.terminate()
        return self._process.wait(timeout_seconds)

    @property
    def runs(self) -> bool:
        """Whether its process lives."""
        return self._process is not None and self._process.poll() is None

    @property
    def megabytes(self) -> float:
        """Resident memory now."""
        assert self._process is not None, "it was not started"
        return resident_megabytes(self._process.pid)

    @property
    def peak_megabytes(self) -> float:
        """Highest resident memory since its start."""
        assert self._process is not None, "it was not started"
        return resident_megabytes(self._process.pid, peak=True)

    @property
    def cpu_seconds(self) -> float:
        """Processor time that it has used."""
        assert self._process is not None, "it was not started"
        fields = Path(f"/proc/{self._process.pid}/stat").read_text().rsplit(")", 1)[1].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def is_well(self, page: str) -> bool:
        """Whether one of its health pages is there and has nothing to say against it."""
        try:
            return self.page(page)[0] == 200
        except OSError:
            return False

    def page(self, name: str) -> tuple[int, str]:
        """Return status and text of one of its HTTP pages.

        Raises:
            OSError: it does not answer.
        """
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        try:
            with opener.open(f"http://127.0.0.1:{self.port}/{name}", timeout=5) as response:
                return response.status, response.read().decode()
        except urllib.error.HTTPError as error:
            return error.code, error.read().decode()
