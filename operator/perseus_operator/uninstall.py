"""What must happen before ``helm uninstall`` takes the operator away: nobody is left with a finalizer or a lock.

The operator is stopped first, or it would put back what is taken away. Jobs and training stay: training goes on at
full speed.
"""

from __future__ import annotations

import asyncio
import logging
import time

from perseus_api import names

from perseus_operator.client import CONFIG_MAP, DEPLOYMENT, PERSEUS_JOB, POD, Api
from perseus_operator.settings import Settings

STOP_SECONDS = 60.0
OPERATOR_PODS = "app.kubernetes.io/part-of=perseus-operator,app.kubernetes.io/component=operator"
logger = logging.getLogger("perseus.operator")


async def uninstall(settings: Settings) -> None:
    """Stop the operator, withdraw all plans, take our finalizer from all jobs.

    Raises:
        ApiRefusal: the API server refused.
        TimeoutError: the operator does not stop.
    """
    api = await Api.connect()
    try:
        if settings.deployment:
            await api.merge(DEPLOYMENT, settings.namespace, settings.deployment, {"spec": {"replicas": 0}}, "scale")
            await _wait_for_the_operator(api, settings.namespace)
        selector = f"{names.LABEL_DOCUMENT}={names.DOCUMENT_PLAN}"
        plans = await api.find(CONFIG_MAP, settings.namespace, selector)
        for plan in plans:
            await api.delete(CONFIG_MAP, settings.namespace, plan["metadata"]["name"])
        freed = 0
        # By namespace none was ever held (`Settings.holds_jobs`), and there is no right to look.
        for job in await api.find(PERSEUS_JOB, "") if settings.holds_jobs else ():
            metadata = job["metadata"]
            finalizers = metadata.get("finalizers") or []
            if names.FINALIZER in finalizers:
                left = [each for each in finalizers if each != names.FINALIZER]
                patch = {"metadata": {"finalizers": left or None, "resourceVersion": metadata["resourceVersion"]}}
                await api.merge(PERSEUS_JOB, metadata["namespace"], metadata["name"], patch)
                freed += 1
        logger.info("withdrew %d plans, freed %d jobs", len(plans), freed)
    finally:
        await api.close()


async def _wait_for_the_operator(api: Api, namespace: str) -> None:
    deadline = time.monotonic() + STOP_SECONDS
    while await api.find(POD, namespace, OPERATOR_PODS):
        if time.monotonic() > deadline:
            raise TimeoutError(f"the operator's pod is still there after {STOP_SECONDS:.0f} s")
        await asyncio.sleep(0.5)
