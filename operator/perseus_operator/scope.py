"""Which namespaces are served: all of the cluster, or those that the chart names (`watchNamespaces`).

In the second case every right is given by namespace. A namespace that was deleted has none any more, and kopf ends with
a watch that is refused for ten minutes: what cannot be read is left out at the start, so that the others are served,
and looked for again on the rounds.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable

from perseus_operator.client import PERSEUS_JOB, Api, ApiRefusal, Document
from perseus_operator.settings import Settings, SettingsError

EVERYWHERE = ""
logger = logging.getLogger("perseus.operator")


class Scope:
    """The namespaces that are served, and those that wait for their rights.

    Attributes:
        returned: those of the latter that were found to have them; a restart serves them.
    """

    def __init__(self, served: Iterable[str] = (EVERYWHERE,), left_out: Iterable[str] = ()) -> None:
        """Serve namespaces; use `find_scope`."""
        self.served = tuple(served)
        self.left_out = tuple(left_out)
        self.returned: list[str] = []

    @property
    def is_everywhere(self) -> bool:
        """Whether the whole cluster is served."""
        return self.served == (EVERYWHERE,)

    def serves(self, namespace: str) -> bool:
        """Whether a namespace's jobs are served."""
        return self.is_everywhere or namespace in self.served

    async def jobs(self, api: Api) -> list[Document]:
        """Return all jobs that are served, and look for those that wait.

        Raises:
            ApiRefusal: the API server refused.
        """
        self.returned = [namespace for namespace in self.left_out if not await _refused(api, namespace)]
        return [job for namespace in self.served for job in await api.find(PERSEUS_JOB, namespace)]


async def find_scope(api: Api, settings: Settings) -> Scope:
    """Return what can be served of the namespaces that the chart names.

    Raises:
        ApiRefusal: the API server refused for another reason than rights.
        SettingsError: nothing can be.
    """
    refused = {each: await _refused(api, each) for each in settings.watch_namespaces}
    served = [namespace for namespace, words in refused.items() if not words]
    left_out = [namespace for namespace, words in refused.items() if words]
    for namespace in left_out:
        logger.error("namespace %s is left out: %s; run helm upgrade once it is there", namespace, refused[namespace])
    if not served:
        words = next(iter(refused.values()))
        raise SettingsError(f"none of watchNamespaces can be read: {words}; install the chart again")
    logger.info("jobs in %s are served; announcements on nodes are not read", ", ".join(served))
    return Scope(served, left_out)


async def _refused(api: Api, namespace: str) -> str:
    """Return why a namespace's jobs must not be read; empty if they may."""
    try:
        await api.find(PERSEUS_JOB, namespace)
    except ApiRefusal as refusal:
        if refusal.status != 403:
            raise
        return str(refusal)
    return ""
