"""The last step of a visit: one status write where something differs, and only then the events that tell of it."""

from __future__ import annotations

import logging
import time
from datetime import UTC, datetime

from perseus_api import names
from perseus_api.conditions import Condition

from perseus_operator.children import Document
from perseus_operator.client import EVENT, Api, ApiRefusal
from perseus_operator.monitor import JobKey, Monitor
from perseus_operator.status import (
    ON_ITS_WAY,
    events,
    frontier_status,
    plan_status,
    profile_status,
    savings_status,
    straggler_status,
)
from perseus_operator.visit import Visit

SAVINGS_SECONDS = 60.0
logger = logging.getLogger("perseus.operator")


class StatusStep:
    """Writes statuses, and remembers when it last told the savings."""

    def __init__(self, api: Api, monitor: Monitor) -> None:
        """Write over a connection what visits gathered and the monitor knows."""
        self._api = api
        self._monitor = monitor
        self._savings_at: dict[JobKey, float] = {}

    def forget(self, key: JobKey) -> None:
        """Forget a job that is gone."""
        self._savings_at.pop(key, None)

    async def write(self, visit: Visit) -> None:
        """Write the status if it differs, then the events.

        Raises:
            ApiRefusal: the API server refused the status.
        """
        job = visit.job
        before: Document = job.get("status") or {}
        now = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        generation = job["metadata"]["generation"]
        known = before.get("conditions") or []
        status: Document = {
            "observedGeneration": generation,
            "conditions": visit.story.documents(known, generation, now),
        }
        if visit.profile is not None:
            status["profile"] = profile_status(visit.profile)
        if visit.frontier is not None:
            status["frontier"] = frontier_status(visit.frontier)
        if visit.plan is not None and visit.stragglers is not None:
            status["plan"] = plan_status(visit.plan, visit.stragglers)
            if visit.findings:
                status["stragglers"] = straggler_status(visit.findings)
        elif "plan" in before:
            status["plan"] = before["plan"]
        savings = self._savings(visit.key, before.get("savings"))
        if savings is not None:
            status["savings"] = savings
        if status == before:
            return
        metadata = {"name": job["metadata"]["name"], "namespace": job["metadata"]["namespace"]}
        document = {"apiVersion": names.API_VERSION, "kind": names.KIND, "metadata": metadata, "status": status}
        await self._api.apply(document, "status")
        await self._tell_events(visit, known, now)

    def _savings(self, key: JobKey, before: Document | None) -> Document | None:
        energy = self._monitor.energies.get(key)
        if energy is None or energy.energy <= 0:
            return before
        now = time.monotonic()
        # Savings that an earlier operator told are as fresh as if this one had told them now.
        if before is not None and now < self._savings_at.setdefault(key, now) + SAVINGS_SECONDS:
            return before
        self._savings_at[key] = now
        return savings_status(energy) or before

    async def _tell_events(self, visit: Visit, known: list[Document], now: str) -> None:
        earlier = {each["type"]: (each["status"], each["reason"]) for each in known}
        changed = [
            (condition, reason, message)
            for condition, (status, reason, message) in visit.story.told.items()
            if condition is not Condition.READY
            and status != "Unknown"
            and reason not in ON_ITS_WAY
            and earlier.get(condition.value) != (status, reason.value)
        ]
        for document in events(visit.job, changed, now):
            try:
                await self._api.create(EVENT, document)
            except ApiRefusal as refusal:
                # Whatever becomes of an event, the status has told it already.
                logger.info("event not written: %s", refusal)
