"""What is read out of Prometheus's answers, annotations and rules: sound, complete, or answered with a sentence."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from perseus_api import names
from perseus_api.conditions import Reason
from perseus_api.job import PerseusJobSpec
from perseus_operator import causes, prometheus
from perseus_operator.causes import Cause, RankFacts, find_cause, gather_facts
from perseus_operator.prometheus import read_history, read_pipelines
from perseus_operator.sources import pipelines_of, ratios_of, slowdown_of
from perseus_operator.status import straggler_status
from perseus_operator.steps.telling import _REASONS

from harness.objects import perseus_job

ROOT = Path(__file__).resolve().parents[2]
series = st.fixed_dictionaries(
    {},
    optional={
        "__name__": st.sampled_from(
            [
                "perseus_pipeline_seconds",
                "perseus_pipeline_iteration",
                "perseus_pipeline_iteration_begin_timestamp_seconds",
            ]
        )
        | st.text(max_size=5),
        "namespace": st.text(max_size=3),
        "job": st.text(max_size=3),
        "pipeline": st.sampled_from(["0", "1", "-1", "1e3", "٣", "99999999", ""]),
        "pod": st.text(max_size=3),
        "instance": st.text(max_size=1),
    },
)


@given(st.lists(st.tuples(series, st.floats(allow_nan=True)), max_size=20))
def test_pipelines_out_of_any_vector_are_sound(found: list[tuple[dict[str, str], float]]) -> None:
    result = [{"metric": labels, "value": [1000.0, repr(value)]} for labels, value in found]
    body = json.dumps({"status": "success", "data": {"resultType": "vector", "result": result}}).encode()
    for pipelines in read_pipelines(body, body).values():
        for number, pods in pipelines.items():
            assert 0 <= number < 10**6
            assert all(each.is_sound for each in pods)


def test_history_shows_each_measurement_once() -> None:
    metric = {"namespace": "a", "job": "b", "pipeline": "1"}
    values = [[1, "2.8"], [6, "2.8"], [11, "2.81"], [16, "NaN"], [21, "2.79"]]
    data = {"resultType": "matrix", "result": [{"metric": metric, "values": values}]}
    assert read_history(data) == {("a", "b"): {1: [2.8, 2.81, 2.79]}}


@pytest.mark.parametrize(
    ("text", "ratio"),
    [
        ("1.2", 1.2), ("1", 1.0), ("10", 10.0), ("0.9", None), ("11", None), ("120%", None), ("1,2", None),
        ("", None), ("1e1", None), ("nan", None), ("١.٢", None), ("1.2 ", None), ("9" * 5000, None),
    ],
)  # fmt: skip
def test_an_announcement_is_a_decimal_number_or_nothing(text: str, ratio: float | None) -> None:
    assert slowdown_of(text) == ratio


def test_a_querys_answer_is_slowdowns_by_pipeline_or_a_sentence() -> None:
    assert ratios_of([({"pipeline": "1"}, 1.2), ({"pipeline": "1", "x": "y"}, 1.3), ({"pipeline": "9"}, 2.0)], 2) == {
        1: 1.3
    }
    with pytest.raises(ValueError, match="no label pipeline"):
        ratios_of([({"pod": "a"}, 1.2)], 2)
    with pytest.raises(ValueError, match="between 1 and 10"):
        ratios_of([({"pipeline": "0"}, 120.0)], 2)


@pytest.mark.parametrize(
    ("order", "gpus", "index", "pipelines"),
    [
        ("PipelineStageTensor", 1, 7, {0}),
        ("PipelineStageTensor", 1, 8, {1}),
        ("PipelineStageTensor", 8, 0, {0}),
        ("PipelineStageTensor", 8, 1, {1}),
        ("PipelineStageTensor", 8, 2, set()),
        ("PipelineStageTensor", 16, 0, {0, 1}),
        ("StagePipelineTensor", 1, 2, {1}),
        ("StagePipelineTensor", 4, 0, {0, 1}),
        ("PipelineStageTensor", "none", 0, set()),
    ],
)
def test_a_pod_is_of_the_pipelines_of_all_its_ranks(order: str, gpus: object, index: int, pipelines: set[int]) -> None:
    """4 stages x 2 pipelines x 2 tensor-parallel ranks."""
    shape = {"stages": 4, "pipelines": 2, "tensorParallel": 2, "microbatches": 4, "rankOrder": order}
    spec = PerseusJobSpec.parse(perseus_job(parallelism=shape)["spec"])
    labels = {names.LABEL_JOB: "train", names.LABEL_COMPLETION_INDEX: str(index)}
    container = {"name": "trainer", "resources": {"limits": {names.GPU_RESOURCE: gpus}}}
    pod = {"metadata": {"namespace": "team", "labels": labels}, "spec": {"containers": [container]}}
    key = ("team", "train")
    assert pipelines_of(pod, {key: spec}) == (key, pipelines)
    assert pipelines_of({**pod, "status": {"phase": "Succeeded"}}, {key: spec}) == (key, set())
    assert pipelines_of(pod, {}) == (key, set())


def facts(slowdown: float | None, *reasons: str, gpu: str = "GPU-1") -> RankFacts:
    return RankFacts("pod-1", gpu, "7", slowdown, set(reasons))


@pytest.mark.parametrize(
    ("ranks", "cause"),
    [
        ([facts(1.2, "hw_thermal_slowdown"), facts(1.0, gpu="GPU-2")], Cause.HEAT),
        ([facts(1.2, "sw_power_cap"), facts(1.0, "sw_thermal_slowdown", gpu="GPU-2")], Cause.POWER_CAP),
        ([facts(1.2), facts(1.0, gpu="GPU-2")], Cause.SLOW_CHIP),
        ([facts(1.2), facts(1.18, gpu="GPU-2")], Cause.SEVERAL_GPUS),
        ([facts(1.0), facts(1.01, "sw_power_cap", gpu="GPU-2")], Cause.NETWORK_OR_INPUT),
        ([facts(None, "sw_thermal_slowdown")], Cause.HEAT),
        ([facts(None)], Cause.UNKNOWN),
        ([], Cause.UNKNOWN),
    ],
)
def test_the_cause_is_where_the_time_is_lost(ranks: list[RankFacts], cause: Cause) -> None:
    assert find_cause(ranks, 1.2).cause is cause


def test_facts_of_ranks_are_brought_together_by_all_their_labels() -> None:
    rank = {"namespace": "a", "job": "b", "pipeline": "1", "stage": "7", "tensor_rank": "0", "pod": "p", "gpu": "g"}
    found = gather_facts([(rank, 1.2), ({**rank, "namespace": "c"}, 1.0)], [({**rank, "reason": "sw_power_cap"}, 1.0)])
    assert found["a", "b"][1] == [RankFacts("p", "g", "7", 1.2, {"sw_power_cap"})]
    assert found["c", "b"][1][0].reasons == set()


def test_every_cause_has_a_reason_and_the_status_takes_it() -> None:
    schema = yaml.safe_load((ROOT / "crds" / "perseusjobs.perseus.energy.yaml").read_text())
    status = schema["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]["status"]["properties"]
    told = status["stragglers"]["items"]["properties"]["cause"]["enum"]
    assert told == [each.value for each in Cause]
    assert {each.value for each in _REASONS.values()} <= {each.value for each in Reason}
    assert set(_REASONS) == set(Cause) - {Cause.UNKNOWN}
    assert straggler_status([]) == []


def test_the_recording_rules_are_the_questions_that_the_operator_would_ask_itself() -> None:
    rules = yaml.safe_load((ROOT / "charts" / "perseus-operator" / "rules" / "recording.yaml").read_text())
    recorded = [each for group in rules["groups"] for each in group["rules"]]

    def plain(text: str) -> str:
        return text.replace("(", "").replace(")", "").replace(" ", "")

    slowdown = next(each for each in recorded if each["record"] == causes._RECORDED_SLOWDOWN)
    assert plain(slowdown["expr"]) == plain(causes._RAW_SLOWDOWN)
    for each in recorded:
        if each["record"] in prometheus._RECORDED_DRIFT:
            assert plain(each["expr"]) in plain(prometheus._RAW_DRIFT)
            assert f'"bound","{each["labels"]["bound"]}"' in plain(prometheus._RAW_DRIFT)
        if each["record"] in prometheus._RECORDED_GENERATIONS:
            assert each["expr"] in prometheus._RAW_GENERATIONS
            assert f'"kind", "{each["labels"]["kind"]}"' in prometheus._RAW_GENERATIONS
    version = next(each for each in recorded if each["record"] == prometheus._RULES)
    assert version["expr"] == f"vector({prometheus.RECORDING_RULES_VERSION})"
