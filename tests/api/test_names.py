"""Names that are computed: no two jobs share a plan ConfigMap, and every name is one that Kubernetes takes."""

from __future__ import annotations

import re

from hypothesis import given
from hypothesis import strategies as st
from perseus_api import metrics, names

JOB_NAME = st.from_regex(r"[a-z]([-a-z0-9]{0,46}[a-z0-9])?", fullmatch=True)
NAMESPACE = st.from_regex(r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?", fullmatch=True)


@given(NAMESPACE, JOB_NAME)
def test_a_plan_config_map_has_a_valid_name(namespace: str, name: str) -> None:
    made = names.plan_config_map_name(namespace, name)
    assert re.fullmatch(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?", made)
    assert len(made) <= 63


@given(NAMESPACE, JOB_NAME, NAMESPACE, JOB_NAME)
def test_two_jobs_never_share_a_plan(one_namespace: str, one: str, other_namespace: str, other: str) -> None:
    same_job = (one_namespace, one) == (other_namespace, other)
    same_name = names.plan_config_map_name(one_namespace, one) == names.plan_config_map_name(other_namespace, other)
    assert same_job == same_name


def test_metrics_carry_base_units_and_counters_end_in_total() -> None:
    every = {**metrics.AGENT_METRICS, **metrics.OPERATOR_METRICS}
    assert len(every) == len(metrics.AGENT_METRICS) + len(metrics.OPERATOR_METRICS), "one name, two exporters"
    for name, text in every.items():
        assert re.fullmatch(r"perseus_[a-z_]+", name)
        assert not re.search(r"_(ms|milliseconds|mhz|megahertz|mj|percent)(_|$)", name), "base units only"
        assert text.endswith((".", ")."))
