"""A real Prometheus as a process of its own, with the chart's rules or without: to be stopped, started and locked."""

from __future__ import annotations

import contextlib
import json
import socket
import subprocess
import time
import urllib.parse
import urllib.request
from pathlib import Path
from typing import Self

from harness.controlplane import DIES_WITH_US
from testbed.errors import TestbedError

PROGRAM = Path("/usr/bin/prometheus")
ROOT = Path(__file__).resolve().parents[1]
RULES = ROOT / "charts" / "perseus-operator" / "rules" / "*.yaml"


class PrometheusServer:
    """A Prometheus that scrapes pages of loopback.

    Attributes:
        folder: of its data and log.
        port: where it listens.
        scrape_seconds: between two scrapes, and two evaluations of rules.
        rules: whether it has the chart's.
        targets: labels by port of the page that gets them.
        paths: of the pages, on each of these ports.
        web_configuration: a file that asks for TLS and passwords.
    """

    def __init__(
        self, folder: Path, port: int, target_port: int, scrape_seconds: float = 1.0, rules: bool = True
    ) -> None:
        """Keep its data in a folder."""
        self.folder, self.port = folder, port
        self.scrape_seconds = scrape_seconds
        self.rules = rules
        self.targets: dict[int, dict[str, str]] = {target_port: {}}
        self.paths = ["/metrics"]
        self.web_configuration: Path | None = None
        self._process: subprocess.Popen[bytes] | None = None
        folder.mkdir(parents=True, exist_ok=True)

    def __enter__(self) -> Self:
        """Start it, and wait until it answers."""
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Stop it."""
        self.stop()

    @property
    def url(self) -> str:
        """Where it answers."""
        return f"{'https' if self.web_configuration else 'http'}://127.0.0.1:{self.port}"

    def start(self) -> None:
        """Start it, and wait until it answers.

        Raises:
            TestbedError: it is not installed.
        """
        if not PROGRAM.exists():
            raise TestbedError(f"{PROGRAM} is missing: run python -m testbed build")
        interval = f"{round(self.scrape_seconds * 1000)}ms"
        configuration = {
            "global": {"scrape_interval": interval, "scrape_timeout": interval, "evaluation_interval": interval},
            "rule_files": [str(RULES)] if self.rules else [],
            "scrape_configs": [
                {
                    "job_name": f"agents{path}",
                    "honor_labels": True,
                    "metrics_path": path,
                    "static_configs": [
                        {"targets": [f"127.0.0.1:{port}"], "labels": labels} for port, labels in self.targets.items()
                    ],
                }
                for path in self.paths
            ],
        }
        path = self.folder / "prometheus.json"
        path.write_text(json.dumps(configuration))
        command = [
            *DIES_WITH_US, str(PROGRAM), f"--config.file={path}", f"--storage.tsdb.path={self.folder / 'data'}",
            f"--web.listen-address=127.0.0.1:{self.port}", "--log.level=warn",
        ]  # fmt: skip
        if self.web_configuration is not None:
            command.append(f"--web.config.file={self.web_configuration}")
        with (self.folder / "prometheus.log").open("ab") as log:
            self._process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT)
        deadline = time.monotonic() + 30
        while not self._answers():
            assert self._process.poll() is None, (self.folder / "prometheus.log").read_text()
            assert time.monotonic() < deadline, "Prometheus does not answer"
            time.sleep(0.1)

    def stop(self) -> None:
        """Stop it, if it runs."""
        if self._process is not None:
            self._process.terminate()
            self._process.wait()
            self._process = None

    def metrics(self) -> str:
        """Its own metrics page."""
        with urllib.request.urlopen(f"{self.url}/metrics", timeout=10) as answer:
            return str(answer.read().decode())

    def ask(self, query: str) -> list[dict[str, object]]:
        """Return the result of an instant query."""
        address = f"{self.url}/api/v1/query?query={urllib.parse.quote(query)}"
        with urllib.request.urlopen(address, timeout=10) as answer:
            found: list[dict[str, object]] = json.load(answer)["data"]["result"]
            return found

    def _answers(self) -> bool:
        if self.web_configuration is not None:
            return self._listens()
        with contextlib.suppress(OSError), urllib.request.urlopen(f"{self.url}/-/ready", timeout=2) as answer:
            return bool(answer.status == 200)
        return False

    def _listens(self) -> bool:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", self.port), 1):
            return True
        return False
