"""Reads the API server's audit log: who asked for what. It owes nothing to the operator's metrics."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

WRITE_VERBS = frozenset({"create", "update", "patch", "delete", "deletecollection"})


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
    """The log from some moment on."""

    def __init__(self, path: Path, whole: bool = False) -> None:
        """Begin at the present end, or at the very beginning."""
        self._path = path
        self._offset = path.stat().st_size if path.exists() and not whole else 0

    def uses(self, user: str) -> Iterator[Use]:
        """Yield what a user asked for since then, and got or would have got; refusals by RBAC are left out."""
        with self._path.open("rb") as log:
            log.seek(self._offset)
            for line in log:
                if not line.endswith(b"\n"):
                    return
                event = json.loads(line)
                reference = event.get("objectRef") or {}
                if event["user"]["username"] != user or not reference or "impersonatedUser" in event:
                    continue
                resource = reference.get("resource", "")
                if reference.get("subresource"):
                    resource = f"{resource}/{reference['subresource']}"
                created = event["verb"] == "patch" and (event.get("responseStatus") or {}).get("code") == 201
                # Server-side apply of what is not there asks for the right to create as well.
                for verb in (event["verb"], "create") if created else (event["verb"],):
                    yield Use(
                        reference.get("apiGroup", ""), resource, verb, reference.get("namespace", ""),
                        reference.get("name", ""),
                    )  # fmt: skip

    def refusals(self, user: str) -> list[str]:
        """Return what RBAC refused a user since then."""
        with self._path.open("rb") as log:
            log.seek(self._offset)
            events = [json.loads(line) for line in log if line.endswith(b"\n")]
        return [
            f"{event['verb']} {event['requestURI']}"
            for event in events
            if event["user"]["username"] == user and (event.get("responseStatus") or {}).get("code") == 403
        ]

    def writes(self, user: str) -> Counter[str]:
        """Count a user's writes by verb and resource; one that creates by apply is one."""
        return Counter(f"{use.verb} {use.resource}" for use in self.uses(user) if is_write(use))


def is_write(use: Use) -> bool:
    """Whether a use is a request that writes; a create by apply is told beside its patch, and an event has no name."""
    return use.verb in WRITE_VERBS and not (use.verb == "create" and use.name)
