"""The measured baselines, kept beside the journal: a new agent goes on with what the one before measured (invariant 8).

Counters begin anew with the agent, as Prometheus expects; the baseline cannot, since a job that runs planned is not
measured unlocked again. One small file for each rank, by the pod's UID, gone with the pod. A lost or damaged file makes
the baseline a prediction again, which is then said.
"""

from __future__ import annotations

import hashlib
import json
import logging
import math
from dataclasses import asdict, dataclass
from pathlib import Path

from perseus_daemonset.files import read_bounded, write_whole

VERSION = 1
MAXIMUM_BYTES = 4096
MAXIMUM_FILES = 1024
MAXIMUM_ITERATIONS = 10**12
_SUFFIX = ".baseline.json"
logger = logging.getLogger("perseus.agent")


@dataclass(frozen=True)
class Unlocked:
    """Sums over a rank's unlocked iterations."""

    joules: float
    seconds: float
    iterations: int


class Baselines:
    """The files in one folder."""

    def __init__(self, folder: Path) -> None:
        """Use a folder, making it if need be."""
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._folder = folder

    def load(self, pod_uid: str, rank: tuple[object, ...]) -> Unlocked | None:
        """Return what was measured for a rank of a pod, None if nothing was or it cannot be read."""
        try:
            content = json.loads(read_bounded(self._path(pod_uid, rank), MAXIMUM_BYTES))
            if content["version"] != VERSION or content["podUid"] != pod_uid or content["rank"] != [*map(str, rank)]:
                return None
            found = Unlocked(float(content["joules"]), float(content["seconds"]), int(content["iterations"]))
        except (OSError, ValueError, TypeError, KeyError, OverflowError, RecursionError):
            return None
        sound = math.isfinite(found.joules) and math.isfinite(found.seconds) and found.iterations < MAXIMUM_ITERATIONS
        return found if sound and min(found.joules, found.seconds, found.iterations) > 0 else None

    def save(self, pod_uid: str, rank: tuple[object, ...], sums: Unlocked) -> None:
        """Keep what was measured; never raises, since training needs none of it."""
        content = json.dumps({"version": VERSION, "podUid": pod_uid, "rank": [*map(str, rank)], **asdict(sums)})
        try:
            write_whole(self._path(pod_uid, rank), content, durable=False)
        except OSError as error:
            logger.warning("a baseline cannot be kept: %s", error)

    def forget(self, pod_uid: str) -> None:
        """Remove a pod's files."""
        for path in self._folder.glob(f"{_digest(pod_uid)}-*{_SUFFIX}"):
            path.unlink(missing_ok=True)

    def sweep(self, pod_uids: set[str]) -> None:
        """Remove the files of all pods but these, and the oldest if there are too many."""
        kept = {_digest(uid) for uid in pod_uids}
        files = sorted(self._folder.glob(f"*{_SUFFIX}*"), key=lambda path: path.name)
        for index, path in enumerate(files):
            if path.name.partition("-")[0] not in kept or index >= MAXIMUM_FILES:
                path.unlink(missing_ok=True)

    def _path(self, pod_uid: str, rank: tuple[object, ...]) -> Path:
        return self._folder / f"{_digest(pod_uid)}-{_digest('/'.join(map(str, rank)))}{_SUFFIX}"


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:24]
