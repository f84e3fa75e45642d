"""Children, conditions and plans as documents: equal jobs give equal objects, a user's template is kept."""

from __future__ import annotations

import copy
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from perseus_api import names
from perseus_api.conditions import Condition, Reason
from perseus_api.job import PerseusJobSpec
from perseus_api.plan import JobReference
from perseus_api.profile import Profile, StageGpu
from perseus_daemonset.follower import RankPlan
from perseus_operator.children import (
    ANNOTATION_HASH,
    ANNOTATION_TEMPLATE,
    Builder,
    TemplateProblem,
    changeable,
    is_up_to_date,
)
from perseus_operator.conditions import Story
from perseus_operator.planning import FASTEST, STRETCHED, Stragglers, make_plan, predicted_savings, same_clocks
from perseus_operator.profiles import ProfileProblem, load_profile
from perseus_operator.settings import Settings, SettingsError
from perseus_planner import Pipeline, frontier
from perseus_simulator.testing import example_profile

SETTINGS = Settings("perseus-system", "http://prometheus", "optimiser:1", "IfNotPresent", 9411, "perseus-operator")
REFERENCE = JobReference(namespace="team", name="train", uid="uid-1")


def job(**spec: Any) -> dict[str, Any]:
    return {
        "metadata": {"name": "train", "namespace": "team", "uid": "uid-1", "generation": 1},
        "spec": {
            "parallelism": {"stages": 2, "pipelines": 3, "microbatches": 4},
            "profiling": {"profileRef": {"name": "profile"}},
            "template": {
                "metadata": {"labels": {"team": "a"}},
                "spec": {
                    "containers": [
                        {
                            "name": "main",
                            "image": "x",
                            "env": [{"name": names.ENV_STAGES, "value": "mine"}],
                            "resources": {"limits": {names.GPU_RESOURCE: 1}},
                        },
                        {"name": "side", "image": "y"},
                    ]
                },
            },
            **spec,
        },
    }


def builder(**spec: Any) -> Builder:
    document = job(**spec)
    return Builder(document, PerseusJobSpec.parse(document["spec"]), SETTINGS)


def test_the_workload_keeps_the_users_template_and_adds_the_variables() -> None:
    workload = builder().workload()
    assert workload["spec"]["completions"] == workload["spec"]["parallelism"] == 6
    template = workload["spec"]["template"]
    assert template["metadata"]["labels"]["team"] == "a"
    main, side = template["spec"]["containers"]
    assert [each["value"] for each in main["env"] if each["name"] == names.ENV_STAGES] == ["mine"]
    assert {each["name"] for each in side["env"]} == {
        names.ENV_RANK, names.ENV_STAGES, names.ENV_PIPELINES, names.ENV_TENSOR_PARALLEL, names.ENV_MICROBATCHES,
        names.ENV_SCHEDULE, names.ENV_CHUNKS, names.ENV_COORDINATOR, names.ENV_RANK_ORDER,
    }  # fmt: skip
    assert template["spec"]["subdomain"] == builder().service()["metadata"]["name"]


def with_gpus(count: Any, **metadata: Any) -> Builder:
    document = job()
    document["metadata"].update(metadata)
    containers = document["spec"]["template"]["spec"]["containers"]
    containers[0]["resources"] = {"limits": {names.GPU_RESOURCE: count}}
    return Builder(document, PerseusJobSpec.parse(document["spec"]), SETTINGS)


def test_pods_of_several_gpus_are_as_many_as_the_ranks_need() -> None:
    workload = with_gpus("2").workload()
    assert (workload["spec"]["completions"], workload["spec"]["parallelism"]) == (3, 3)
    variables = {each["name"] for each in workload["spec"]["template"]["spec"]["containers"][1]["env"]}
    assert names.ENV_RANK not in variables, "torchrun numbers the ranks in a pod of several"
    assert names.ENV_RANK_ORDER in variables


@pytest.mark.parametrize("count", [0, 4, "none"])
def test_ranks_that_do_not_divide_into_pods_are_a_problem_of_the_template(count: Any) -> None:
    with pytest.raises(TemplateProblem, match=r"6 ranks .* correct the limit of nvidia.com/gpu"):
        with_gpus(count).workload()


def test_in_a_queue_its_controller_says_when_training_starts() -> None:
    queued = with_gpus(1, labels={"kueue.x-k8s.io/queue-name": "gpus", "mine": "no"}).workload()
    assert queued["metadata"]["labels"]["kueue.x-k8s.io/queue-name"] == "gpus"
    assert "mine" not in queued["metadata"]["labels"]
    assert "suspend" not in queued["spec"]
    assert with_gpus(1).workload()["spec"]["suspend"] is False


