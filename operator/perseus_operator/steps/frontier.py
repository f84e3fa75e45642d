"""The step that has the frontier made: the ConfigMap, the optimisation Job and its access. It computes nothing."""

from __future__ import annotations

import asyncio
import base64
import binascii
import hashlib
import logging

from perseus_api import names
from perseus_api.conditions import Condition, Reason
from perseus_api.errors import DocumentError
from perseus_api.frontier import Frontier

from perseus_operator.children import Builder, Document
from perseus_operator.client import CONFIG_MAP, POD, Api
from perseus_operator.memory import Memory
from perseus_operator.profiles import LoadedProfile
from perseus_operator.steps.drift import Drift
from perseus_operator.upkeep import ensure, job_condition, put_right
from perseus_operator.visit import Visit

# Clocks of decoded frontiers kept in memory, about 40 bytes each: 80 MB at most.
MAXIMUM_CLOCKS = 2_000_000
logger = logging.getLogger("perseus.operator")


class FrontierStep:
    """Has frontiers made, and remembers those that it decoded: jobs of one model share one."""

    def __init__(self, api: Api) -> None:
        """Work over a connection."""
        self._api = api
        self._frontiers: Memory[str, Frontier] = Memory(MAXIMUM_CLOCKS)

    async def bring_about(
        self, visit: Visit, builder: Builder, profile: LoadedProfile, drift: Drift
    ) -> Frontier | None:
        """Return the frontier of this profile and the corrections of its times, or have it made.

        Raises:
            ApiRefusal: the API server refused.
        """
        corrections = drift.corrections
        checksum = builder.stamp(corrections.checksum)
        wanted = builder.frontier_config_map()
        present = await put_right(self._api, wanted, drift.config_map)
        try:
            frontier = await self._decoded(present)
        except (DocumentError, binascii.Error) as error:
            logger.warning("%s/%s: %s; it is made anew", *visit.key, error)
            # Its deletion brings the next visit, which has another one made and filled.
            await self._api.delete(CONFIG_MAP, builder.namespace, present["metadata"]["name"], present)
            words = "the frontier's ConfigMap was damaged: the frontier is computed again"
            visit.story.say(Condition.FRONTIER_READY, False, Reason.OPTIMISING, words)
            return None
        if frontier is not None and frontier.profile_checksum == checksum:
            words = (
                f"{len(frontier.plans)} plans from {frontier.plans[0].iteration_seconds:.3f} s to "
                f"{frontier.plans[-1].iteration_seconds:.3f} s"
            )
            if corrections.factors:
                words += f"; from corrected times, up to {corrections.largest:.3f} of the profile's"
            if builder.recorded is not None:
                words += f"; {_told(frontier)} that the ranks were seen to run{builder.order_remark}"
            visit.story.say(Condition.FRONTIER_READY, True, Reason.OPTIMISED, words)
            return frontier
        # The ConfigMap and the Job are watched: whatever becomes of them brings the next visit.
        for document in builder.optimiser_access():
            await ensure(self._api, document)
        target = present["metadata"]["uid"]
        optimiser = await ensure(self._api, builder.optimiser_job(checksum, target, profile.name))
        failed = job_condition(optimiser, "Failed")
        if failed is not None:
            words = await self._last_words(builder.namespace, optimiser["metadata"]["name"]) or failed
            visit.story.say(Condition.FRONTIER_READY, False, Reason.OPTIMISATION_FAILED, words)
        else:
            words = f"Job {optimiser['metadata']['name']} computes the frontier"
            visit.story.say(Condition.FRONTIER_READY, False, Reason.OPTIMISING, words)
        return None

    async def _decoded(self, config_map: Document) -> Frontier | None:
        encoded = (config_map.get("binaryData") or {}).get(names.FRONTIER_KEY)
        if not encoded:
            return None
        digest = hashlib.sha256(encoded.encode()).hexdigest()
        known = self._frontiers.get(digest)
        if known is not None:
            return known
        frontier = await asyncio.to_thread(Frontier.decode, base64.b64decode(encoded, validate=True))
        clocks = (1 + len(frontier.plans)) * sum(len(order) for order in frontier.order)
        return self._frontiers.put(digest, frontier, clocks)

    async def _last_words(self, namespace: str, job: str) -> str:
        for pod in await self._api.find(POD, namespace, f"batch.kubernetes.io/job-name={job}"):
            for container in (pod.get("status") or {}).get("containerStatuses") or []:
                message = ((container.get("state") or {}).get("terminated") or {}).get("message")
                if message:
                    return str(message).strip().splitlines()[-1]
        return ""


def _told(frontier: Frontier) -> str:
    shape = frontier.shape
    chunks = f", {shape.chunks} chunks{' in V shape' if shape.v_shape else ''}" if shape.chunks > 1 else ""
    return f"for the order ({shape.microbatches} microbatches{chunks})"
