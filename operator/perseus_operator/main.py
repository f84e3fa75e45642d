"""``perseus-operator``: the Deployment's container, the chart's uninstall hook, and what ``helm test`` runs."""

from __future__ import annotations

import argparse
import asyncio
import signal
import sys
from typing import NoReturn

from perseus_operator.client import API_TROUBLES
from perseus_operator.handlers import run_operator
from perseus_operator.logs import set_up_logs
from perseus_operator.selftest import SelfTestFailed, selftest
from perseus_operator.settings import Settings, SettingsError
from perseus_operator.tracing import end_traces, set_up_traces
from perseus_operator.uninstall import uninstall


def main() -> int:
    """Run a command; return the exit status."""
    parser = argparse.ArgumentParser(prog="perseus-operator", description="Keeps PerseusJobs.")
    parser.add_argument("command", choices=["run", "uninstall", "selftest"])
    command = parser.parse_args().command
    # The first process of a container ends at no signal that it does not handle; kopf's own handler comes later.
    signal.signal(signal.SIGTERM, _end)
    try:
        settings = Settings.from_environment()
        set_up_logs(settings.log_format)
        set_up_traces()
        if command == "selftest":
            print("\n".join(asyncio.run(selftest(settings))))
        else:
            asyncio.run(run_operator(settings) if command == "run" else uninstall(settings))
    except (SettingsError, SelfTestFailed, *API_TROUBLES) as error:
        print(f"perseus-operator {command}: {error}", file=sys.stderr)
        return 1
    finally:
        end_traces()
    return 0


def _end(*_: object) -> NoReturn:
    raise SystemExit(128 + signal.SIGTERM)


if __name__ == "__main__":
    sys.exit(main())
