"""Keeps something true to a collection of the API: list, watch from there, list again after any break. In a thread.

When the API is gone everything stays as it was: a plan in force goes on, no clock changes because of it. Knows neither
pods nor plans, and of the API only what its caller's functions do.
"""

from __future__ import annotations

import contextlib
import json
import logging
import threading
from collections.abc import Callable
from typing import Any

from kubernetes.watch.watch import iter_resp_lines

from perseus_daemonset.api_server import LIST_SECONDS, Item, listing

WATCH_SECONDS = 300
RETRY_SECONDS = 1.0
logger = logging.getLogger("perseus.agent")


class Mirror:
    """One collection.

    Attributes:
        listed: set once it was listed.
    """

    def __init__(
        self,
        what: str,
        get: Callable[..., Any],
        replace: Callable[[list[Item]], None],
        take: Callable[[str, Item], None],
    ) -> None:
        """Prepare.

        Args:
            what: is mirrored, for the log.
            get: `perseus_daemonset.api_server.ApiServer.get` with the collection and its selectors bound.
            replace: takes a whole listing.
            take: takes the kind of an event (ADDED, MODIFIED, DELETED) and its object.
        """
        self.listed = threading.Event()
        self._what = what
        self._get = get
        self._replace = replace
        self._take = take
        self._stopped = threading.Event()
        self._guard = threading.Lock()
        self._response: Any = None

    def start(self) -> None:
        """Begin."""
        threading.Thread(target=self._run, name=f"watch-{self._what}", daemon=True).start()

    def stop(self) -> None:
        """Hand nothing on any more once this returns, and let the thread end."""
        with self._guard:
            self._stopped.set()
            response = self._response
        if response is not None:
            _interrupt(response)

    def _run(self) -> None:
        while not self._stopped.is_set():
            try:
                self._once()
            except Exception as error:  # noqa: BLE001 - whatever breaks a watch, the answer is a new one
                if not self._stopped.is_set():
                    logger.warning("watching %s broke (%s); everything stays as it is", self._what, brief(error))
                    self._stopped.wait(RETRY_SECONDS)

    def _once(self) -> None:
        listed = listing(self._get)
        with self._guard:
            if self._stopped.is_set():
                return
            self._replace(listed["items"])
        self.listed.set()
        response = self._get(
            WATCH_SECONDS + LIST_SECONDS,
            watch="true",
            resourceVersion=listed["metadata"]["resourceVersion"],
            timeoutSeconds=str(WATCH_SECONDS),
        )
        try:
            with self._guard:
                self._response = response
            for line in iter_resp_lines(response):
                event = json.loads(line)
                if event["type"] == "ERROR":
                    raise RuntimeError(str(event["object"].get("message")))
                with self._guard:
                    if self._stopped.is_set():
                        return
                    self._take(event["type"], event["object"])
        finally:
            with self._guard:
                self._response = None
            response.close()


def brief(error: Exception) -> str:
    """Return an error in one line."""
    return f"{type(error).__name__}: {str(error).splitlines()[0][:200] if str(error) else ''}"


def _interrupt(response: Any) -> None:
    # The thread waits in a read that only the end of the stream ends. Before urllib3 2.3 it waits until the server's.
    with contextlib.suppress(ValueError, RuntimeError, OSError, AttributeError):
        response.shutdown()
