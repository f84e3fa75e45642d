"""What ``helm test`` asks: does this installation serve PerseusJobs? One sentence for whatever does not.

It looks from outside, as a user does: the API server's word on the operator and the agents, and dry runs of a right and
of a wrong PerseusJob. It creates nothing.
"""

from __future__ import annotations

import os
from typing import Any

from perseus_api import names

from perseus_operator.client import DAEMON_SET, DEPLOYMENT, PERSEUS_JOB, Api, ApiRefusal
from perseus_operator.settings import Settings

Document = dict[str, Any]
ENV_DAEMON_SET = "PERSEUS_AGENT_DAEMON_SET"


class SelfTestFailed(Exception):
    """Something of the installation does not work; the text says what, and what to do."""


async def selftest(settings: Settings) -> list[str]:
    """Look at everything; return what was found well, a sentence each.

    Raises:
        SelfTestFailed: something does not work.
        ApiRefusal: the API server refused to tell.
    """
    api = await Api.connect()
    try:
        return [
            operator_is_available(await api.get(DEPLOYMENT, settings.namespace, settings.deployment)),
            agents_are_ready(await api.get(DAEMON_SET, settings.namespace, os.environ.get(ENV_DAEMON_SET, ""))),
            await _right_job_is_taken(api, settings.namespace),
            await _wrong_job_is_refused(api, settings.namespace),
        ]
    finally:
        await api.close()


def operator_is_available(deployment: Document | None) -> str:
    """Return the good news of the operator's Deployment.

    Raises:
        SelfTestFailed: it is not there, or has no ready pod.
    """
    if deployment is None:
        raise SelfTestFailed("the operator's Deployment is not there: install the chart again")
    if not (deployment.get("status") or {}).get("availableReplicas"):
        raise SelfTestFailed("the operator has no ready pod: see `kubectl describe deployment` and its pod's log")
    return "the operator is available"


def agents_are_ready(daemon_set: Document | None) -> str:
    """Return the good news of the agents' DaemonSet.

    Raises:
        SelfTestFailed: it is not there, chooses no node, or an agent is not ready.
    """
    if daemon_set is None:
        raise SelfTestFailed("the agents' DaemonSet is not there: install the chart again")
    status = daemon_set.get("status") or {}
    wanted, ready = int(status.get("desiredNumberScheduled") or 0), int(status.get("numberReady") or 0)
    if wanted == 0:
        selector = (daemon_set["spec"]["template"]["spec"].get("nodeSelector")) or {}
        words = ", ".join(f"{key}={value}" for key, value in selector.items()) or "no label"
        raise SelfTestFailed(f"no node is chosen for an agent ({words}): label the GPU nodes or set agent.nodeSelector")
    if ready < wanted:
        raise SelfTestFailed(f"{ready} of {wanted} agents are ready: run `perseus-agent doctor` in the others' pods")
    return f"{ready} of {wanted} agents are ready"


async def _right_job_is_taken(api: Api, namespace: str) -> str:
    try:
        await api.create(PERSEUS_JOB, _job(namespace, microbatches=4), dry_run=True)
    except ApiRefusal as refusal:
        raise SelfTestFailed(f"the API server refuses a right PerseusJob: {refusal}; apply crds/ again") from None
    return "the API server takes a right PerseusJob"


async def _wrong_job_is_refused(api: Api, namespace: str) -> str:
    try:
        await api.create(PERSEUS_JOB, _job(namespace, microbatches=0), dry_run=True)
    except ApiRefusal as refusal:
        if refusal.status == 422 and "microbatches" in str(refusal):
            return "the API server refuses a wrong PerseusJob"
        raise
    raise SelfTestFailed(
        "the API server takes a PerseusJob without microbatches: the CRD is an old one; apply crds/ again"
    )


def _job(namespace: str, microbatches: int) -> Document:
    container = {"name": "trainer", "image": "trainer", "resources": {"limits": {names.GPU_RESOURCE: 1}}}
    return {
        "apiVersion": names.API_VERSION,
        "kind": names.KIND,
        "metadata": {"name": "perseus-selftest", "namespace": namespace},
        "spec": {
            "parallelism": {"stages": 2, "pipelines": 1, "microbatches": microbatches},
            "profiling": {"profileRef": {"name": "perseus-selftest"}},
            "template": {"spec": {"containers": [container]}},
        },
    }
