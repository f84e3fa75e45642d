"""Every constraint of the CRD: one object that keeps it is accepted, one that breaks it is refused (for real)."""

from __future__ import annotations

import copy
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parent))
from constraints import Constraint, constraints, kept_and_broken, referring_job, rules, valid_job, valid_status

pytestmark = pytest.mark.cluster
Ask = Callable[..., str]
CREATE = "default/perseusjobs?dryRun=All&fieldValidation=Strict"
SPEC = [each for each in constraints() if not each.is_status]
STATUS = [each for each in constraints() if each.is_status]


@pytest.mark.parametrize("constraint", SPEC, ids=str)
def test_a_bound_of_the_spec_holds(ask: Ask, constraint: Constraint) -> None:
    kept, broken = kept_and_broken(constraint)
    for each in kept:
        assert ask("POST", CREATE, each) == ""
    refusal = ask("POST", CREATE, broken)
    assert refusal, f"{constraint} was not enforced"
    field = constraint.place[-1] if constraint.keyword != "required" else constraint.value
    assert field in refusal or field in ("[]", "{}"), f"the refusal does not name the field: {refusal}"


@pytest.mark.parametrize("constraint", STATUS, ids=str)
def test_a_bound_of_the_status_holds(ask: Ask, stored: str, constraint: Constraint) -> None:
    path = f"{stored}/perseusjobs/valid/status?dryRun=All&fieldValidation=Strict"
    merge = "application/merge-patch+json"
    kept, broken = kept_and_broken(constraint)
    for each in kept:
        assert ask("PATCH", path, each, merge) == ""
    assert ask("PATCH", path, broken, merge), f"{constraint} was not enforced"


def changed(*steps: tuple[str, Any]) -> dict[str, Any]:
    """A valid job with fields set by their paths; None removes one."""
    job = copy.deepcopy(valid_job())
    for path, value in steps:
        *parents, last = path.split(".")
        holder: Any = job
        for each in parents:
            holder = holder[int(each)] if each.isdigit() else holder[each]
        if value is None:
            del holder[last]
        else:
            holder[last] = value
    return job


def referring(workload: str) -> dict[str, Any]:
    """The stored job that names a workload instead of a template."""
    job = referring_job()
    job["spec"]["workloadRef"]["name"] = workload
    return job


DIVISIBLE = (("spec.parallelism.microbatches", 16),)

