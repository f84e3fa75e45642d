"""Bad input on the installed product: one clear sentence, nothing left behind, other jobs are served."""

from __future__ import annotations

import json

import pytest
from perseus_api import names
from product import NAMESPACE, PROFILE_FOLDER, conditions_of, perseus_job, profile_config_map, wait_until

from testbed.errors import TestbedError
from testbed.installation import Installation

pytestmark = pytest.mark.cluster

CSV = (PROFILE_FOLDER / "profile.csv").read_text()
ROWS = CSV.splitlines()
FIRST = ROWS[1].split(",")
ONE_CLOCK_EACH = {tuple(row.split(",")[:2]): row for row in ROWS[1:]}
BAD_PROFILES = {
    "text-for-a-number": (CSV.replace(ROWS[1], ",".join([*FIRST[:3], "fast", FIRST[4]])), "time"),
    "negative-energy": (CSV.replace(ROWS[1], ",".join([*FIRST[:4], "-1"])), "energy"),
    "not-a-number": (CSV.replace(ROWS[1], ",".join([*FIRST[:3], "nan", FIRST[4]])), "time"),
    "one-clock-only": ("\n".join([ROWS[0], *ONE_CLOCK_EACH.values()]), "clock"),
    "no-rows": (ROWS[0] + "\n", "rows"),
}


@pytest.mark.parametrize("case", sorted(BAD_PROFILES))
def test_a_corrupt_profile_is_answered_with_a_sentence_and_starts_nothing(
    installation: Installation, case: str
) -> None:
    text, word = BAD_PROFILES[case]
    condition = refused(installation, f"bad-{case}", text)
    assert condition["reason"] == "ProfileInvalid"
    assert word in condition["message"]


def test_a_missing_profile_is_named_and_can_be_added_later(installation: Installation) -> None:
    name = "late-profile"
    try:
        apply(installation, perseus_job(name, installation.tag, suspend=True))
        wait_until(
            "the missing profile is reported",
            lambda: profile_condition(installation, name).get("reason") == "ProfileMissing",
            30,
        )
        assert f"{name}-profile" in profile_condition(installation, name)["message"]
        apply(installation, profile_config_map(f"{name}-profile"))
        wait_until(
            "the added profile is taken", lambda: profile_condition(installation, name).get("status") == "True", 30
        )
    finally:
        remove(installation, name)


def test_more_stages_than_the_profile_has_are_refused_with_both_numbers(installation: Installation) -> None:
    name = "too-many-stages"
    try:
        apply(installation, profile_config_map(f"{name}-profile"))
        apply(
            installation,
            perseus_job(name, installation.tag, parallelism={"stages": 9, "pipelines": 1, "microbatches": 4}),
        )
        wait_until(
            "the job is refused",
            lambda: profile_condition(installation, name).get("reason") == "ProfileTooSmall",
            30,
        )
        message = profile_condition(installation, name)["message"]
        assert "9" in message
        assert "8" in message
        assert children(installation, name) == []
    finally:
        remove(installation, name)


@pytest.mark.parametrize(
    ("field", "spec"),
    [
        ("spec.parallelism.microbatches", {"parallelism": {"stages": 8, "pipelines": 1, "microbatches": 0}}),
        ("spec.schedule", {"schedule": "fastest-first"}),
        ("spec.objective", {"objective": {"type": "MaxSlowdown"}}),
    ],
)
def test_a_wrong_spec_is_refused_at_apply_and_names_the_field(
    installation: Installation, field: str, spec: dict[str, object]
) -> None:
    with pytest.raises(TestbedError, match=field):
        apply(installation, perseus_job("wrong-spec", installation.tag, **spec))


def test_ten_megabytes_are_refused_before_they_are_stored(installation: Installation) -> None:
    huge = profile_config_map("huge-profile", **{names.PROFILE_CSV_KEY: CSV * 500})
    with pytest.raises(TestbedError, match=r"(?i)too (large|long)|at most 1048576"):
        installation.kubectl("create", "-n", NAMESPACE, "-f", "-", input_text=json.dumps(huge))


def refused(installation: Installation, name: str, csv: str) -> dict[str, str]:
    """Apply a job with a profile, wait for the refusal, see that nothing was started, and take all away."""
    try:
        apply(installation, profile_config_map(f"{name}-profile", **{names.PROFILE_CSV_KEY: csv}))
        apply(installation, perseus_job(name, installation.tag))
        wait_until("a refusal", lambda: profile_condition(installation, name).get("status") == "False", 30)
        assert children(installation, name) == []
        return profile_condition(installation, name)
    finally:
        remove(installation, name)


def apply(installation: Installation, document: dict[str, object]) -> None:
    installation.kubectl("apply", "-n", NAMESPACE, "-f", "-", input_text=json.dumps(document))


def profile_condition(installation: Installation, name: str) -> dict[str, str]:
    return conditions_of(installation, name).get("ProfileValid", {})


def children(installation: Installation, name: str) -> list[str]:
    return [each for each in installation.perseus_objects(NAMESPACE, name) if not each.startswith("perseusjob")]


def remove(installation: Installation, name: str) -> None:
    installation.kubectl("delete", "perseusjob", name, "-n", NAMESPACE, "--ignore-not-found", "--timeout=60s")
    installation.kubectl("delete", "configmap", f"{name}-profile", "-n", NAMESPACE, "--ignore-not-found")
    wait_until("nothing is left", lambda: not installation.perseus_objects(NAMESPACE, name), 60)
