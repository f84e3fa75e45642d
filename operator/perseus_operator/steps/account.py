"""The step that keeps a job's books: opens its ledger, writes it down every minute, and reports when training ended.

The status tells figures only once they are written down, so that they never go back when the operator dies.
"""

from __future__ import annotations

import base64
import binascii
import logging
import time
from datetime import UTC, datetime

from perseus_api import names
from perseus_api.errors import DocumentError

from perseus_operator import metrics
from perseus_operator.accounts import WRITE_SECONDS, Accounts
from perseus_operator.children import Builder, Document
from perseus_operator.client import CONFIG_MAP, Api
from perseus_operator.ledger import Ledger, Totals
from perseus_operator.monitor import JobKey
from perseus_operator.report import REPORT_AFTER_SECONDS, REPORT_WITHIN_SECONDS, final_report, report_json
from perseus_operator.visit import Visit

logger = logging.getLogger("perseus.operator")


class AccountStep:
    """Keeps books over a connection."""

    def __init__(self, api: Api, accounts: Accounts) -> None:
        """Write what the accounts know."""
        self._api = api
        self._accounts = accounts
        self._written: dict[JobKey, tuple[float, Totals]] = {}

    def forget(self, key: JobKey) -> None:
        """Close the books of a job that is gone."""
        self._written.pop(key, None)
        self._accounts.forget(key)
        metrics.forget_totals(*key)

    async def bring_about(self, visit: Visit, builder: Builder) -> None:
        """Open the ledger, write it down where it is time to, and report if training has ended.

        Raises:
            ApiRefusal: the API server refused.
        """
        if not self._accounts.enabled:
            return
        ledger = self._accounts.find(visit.key, builder.uid)
        visit.report = (visit.job.get("status") or {}).get("report")
        if visit.report is not None:
            # All is counted; a new operator still shows it.
            self._accounts.close(visit.key)
            if visit.key not in self._written:
                await self._open(visit, builder, keep=False)
            return
        if ledger is None:
            ledger = await self._open(visit, builder)
        if visit.ended is not None:
            await self._finish(visit, builder, ledger, *visit.ended)
        elif time.monotonic() > self._written.get(visit.key, (float("-inf"), None))[0] + 0.9 * WRITE_SECONDS:
            # The accounts ask for a visit when it is time; other visits must not write more often.
            await self._write(visit, builder, ledger, None)
        told = self._written.get(visit.key)
        visit.totals = told[1] if told else None

    async def _open(self, visit: Visit, builder: Builder, keep: bool = True) -> Ledger:
        name = names.report_config_map_name(builder.name)
        kept = None if visit.is_new else await self._api.get(CONFIG_MAP, builder.namespace, name)
        ledger = _decoded(kept, builder.uid)
        self._written.pop(visit.key, None)
        if ledger is None:
            ledger = Ledger(builder.uid)
        else:
            self._written[visit.key] = (time.monotonic(), ledger.totals.model_copy())
        if keep:
            self._accounts.open(visit.key, ledger)
        elif ledger.totals.energy_joules > 0:
            metrics.tell_totals(*visit.key, ledger.totals)
        return ledger

    async def _finish(
        self, visit: Visit, builder: Builder, ledger: Ledger, outcome: str, ended_unix_seconds: float
    ) -> None:
        if ledger.read_unix_seconds < ended_unix_seconds + REPORT_AFTER_SECONDS:
            visit.settled = visit.settled and time.time() > ended_unix_seconds + REPORT_WITHIN_SECONDS
            return
        ended = datetime.fromtimestamp(ended_unix_seconds, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        report = final_report(ledger.totals, outcome, ended)
        if report is not None:
            await self._write(visit, builder, ledger, report)
            visit.report = report

    async def _write(self, visit: Visit, builder: Builder, ledger: Ledger, report: Document | None) -> None:
        if ledger.totals.energy_joules <= 0:
            return
        totals = ledger.totals.model_copy()
        encoded = base64.b64encode(ledger.encode()).decode()
        await self._api.apply(builder.report_config_map(report_json(totals, report), encoded))
        self._written[visit.key] = (time.monotonic(), totals)


def _decoded(config_map: Document | None, uid: str) -> Ledger | None:
    """Return the ledger of this very job that was written down, if there is one that can be read."""
    if config_map is None:
        return None
    try:
        data = base64.b64decode((config_map.get("binaryData") or {}).get(names.LEDGER_KEY, ""), validate=True)
        ledger = Ledger.decode(data)
    except (DocumentError, binascii.Error) as error:
        logger.warning("ledger in ConfigMap %s: %s; counting anew", config_map["metadata"]["name"], error)
        return None
    return ledger if ledger.uid == uid else None
