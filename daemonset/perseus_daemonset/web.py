"""The agent's HTTP pages: metrics for Prometheus, health for the kubelet, a report for people. Nothing is written."""

from __future__ import annotations

import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest

Check = Callable[[], str]  # "" when well, else what is wrong


def serve_pages(
    port: int, metrics: CollectorRegistry, healthy: Check, ready: Check, report: Callable[[], bytes]
) -> ThreadingHTTPServer:
    """Serve /metrics, /healthz, /readyz and /report in the background; return the server, to be shut down."""

    class Pages(BaseHTTPRequestHandler):
        timeout = 10

        def do_GET(self) -> None:
            path = self.path.partition("?")[0]
            if path == "/metrics":
                self._answer(200, generate_latest(metrics), CONTENT_TYPE_LATEST)
            elif path in ("/healthz", "/readyz"):
                problem = healthy() if path == "/healthz" else ready()
                self._answer(503 if problem else 200, (problem or "ok").encode() + b"\n", "text/plain")
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
