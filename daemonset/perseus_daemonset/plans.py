"""The plans that the agent holds: each one checked, none older than the one before, the last good one kept. No I/O."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable

from perseus_api import names
from perseus_api.errors import DocumentError
from perseus_api.plan import Plan

JobKey = tuple[str, str]  # namespace, name
logger = logging.getLogger("perseus.agent")


class PlanStore:
    """Plans by job.

    Attributes:
        rejected: refused plans by (namespace, job, reason).
        on_change: called with a job whose plan is new or withdrawn.
    """

    def __init__(self) -> None:
        """Begin empty."""
        self.rejected: dict[tuple[str, str, str], int] = {}
        self.on_change: Callable[[JobKey], None] = lambda _: None
        self._plans: dict[str, Plan] = {}  # by ConfigMap
        self._mutex = threading.Lock()

    def find(self, namespace: str, job: str) -> Plan | None:
        """Return a job's plan."""
        with self._mutex:
            return self._plans.get(names.plan_config_map_name(namespace, job))

    def put(self, config_map: str, claimed: JobKey, data: bytes | None) -> None:
        """Take a plan ConfigMap's content; a bad one is refused with a reason, and the last good one stays.

        Args:
            config_map: its name, which a plan must fit.
            claimed: the job that its labels name, for the books of refusals.
            data: content of the plan's key, None if it is missing.
        """
        with self._mutex:
            before = self._plans.get(config_map)
        try:
            if data is None:
                raise DocumentError(f"the ConfigMap has no key {names.PLAN_KEY}")
            plan = Plan.decode(data)
        except DocumentError as error:
            self._refuse(config_map, claimed, "invalid", str(error))
            return
        if names.plan_config_map_name(plan.job.namespace, plan.job.name) != config_map:
            text = f"the plan is for {plan.job.namespace}/{plan.job.name}, whose ConfigMap has another name"
            self._refuse(config_map, claimed, "foreign", text)
            return
        if before is not None and before.job.uid == plan.job.uid:
            if plan == before:
                return
            if plan.generation <= before.generation:
                text = f"generation {plan.generation} is not newer than {before.generation}"
                self._refuse(config_map, claimed, "old", text)
                return
        with self._mutex:
            self._plans[config_map] = plan
        logger.info(
            "plan %d for %s/%s from iteration %d",
            plan.generation, plan.job.namespace, plan.job.name, plan.first_iteration,
        )  # fmt: skip
        self.on_change((plan.job.namespace, plan.job.name))

    def remove(self, config_map: str) -> None:
        """Withdraw a plan."""
        with self._mutex:
            plan = self._plans.pop(config_map, None)
        if plan is not None:
            logger.info("the plan for %s/%s was withdrawn", plan.job.namespace, plan.job.name)
            self.on_change((plan.job.namespace, plan.job.name))

    def replace(self, present: set[str]) -> None:
        """Withdraw all plans whose ConfigMaps are not in a whole listing."""
        with self._mutex:
            gone = [name for name in self._plans if name not in present]
        for name in gone:
            self.remove(name)

    def _refuse(self, config_map: str, claimed: JobKey, reason: str, text: str) -> None:
        key = (*claimed, reason)
        with self._mutex:
            self.rejected[key] = self.rejected.get(key, 0) + 1
        logger.warning("ConfigMap %s refused: %s", config_map, text)
