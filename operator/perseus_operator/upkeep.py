"""Keeps child objects as they should be: one read, and a server-side apply where the content differs."""

from __future__ import annotations

import contextlib
from datetime import datetime

from perseus_operator.children import Document, changeable, is_owned_by, is_up_to_date
from perseus_operator.client import JOB, KINDS, Api, ApiRefusal


async def ensure(api: Api, wanted: Document) -> Document:
    """Return a child as it is, written if it was not as it should be.

    Raises:
        ApiRefusal: the server refused, or another owner's Job has the name.
    """
    metadata = wanted["metadata"]
    present = await api.get(KINDS[wanted["kind"]], metadata["namespace"], metadata["name"])
    return await put_right(api, wanted, present)


async def put_right(api: Api, wanted: Document, present: Document | None) -> Document:
    """Return a child as it is, written if what was seen of it is not as it should be.

    Raises:
        ApiRefusal: the server refused, or another owner's Job has the name.
    """
    metadata = wanted["metadata"]
    if is_up_to_date(wanted, present) and present is not None:
        return present
    if present is None or wanted["kind"] != JOB.name or present["metadata"].get("deletionTimestamp"):
        return await api.apply(wanted)
    if not is_owned_by(present, metadata["ownerReferences"][0]["uid"]):
        raise ApiRefusal(
            409, "AlreadyExists", f"Job {metadata['name']} exists already and is not this PerseusJob's: rename one"
        )
    # An operator of another version makes other templates: pods that run keep theirs.
    changed = await api.merge(JOB, metadata["namespace"], metadata["name"], changeable(wanted, present))
    return changed or await api.apply(wanted)


def job_condition(job: Document, wanted: str) -> str | None:
    """Return the message of a condition of a batch Job that is True, None if it is not."""
    for condition in (job.get("status") or {}).get("conditions") or []:
        if condition.get("type") == wanted and condition.get("status") == "True":
            return str(condition.get("message") or condition.get("reason") or wanted)
    return None


def condition_unix_seconds(job: Document, wanted: str) -> float:
    """Return when a condition of a batch Job became what it is, as seconds since the epoch; 0 if nobody says."""
    for condition in (job.get("status") or {}).get("conditions") or []:
        if condition.get("type") == wanted:
            with contextlib.suppress(KeyError, TypeError, ValueError):
                return datetime.fromisoformat(condition["lastTransitionTime"]).timestamp()
    return 0.0
