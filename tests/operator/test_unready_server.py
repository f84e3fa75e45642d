"""An API server that has just started and not yet read its roles forbids everything: what of that is believed."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import aiohttp
import kubernetes.aio.client
import kubernetes.aio.config
import pytest
from perseus_api import names
from perseus_operator import client
from perseus_operator.client import PERSEUS_JOB, Api, ApiRefusal, is_away

sys.path.insert(0, str(Path(__file__).parent))
from bare import BareCluster

from harness.controlplane import free_port
from harness.proxy import Answer, Fault, Moment, Proxy, Request

pytestmark = pytest.mark.cluster
FORBIDDEN, UNREADY = Answer(403, "Forbidden"), Answer(500, "InternalError")


@pytest.fixture
def port() -> int:
    """Of what stands before the API server."""
    return free_port()


@pytest.fixture
def proxy(bare: BareCluster, port: int) -> Iterator[Proxy]:
    """Stands before the API server and answers in its place."""
    with Proxy(bare.plane.url, bare.plane.certificate, port) as found:
        yield found


@pytest.fixture
async def api(bare: BareCluster, port: int) -> AsyncIterator[Api]:
    """The operator's connection, over the proxy."""
    kubeconfig = bare.plane.credentials(bare.folder / "unready", url=f"http://127.0.0.1:{port}")
    configuration = kubernetes.aio.client.Configuration()
    await kubernetes.aio.config.load_kube_config(str(kubeconfig), client_configuration=configuration)
    found = Api(kubernetes.aio.client.ApiClient(configuration), names.FIELD_MANAGER_OPERATOR)
    yield found
    await found.close()


def forbidding(readiness: Answer | None, times: int = 1_000) -> Fault:
    """Forbid the first requests; of its readiness tell something else than the server does, or nothing else."""
    refused = []

    def fault(request: Request, moment: Moment) -> Answer | None:
        if moment is Moment.AFTER:
            return None
        if request.path == "/readyz":
            return readiness
        refused.append(request)
        return FORBIDDEN if len(refused) <= times else None

    return fault


async def refusal_of(api: Api, namespace: str) -> ApiRefusal:
    with pytest.raises(ApiRefusal) as found:
        await api.find(PERSEUS_JOB, namespace)
    return found.value


async def test_the_refusal_of_a_server_that_is_not_ready_is_its_absence(api: Api, proxy: Proxy, home: str) -> None:
    proxy.inject(forbidding(UNREADY))
    assert is_away(await refusal_of(api, home))
    proxy.inject(None)
    assert await api.find(PERSEUS_JOB, home) == []


async def test_a_server_that_became_ready_after_its_refusal_is_asked_again(api: Api, proxy: Proxy, home: str) -> None:
    proxy.inject(forbidding(None, times=1))
    assert await api.find(PERSEUS_JOB, home) == []
    assert proxy.injected == 1


async def test_the_refusal_of_a_server_that_is_ready_counts(api: Api, proxy: Proxy, home: str) -> None:
    proxy.inject(forbidding(None))
    assert (await refusal_of(api, home)).status == 403


async def test_a_server_that_never_says_it_is_ready_is_believed_in_the_end_but_not_right_after_another_start(
    api: Api, bare: BareCluster, port: int, home: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    # More than all attempts of a request take.
    monkeypatch.setattr(client, "_LEARNING_SECONDS", 5.0)
    with Proxy(bare.plane.url, bare.plane.certificate, port) as silent:
        silent.inject(forbidding(FORBIDDEN))
        assert is_away(await refusal_of(api, home))
        await asyncio.sleep(5)
        assert (await refusal_of(api, home)).status == 403
    with pytest.raises(aiohttp.ClientConnectorError):
        await api.find(PERSEUS_JOB, home)
    with Proxy(bare.plane.url, bare.plane.certificate, port) as silent:
        silent.inject(forbidding(FORBIDDEN))
        assert is_away(await refusal_of(api, home))
