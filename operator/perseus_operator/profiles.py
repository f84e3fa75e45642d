"""The profile as the operator sees it: read from its ConfigMap, and usable for a job or answered with a sentence."""

from __future__ import annotations

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
    """

    name: str
    profile: Profile
    checksum: str
    source: Source
    sweep_iterations: int | None = None
    sweep_slowdown_permille: int | None = None

    @property
    def clocks(self) -> int:
        """How many clocks it holds."""
        return len({each.frequency_megahertz for rows in self.profile.measurements.values() for each in rows})


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
    stages = spec.parallelism.stages
    if stages > profile.stages:
        raise ProfileProblem(
            Reason.PROFILE_TOO_SMALL,
            f"spec.parallelism.stages is {stages}, but the profile in ConfigMap {name} has {profile.stages} stages; "
            "measure the others, or lower spec.parallelism.stages",
        )
    for stage in range(stages):
        for instruction in (Instruction.FORWARD, Instruction.BACKWARD):
            if (stage, instruction) not in profile.measurements:
                raise ProfileProblem(
                    Reason.PROFILE_INVALID,
                    f"ConfigMap {name}: the profile has no {instruction.value} of stage {stage}; measure it at two "
                    "clocks or more",
                )
    return LoadedProfile(name, profile, profile_checksum(csv_text, header_text or ""), source)


def profile_checksum(csv_text: str, header_text: str) -> str:
    """Return what identifies a profile's content, as ``sha256:HEX``."""
    content = f"{len(csv_text)}\0{csv_text}\0{header_text}"
    return "sha256:" + hashlib.sha256(content.encode()).hexdigest()
