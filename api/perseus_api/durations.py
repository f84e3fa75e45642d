"""What instructions are expected to take: by what runs and at which clock, cut from the profile into a plan.

The agent compares each instruction with it: observed over expected time, at the clock that was really asked for, says
which stage is at fault when a pipeline is slow. Only the clocks that plans use are carried, so that documents stay
small.
"""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

Work = Annotated[str, Field(pattern=r"^[A-Z][0-9]{0,3}$")]
WorkSeconds = Annotated[
    dict[Annotated[int, Field(ge=0, le=100_000)], Annotated[float, Field(gt=0, le=1e6, allow_inf_nan=False)]],
    Field(max_length=1024),
]
# One entry for each stage: seconds by work (see `work`) and clock in MHz (0 for what has no clock).
StageSeconds = Annotated[dict[Work, WorkSeconds], Field(max_length=256)]


def work(letter: str, chunk: int) -> str:
    """Return the key of an instruction's letter in a model chunk, such as ``F`` or, in chunk 1, ``F1``."""
    return f"{letter}{chunk}" if chunk else letter
