"""The agent's HTTP pages: metrics for Prometheus, health for the kubelet, measurements for the operator, a report.

Nothing is written.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs

from perseus_api import names
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest

Check = Callable[[], str]  # "" when well, else what is wrong
Measurements = Callable[[str, str, bool], bytes]  # of a namespace and a job; with the orders that ranks run


def serve_pages(
    port: int,
    metrics: CollectorRegistry,
    healthy: Check,
    ready: Check,
    report: Callable[[], bytes],
    measurements: Measurements,
) -> ThreadingHTTPServer:
    """Serve the pages in the background; return the server, to be shut down."""

    class Pages(BaseHTTPRequestHandler):
        timeout = 10

        def do_GET(self) -> None:
            path, _, query = self.path.partition("?")
            if path == "/metrics":
                self._answer(200, generate_latest(metrics), CONTENT_TYPE_LATEST)
            elif path in ("/healthz", "/readyz"):
                problem = healthy() if path == "/healthz" else ready()
                self._answer(503 if problem else 200, (problem or "ok").encode() + b"\n", "text/plain")
            elif path == names.MEASUREMENTS_PATH:
                asked = parse_qs(query)
                orders = asked.get("orders") == ["true"]
                body = measurements(asked.get("namespace", [""])[0], asked.get("job", [""])[0], orders)
                self._answer(200, body, "application/json")
            elif path == "/report":
                self._answer(200, report(), "application/json")
            else:
                self._answer(404, b"not found\n", "text/plain")

        def _answer(self, status: int, body: bytes, kind: str) -> None:
            self.send_response(status)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            """Say nothing: a scrape is no event."""

    server = ThreadingHTTPServer(("", port), Pages)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, name="pages", daemon=True).start()
    return server
