"""What is told of a job's agents: what Prometheus shows of them and, for a while, what it showed before. Pure.

A scrape that fails takes a pod's metrics away until the next one; a question may be missed on a busy machine. Neither
is news to a person, and a fleet's worth of it is a flood of statuses and events. Nothing is decided by what is kept
here: clocks follow measurements, and a measurement that is missing slows nobody.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from perseus_operator.prometheus import JobReport

# Longer than a scrape that fails takes to be made up for by the next, at the interval that the chart sets.
SIGHT_SECONDS = 15.0


@dataclass
class Sight:
    """What counts as seen of a job.

    Attributes:
        report: None while nothing is known yet: an operator that starts anew has not seen enough to say otherwise than
            the one before.
        seen_seconds: monotonic time at which as much was seen.
    """

    report: JobReport | None
    seen_seconds: float

    def take(self, report: JobReport | None, ranks: int, pipelines: int, now: float) -> bool:
        """Take what was seen now; return whether what is to be told has changed.

        Args:
            report: None if nothing was.
            ranks: of the job.
            pipelines: of the job.
            now: monotonic seconds.
        """
        before = self.report
        most_ranks, most_pipelines = ranks, pipelines
        if before is not None:
            most_ranks, most_pipelines = min(ranks, before.ranks), min(pipelines, len(before.pipelines))
        lacks = report is None or report.ranks < most_ranks or len(report.pipelines) < most_pipelines
        if not lacks or now - self.seen_seconds >= SIGHT_SECONDS:
            self.report, self.seen_seconds = report or JobReport(), now
        elif before is not None and report is not None:
            self.report = replace(before, troubles=report.troubles)
        return _told(self.report) != _told(before)


def _told(report: JobReport | None) -> tuple[object, ...] | None:
    if report is None:
        return None
    return report.accepted, report.active, report.troubles, len(report.pipelines)