# By the beginning of each rule's message: what keeps it, what breaks it, and whether breaking it takes an update.
RULES: dict[str, tuple[dict[str, Any], dict[str, Any], bool]] = {
    "metadata.name must be lower-case": (
        changed(("metadata.name", "a-1")),
        changed(("metadata.name", "1-starts-with-a-digit")),
        False,
    ),
    "metadata.name must have at most 48": (
        changed(("metadata.name", "a" * 48)),
        changed(("metadata.name", "a" * 49)),
        False,
    ),
    "spec needs either a template": (
        changed(("spec.template", None), ("spec.workloadRef", {"kind": "JobSet", "name": "big"})),
        changed(("spec.workloadRef", {"kind": "JobSet", "name": "big"})),
        False,
    ),
    "spec.profiling.mode Pods needs a template": (
        changed(("spec.template", None), ("spec.workloadRef", {"kind": "JobSet", "name": "big"})),
        changed(
            ("spec.template", None),
            ("spec.workloadRef", {"kind": "JobSet", "name": "big"}),
            ("spec.profiling", {"mode": "Pods"}),
        ),
        False,
    ),
    "spec.profiling.onDrift Measure needs": (
        changed(("spec.profiling.onDrift", "Measure"), ("spec.straggler.driftPercent", 1)),
        changed(("spec.profiling.onDrift", "Measure"), ("spec.straggler.driftPercent", 0)),
        False,
    ),
    "spec.workloadRef cannot be changed": (referring("big"), referring("bigger"), True),
    "spec.parallelism cannot be changed": (changed(), changed(("spec.parallelism.stages", 4)), True),
    "spec.parallelism asks for more than 100000 ranks": (
        changed(("spec.parallelism.stages", 100), ("spec.parallelism.pipelines", 1000)),
        changed(("spec.parallelism.stages", 100), ("spec.parallelism.pipelines", 1001)),
        False,
    ),
    "spec.parallelism cuts the model into more than 256": (
        changed(("spec.schedule", "ZBH1"), ("spec.parallelism.stages", 64), ("spec.parallelism.chunks", 4)),
        changed(("spec.schedule", "ZBH1"), ("spec.parallelism.stages", 64), ("spec.parallelism.chunks", 5)),
        False,
    ),
    "spec.parallelism.chunks must be 2 or more for spec.schedule Interleaved1F1B": (
        changed(("spec.schedule", "Interleaved1F1B"), ("spec.parallelism.chunks", 2), *DIVISIBLE),
        changed(("spec.schedule", "Interleaved1F1B"), ("spec.parallelism.chunks", 1), *DIVISIBLE),
        False,
    ),
    "spec.parallelism.chunks must be 2 for spec.schedule ZBV": (
        changed(("spec.schedule", "ZBV"), ("spec.parallelism.chunks", 2)),
        changed(("spec.schedule", "ZBV"), ("spec.parallelism.chunks", 3)),
        False,
    ),
    "spec.parallelism.chunks must be 1 for spec.schedule 1F1B": (
        changed(("spec.schedule", "EarlyRecompute1F1B"), ("spec.parallelism.chunks", 1)),
        changed(("spec.schedule", "EarlyRecompute1F1B"), ("spec.parallelism.chunks", 2)),
        False,
    ),
    "spec.parallelism.microbatches must divide into equal rounds": (
        changed(("spec.schedule", "ZBH1"), ("spec.parallelism.chunks", 2), ("spec.parallelism.microbatches", 18)),
        changed(("spec.schedule", "ZBH1"), ("spec.parallelism.chunks", 2), ("spec.parallelism.microbatches", 17)),
        False,
    ),
    "spec.schedule cannot be changed": (changed(), changed(("spec.schedule", "GPipe")), True),
    "spec.objective.maxSlowdownPercent is missing": (
        changed(("spec.objective", {"type": "MaxSlowdown", "maxSlowdownPercent": 1})),
        changed(("spec.objective", {"type": "MaxSlowdown"})),
        False,
    ),
    "spec.objective.maxSlowdownPercent is only for": (
        changed(("spec.objective", {"type": "MinimumEnergy"})),
        changed(("spec.objective", {"type": "MinimumEnergy", "maxSlowdownPercent": 1})),
        False,
    ),
    "spec.straggler.leavePercent must be below": (
        changed(("spec.straggler", {"enterPercent": 5, "leavePercent": 4})),
        changed(("spec.straggler", {"enterPercent": 5, "leavePercent": 5})),
        False,
    ),
    "spec.template.spec.restartPolicy must be": (
        changed(("spec.template.spec.restartPolicy", "OnFailure")),
        changed(("spec.template.spec.restartPolicy", "Always")),
        False,
    ),
    "spec.template.spec.containers must ask for a GPU": (
        changed(("spec.template.spec.containers.0.resources", {"limits": {"nvidia.com/gpu": "1"}})),
        changed(("spec.template.spec.containers.0.resources", {"limits": {"cpu": "1"}})),
        False,
    ),
}


def case_of(message: str) -> str:
    found = [begin for begin in RULES if message.startswith(begin)]
    assert len(found) == 1, f"no case, or more than one, for the rule: {message}"
    return found[0]


@pytest.mark.parametrize("message", [message for _, _, message in rules()], ids=lambda message: message[:40])
def test_a_rule_holds_and_its_message_says_what_to_do(ask: Ask, stored: str, message: str) -> None:
    kept, broken, by_update = RULES[case_of(message)]
    if by_update:
        path = f"{stored}/perseusjobs/{kept['metadata']['name']}?dryRun=All"
        merge = "application/merge-patch+json"
        assert ask("PATCH", path, {"spec": kept["spec"]}, merge) == ""
        refusal = ask("PATCH", path, {"spec": broken["spec"]}, merge)
    else:
        assert ask("POST", CREATE, kept) == ""
        refusal = ask("POST", CREATE, broken)
    assert message in refusal


def test_no_case_is_left_over() -> None:
    assert {case_of(message) for _, _, message in rules()} == set(RULES)


def test_what_is_left_out_is_filled_with_defaults(ask: Ask) -> None:
    least = changed(
        ("spec.suspend", None), ("spec.schedule", None), ("spec.objective", None), ("spec.straggler", None),
        ("spec.accounting", None), ("spec.parallelism.tensorParallel", None), ("spec.template.metadata", None),
        ("spec.parallelism.chunks", None),
        ("spec.profiling", None), ("spec.mode", None),
    )  # fmt: skip
    assert ask("POST", CREATE, least) == ""


def test_an_unknown_field_is_refused_by_name(ask: Ask) -> None:
    refusal = ask("POST", CREATE, changed(("spec.sheduling", "1F1B")))
    assert "sheduling" in refusal


def test_the_status_that_the_tests_use_is_valid(ask: Ask, stored: str) -> None:
    path = f"{stored}/perseusjobs/valid/status?dryRun=All&fieldValidation=Strict"
    assert ask("PATCH", path, {"status": valid_status()}, "application/merge-patch+json") == ""
