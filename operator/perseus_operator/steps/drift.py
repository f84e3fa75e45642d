"""The step that answers instructions that have drifted from the profile: correct its times, or have it measured anew.

Both lie in the frontier's ConfigMap, beside what was made of them. A measurement is written down before its first plan
is pushed, so that it is counted whatever becomes of the operator.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from perseus_api import names
from perseus_api.errors import DocumentError
from perseus_api.job import DriftResponse, PerseusJobSpec

from perseus_operator import metrics
from perseus_operator.children import CORRECTIONS_KEY, REPEATS_KEY, Builder, Document, is_owned_by
from perseus_operator.client import CONFIG_MAP, Api
from perseus_operator.drift import Corrections, Work
from perseus_operator.monitor import JobKey
from perseus_operator.profiles import LoadedProfile
from perseus_operator.profiling.repeats import Repeats
from perseus_operator.upkeep import put_right
from perseus_operator.visit import Visit

logger = logging.getLogger("perseus.operator")


@dataclass(frozen=True)
class Drift:
    """What is known of a job's drift from its profile.

    Attributes:
        corrections: of the profile's times.
        repeats: measurements that drifts have asked for.
        measures: whether one goes on.
        remark: why none begins for the drift that there is, where one was asked for.
        config_map: the frontier's, in which this lies, as it was seen; None without one.
    """

    corrections: Corrections
    repeats: Repeats
    measures: bool = False
    remark: str = ""
    config_map: Document | None = None


class DriftStep:
    """Answers drifts."""

    def __init__(self, api: Api, take_drift: Callable[[JobKey], Mapping[Work, float]]) -> None:
        """Work over a connection, and take drifts that have become sure by a function."""
        self._api = api
        self._take_drift = take_drift

    async def bring_about(self, visit: Visit, builder: Builder, spec: PerseusJobSpec, profile: LoadedProfile) -> Drift:
        """Give the builder what is written down of drifts, with what the monitor has found since on top.

        Raises:
            ApiRefusal: the API server refused.
        """
        name, now = names.frontier_config_map_name(builder.name), time.time()
        config_map = await self._api.get(CONFIG_MAP, builder.namespace, name)
        data: dict[str, str] = (config_map or {}).get("data") or {}
        corrections = _corrections(visit.key, data.get(CORRECTIONS_KEY, ""), profile.checksum)
        asked = spec.profiling.on_drift is DriftResponse.MEASURE
        repeats = _repeats(visit.key, data.get(REPEATS_KEY, "")) if asked else Repeats()
        factors = self._take_drift(visit.key)
        if factors:
            places = list(factors.items())[:20]
            told = ", ".join(f"{stage}/{each.value} x {factor:.3f}" for (stage, each), factor in places)
            logger.info("%s/%s: instructions have drifted from the profile: %s", *visit.key, told)
        remark = ""
        if asked and (factors or corrections.factors):
            remark = await self._obstacle(builder, spec, repeats, now)
        begins = bool(factors) and asked and not remark
        if begins:
            repeats = repeats.begin(profile.checksum, now)
        elif factors:
            corrections = corrections.times(factors)
        builder.corrections, builder.repeats = corrections.encode(), repeats.encode()
        if begins:
            config_map = await put_right(self._api, builder.frontier_config_map(), config_map)
        metrics.CORRECTION_RATIO.labels(*visit.key).set(corrections.largest)
        return Drift(corrections, repeats, repeats.goes_on(profile.checksum, now), remark, config_map)

    async def close(self, builder: Builder, drift: Drift) -> None:
        """Write down that the measurement is over, or given up.

        Raises:
            ApiRefusal: the API server refused.
        """
        builder.repeats = drift.repeats.close().encode()
        await put_right(self._api, builder.frontier_config_map(), drift.config_map)

    async def _obstacle(self, builder: Builder, spec: PerseusJobSpec, repeats: Repeats, now: float) -> str:
        """Return why the profile is not measured anew; empty where it can be."""
        if repeats.number >= spec.profiling.max_repeats:
            return f"it was measured anew {repeats.number} times, as spec.profiling.maxRepeats allows"
        if not repeats.may_begin(spec.profiling.max_repeats, now):
            return "it was measured anew less than an hour ago"
        name = names.profile_config_map_name(builder.name)
        own = await self._api.get(CONFIG_MAP, builder.namespace, name)
        if own is not None and not is_owned_by(own, builder.uid):
            return f"ConfigMap {name}, where it would be kept, is somebody else's: rename that one to have it measured"
        return ""


def _corrections(key: JobKey, text: str, checksum: str) -> Corrections:
    """Return the corrections in force, which another profile forgets."""
    if text:
        try:
            found = Corrections.decode(text)
        except DocumentError as error:
            logger.warning("%s/%s: %s; the profile holds as it is", *key, error)
        else:
            return found if found.profile == checksum else Corrections(checksum)
    return Corrections(checksum)


def _repeats(key: JobKey, text: str) -> Repeats:
    if text:
        try:
            return Repeats.decode(text)
        except DocumentError as error:
            logger.warning("%s/%s: %s; they are counted anew", *key, error)
    return Repeats()
