"""Tells Prometheus which pods to scrape: Debian's package is built without Kubernetes discovery.

A process of its own that lists the pods every second and writes Prometheus's target file when something changed;
Prometheus notices at once. Pods ask to be scraped by the usual annotations.
"""

import json
import os
import sys
import time
from pathlib import Path
from typing import Any

from testbed.folders import Folders
from testbed.service import fetch
from testbed.site import Site

PERIOD_SECONDS = 1.0
_PREFIX = "prometheus.io"


def targets(pods: list[dict[str, dict[str, Any]]]) -> list[dict[str, object]]:
    """Return Prometheus's target groups (file_sd format) for the pods that want to be scraped."""
    groups: list[dict[str, object]] = []
    for pod in pods:
        metadata, status = pod["metadata"], pod["status"]
        annotations = metadata.get("annotations") or {}
        running = status.get("phase") == "Running" and status.get("podIP") and "deletionTimestamp" not in metadata
        if annotations.get(f"{_PREFIX}/scrape") != "true" or not running:
            continue
        groups.append(
            {
                "targets": [f"{status['podIP']}:{annotations.get(f'{_PREFIX}/port', '80')}"],
                "labels": {
                    "namespace": metadata["namespace"],
                    "pod": metadata["name"],
                    "__metrics_path__": annotations.get(f"{_PREFIX}/path", "/metrics"),
                    **_node(pod),
                },
            }
        )
    return sorted(groups, key=str)


def _node(pod: dict[str, dict[str, Any]]) -> dict[str, str]:
    """What the chart's PodMonitor does: an agent's series tell its node. The operator's speak of other nodes."""
    component = (pod["metadata"].get("labels") or {}).get("app.kubernetes.io/component")
    return {"node": pod["spec"]["nodeName"]} if component == "agent" else {}


def main() -> None:
    """Write the target file given as the first argument, forever."""
    site = Site(Folders.from_environment())
    path = Path(sys.argv[1])
    written = None
    while True:
        body = fetch(site, f"{site.api_url}/api/v1/pods")
        if body is not None:
            content = json.dumps(targets(json.loads(body)["items"]), indent=1)
            if content != written:
                draft = path.with_suffix(".draft")
                draft.write_text(content)
                os.replace(draft, path)
                written = content
        time.sleep(PERIOD_SECONDS)


if __name__ == "__main__":
    main()
