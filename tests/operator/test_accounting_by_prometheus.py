"""Accounting over a real Prometheus: a job killed and resumed, an agent and an operator that start anew count once.

The agents' pages are the test's own, so that what was truly used is known; the query, its window and the staleness of
series are Prometheus's.
"""

from __future__ import annotations

import asyncio
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import aiohttp
import pytest
from perseus_operator.accounts import Accounts
from perseus_operator.ledger import Ledger, Situation
from perseus_operator.prometheus import Prometheus
from perseus_operator.transport import Connection, PrometheusAddress

from harness.controlplane import free_port
from harness.prometheus_server import PrometheusServer
from testbed.execution import wait_until

sys.path.insert(0, str(Path(__file__).parent))

pytestmark = pytest.mark.cluster
SCRAPE_SECONDS = 0.5
JOB = ("research", "gpt")


class Agents:
    """Metrics pages of ranks: joules by pod; a test moves them, and knows what was used in all."""

    def __init__(self) -> None:
        self.joules: dict[str, float] = {}
        self.used = 0.0
        self.scrapes = 0
        agents = self

        class Page(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                body = agents.page().encode()
                self.send_response(200)
                self.send_header("Content-Type", "text/plain; version=0.0.4")
                self.end_headers()
                self.wfile.write(body)
                agents.scrapes += 1

            def log_message(self, *_: object) -> None:
                """Say nothing."""

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Page)
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def use(self, pod: str, joules: float) -> None:
        """Let a pod's GPU use energy."""
        self.joules[pod] = self.joules.get(pod, 0.0) + joules
        self.used += joules

    def page(self) -> str:
        lines = []
        for pod, joules in self.joules.items():
            labels = f'namespace="research",job="gpt",pipeline="0",stage="0",tensor_rank="0",pod="{pod}",gpu="GPU-0"'
            lines += [
                f"perseus_gpu_energy_joules_total{{{labels}}} {joules}",
                f'perseus_gpu_baseline_joules_total{{{labels},source="measured"}} {joules * 1.25}',
                f"perseus_iterations_total{{{labels}}} {joules / 10}",
                f"perseus_iterations_seconds_total{{{labels}}} {joules / 5}",
                f'perseus_baseline_seconds_total{{{labels},source="measured"}} {joules / 5}',
            ]
        return "\n".join(lines) + "\n"

    def scraped(self) -> None:
        """Wait until what the page says now is in Prometheus: two more scrapes have begun."""
        seen = self.scrapes
        wait_until("two scrapes", lambda: self.scrapes >= seen + 2, timeout_seconds=60, period_seconds=0.05)


@pytest.fixture
def agents() -> Iterator[Agents]:
    """Pages on loopback."""
    made = Agents()
    yield made
    made.server.shutdown()
    made.server.server_close()


@pytest.fixture
def prometheus_url(agents: Agents, tmp_path: Path) -> Iterator[str]:
    """A Prometheus of the test's own that scrapes the pages."""
    port, page = free_port(), agents.server.server_port
    with PrometheusServer(tmp_path / "prometheus", port, page, SCRAPE_SECONDS, rules=False) as prometheus:
        yield prometheus.url


async def test_a_job_killed_and_resumed_under_an_operator_killed_and_resumed_counts_once(
    agents: Agents, prometheus_url: str
) -> None:
    async with aiohttp.ClientSession() as session:
        prometheus = Prometheus(Connection(PrometheusAddress(prometheus_url), session))

        def operator(ledger: Ledger) -> Accounts:
            accounts = Accounts(lambda _key: Situation.PLANNED, lambda _key: None, enabled=True)
            accounts.open(JOB, ledger)
            return accounts

        books = Ledger("uid")
        accounts = operator(books)
        agents.use("gpt-a", 1000)
        agents.scraped()
        await accounts.read(prometheus)
        assert books.totals.energy_joules == 1000

        # Used and gone before the operator looks again; the next pod begins from zero.
        agents.use("gpt-a", 500)
        agents.scraped()
        del agents.joules["gpt-a"]
        agents.use("gpt-b", 70)
        agents.scraped()
        await accounts.read(prometheus)
        assert books.totals.energy_joules == agents.used == 1570

        # The agent is killed and starts anew between two looks.
        agents.use("gpt-b", 200)
        agents.scraped()
        agents.joules["gpt-b"] = 0.0
        agents.use("gpt-b", 30)
        agents.scraped()
        await accounts.read(prometheus)
        assert books.totals.energy_joules == agents.used == 1800

        # The operator is killed; while it is away a pod comes and goes.
        written = books.encode()
        agents.use("gpt-b", 100)
        agents.scraped()
        del agents.joules["gpt-b"]
        agents.use("gpt-c", 40)
        agents.scraped()
        del agents.joules["gpt-c"]
        agents.scraped()
        await asyncio.sleep(3)
        books = Ledger.decode(written)
        accounts = operator(books)
        agents.use("gpt-d", 9)
        agents.scraped()
        await accounts.read(prometheus)
        await accounts.read(prometheus)
        assert books.totals.energy_joules == pytest.approx(agents.used) == 1949
        assert books.totals.measured_joules == pytest.approx(agents.used * 1.25)
        assert books.totals.iterations == pytest.approx(agents.used / 10)
        assert books.totals.intrinsic_joules == pytest.approx(agents.used * 0.25)
