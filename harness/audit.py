"""Reads the API server's audit log: who asked for what. It owes nothing to the operator's metrics."""

from __future__ import annotations

import json
import os
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

WRITE_VERBS = frozenset({"create", "update", "patch", "delete", "deletecollection"})
Event = dict[str, Any]
# Most of a cluster's log is its own components': lines are told apart before they are read.
_ACCOUNTS = re.compile(rb'"username":"system:serviceaccount:')


@dataclass(frozen=True)
class Use:
    """A right that was used.

    Attributes:
        group: API group; empty: core.
        resource: plural, with the subresource after a slash.
        verb: as RBAC calls it.
        namespace: of the object; empty for what has none, and for requests over all namespaces.
        name: of the object; empty for collections.
    """

    group: str
    resource: str
    verb: str
    namespace: str
    name: str


class AuditLog:
    """The log from some moment on, also where the API server has begun another file meanwhile."""

    def __init__(self, path: Path, whole: bool = False) -> None:
        """Begin at the present end, or at the very beginning."""
        self._path = path
        known = path.stat() if path.exists() and not whole else None
        self._file, self._offset = (known.st_ino, known.st_size) if known else (0, 0)

    def uses(self, user: str) -> Iterator[Use]:
        """Yield what a service account asked for since then, whether it got it or not."""
        for event in self._events():
            if event["user"]["username"] == user:
                yield from _uses_of(event)

    def uses_by_user(self) -> dict[str, Counter[Use]]:
        """Count what each service account asked for since then, whether it got it or not."""
        found: dict[str, Counter[Use]] = {}
        for event in self._events():
            found.setdefault(event["user"]["username"], Counter()).update(_uses_of(event))
        return found

    def refusals(self, user: str) -> list[str]:
        """Return what a service account was refused since then, by RBAC or an admission plugin."""
        return [
            f"{event['verb']} {event['requestURI']}"
            for event in self._events()
            if event["user"]["username"] == user and (event.get("responseStatus") or {}).get("code") == 403
        ]

    def writes(self, user: str) -> Counter[str]:
        """Count a user's writes by verb and resource; one that creates by apply is one."""
        return Counter(f"{use.verb} {use.resource}" for use in self.uses(user) if is_write(use))

    def _began_in(self, status: os.stat_result) -> bool:
        return status.st_ino == self._file and status.st_size >= self._offset

    def _events(self) -> Iterator[Event]:
        # A full file is renamed, with the time in its name, and a new one begun.
        full = sorted(self._path.parent.glob(f"{self._path.stem}-*{self._path.suffix}"))
        files = [each for each in (*full, self._path) if each.exists()]
        begun = [each for each in files if self._began_in(each.stat())]
        for path in files[files.index(begun[0]) :] if begun else files:
            with path.open("rb") as log:
                log.seek(self._offset if path in begun else 0)
                for line in log:
                    if not line.endswith(b"\n"):
                        return
                    if _ACCOUNTS.search(line):
                        yield json.loads(line)


def is_write(use: Use) -> bool:
    """Whether a use is a request that writes; a create by apply is told beside its patch, and an event has no name."""
    return use.verb in WRITE_VERBS and not (use.verb == "create" and use.name)


def _uses_of(event: Event) -> Iterator[Use]:
    reference = event.get("objectRef") or {}
    if not reference or "impersonatedUser" in event:
        return
    resource = reference.get("resource", "")
    if reference.get("subresource"):
        resource = f"{resource}/{reference['subresource']}"
    created = event["verb"] == "patch" and (event.get("responseStatus") or {}).get("code") == 201
    # Server-side apply of what is not there asks for the right to create as well.
    for verb in (event["verb"], "create") if created else (event["verb"],):
        yield Use(
            reference.get("apiGroup", ""), resource, verb, reference.get("namespace", ""), reference.get("name", "")
        )
