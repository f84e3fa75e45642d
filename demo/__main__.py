"""``make demo``: bring everything up, play the story, write the report and the picture."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from demo.narration import Narrator
from demo.picture import draw_run
from demo.pictures import keep_window
from demo.scenario import run_scenario
from testbed.errors import TestbedError
from testbed.installation import install

OUTPUT = Path("build/demo")


def main() -> int:
    """Run the demonstration; return the exit status."""
    parser = argparse.ArgumentParser(prog="make demo", description="From kubectl apply to energy saved.")
    parser.add_argument("--given-profile", action="store_true", help="bring a profile, so that none is measured")
    given = parser.parse_args().given_profile
    narrator = Narrator()
    narrator.heading("A real Kubernetes on this machine, the project's images, the operator by helm install")
    try:
        installation = install(narrator.say)
        run = run_scenario(installation, narrator, given_profile=given)
    except TestbedError as error:
        print(f"make demo: {error}", file=sys.stderr)
        return 2
    except TimeoutError as error:
        narrator.say(f"The demonstration stopped: {error}")
        narrator.say("Look with: kubectl get pjob -A -o yaml")
        narrator.say(
            "and: kubectl logs -n perseus-system -l app.kubernetes.io/part-of=perseus-operator --all-containers"
        )
        return 1
    run.report.write(OUTPUT / "report.json")
    keep_window(run)
    draw_run(run.samples, list(run.report.phases), run.events, OUTPUT / "run.png")
    narrator.heading("What was measured (energy by NVML's counters, real time)")
    print(run.report.table(), flush=True)
    narrator.say(f"report: {OUTPUT / 'report.json'}, picture: {OUTPUT / 'run.png'}")
    narrator.say(f"the cluster stays up (export KUBECONFIG={installation.kubeconfig}); make down removes it")
    return 0


if __name__ == "__main__":
    sys.exit(main())
