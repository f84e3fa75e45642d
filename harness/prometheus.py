"""A real Prometheus of one run's own, which scrapes the stand-in for agents on loopback."""

from __future__ import annotations

import contextlib
import json
import subprocess
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

from harness.controlplane import DIES_WITH_US, free_port
from testbed.errors import TestbedError
from testbed.execution import wait_until

PROGRAM = Path("/usr/bin/prometheus")


@contextlib.contextmanager
def scraping(folder: Path, port: int, interval_seconds: float) -> Iterator[str]:
    """Scrape a page of loopback for the time of a block; yield Prometheus's URL.

    Raises:
        TestbedError: Prometheus is not installed, or does not answer.
    """
    if not PROGRAM.exists():
        raise TestbedError(f"{PROGRAM} is missing: run python -m testbed build")
    interval = f"{round(interval_seconds * 1000)}ms"
    configuration = folder / "prometheus.json"
    scrape = {"job_name": "agents", "honor_labels": True, "static_configs": [{"targets": [f"127.0.0.1:{port}"]}]}
    times = {"scrape_interval": interval, "scrape_timeout": interval}
    configuration.write_text(json.dumps({"global": times, "scrape_configs": [scrape]}))
    own = free_port()
    url = f"http://127.0.0.1:{own}"
    with (folder / "prometheus.log").open("ab") as log:
        process = subprocess.Popen(
            [
                *DIES_WITH_US, str(PROGRAM), f"--config.file={configuration}", f"--storage.tsdb.path={folder / 'tsdb'}",
                f"--web.listen-address=127.0.0.1:{own}", "--log.level=warn",
            ],
            stdout=log, stderr=subprocess.STDOUT,
        )  # fmt: skip
    try:
        wait_until("Prometheus answers", lambda: _answers(url), timeout_seconds=30)
        yield url
    finally:
        process.kill()
        process.wait()


def _answers(url: str) -> bool:
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(f"{url}/-/ready", timeout=2) as response:
            return int(response.status) == 200
    except (OSError, urllib.error.URLError):
        return False
