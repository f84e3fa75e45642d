"""A real Prometheus beside the cluster: it scrapes the pods that ask for it by the usual annotations.

It runs at the node's address, so that pods reach it as they would reach one in the cluster. Labels that a pod's own
series carry win over those of the target, as with ``honorLabels`` of a PodMonitor.
"""

import json
import sys
from pathlib import Path

from testbed.errors import TestbedError
from testbed.execution import wait_until
from testbed.folders import CACHE_VARIABLE, STATE_VARIABLE, Folders
from testbed.processes import ProcessTable
from testbed.service import fetch
from testbed.site import Site

_NAME = "prometheus"
_PROGRAM = "/usr/bin/prometheus"
_DISCOVERY = "discovery"
_ROOT = Path(__file__).resolve().parent.parent


def start_prometheus(scrape_interval_seconds: float, folders: Folders | None = None) -> str:
    """Start Prometheus, or keep the one that runs with the same interval; return its URL.

    Raises:
        TestbedError: it does not answer.
    """
    site = Site(folders or Folders.from_environment())
    path = site.configuration("prometheus.json")
    content = json.dumps(_configuration(site, scrape_interval_seconds), indent=1)
    table = ProcessTable(site)
    ready_url = f"{site.prometheus_url}/-/ready"
    if (
        table.find(_NAME)
        and table.find(_DISCOVERY)
        and path.exists()
        and path.read_text() == content
        and fetch(site, ready_url) is not None
    ):
        return site.prometheus_url
    if not Path(_PROGRAM).exists():
        raise TestbedError(f"{_PROGRAM} is missing: run python -m testbed build")
    stop_prometheus(site.folders)
    path.write_text(content)
    environment = {
        "PYTHONPATH": str(_ROOT),
        STATE_VARIABLE: str(site.folders.state),
        CACHE_VARIABLE: str(site.folders.cache),
    }
    table.start(_DISCOVERY, [sys.executable, "-m", "testbed.discovery", str(_targets(site))], environment)
    table.start(
        _NAME,
        [
            _PROGRAM,
            f"--config.file={path}",
            f"--storage.tsdb.path={site.data(_NAME)}",
            f"--web.listen-address={site.node_address}:9090",
            "--storage.tsdb.retention.time=1d",
            "--log.level=warn",
        ],
        {},
    )
    wait_until("Prometheus answers", lambda: fetch(site, ready_url) is not None, timeout_seconds=30)
    return site.prometheus_url


def stop_prometheus(folders: Folders | None = None) -> None:
    """Stop it, if it runs."""
    table = ProcessTable(Site(folders or Folders.from_environment()))
    for name in (_NAME, _DISCOVERY):
        table.stop(name)


def _targets(site: Site) -> Path:
    return site.configuration("prometheus-targets.json")


def _configuration(site: Site, scrape_interval_seconds: float) -> dict[str, object]:
    interval = f"{int(scrape_interval_seconds * 1000)}ms"
    return {
        "global": {"scrape_interval": interval, "scrape_timeout": interval, "evaluation_interval": interval},
        "rule_files": [str(_ROOT / "charts" / "perseus-operator" / "rules" / "*.yaml")],
        "scrape_configs": [
            {
                "job_name": "pods",
                "honor_labels": True,
                "file_sd_configs": [{"files": [str(_targets(site))], "refresh_interval": "10s"}],
            }
        ],
    }
