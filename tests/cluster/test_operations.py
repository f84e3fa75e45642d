"""What the operator tells of itself where it is installed: logs as objects, traces, metrics, health."""

from __future__ import annotations

import json
import urllib.request
from collections.abc import Iterator
from typing import Any

import pytest
from product import Training, pod_of, small_training, wait_until
from prometheus_client.parser import text_string_to_metric_families

from harness.traces import Collector
from testbed.folders import Folders
from testbed.installation import OPERATOR_PORT, SYSTEM_NAMESPACE, Installation
from testbed.site import Site

pytestmark = pytest.mark.cluster
VISIT = "visit"


@pytest.fixture(scope="module")
def collector(installation: Installation) -> Iterator[Collector]:
    """Takes the traces of the operator, which is installed so; at the host's address in the pods' network."""
    with Collector(Site(Folders.from_environment()).host_address) as found:
        installation.install_chart("operator.logFormat=json", f"operator.tracing.endpoint={found.url}")
        try:
            yield found
        finally:
            installation.install_chart()


@pytest.fixture(scope="module")
def training(collector: Collector, installation: Installation) -> Iterator[Training]:
    """A job that the operator has brought to its plan."""
    with small_training(installation) as small:
        yield small


@pytest.fixture
def operator_url(training: Training, installation: Installation) -> str:
    """Where the operator's pages are."""
    return f"http://{pod_of(installation, 'operator')['status']['podIP']}:{OPERATOR_PORT}"


def test_every_line_of_its_log_is_an_object_and_a_visits_names_the_job(
    training: Training, installation: Installation
) -> None:
    (pod,) = installation.pods("operator")
    lines = installation.kubectl("logs", "-n", SYSTEM_NAMESPACE, pod).splitlines()
    told = [json.loads(line) for line in lines]
    assert all({"time", "level", "logger", "message"} <= set(each) for each in told)
    assert {(each["namespace"], each["generation"]) for each in told if each.get("job") == training.name} == {
        (training.namespace, 1)
    }


def test_a_visit_is_a_span_with_its_requests_below_it(training: Training, collector: Collector) -> None:
    def visits() -> list[Any]:
        wanted = {"perseus.namespace": training.namespace, "perseus.job": training.name}
        return [
            span
            for span in list(collector.spans)
            if span.name == VISIT and {each.key: each.value.string_value for each in span.attributes} == wanted
        ]

    wait_until("a visit of the job is traced", visits, 60)
    first = visits()[0]
    wait_until(
        "its requests are traced", lambda: any(each.parent_span_id == first.span_id for each in collector.spans), 30
    )


def test_it_measures_itself(operator_url: str) -> None:
    pages = urllib.request.urlopen(f"{operator_url}/metrics", timeout=5).read().decode()
    families = {family.name: family for family in text_string_to_metric_families(pages)}
    values = {
        sample.name: sample.value
        for family in families.values()
        for sample in family.samples
        if sample.name.startswith("perseus_operator_") and not sample.name.endswith(("_bucket", "_created"))
    }
    for name in (
        "perseus_operator_reconcile_seconds_count", "perseus_operator_reconciles_total",
        "perseus_operator_api_writes_total", "perseus_operator_api_request_seconds_count",
        "perseus_operator_build_info",
    ):  # fmt: skip
        assert values[name] > 0, name
    assert values["perseus_operator_queue_depth"] >= 0
    assert values["perseus_operator_queue_overdue_seconds"] >= 0
    assert "perseus_operator_visit_errors" in families, "errors by reason, once there are any"


@pytest.mark.parametrize("page", ["healthz", "readyz"])
def test_it_says_that_it_is_well(operator_url: str, page: str) -> None:
    with urllib.request.urlopen(f"{operator_url}/{page}", timeout=5) as answer:
        assert answer.status == 200
