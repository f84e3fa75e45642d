"""Metrics of a large fleet, as its agents would export them: a process of its own beside a real Prometheus.

Every job has some pipelines of one GPU. Pages are made when they are asked for, so that a scrape shows the fleet as it
is then. A pipeline that the control file names is slow.
"""

from __future__ import annotations

import json
import sys
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

PERIOD_SECONDS = 2.8


class Fleet:
    """Jobs by number, cut into pages."""

    def __init__(self, jobs: int, pipelines: int, pages: int, period_seconds: float, control: Path) -> None:
        """Begin all jobs now."""
        self._jobs, self._pipelines, self._pages = jobs, pipelines, pages
        self._period = period_seconds
        self._control = control
        self._begin = time.time()

    def page(self, number: int) -> str:
        """One page of the exposition format."""
        control = json.loads(self._control.read_text()) if self._control.exists() else {}
        slow: dict[str, float] = control.get("slow", {})
        generations: dict[str, int] = control.get("generations", {})
        now, lines = time.time(), [f'perseus_agent_build_info{{node="node-{number}",version="0"}} 1']
        for job in range(number, self._jobs, self._pages):
            name = f"job-{job}"
            iteration = int((now - self._begin) / self._period) + 20
            begin = self._begin + (iteration - 20) * self._period
            generation = generations.get(name, generations.get("*", 1))
            for pipeline in range(self._pipelines):
                place = f'namespace="fleet-{job % 10}",job="{name}",pipeline="{pipeline}",pod="{name}-{pipeline}"'
                rank = f'{place},stage="0",tensor_rank="0",gpu="GPU-{job}-{pipeline}"'
                seconds = self._period * slow.get(f"{name}/{pipeline}", 1.0) * (1 + 1e-4 * ((iteration * 7) % 10))
                work = iteration * self._period
                lines += (
                    f"perseus_pipeline_seconds{{{place}}} {seconds:.6f}",
                    f"perseus_pipeline_iteration{{{place}}} {iteration}",
                    f"perseus_pipeline_iteration_begin_timestamp_seconds{{{place}}} {begin:.6f}",
                    f"perseus_plan_generation_accepted{{{rank}}} {generation}",
                    f"perseus_plan_generation_active{{{rank}}} {generation}",
                    f"perseus_gpu_energy_joules_total{{{rank}}} {work * 250:.1f}",
                    f'perseus_gpu_baseline_joules_total{{{rank},source="measured"}} {work * 300:.1f}',
                    f'perseus_instruction_compared_seconds_total{{{rank},instruction="forward"}} {work / 3:.3f}',
                    f'perseus_instruction_compared_seconds_total{{{rank},instruction="backward"}} {work / 2:.3f}',
                    f'perseus_instruction_expected_seconds_total{{{rank},instruction="forward"}} {work / 3:.3f}',
                    f'perseus_instruction_expected_seconds_total{{{rank},instruction="backward"}} {work / 2:.3f}',
                )
        return "\n".join(lines) + "\n"


def main() -> None:
    """Serve: port, jobs, pipelines, pages, period in seconds, control file."""
    port, jobs, pipelines, pages = (int(each) for each in sys.argv[1:5])
    fleet = Fleet(jobs, pipelines, pages, float(sys.argv[5]), Path(sys.argv[6]))

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            body = fleet.page(int(self.path.rpartition("/")[2])).encode()
            self.send_response(200)
            self.send_header("Content-Type", "text/plain; version=0.0.4")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            """Say nothing of each scrape."""

    ThreadingHTTPServer(("127.0.0.1", port), Handler).serve_forever()


if __name__ == "__main__":
    main()
