"""What the agent reports of a rank in one word and one sentence: whether its plan is followed, and if not, why."""

from __future__ import annotations

from enum import StrEnum
from typing import Any

from perseus_daemonset.controller import INTERFERENCE
from perseus_daemonset.lease import Lease


class RankState(StrEnum):
    """Whether a rank's plan is followed."""

    FOLLOWING = "following"  # the plan's clocks are set, and held
    NOT_HELD = "not_held"  # they are set, and the device does not hold them
    WAITING = "waiting"  # the plan holds from a later iteration
    NO_PLAN = "no_plan"
    MISMATCH = "mismatch"  # the trainer does something else than the plan
    INTERFERENCE = "interference"  # somebody else sets this GPU's clock
    REFUSED = "refused"  # the device or its driver does not let clocks be set
    DISCONNECTED = "disconnected"  # the trainer's connection is gone


def state_of(lease: Lease) -> tuple[RankState, str]:
    """Return the state, and a reason from a short list (an error's code, an event reason), empty where none is."""
    follower, controller = lease.follower, lease.controller
    if not lease.is_open:
        return RankState.DISCONNECTED, ""
    if controller.problem == INTERFERENCE:
        return RankState.INTERFERENCE, ""
    if controller.problem or lease.caretaker.failure:
        return RankState.REFUSED, controller.problem or lease.caretaker.failure
    if follower.mismatch:
        return RankState.MISMATCH, follower.mismatch_kind
    if not follower.accepted_generation:
        return RankState.NO_PLAN, ""
    if not follower.active_generation:
        return RankState.WAITING, ""
    if controller.requested_megahertz is not None and lease.caretaker.held.reason:
        return RankState.NOT_HELD, lease.caretaker.held.reason
    return RankState.FOLLOWING, ""


def report_of(lease: Lease) -> dict[str, Any]:
    """Return what a person wants to know of a rank, as JSON."""
    state, reason = state_of(lease)
    key, controller, held = lease.key, lease.controller, lease.caretaker.held
    return {
        "namespace": key.namespace,
        "job": key.job,
        "pipeline": key.pipeline,
        "stage": key.stage,
        "tensorRank": key.tensor_rank,
        "pod": key.pod,
        "gpu": key.gpu,
        "state": state.value,
        "reason": reason,
        "explanation": _explain(lease, state, reason),
        "generation": {"accepted": lease.follower.accepted_generation, "active": lease.follower.active_generation},
        "requestedMegahertz": controller.requested_megahertz,
        "notHeldSeconds": {name: round(seconds, 1) for name, seconds in sorted(held.not_held_seconds.items())},
        "watchedSeconds": round(held.watched_seconds, 1),
    }


def _explain(lease: Lease, state: RankState, reason: str) -> str:
    match state:
        case RankState.MISMATCH:
            return f"{lease.follower.mismatch}; the clock is free until a whole iteration matches the plan"
        case RankState.INTERFERENCE:
            return "somebody else set or reset this GPU's clock; it is left alone for a while"
        case RankState.REFUSED:
            return f"the device does not let its clock be set ({reason}); it runs at full speed"
        case RankState.NOT_HELD:
            return f"the device does not hold the clock that was asked for: {reason}"
        case RankState.WAITING:
            return "the plan holds from a later iteration"
        case RankState.NO_PLAN:
            return "there is no plan for this rank; it runs at full speed"
        case RankState.DISCONNECTED:
            return "the training process has no connection; the clock is free"
        case RankState.FOLLOWING if lease.follower.in_intermission:
            return "the script does something else since its last iteration; the clock is free until the next begins"
        case _:
            return ""
