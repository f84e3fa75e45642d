"""The step that brings the order that the ranks run (spec.schedule Recorded): kept beside the job, or asked for now.

What was recorded stays until the ranks are seen to run something else; then it is recorded anew, at most every
AGAIN_SECONDS. Until the frontier of the new order is there the plan of the old one stands, which agents do not follow:
the GPUs run unlocked.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import logging
import time
from datetime import UTC, datetime

from perseus_api import names
from perseus_api.conditions import Condition, Reason
from perseus_api.errors import DocumentError
from perseus_api.job import PerseusJobSpec
from perseus_api.orders import PipelineOrders

from perseus_operator.children import Builder, Document, is_owned_by
from perseus_operator.client import CONFIG_MAP, Api
from perseus_operator.memory import Memory
from perseus_operator.monitor import JobKey
from perseus_operator.profiling.agents import Agents, ranks_of_pipeline
from perseus_operator.recording import Recorded, Unrecorded, orders_of
from perseus_operator.visit import Visit

ANNOTATION_RECORDED = f"{names.GROUP}/recorded-at"
ASK_SECONDS = 20.0  # between two looks at orders that are known
AGAIN_SECONDS = 300.0
# Steps of decoded orders kept in memory, about 150 bytes each: 150 MB at most.
MAXIMUM_STEPS = 1_000_000
logger = logging.getLogger("perseus.operator")


class OrderStep:
    """Brings orders, and remembers when it last asked for them."""

    def __init__(self, api: Api, agents: Agents, again_seconds: float = AGAIN_SECONDS) -> None:
        """Work over a connection, with the agents."""
        self._api = api
        self._agents = agents
        self._again_seconds = again_seconds
        self._asked: dict[JobKey, float] = {}
        self._strayed: set[JobKey] = set()  # whose ranks ran another order when they were last seen
        self._known: Memory[tuple[str, str], Recorded] = Memory(MAXIMUM_STEPS)

    def forget(self, key: JobKey) -> None:
        """Forget a job that is gone."""
        self._asked.pop(key, None)
        self._strayed.discard(key)

    async def bring_about(
        self, visit: Visit, builder: Builder, spec: PerseusJobSpec, pods: list[Document], condition: Condition
    ) -> bool:
        """Give the builder the orders; return whether there are any.

        Args:
            visit: gathers what is told.
            builder: of the job's children.
            spec: of the job.
            pods: that train; empty while training does not run.
            condition: that tells what is lacking.

        Raises:
            ApiRefusal: the API server refused.
        """
        name = names.orders_config_map_name(builder.name)
        config_map = await self._api.get(CONFIG_MAP, builder.namespace, name)
        kept = builder.recorded = await self._decoded(config_map, builder.uid, spec.parallelism.tensor_parallel)
        if not pods:
            self._strayed.discard(visit.key)
        last = self._asked.get(visit.key, float("-inf"))
        if kept is not None and (not pods or time.monotonic() < last + ASK_SECONDS):
            self._remark(visit, builder)
            return True
        self._asked[visit.key] = time.monotonic()
        found: PipelineOrders | Unrecorded = Unrecorded(
            Reason.RECORDING, "training does not run: there is no order to be seen"
        )
        if pods:
            reports = await self._agents.reports(visit.job, ranks_of_pipeline(spec), pods, orders=True)
            found = await asyncio.to_thread(orders_of, reports, spec.parallelism.stages)
        if isinstance(found, Unrecorded):
            if kept is None:
                visit.story.say(condition, False, found.reason, found.message)
                visit.settled, visit.measuring = False, bool(pods)
            self._remark(visit, builder)
            return kept is not None
        self._strayed.discard(visit.key)
        if kept is not None and found == kept.orders:
            return True
        if kept is not None and _age_seconds(config_map) < self._again_seconds:
            self._strayed.add(visit.key)
            self._remark(visit, builder)
            return True
        now = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        encoded = base64.b64encode(found.encode()).decode()
        await self._api.apply(builder.orders_config_map(encoded, {ANNOTATION_RECORDED: now}))
        builder.recorded = await asyncio.to_thread(Recorded.of, found, spec.parallelism.tensor_parallel)
        digest = builder.recorded.digest
        logger.info("%s/%s: the order %s is recorded%s", *visit.key, digest, ", anew" if kept else "")
        return True

    def _remark(self, visit: Visit, builder: Builder) -> None:
        """Say on every visit, not only when it is seen, that the ranks run another order than the plan's."""
        if visit.key in self._strayed:
            builder.order_remark = (
                f"; the ranks run another order by now, which is planned {self._again_seconds:.0f} s after this one at "
                "the earliest"
            )
            visit.settled = False

    async def _decoded(self, config_map: Document | None, uid: str, tensor_parallel: int) -> Recorded | None:
        """Return the orders in a ConfigMap of this very job; None if there is none, or it is damaged."""
        if config_map is None or not is_owned_by(config_map, uid):
            return None
        metadata = config_map["metadata"]
        key = metadata["uid"], metadata["resourceVersion"]
        known = self._known.get(key)
        if known is not None:
            return known
        try:
            encoded = (config_map.get("binaryData") or {}).get(names.ORDERS_KEY, "")
            orders = await asyncio.to_thread(PipelineOrders.decode, base64.b64decode(encoded, validate=True))
        except (DocumentError, binascii.Error) as error:
            logger.warning("orders in ConfigMap %s: %s; recorded anew", metadata["name"], error)
            return None
        found = await asyncio.to_thread(Recorded.of, orders, tensor_parallel)
        return self._known.put(key, found, sum(len(order) for order in orders.order))


def _age_seconds(config_map: Document | None) -> float:
    """Return how long ago orders were recorded; what makes no sense is long ago."""
    told = ((config_map or {}).get("metadata", {}).get("annotations") or {}).get(ANNOTATION_RECORDED, "")
    try:
        age = time.time() - datetime.fromisoformat(told).timestamp()
    except ValueError:
        return float("inf")
    return age if age >= 0 else float("inf")
