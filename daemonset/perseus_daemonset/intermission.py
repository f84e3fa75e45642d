"""How long a silence between two iterations is more than their gap: then the script does something else. Pure.

Evaluation, a checkpoint, a reload of the data are no part of any plan, so they must not run at a plan's clock. But
between two iterations there is always a gap, and a clock that is given back in each of them would be two calls for
nothing. What lies in a gap (where `iteration()` stands around a schedule's step alone: the gradients' reduction, the
wait for the slowest pipeline, the optimiser) grows with the iteration: half of one is more than any of it takes, unless
a pipeline is slower than all others by half. What does not grow with it (the next batch, a line in a log, a process
that is not scheduled at once) takes far less than a second, which is the least. The price is that of something else's
first moments: half an iteration's time at most, or a second, at the plan's clock.

Of the plan's and the measured time of an iteration the longer counts: a sweep's plan predicts none, and a given profile
may be another machine's.
"""

from __future__ import annotations

SHARE_OF_ITERATION = 0.5
LEAST_SECONDS = 1.0


def patience_seconds(predicted_seconds: float, measured_seconds: float | None) -> float:
    """Return how long the next iteration is waited for before the clock is given back.

    Args:
        predicted_seconds: of an iteration, by the plan.
        measured_seconds: of an iteration that ran, if any did.
    """
    return max(LEAST_SECONDS, SHARE_OF_ITERATION * max(predicted_seconds, measured_seconds or 0.0))
