"""A collector of traces: takes them by OTLP over HTTP, as an operator sends them, and keeps the spans."""

from __future__ import annotations

import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest


class Collector(ThreadingHTTPServer):
    """Serves in a thread for a ``with`` block.

    Attributes:
        spans: that came so far.
    """

    def __init__(self, address: str = "127.0.0.1") -> None:
        """Take a free port of an address."""
        self.spans: list[Any] = []
        super().__init__((address, 0), _Receiver)

    def __enter__(self) -> Collector:
        """Begin to serve."""
        threading.Thread(target=self.serve_forever, daemon=True).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Serve no more."""
        self.shutdown()
        self.server_close()

    @property
    def url(self) -> str:
        """What an operator is told."""
        return f"http://{self.server_address[0]!s}:{self.server_port}"


class _Receiver(BaseHTTPRequestHandler):
    def do_POST(self) -> None:
        assert isinstance(self.server, Collector)
        body = self.rfile.read(int(self.headers["Content-Length"]))
        for resource in ExportTraceServiceRequest.FromString(body).resource_spans:
            for scope in resource.scope_spans:
                self.server.spans += scope.spans
        self.send_response(200)
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass
