"""Where the testbed keeps its files.

Two folders with different lives: the cache holds what is expensive and identical for every cluster (programs, base
image, built images) and survives ``down``; the state belongs to one running cluster and goes away with it.
"""

import os
from dataclasses import dataclass
from pathlib import Path

CACHE_VARIABLE = "PERSEUS_TESTBED_CACHE"
STATE_VARIABLE = "PERSEUS_TESTBED_STATE"
DEFAULT_STATE = Path("/var/lib/perseus-testbed")


@dataclass(frozen=True)
class Folders:
    """The cache and the state folder of one testbed."""

    cache: Path
    state: Path

    @classmethod
    def from_environment(cls) -> "Folders":
        """The folders that the environment names, or the defaults."""
        cache = os.environ.get(CACHE_VARIABLE)
        state = os.environ.get(STATE_VARIABLE)
        return cls(
            cache=Path(cache).absolute() if cache else Path.home() / ".cache" / "perseus-testbed",
            state=Path(state).absolute() if state else DEFAULT_STATE,
        )

    @property
    def kubeconfig(self) -> Path:
        """The administrator's credentials."""
        return self.state / "kubeconfig"

    @property
    def logs(self) -> Path:
        """One log for each process of the cluster."""
        return self.state / "logs"

    @property
    def audit_log(self) -> Path:
        """Who asked the API server for what (metadata level, one JSON document a line)."""
        return self.state / "audit.log"

    @property
    def image_tag(self) -> Path:
        """Holds the tag of the project's images that were imported last."""
        return self.state / "image-tag"