def test_what_runs_keeps_its_pod_template() -> None:
    """An operator of another version makes other templates; Kubernetes lets nobody change that of a Job."""
    workload = with_gpus(1).workload()
    patch = changeable(workload, workload)
    assert "template" not in patch["spec"]
    assert patch["spec"]["suspend"] is False
    assert ANNOTATION_TEMPLATE not in patch["metadata"]["annotations"], "it tells what the Job was made from"


def test_what_runs_keeps_as_many_pods_as_its_template_asks_for() -> None:
    running, wanted = with_gpus(1).workload(), with_gpus(2).workload()
    assert changeable(running, running)["spec"]["completions"] == 6, "a person's edit is taken back"
    assert not {"template", "completions", "parallelism"} & set(changeable(wanted, running)["spec"])
    wanted["metadata"]["annotations"] |= {ANNOTATION_HASH: running["metadata"]["annotations"][ANNOTATION_HASH]}
    assert is_up_to_date(wanted, running)


def test_a_time_to_live_is_given_when_the_job_may_go() -> None:
    mortal = builder(ttlSecondsAfterFinished=5)
    assert "ttlSecondsAfterFinished" not in mortal.workload()["spec"]
    assert mortal.workload(expires=True)["spec"]["ttlSecondsAfterFinished"] == 5


def test_building_changes_nothing_of_the_job() -> None:
    document = job()
    before = copy.deepcopy(document)
    Builder(document, PerseusJobSpec.parse(document["spec"]), SETTINGS).workload()
    assert document == before


def test_the_optimisation_pod_may_write_one_config_map_and_nothing_else() -> None:
    _, role, _ = builder().optimiser_access()
    assert role["rules"] == [
        {
            "apiGroups": [""],
            "resources": ["configmaps"],
            "resourceNames": ["train-frontier"],
            "verbs": ["patch"],
        }
    ]
    pod = builder().optimiser_job("sha256:1", "uid", "profile")["spec"]["template"]["spec"]
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert pod["containers"][0]["securityContext"]["readOnlyRootFilesystem"] is True
    assert names.GPU_RESOURCE not in str(pod)


def test_another_profile_is_another_optimisation() -> None:
    assert builder().optimiser_job_name("sha256:1", "uid") != builder().optimiser_job_name("sha256:2", "uid")
    assert len(builder().optimiser_job_name("sha256:1", "uid")) <= 63


def test_every_child_carries_label_and_owner() -> None:
    made = builder()
    for child in (made.service(), made.workload(), made.frontier_config_map(), *made.optimiser_access()):
        assert child["metadata"]["labels"][names.LABEL_JOB] == "train"
        assert child["metadata"]["ownerReferences"][0]["uid"] == "uid-1"
    plan = made.plan_config_map("")
    assert plan["metadata"]["namespace"] == "perseus-system"
    assert "ownerReferences" not in plan["metadata"], "an owner in another namespace would be collected as garbage"


def test_equal_content_is_up_to_date_and_other_content_is_not() -> None:
    assert is_up_to_date(builder().workload(), builder().workload())
    assert not is_up_to_date(builder(suspend=True).workload(), builder().workload())
    assert not is_up_to_date(builder().workload(), None)


def test_all_conditions_are_there_from_the_first_visit() -> None:
    story = Story()
    story.say(Condition.ACCEPTED, True, Reason.VALID, "")
    story.say(Condition.PROFILE_VALID, False, Reason.PROFILE_MISSING, "there is no ConfigMap x")
    story.finish()
    found = {each["type"]: each for each in story.documents([], 1, "2026-01-01T00:00:00Z")}
    assert list(found) == [each.value for each in Condition]
    assert found["Ready"]["status"] == "False"
    assert found["Ready"]["reason"] == "ProfileMissing", "kubectl get says where the job stands"
    assert "there is no ConfigMap x" in found["Ready"]["message"]
    assert found["PlanApplied"]["status"] == "Unknown"


def test_a_finished_training_says_so_whatever_else_waits() -> None:
    story = Story()
    story.say(Condition.ACCEPTED, True, Reason.VALID, "")
    story.say(Condition.FRONTIER_READY, False, Reason.OPTIMISING, "")
    story.say(Condition.WORKLOAD_READY, True, Reason.TRAINING_FINISHED, "all 4 ranks finished")
    story.finish()
    ready = story.told[Condition.READY]
    assert ready == ("False", Reason.TRAINING_FINISHED, "all 4 ranks finished")


@given(st.lists(st.sampled_from([True, False, None]), min_size=1, max_size=8))
def test_a_conditions_time_moves_with_its_status_alone(visits: list[bool | None]) -> None:
    known: list[dict[str, Any]] = []
    moved, before = -1, object()
    for index, status in enumerate(visits):
        story = Story()
        story.say(Condition.ACCEPTED, status, Reason.VALID, f"visit {index}")
        story.finish()
        known = story.documents(known, 1, f"time-{index}")
        if status is not before:
            moved, before = index, status
        assert known[0]["lastTransitionTime"] == f"time-{moved}"


