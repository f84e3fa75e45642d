"""The last step of a visit: one status write where something differs, and only then the events that tell of it."""

from __future__ import annotations

import logging
from datetime import UTC, datetime

from perseus_api import names
from perseus_api.conditions import Condition, Reason

from perseus_operator.children import Document
from perseus_operator.client import EVENT, Api, ApiRefusal
from perseus_operator.report import report_sentence, savings_status
from perseus_operator.status import (
    ON_ITS_WAY,
    event,
    events,
    frontier_status,
    plan_status,
    profile_status,
    straggler_status,
)
from perseus_operator.visit import Visit

logger = logging.getLogger("perseus.operator")


class StatusStep:
    """Writes statuses."""

    def __init__(self, api: Api) -> None:
        """Write over a connection what visits gathered."""
        self._api = api

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
            status["profile"] = profile_status(visit.profile, visit.repeats)
        if visit.frontier is not None:
            status["frontier"] = frontier_status(visit.frontier)
        if visit.plan is not None and visit.stragglers is not None:
            status["plan"] = plan_status(visit.plan, visit.stragglers)
            if visit.findings:
                status["stragglers"] = straggler_status(visit.findings)
        elif "plan" in before:
            status["plan"] = before["plan"]
        savings = savings_status(visit.totals) if visit.totals is not None else None
        if savings is not None or "savings" in before:
            status["savings"] = savings or before["savings"]
        if visit.report is not None:
            status["report"] = visit.report
        if status == before:
            return
        metadata = {"name": job["metadata"]["name"], "namespace": job["metadata"]["namespace"]}
        document = {"apiVersion": names.API_VERSION, "kind": names.KIND, "metadata": metadata, "status": status}
        await self._api.apply(document, "status")
        await self._tell_events(visit, known, now)
        if visit.report is not None and "report" not in before:
            await self._create(event(job, Reason.REPORTED, report_sentence(visit.report), now))

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
            await self._create(document)

    async def _create(self, document: Document) -> None:
        try:
            await self._api.create(EVENT, document)
        except ApiRefusal as refusal:
            # Whatever becomes of an event, the status has told it already.
            logger.info("event not written: %s", refusal)
