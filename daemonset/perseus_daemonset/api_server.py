"""GET requests to the API server, over the Kubernetes client's credentials and connections but not over its models.

The client's typed API loads a model of every kind there is (80 MB with kubernetes 37), on each node of a fleet, to hand
on the very bytes that this module hands on. It knows no kind.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from kubernetes import client

LIST_SECONDS = 30.0
Item = dict[str, Any]


class ApiServer:
    """The API server that the client's configuration names."""

    def __init__(self) -> None:
        """Open connections of its own; credentials must be known."""
        self._client = client.ApiClient()

    def get(self, path: str, timeout_seconds: float = LIST_SECONDS, **query: str) -> Any:
        """Return the response to a GET (urllib3's, its body not yet read).

        Args:
            path: of the collection, such as ``/api/v1/pods``.
            timeout_seconds: for connecting, and for each wait for data.
            query: parameters as the Kubernetes API names them.

        Raises:
            kubernetes.client.ApiException: the server refused.
            urllib3.exceptions.HTTPError: nobody answers.
        """
        request = self._client.param_serialize(
            "GET",
            path,
            query_params=list(query.items()),
            header_params={"Accept": "application/json"},
            auth_settings=["BearerToken"],
        )
        answer = self._client.call_api(*request, _request_timeout=timeout_seconds)
        if not 200 <= answer.status <= 299:
            answer.read()
            raise client.ApiException.from_response(http_resp=answer, body=None, data=None)
        return answer.response


def listing(get: Callable[..., Any]) -> Item:
    """Return a collection as it was sent; raises as `ApiServer.get` does, which is bound to the collection."""
    listed: Item = json.loads(get().data)
    return listed
