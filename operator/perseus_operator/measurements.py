"""What Prometheus says of pipelines, and which of several pods speaks for one. Pure; no node's clock is believed.

Nodes' clocks may be minutes apart. So ages are differences of Prometheus's own clock (its time of the answer less its
time of the scrape), and whether a pipeline still moves is what the operator itself saw change, by its own monotonic
clock. The agent's wall clock serves for one thing alone, how far an iteration is, and only where it agrees with
Prometheus's.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

# Within this many seconds of what can be true, the agent's and Prometheus's clocks are taken to agree.
CLOCK_TOLERANCE_SECONDS = 1.0
# A plan names an iteration that begins at least this long after it is written.
NOTICE_SECONDS = 0.7
STALE_ITERATIONS = 10.0
STALE_SECONDS = 60.0


@dataclass(frozen=True)
class Measurement:
    """What one pod says of its pipeline.

    Attributes:
        seconds: pipeline time of the last finished iteration; None before the first.
        iteration: index of the iteration that runs now.
        begin_seconds: agent's wall-clock time at which it began; None if unknown.
        scraped_seconds: Prometheus's time of the scrape; None if unknown.
        age_seconds: time of the answer less time of the scrape, both Prometheus's.
        pod: that says it.
    """

    seconds: float | None
    iteration: int
    begin_seconds: float | None = None
    scraped_seconds: float | None = None
    age_seconds: float = 0.0
    pod: str = ""

    @property
    def is_sound(self) -> bool:
        """Whether the numbers can be true at all."""
        others = (self.begin_seconds, self.scraped_seconds, self.age_seconds)
        return (
            0 <= self.iteration < 2**53
            and all(each is None or math.isfinite(each) for each in others)
            and (self.seconds is None or (math.isfinite(self.seconds) and 0 < self.seconds < 1e6))
        )

    def into_iteration(self, period_seconds: float) -> float:
        """Return for how long the current iteration ran when it was scraped; the whole period where nobody knows."""
        if self.begin_seconds is None or self.scraped_seconds is None:
            return period_seconds
        into = self.scraped_seconds - self.begin_seconds
        if -CLOCK_TOLERANCE_SECONDS <= into <= period_seconds + CLOCK_TOLERANCE_SECONDS:
            return min(max(into, 0.0), period_seconds)
        return period_seconds


@dataclass
class Speaker:
    """What was seen of one pod."""

    iteration: int
    seconds: float | None
    changed_seconds: float
    seen_seconds: float


@dataclass
class PipelineVoice:
    """Which pod speaks for a pipeline: the one that moved last, by the operator's own clock.

    A dead pod's last words stay in Prometheus for a while; they do not move any more.
    """

    pods: dict[str, Speaker] = field(default_factory=dict)

    def choose(self, found: Iterable[Measurement], planned_seconds: float, now: float) -> Measurement | None:
        """Return the measurement that counts, None if there is none that still moves.

        Args:
            found: what the pods say.
            planned_seconds: of one iteration, by which standing still is judged.
            now: monotonic seconds.
        """
        best: tuple[tuple[float, float, float], Measurement] | None = None
        first_look = not self.pods
        for each in found:
            if not each.is_sound:
                continue
            known = self.pods.get(each.pod)
            if known is None:
                # Seen for the first time together with others: nobody knows who moved last.
                known = Speaker(each.iteration, each.seconds, 0.0 if first_look else now, now)
                self.pods[each.pod] = known
            elif (known.iteration, known.seconds) != (each.iteration, each.seconds):
                known.iteration, known.seconds, known.changed_seconds = each.iteration, each.seconds, now
            known.seen_seconds = now
            rank = (known.changed_seconds, each.scraped_seconds or 0.0, each.begin_seconds or 0.0)
            if best is None or rank > best[0]:
                best = (rank, each)
        if first_look:
            for speaker in self.pods.values():
                speaker.changed_seconds = now
        limit = max(STALE_SECONDS, STALE_ITERATIONS * planned_seconds)
        for pod, speaker in list(self.pods.items()):
            if now - speaker.seen_seconds > limit:
                del self.pods[pod]
        if best is None or now - self.pods[best[1].pod].changed_seconds > limit:
            return None
        return best[1]


def first_iteration(
    planned_seconds: float, measured: Mapping[int, Measurement], since_answer_seconds: float, notice_seconds: float
) -> int:
    """Return the iteration from which a new plan can hold on all agents: the first that begins late enough from now.

    Prometheus's knowledge is up to a scrape old, so the iterations since are reckoned from the measured duration.

    Args:
        planned_seconds: longest pipeline time that the plan in force predicts.
        measured: by pipeline.
        since_answer_seconds: since Prometheus gave the answer.
        notice_seconds: that a plan needs to reach every agent.
    """
    period = max([planned_seconds, *(each.seconds for each in measured.values() if each.seconds is not None)])
    found = 1
    for each in measured.values():
        elapsed = max(0.0, each.age_seconds) + max(0.0, since_answer_seconds) + notice_seconds
        found = max(found, each.iteration + math.floor((each.into_iteration(period) + elapsed) / period) + 1)
    return found