FRONTIER = frontier(example_profile(stages=2), Pipeline(2, 4), plans=40)


def plan_for(stragglers: Stragglers, **spec: Any) -> Any:
    return make_plan(REFERENCE, PerseusJobSpec.parse(job(**spec)["spec"]), FRONTIER, stragglers, 1, 11)


def test_a_straggler_runs_the_fastest_plan_and_the_others_the_stretched_one() -> None:
    calm = plan_for(Stragglers())
    limit = FRONTIER.fastest.iteration_seconds * 1.15
    plan = plan_for(Stragglers((1,), limit))
    assert [plan.variants[index].name for index in plan.pipelines] == [STRETCHED, FASTEST, STRETCHED]
    assert plan.variants[1].iteration_seconds <= limit
    assert not same_clocks(calm, plan)
    assert predicted_savings(plan, Stragglers((1,), limit)) > predicted_savings(calm, Stragglers())


def test_a_plan_says_what_each_stages_own_gpu_draws_while_it_waits() -> None:
    profile = example_profile(stages=2)
    gpus = tuple(StageGpu(blocking_power_watts=watts) for watts in (60.0, 100.0))
    mixed = Profile(profile.header.model_copy(update={"stage_gpus": gpus}), profile.measurements)
    found = frontier(mixed, Pipeline(2, 4), plans=10)
    plan = make_plan(REFERENCE, PerseusJobSpec.parse(job()["spec"]), found, Stragglers(), 1, 11)
    assert [plan.baseline.blocking_power_of(stage) for stage in (0, 1)] == [60.0, 100.0]
    assert plan.baseline.blocking_power_watts == 80.0  # times two stages: right for the pipeline's savings
    assert [RankPlan.of(plan, 0, stage).blocking_watts for stage in (0, 1)] == [60.0, 100.0]


def test_a_plan_says_what_instructions_take_at_its_own_clocks_and_the_highest() -> None:
    plan = plan_for(Stragglers())
    for stage, table in enumerate(plan.stage_seconds):
        used = {*plan.clocks_of(0, stage), *FRONTIER.fastest.clocks[stage]}
        assert set(table["F"]) == used
        assert table["F"] == {clock: FRONTIER.stage_seconds[stage]["F"][clock] for clock in used}


def test_a_deadline_below_the_plan_in_force_speeds_nobody_up_beyond_it() -> None:
    plan = plan_for(Stragglers((0,), 0.001))
    assert plan.variants[1].clocks == plan_for(Stragglers()).variants[0].clocks


def test_nobody_is_stretched_past_t_star() -> None:
    plan = plan_for(Stragglers((0,), 1e5))
    assert plan.variants[1].iteration_seconds == FRONTIER.plans[-1].iteration_seconds


def test_a_pipeline_that_does_not_exist_straggles_in_vain() -> None:
    assert same_clocks(plan_for(Stragglers((7,), 9.0)), plan_for(Stragglers()))


def test_objectives_reach_the_plan() -> None:
    least = plan_for(Stragglers(), objective={"type": "MinimumEnergy"})
    allowed = plan_for(Stragglers(), objective={"type": "MaxSlowdown", "maxSlowdownPercent": 5})
    full = FRONTIER.fastest.iteration_seconds
    assert allowed.variants[0].iteration_seconds <= 1.05 * full
    assert least.variants[0].iteration_joules <= allowed.variants[0].iteration_joules


@pytest.mark.parametrize(
    ("data", "sentence"),
    [
        (None, "there is no ConfigMap profile in this namespace"),
        ({}, "has no key profile.csv"),
        ({"profile.csv": "stage,instruction,frequency,time,energy\n"}, "no header"),
        (
            {"profile.csv": "stage,instruction,frequency,time\n", "header.json": '{"blockingPowerWatts": 80}'},
            "missing: energy",
        ),
    ],
)
def test_a_profile_that_cannot_be_used_is_answered_with_what_to_do(data: Any, sentence: str) -> None:
    config_map = None if data is None else {"data": data}
    with pytest.raises(ProfileProblem, match=sentence):
        load_profile(PerseusJobSpec.parse(job()["spec"]), "profile", config_map)


def test_settings_name_the_variable_that_is_missing() -> None:
    with pytest.raises(SettingsError, match="PERSEUS_OPERATOR_NAMESPACE"):
        Settings.from_environment({})
    with pytest.raises(SettingsError, match="PERSEUS_METRICS_PORT"):
        Settings.from_environment({"PERSEUS_OPERATOR_NAMESPACE": "a", "PERSEUS_METRICS_PORT": "x"})
