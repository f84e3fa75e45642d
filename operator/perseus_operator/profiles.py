"""The profile as the operator sees it: read from its ConfigMap, and usable for a job or answered with a sentence."""

from __future__ import annotations

import asyncio
import hashlib
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from perseus_api import names
from perseus_api.conditions import Reason
from perseus_api.errors import DocumentError
from perseus_api.instructions import Instruction
from perseus_api.job import PerseusJobSpec
from perseus_api.profile import Profile, parse_profile
from perseus_api.schedules import JobSchedule
from perseus_planner import Pipeline

from perseus_operator.memory import Memory
from perseus_operator.shapes import needed_rows, pipeline_of_job, rows_of_orders

# Parsed profiles kept in memory: of the models that a cluster trains at one time.
MAXIMUM_PROFILES = 64


class ProfileProblem(Exception):
    """The profile cannot be used.

    Attributes:
        reason: for the condition.
    """

    def __init__(self, reason: Reason, text: str) -> None:
        """Name the reason and say in one sentence what to do."""
        super().__init__(text)
        self.reason = reason


class Source(StrEnum):
    """Where a profile comes from, as the status tells."""

    GIVEN = "Given"
    CACHED = "Cached"
    MEASURED = "Measured"


@dataclass(frozen=True)
class LoadedProfile:
    """A usable profile.

    Attributes:
        name: of its ConfigMap.
        profile: its content.
        checksum: what identifies the content.
        source: where it comes from.
        sweep_iterations: training iterations in which it was measured, if it was measured here.
        sweep_slowdown_permille: how much longer these were than unlocked ones.
        replaces: checksum of the given profile in whose place it is used; empty where none is given.
    """

    name: str
    profile: Profile
    checksum: str
    source: Source
    sweep_iterations: int | None = None
    sweep_slowdown_permille: int | None = None
    replaces: str = ""

    @property
    def clocks(self) -> int:
        """How many clocks it holds."""
        return len({each.frequency_megahertz for rows in self.profile.measurements.values() for each in rows})


class ProfileReader:
    """Parses profiles, and remembers those that it parsed."""

    def __init__(self) -> None:
        """Begin without any."""
        self._loaded: Memory[tuple[str, str], LoadedProfile] = Memory(MAXIMUM_PROFILES)

    async def read(self, spec: PerseusJobSpec, config_map: dict[str, Any], source: Source) -> LoadedProfile:
        """Return the profile in a ConfigMap.

        Raises:
            ProfileProblem: it is not valid, or does not fit the job.
        """
        name = config_map["metadata"]["name"]
        key = (config_map["metadata"]["uid"], config_map["metadata"]["resourceVersion"])
        loaded = self._loaded.get(key)
        if loaded is not None:
            check_profile(spec, name, loaded.profile)
            return loaded
        loaded = await asyncio.to_thread(load_profile, spec, name, config_map, source)
        return self._loaded.put(key, loaded)


def load_profile(
    spec: PerseusJobSpec, name: str, config_map: dict[str, Any] | None, source: Source = Source.GIVEN
) -> LoadedProfile:
    """Check a profile ConfigMap for a job.

    Args:
        spec: of the job.
        name: of the ConfigMap, for error texts.
        config_map: as the API serves it; None if there is none.
        source: where it comes from.

    Raises:
        ProfileProblem: it is missing, not valid, or does not fit the job.
    """
    if config_map is None:
        raise ProfileProblem(
            Reason.PROFILE_MISSING,
            f"spec.profiling.profileRef.name: there is no ConfigMap {name} in this namespace; create it with the keys "
            f"{names.PROFILE_CSV_KEY} and {names.PROFILE_HEADER_KEY}",
        )
    data = config_map.get("data") or {}
    csv_text = data.get(names.PROFILE_CSV_KEY)
    if csv_text is None:
        raise ProfileProblem(
            Reason.PROFILE_INVALID, f"ConfigMap {name} has no key {names.PROFILE_CSV_KEY}; put the profile's CSV there"
        )
    header_text = data.get(names.PROFILE_HEADER_KEY)
    try:
        profile = parse_profile(csv_text, header_text)
    except DocumentError as error:
        raise ProfileProblem(Reason.PROFILE_INVALID, f"ConfigMap {name}: {error}") from None
    check_profile(spec, name, profile)
    return LoadedProfile(name, profile, profile_checksum(csv_text, header_text or ""), source)


def check_profile(spec: PerseusJobSpec, name: str, profile: Profile) -> None:
    """Check that a ConfigMap's profile holds what a job needs; for recorded orders see `check_orders`.

    Raises:
        ProfileProblem: it does not.
    """
    if spec.schedule is JobSchedule.RECORDED:
        return
    pipeline = pipeline_of_job(spec)
    _check_rows(pipeline, set(needed_rows(pipeline, spec.schedule)), spec.schedule.value, name, profile)


def check_orders(pipeline: Pipeline, name: str, profile: Profile) -> None:
    """Check that a ConfigMap's profile holds what the ranks were seen to run.

    Raises:
        ProfileProblem: it does not.
    """
    _check_rows(pipeline, rows_of_orders(pipeline), JobSchedule.RECORDED.value, name, profile)


def _check_rows(
    pipeline: Pipeline, rows: set[tuple[int, Instruction]], schedule: str, name: str, profile: Profile
) -> None:
    stages = pipeline.virtual_stages
    if stages > profile.stages:
        asked = f"spec.parallelism.stages is {stages}"
        if pipeline.chunks > 1:
            asked = f"the job has {stages} virtual stages ({pipeline.stages} stages x {pipeline.chunks} chunks)"
        raise ProfileProblem(
            Reason.PROFILE_TOO_SMALL,
            f"{asked}, but the profile in ConfigMap {name} has {profile.stages} stages; "
            "measure the others, or lower spec.parallelism.stages",
        )
    for stage, instruction in sorted(rows):
        if (stage, instruction) not in profile.measurements:
            how = "at two clocks or more" if instruction.has_clock else "once, with the frequency 0"
            raise ProfileProblem(
                Reason.PROFILE_INVALID,
                f"ConfigMap {name}: the profile has no {instruction.value} of stage {stage}, which spec.schedule "
                f"{schedule} runs; measure it {how}",
            )


def stamped(checksum: str, digest: str) -> str:
    """Return what identifies a profile and, where they were recorded, the orders that it is planned with.

    The operator asks for a frontier of it, and the optimisation pod makes sure that it has the same.
    """
    return f"{checksum}+{digest}" if digest else checksum


def profile_checksum(csv_text: str, header_text: str) -> str:
    """Return what identifies a profile's content, as ``sha256:HEX``."""
    content = f"{len(csv_text)}\0{csv_text}\0{header_text}"
    return "sha256:" + hashlib.sha256(content.encode()).hexdigest()
