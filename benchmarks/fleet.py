"""A thousand jobs at once on 1,250 nodes of kwok's: how soon each has its plan, and what that costs."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

from harness.scale import Size
from harness.scale import measure as measure_scale


def measure() -> dict[str, Any]:
    """Return the figures."""
    with tempfile.TemporaryDirectory() as folder:
        return measure_scale(Path(folder), Size())
