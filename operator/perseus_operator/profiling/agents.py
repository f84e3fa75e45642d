"""Asks the agents of a job's ranks what they measured. Bounded: few pipelines, short waits, answers of a known size.

An agent that does not answer is left out; the sweep decides whether the others are enough.
"""

from __future__ import annotations

import asyncio
import logging
from typing import Any

import aiohttp
from perseus_api import names
from perseus_api.errors import DocumentError
from perseus_api.job import PerseusJobSpec
from perseus_api.measurements import MAXIMUM_REPORT_BYTES, NodeReport, RankReport
from perseus_api.ranks import RankOrder

from perseus_operator.bodies import bounded_body
from perseus_operator.children import COMPONENT_OPTIMISER, COMPONENT_PROFILER, COMPONENT_TRAINER
from perseus_operator.client import POD, Api

Document = dict[str, Any]
AGENT_SELECTOR = f"{names.LABEL_COMPONENT}=agent,app.kubernetes.io/part-of=perseus-operator"
TIMEOUT_SECONDS = 10.0
MAXIMUM_PIPELINES = 8  # whose ranks are asked: more replicas of a stage tell nothing new
MAXIMUM_NODES = 2_048
DEFAULT_PORT = 9410
logger = logging.getLogger("perseus.operator")


class Agents:
    """The agents' pages of measurements."""

    def __init__(self, api: Api, namespace: str) -> None:
        """Find agents in the operator's namespace."""
        self._api = api
        self._namespace = namespace
        self._session: aiohttp.ClientSession | None = None

    async def close(self) -> None:
        """Close the connections."""
        if self._session is not None:
            await self._session.close()

    async def reports(
        self, job: Document, ranks_of_pipeline: int, pods: list[Document], orders: bool = False
    ) -> list[RankReport]:
        """Return what is known of a job's first pipelines.

        Args:
            job: the PerseusJob.
            ranks_of_pipeline: how many ranks one pipeline has.
            pods: of the job.
            orders: whether the orders that ranks run are wanted.

        Raises:
            ApiRefusal: the API server refused to list the agents.
        """
        metadata = job["metadata"]
        nodes = {
            pod["spec"]["nodeName"]
            for pod in pods
            if pod.get("spec", {}).get("nodeName") and _rank(pod) < MAXIMUM_PIPELINES * ranks_of_pipeline
        }
        if not nodes:
            return []
        addresses = [
            address
            for pod in await self._api.find(POD, self._namespace, AGENT_SELECTOR)
            if pod.get("spec", {}).get("nodeName") in nodes and (address := _address(pod))
        ][:MAXIMUM_NODES]
        query = {"namespace": metadata["namespace"], "job": metadata["name"], **({"orders": "true"} if orders else {})}
        answers = await asyncio.gather(*(self._ask(address, query) for address in addresses))
        return [
            report
            for answer in answers
            for report in answer.ranks
            if report.job_uid == metadata["uid"] and report.pipeline < MAXIMUM_PIPELINES
        ]

    async def _ask(self, address: str, query: dict[str, str]) -> NodeReport:
        if self._session is None:
            self._session = aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=TIMEOUT_SECONDS))
        try:
            async with self._session.get(f"http://{address}{names.MEASUREMENTS_PATH}", params=query) as response:
                if response.status != 200:
                    raise DocumentError(f"it answered {response.status}")
                return NodeReport.decode(await bounded_body(response, MAXIMUM_REPORT_BYTES))
        except (aiohttp.ClientError, TimeoutError, DocumentError) as error:
            logger.info("the agent at %s is left out: %s %s", address, type(error).__name__, error)
            return NodeReport()


async def trainer_pods(api: Api, namespace: str, job: str, component: str = COMPONENT_TRAINER) -> list[Document]:
    """Return the training pods of a job that are not finished, or its profiling pods.

    Raises:
        ApiRefusal: the API server refused.
    """
    pods = await api.find(POD, namespace, f"{names.LABEL_JOB}={job}")
    return [
        pod
        for pod in pods
        if (pod.get("status") or {}).get("phase") not in ("Succeeded", "Failed") and _component(pod) == component
    ]


def ranks_of_pipeline(spec: PerseusJobSpec) -> int:
    """Return how many ranks follow one another in a pipeline; all of them, where they are counted otherwise."""
    parallelism = spec.parallelism
    if parallelism.rank_order is not RankOrder.PIPELINE_STAGE_TENSOR:
        return parallelism.ranks
    return parallelism.stages * parallelism.tensor_parallel


def image_of(pods: list[Document]) -> str:
    """Return the image of the training containers with its digest; empty unless all pods run the same one.

    The first container is the one that trains, as everywhere where a pod has several.
    """
    found = set()
    for pod in pods:
        statuses = {each["name"]: each for each in (pod.get("status") or {}).get("containerStatuses") or []}
        first = pod["spec"]["containers"][0]["name"]
        found.add(str(statuses.get(first, {}).get("imageID") or ""))
    return found.pop() if len(found) == 1 else ""


def _component(pod: Document) -> str:
    """What a pod of the job is for; those of a user's own workload say nothing that we know, and train."""
    said = (pod["metadata"].get("labels") or {}).get(names.LABEL_COMPONENT, "")
    return said if said in (COMPONENT_OPTIMISER, COMPONENT_PROFILER) else COMPONENT_TRAINER


def _rank(pod: Document) -> int:
    number = (pod["metadata"].get("labels") or {}).get(names.LABEL_COMPLETION_INDEX, "")
    return int(number) if number.isdigit() else 0


def _address(pod: Document) -> str:
    status = pod.get("status") or {}
    ip = status.get("podIP")
    if not ip or status.get("phase") != "Running":
        return ""
    ports = [
        port["containerPort"]
        for container in pod["spec"]["containers"]
        for port in container.get("ports") or []
        if port.get("name") == "metrics"
    ]
    host = f"[{ip}]" if ":" in ip else ip
    return f"{host}:{ports[0] if ports else DEFAULT_PORT}"
