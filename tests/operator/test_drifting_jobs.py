"""Jobs whose profile no longer holds and that ask for a new one: API server, Prometheus, agents' pages, the operator.

What trains exists as metrics (`training`), what is measured anew comes from agents' pages (`measured`).
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from perseus_api import names
from perseus_api.profile import Profile, parse_profile
from perseus_operator.children import CORRECTIONS_KEY, REPEATS_KEY
from perseus_operator.profiles import profile_checksum
from perseus_operator.profiling.repeats import Repeats
from perseus_planner import Pipeline, frontier

sys.path.insert(0, str(Path(__file__).parent))
from bare import BareCluster, OperatorProcess, eventually, perseus_job, profile_config_map
from measured import Agents, cost
from training import MetricsPage, Training

pytestmark = pytest.mark.cluster
DRIFT = 1.1
DRIFT_TIMEOUT_SECONDS = 300.0
LONG_AGO = 1_700_000_000


def begin(bare: BareCluster, home: str, page: MetricsPage, name: str) -> Training:
    """Apply a job with a given profile that is to be measured anew once, and let it train under its first plan."""
    profiling = {"profileRef": {"name": "profile"}, "onDrift": "Measure", "maxRepeats": 1}
    job = perseus_job(name, profiling=profiling, accounting={"baselineIterations": 1}, straggler={"enabled": False})
    bare.apply(home, profile_config_map(), job)
    eventually("the frontier's ConfigMap", lambda: bare.find("configmap", home, f"{name}-frontier"))
    bare.optimise(home, name)
    training = Training(home, name, lambda: bare.plan(home, name))
    page.trainings.append(training)
    eventually("generation 1 is active", lambda: training.active is not None)
    return training


def told(bare: BareCluster, home: str, name: str) -> tuple[str, str]:
    found = bare.conditions(home, name).get("ProfileValid", {})
    return found.get("reason", ""), found.get("message", "")


def written_down(bare: BareCluster, home: str, name: str) -> dict[str, str]:
    data: dict[str, str] = (bare.find("configmap", home, f"{name}-frontier") or {}).get("data") or {}
    return data


def repeats_of(bare: BareCluster, home: str, name: str) -> Repeats:
    return Repeats.decode(written_down(bare, home, name)[REPEATS_KEY])


def is_swept(bare: BareCluster, home: str, name: str) -> bool:
    plan = bare.plan(home, name)
    return plan is not None and plan.sweep is not None


def own_profile(bare: BareCluster, home: str, name: str) -> tuple[Profile, str] | None:
    """The profile that was measured for a job, and its checksum."""
    found = bare.find("configmap", home, names.profile_config_map_name(name))
    if found is None:
        return None
    texts = found["data"][names.PROFILE_CSV_KEY], found["data"][names.PROFILE_HEADER_KEY]
    return parse_profile(*texts), profile_checksum(*texts)


def optimise(bare: BareCluster, home: str, name: str) -> None:
    """Play the optimisation pod for the profile that was measured."""
    profile, checksum = own_profile(bare, home, name) or pytest.fail("there is no profile")
    made = frontier(profile, Pipeline(2, 4), plans=10, profile_checksum=checksum)
    bare.optimise(home, name, made)


def profile_status(bare: BareCluster, home: str, name: str) -> dict[str, Any]:
    found: dict[str, Any] = (bare.find("perseusjob", home, name) or {})["status"].get("profile", {})
    return found


def test_what_has_drifted_is_measured_anew_so_often_as_is_allowed_and_corrected_then(
    bare: BareCluster, watching: OperatorProcess, page: MetricsPage, home: str, agents: Callable[[str], Agents]
) -> None:
    trainings = [begin(bare, home, page, "train"), begin(bare, home, page, "spent")]
    spent = Repeats(1, LONG_AGO, "sha256:earlier").encode()
    patch = json.dumps({"data": {REPEATS_KEY: spent}})
    bare.kubectl("patch", "configmap", "spent-frontier", "-n", home, "--type=merge", "-p", patch)
    node = agents("train")
    node.slowdown = DRIFT
    node.train()
    for training in trainings:
        training.slowdowns = {0: DRIFT, 1: DRIFT}
    eventually("a sweep", lambda: is_swept(bare, home, "train"), DRIFT_TIMEOUT_SECONDS)
    eventually("it is told", lambda: told(bare, home, "train")[0] == "Profiling")
    words = told(bare, home, "train")[1]
    assert words.startswith("instructions have drifted from the profile, which is measured anew (1 of 1 times): ")
    assert CORRECTIONS_KEY not in written_down(bare, home, "train")
    # Killed in the middle, it goes on where it was.
    watching.kill()
    watching.start()
    eventually("the profile", lambda: own_profile(bare, home, "train"), 120)
    profile, checksum = own_profile(bare, home, "train") or pytest.fail("it was there")
    for (stage, instruction), rows in profile.measurements.items():
        for row in rows:
            seconds, joules = cost(stage, instruction, row.frequency_megahertz)
            assert (row.time_seconds, row.energy_joules) == pytest.approx((seconds * DRIFT, joules * DRIFT), rel=1e-6)
    eventually("it is over", lambda: not repeats_of(bare, home, "train").is_open)
    assert repeats_of(bare, home, "train").number == 1, "an operator that starts anew counts it once"
    optimise(bare, home, "train")
    eventually("a plan of it", lambda: not is_swept(bare, home, "train"), 60)
    eventually("it is used", lambda: profile_status(bare, home, "train").get("checksum") == checksum)
    assert profile_status(bare, home, "train")["source"] == "Measured"
    assert profile_status(bare, home, "train")["repeats"] == 1
    # The other job has had all its measurements: its times are corrected, and it is said why.
    eventually("the corrections", lambda: told(bare, home, "spent")[0] == "ProfileDrifted", DRIFT_TIMEOUT_SECONDS)
    assert "as spec.profiling.maxRepeats allows" in told(bare, home, "spent")[1]
    assert written_down(bare, home, "spent")[REPEATS_KEY] == spent
    assert not is_swept(bare, home, "spent")
    # Another given profile is another beginning.
    bare.apply(home, profile_config_map(seconds=0.06))
    given = profile_config_map(seconds=0.06)["data"]
    other = profile_checksum(given[names.PROFILE_CSV_KEY], given[names.PROFILE_HEADER_KEY])
    eventually("the given profile is used", lambda: profile_status(bare, home, "train").get("checksum") == other, 90)


def test_what_cannot_be_kept_is_not_measured_anew(
    bare: BareCluster, watching: OperatorProcess, page: MetricsPage, home: str
) -> None:
    training = begin(bare, home, page, "train")
    bare.apply(home, profile_config_map("train-profile"))
    training.slowdowns = {0: DRIFT, 1: DRIFT}
    eventually("the corrections", lambda: told(bare, home, "train")[0] == "ProfileDrifted", DRIFT_TIMEOUT_SECONDS)
    assert "ConfigMap train-profile, where it would be kept, is somebody else's" in told(bare, home, "train")[1]
    assert REPEATS_KEY not in written_down(bare, home, "train")
