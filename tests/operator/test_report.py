"""A job's books in a real API server, from a real Prometheus: kept over the operator's death, reported once."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parent))
from bare import BareCluster, OperatorProcess, eventually, perseus_job, profile_config_map
from training import PIPELINES, STAGES, MetricsPage, Training, labels

pytestmark = pytest.mark.cluster
JOULES, BASELINE, SECONDS = 80.0, 100.0, 0.8  # of a rank's iteration
RANKS = PIPELINES * STAGES


class Metered(Training):
    """A training whose ranks also show their books: 80 J an iteration where 100 J were used unlocked."""

    def counted(self) -> int:
        """Iterations that every rank has finished."""
        return max(0, self.iteration)

    def render(self) -> list[str]:
        """The metrics page's lines."""
        found = super().render()
        done = self.counted()
        for rank in range(RANKS):
            pipeline, stage = divmod(rank, STAGES)
            place = {
                "namespace": self.namespace, "job": self.job, "pipeline": pipeline, "stage": stage, "tensor_rank": 0,
                "pod": f"{self.job}-{rank}", "gpu": f"GPU-{pipeline}{stage}",
            }  # fmt: skip
            own, measured = labels(**place), labels(**place, source="measured")
            found += [
                f"perseus_gpu_energy_joules_total{own} {done * JOULES}",
                f"perseus_gpu_baseline_joules_total{measured} {done * BASELINE}",
                f"perseus_iterations_total{own} {done}",
                f"perseus_iterations_seconds_total{own} {done * SECONDS}",
                f"perseus_baseline_seconds_total{measured} {done * SECONDS}",
            ]
        return found


def status(bare: BareCluster, home: str) -> dict[str, Any]:
    found: dict[str, Any] = (bare.find("perseusjob", home, "train") or {}).get("status") or {}
    return found


def events(bare: BareCluster, home: str) -> list[str]:
    items = json.loads(bare.kubectl("get", "events", "-n", home, "-o", "json"))["items"]
    return [each["message"] for each in items if each["reason"] == "Reported"]


def ends(bare: BareCluster, home: str) -> str:
    return bare.conditions(home, "train")["WorkloadReady"]["reason"]


def time_to_live(bare: BareCluster, home: str) -> int | None:
    """Nobody takes the Job away here."""
    found: int | None = (bare.find("job", home, "train") or {})["spec"].get("ttlSecondsAfterFinished")
    return found


def end_training(bare: BareCluster, home: str) -> None:
    """Do what the Job controller does when all pods have ended well."""
    now = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    true = {"status": "True", "reason": "CompletionsReached", "lastTransitionTime": now, "lastProbeTime": now}
    conditions = [{"type": "SuccessCriteriaMet", **true}, {"type": "Complete", **true}]
    ended = {"startTime": now, "completionTime": now, "succeeded": RANKS, "conditions": conditions}
    patch = json.dumps({"status": ended})
    bare.kubectl("patch", "job", "train", "-n", home, "--subresource=status", "--type=merge", "-p", patch)


def test_books_outlive_the_operator_and_the_report_comes_once(
    bare: BareCluster, watching: OperatorProcess, page: MetricsPage, home: str
) -> None:
    job = perseus_job(accounting={"baselineIterations": 1}, ttlSecondsAfterFinished=0)
    bare.apply(home, profile_config_map(), job)
    eventually("the frontier's ConfigMap", lambda: bare.find("configmap", home, "train-frontier"))
    bare.optimise(home, "train")
    training = Metered(home, "train", lambda: bare.plan(home, "train"))
    page.trainings.append(training)
    eventually("the books are written down", lambda: bare.find("configmap", home, "train-report"), 60)
    eventually("savings are told", lambda: status(bare, home).get("savings"), 60)
    assert status(bare, home)["savings"]["permille"] == 200
    watching.kill()
    time.sleep(5)
    watching.start()
    time.sleep(10)
    training.stopped = True  # no iteration more; the page goes on to be scraped, as an agent's does
    total = training.counted()
    end_training(bare, home)
    eventually("the end is told", lambda: ends(bare, home) == "TrainingFinished")
    assert time_to_live(bare, home) is None, "the report needs the Job to tell when training ended"
    eventually("the report", lambda: status(bare, home).get("report"), 150)
    eventually("the Job may go", lambda: time_to_live(bare, home) == 0, 60)
    report = status(bare, home)["report"]
    assert report["iterations"] == total
    assert report["energyJoules"] == total * RANKS * JOULES
    assert report["baselineJoules"] == total * RANKS * BASELINE
    assert report["savedIntrinsicJoules"] + report["savedStragglerJoules"] == report["savedJoules"]
    assert (report["outcome"], report["source"], report["savingsPermille"]) == ("Succeeded", "Measured", 200)
    exact = json.loads((bare.find("configmap", home, "train-report") or {})["data"]["report.json"])
    assert exact["complete"] is True
    assert exact["energyJoules"] == total * RANKS * JOULES
    eventually("the event", lambda: events(bare, home))
    watching.kill()
    watching.start()
    time.sleep(8)
    assert len(events(bare, home)) == 1
    assert status(bare, home)["report"] == report
    assert (
        f'perseus_job_energy_joules{{job="train",namespace="{home}"}} {total * RANKS * JOULES}'
        in (watching.page("metrics")[1])
    )
