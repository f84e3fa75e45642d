"""What every node pays for being told what the API server says: no models of kinds, and a refusal is an exception."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Iterator
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from kubernetes import client
from perseus_daemonset.api_server import ApiServer, listing

LISTED = b'{"metadata": {"resourceVersion": "7"}, "items": [{"metadata": {"name": "one"}}]}'


class Handler(BaseHTTPRequestHandler):
    asked: list[str]

    def do_GET(self) -> None:
        self.asked.append(self.path)
        found = self.path.startswith("/api/v1/pods")
        self.send_response(200 if found else 404)
        self.end_headers()
        self.wfile.write(LISTED if found else b'{"kind": "Status"}')

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[ApiServer]:
    Handler.asked = []
    web = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=web.serve_forever, daemon=True)
    thread.start()
    configuration = client.Configuration(host=f"http://127.0.0.1:{web.server_port}")
    monkeypatch.setattr(client.Configuration, "_default", configuration)
    yield ApiServer()
    web.shutdown()
    thread.join()
    web.server_close()


def test_a_collection_is_handed_on_as_it_was_sent(server: ApiServer) -> None:
    found = listing(partial(server.get, "/api/v1/pods", fieldSelector="spec.nodeName=a&b"))
    assert found["items"] == [{"metadata": {"name": "one"}}]
    assert Handler.asked == ["/api/v1/pods?fieldSelector=spec.nodeName%3Da%26b"]


def test_a_refusal_is_an_exception_that_names_the_status(server: ApiServer) -> None:
    with pytest.raises(client.ApiException) as refused:
        server.get("/apis/resource.k8s.io/v1/resourceslices")
    assert refused.value.status == 404


def test_an_agent_loads_no_models_of_the_apis_kinds() -> None:
    code = (
        "import sys, perseus_daemonset.agent\n"
        "from perseus_daemonset.api_server import ApiServer\n"
        "ApiServer()\n"
        "kinds = ('kubernetes.client.models.', 'kubernetes.client.api.')\n"
        "print([each for each in sys.modules if each.startswith(kinds)])"
    )
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert loaded == "[]\n"
