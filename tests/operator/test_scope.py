"""Which namespaces are served, and what happens when the rights in one of them are gone."""

from __future__ import annotations

import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import pytest
from perseus_api import names
from perseus_operator.client import Api, ApiRefusal, Kind
from perseus_operator.health import Health
from perseus_operator.scope import Scope, find_scope
from perseus_operator.settings import Settings, SettingsError

from harness import rights
from harness.controlplane import SYSTEM, free_port
from harness.objects import core_path, job_path, perseus_job, profile_config_map
from harness.operator import OperatorProcess

sys.path.insert(0, str(Path(__file__).parent))
from bare import BareCluster, eventually

ENVIRONMENT = {"PERSEUS_OPERATOR_NAMESPACE": SYSTEM}
# A release beside that whose operator serves the whole cluster.
RELEASE = "confined"
# More than all attempts of one of our requests take, and than the first pauses between kopf's.
OUTAGE_SECONDS = 8.0


class _Granting:
    """An API server that knows one thing: where jobs may be read."""

    def __init__(self, *allowed: str) -> None:
        self.allowed = set(allowed)

    async def find(self, kind: Kind, namespace: str) -> list[dict[str, Any]]:
        if namespace not in self.allowed:
            raise ApiRefusal(403, "Forbidden", f"cannot list {kind.plural} in {namespace}")
        return [{"metadata": {"namespace": namespace}}]


def settings_of(text: str) -> Settings:
    return Settings.from_environment({**ENVIRONMENT, "PERSEUS_WATCH_NAMESPACES": text})


def test_names_of_namespaces_are_read_as_the_chart_writes_them() -> None:
    assert settings_of("").watch_namespaces == ()
    assert settings_of("").holds_jobs
    assert settings_of("a,b").watch_namespaces == ("a", "b")
    assert not settings_of("a,b").holds_jobs


@pytest.mark.parametrize("text", ["Team", "a,*", "a b", "-a", "a" * 64, "!a"])
def test_what_is_no_name_of_a_namespace_is_refused(text: str) -> None:
    with pytest.raises(SettingsError, match="is no name of a namespace"):
        settings_of(text)


async def test_a_namespace_without_rights_is_left_out_and_told_when_it_has_them_again() -> None:
    granting = _Granting("a")
    api = cast(Api, granting)
    scope = await find_scope(api, settings_of("a,b"))
    assert (scope.served, scope.left_out) == (("a",), ("b",))
    assert scope.serves("a")
    assert not scope.serves("b")
    assert [job["metadata"]["namespace"] for job in await scope.jobs(api)] == ["a"]
    health = Health()
    health.begins(cast(Any, _Calm()), cast(Any, _Calm()), scope)
    assert health.troubles() == []
    granting.allowed.add("b")
    await scope.jobs(api)
    assert "namespace b" in health.troubles()[0]


async def test_with_rights_nowhere_the_operator_says_so_instead_of_idling() -> None:
    with pytest.raises(SettingsError, match="none of watchNamespaces can be read: cannot list perseusjobs in a"):
        await find_scope(cast(Api, _Granting()), settings_of("a,b"))


def test_the_whole_cluster_is_served_without_a_question() -> None:
    assert Scope().serves("anything")


class _Calm:
    """A queue and a backstop without troubles."""

    missed: tuple[str, ...] = ()

    def overdue_seconds(self) -> float:
        return 0.0

    def longest_visit_seconds(self) -> float:
        return 0.0


@pytest.fixture
def confined(bare: BareCluster, home: str) -> Iterator[OperatorProcess]:
    """The operator with the chart's rights in `home`; a namespace that it is to serve as well is not there."""
    chart = rights.rendered((home, "nowhere"), RELEASE)
    documents = [each for each in chart if each["metadata"].get("namespace") in (home, SYSTEM)]
    rights.install(bare.plane.client, documents)
    # What is granted in a namespace that is not there yet counts as well: to ask for it is no fault.
    bare.plane.grants += chart
    kubeconfig = bare.plane.credentials(bare.folder / "confined", f"{RELEASE}-operator")
    log, watched = bare.folder / "confined.log", f"{home},nowhere"
    with OperatorProcess(kubeconfig, log, free_port(), PERSEUS_WATCH_NAMESPACES=watched) as process:
        yield process
    for document in documents:
        namespace = document["metadata"]["namespace"]
        bare.kubectl("delete", document["kind"], document["metadata"]["name"], "-n", namespace)


@pytest.mark.cluster
@pytest.mark.parametrize("which", ["operator", "confined"])
def test_an_operator_that_starts_while_the_api_server_is_away_waits_for_it(
    bare: BareCluster, home: str, which: str, request: pytest.FixtureRequest
) -> None:
    process: OperatorProcess = request.getfixturevalue(which)
    process.kill()
    bare.plane.kill_part("api")
    try:
        process.start()
        eventually("its page is there", lambda: process.is_well("healthz"))
        time.sleep(OUTAGE_SECONDS)
        assert process.runs
        assert process.page("healthz") == (200, "ok\n"), "a restart would bring no API server back"
    finally:
        bare.plane.start_part("api")
        bare.plane.wait_until_ready()
    bare.apply(home, profile_config_map(), perseus_job())
    eventually("the frontier's ConfigMap", lambda: bare.find("configmap", home, "train-frontier"))
    assert process.starts == 2, "one by its fixture, one by this test"


@pytest.mark.cluster
def test_an_operator_that_waits_for_the_api_server_ends_when_it_is_told_to(bare: BareCluster, tmp_path: Path) -> None:
    nobody = bare.plane.credentials(tmp_path / "kubeconfig", url=f"http://127.0.0.1:{free_port()}")
    with OperatorProcess(nobody, tmp_path / "log", free_port(), PERSEUS_WATCH_NAMESPACES="team") as process:
        eventually("it waits", lambda: "no API server yet" in process.log.read_text())
        assert process.terminate() == 128 + signal.SIGTERM
    assert "Traceback" not in process.log.read_text()


@pytest.mark.cluster
def test_a_job_is_served_and_let_go_by_namespace(bare: BareCluster, confined: OperatorProcess, home: str) -> None:
    """Also: the finalizer of an operator that served the whole cluster is taken off, and a deleted plan comes back."""
    job = perseus_job()
    job["metadata"]["finalizers"] = [names.FINALIZER]
    bare.apply(home, profile_config_map(), job)
    eventually("the frontier's ConfigMap", lambda: bare.find("configmap", home, "train-frontier"))
    bare.optimise(home, "train")
    eventually("the plan", lambda: bare.plan(home, "train"))
    found = bare.find("perseusjob", home, "train")
    assert found is not None
    assert "finalizers" not in found["metadata"], "rights in a namespace may be gone before its jobs"
    plan = core_path("configmaps", SYSTEM, names.plan_config_map_name(home, "train"))
    bare.plane.client.delete(plan)
    eventually("the plan comes back", lambda: bare.plan(home, "train"))
    bare.plane.client.delete(job_path(home, "train"))
    eventually("the plan is withdrawn", lambda: bare.plan(home, "train") is None)
    assert "namespace nowhere is left out" in confined.log.read_text()
