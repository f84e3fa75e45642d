"""A plain synchronous client of the API server.

A scenario makes thousands of calls, and a kubectl for each would cost more than what is measured.
"""

from __future__ import annotations

import http.client
import json
import ssl
import threading
from pathlib import Path
from typing import Any
from urllib.parse import urlencode, urlsplit

Document = dict[str, Any]
_TIMEOUT_SECONDS = 30.0
_MERGE, _APPLY = "application/merge-patch+json", "application/apply-patch+yaml"


class Refused(Exception):
    """The API server said no.

    Attributes:
        status: HTTP status.
    """

    def __init__(self, status: int, message: str) -> None:
        """Keep the server's words."""
        super().__init__(f"{status}: {message}")
        self.status = status


class Client:
    """Calls the API server over one connection for each thread."""

    def __init__(self, url: str, token: str, certificate: Path) -> None:
        """Speak with a bearer's token."""
        self._address = urlsplit(url)
        self._token = token
        self._certificate = certificate
        self._local = threading.local()

    def get(self, path: str, **query: str) -> Document | None:
        """Return an object or a list, None if there is none."""
        try:
            return self.call("GET", path, query=query)
        except Refused as refusal:
            if refusal.status == 404:
                return None
            raise

    def items(self, path: str, **query: str) -> list[Document]:
        """Return the items of a collection."""
        found: list[Document] = self.call("GET", path, query=query)["items"]
        return found

    def text(self, path: str) -> str:
        """Return a page as it is."""
        return self._exchange("GET", path, None, "")[1].decode()

    def post(self, path: str, document: Document) -> Document:
        """Create an object."""
        return self.call("POST", path, document)

    def put(self, path: str, document: Document) -> Document:
        """Replace an object."""
        return self.call("PUT", path, document)

    def merge(self, path: str, patch: Document) -> Document:
        """Change an object by merge patch."""
        return self.call("PATCH", path, patch, content_type=_MERGE)

    def apply(self, path: str, document: Document, manager: str) -> Document:
        """Write an object by server-side apply."""
        return self.call("PATCH", path, document, {"fieldManager": manager, "force": "true"}, _APPLY)

    def delete(self, path: str) -> None:
        """Delete an object in the background, if it is there."""
        try:
            self.call("DELETE", path, {"propagationPolicy": "Background"})
        except Refused as refusal:
            if refusal.status != 404:
                raise

    def call(
        self,
        method: str,
        path: str,
        document: Document | None = None,
        query: dict[str, str] | None = None,
        content_type: str = "application/json",
    ) -> Document:
        """Make a call.

        Raises:
            Refused: the server said no.
            OSError: it does not answer.
        """
        body = json.dumps(document).encode() if document is not None else None
        address = f"{path}?{urlencode(query)}" if query else path
        status, data = self._exchange(method, address, body, content_type)
        answer: Document = json.loads(data) if data else {}
        if status >= 400:
            raise Refused(status, str(answer.get("message", "")))
        return answer

    def _exchange(self, method: str, path: str, body: bytes | None, content_type: str) -> tuple[int, bytes]:
        headers = {"Authorization": f"Bearer {self._token}", "Accept": "application/json"}
        if body is not None:
            headers["Content-Type"] = content_type
        for attempt in (1, 2):
            connection = self._connection()
            try:
                connection.request(method, path, body, headers)
                response = connection.getresponse()
                return response.status, response.read()
            except (OSError, http.client.HTTPException) as error:
                self._local.connection = None
                connection.close()
                # A connection that the server closed while it was idle tells nothing; a new one does.
                if attempt == 2:
                    raise OSError(f"{method} {path}: {error!r}") from error
        raise AssertionError("two attempts end in an answer or an error")

    def _connection(self) -> http.client.HTTPConnection:
        known: http.client.HTTPConnection | None = getattr(self._local, "connection", None)
        if known is None:
            host, port = self._address.hostname or "", self._address.port
            if self._address.scheme == "https":
                context = ssl.create_default_context(cafile=str(self._certificate))
                context.verify_flags &= ~ssl.VERIFY_X509_STRICT
                known = http.client.HTTPSConnection(host, port, timeout=_TIMEOUT_SECONDS, context=context)
            else:
                known = http.client.HTTPConnection(host, port, timeout=_TIMEOUT_SECONDS)
            self._local.connection = known
        return known
