"""Every alert by ``promtool test rules``: it fires when it should and stays silent when it should; each has a runbook.

The scenarios are in scenarios.yaml beside this file, the rules are the chart's.
"""

from __future__ import annotations

import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml
from perseus_api import metrics

pytestmark = pytest.mark.cluster
ROOT = Path(__file__).resolve().parents[2]
RULES = sorted((ROOT / "charts" / "perseus-operator" / "rules").glob("*.yaml"))
SCENARIOS = Path(__file__).parent / "scenarios.yaml"


def alerts() -> dict[str, dict[str, Any]]:
    found = {}
    for path in RULES:
        for group in yaml.safe_load(path.read_text())["groups"]:
            found |= {rule["alert"]: rule for rule in group["rules"] if "alert" in rule}
    return found


def scenarios() -> list[dict[str, Any]]:
    document: dict[str, Any] = yaml.safe_load(SCENARIOS.read_text())
    found: list[dict[str, Any]] = document["tests"]
    return found


def promtool(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["/usr/bin/promtool", *arguments], capture_output=True, text=True, check=False)


def test_prometheus_accepts_the_rules() -> None:
    done = promtool("check", "rules", "--lint-fatal", *map(str, RULES))
    assert done.returncode == 0, done.stdout + done.stderr


def test_every_scenario_comes_out_as_written(tmp_path: Path) -> None:
    document = {
        "rule_files": [str(path) for path in RULES],
        "evaluation_interval": "30s",
        "tests": [{key: value for key, value in each.items() if key != "alert"} for each in scenarios()],
    }
    (tmp_path / "scenarios.yaml").write_text(yaml.safe_dump(document))
    done = promtool("test", "rules", str(tmp_path / "scenarios.yaml"))
    assert done.returncode == 0, done.stdout + done.stderr


def test_every_alert_is_seen_firing_and_seen_silent() -> None:
    firing, silent = set(), set()
    for scenario in scenarios():
        for check in scenario["alert_rule_test"]:
            (firing if check["exp_alerts"] else silent).add(check["alertname"])
    assert firing == silent == set(alerts())


def test_a_scenario_with_another_outcome_is_noticed(tmp_path: Path) -> None:
    first = scenarios()[0]
    wrong = {**first, "alert_rule_test": [{**each, "exp_alerts": []} for each in first["alert_rule_test"]]}
    document = {"rule_files": [str(path) for path in RULES], "evaluation_interval": "30s", "tests": [wrong]}
    (tmp_path / "wrong.yaml").write_text(yaml.safe_dump(document))
    assert any(each["exp_alerts"] for each in first["alert_rule_test"])
    assert promtool("test", "rules", str(tmp_path / "wrong.yaml")).returncode != 0


def test_every_alert_says_what_to_do_in_a_runbook_of_its_own() -> None:
    headings = {
        line.removeprefix("## ").lower()
        for line in (ROOT / "docs" / "runbooks.md").read_text().splitlines()
        if line.startswith("## ")
    }
    for name, rule in alerts().items():
        assert rule["annotations"]["runbook_url"] == f"docs/runbooks.md#{name.lower()}"
        assert name.lower() in headings, f"docs/runbooks.md has no heading {name}"
        assert rule["labels"]["severity"] in ("critical", "warning", "info")
        assert rule["annotations"]["summary"].endswith(".")


def test_rules_name_metrics_that_exist() -> None:
    known = {*metrics.AGENT_METRICS, *metrics.OPERATOR_METRICS}
    recorded = set()
    for path in RULES:
        for group in yaml.safe_load(path.read_text())["groups"]:
            for rule in group["rules"]:
                recorded |= {rule["record"]} if "record" in rule else set()
                for name in re.findall(r"\bperseus_[a-z_]+\b", rule["expr"]):
                    assert name in known, f"{path.name}: {name}"
                for name in re.findall(r"\bperseus:[a-z_:]+\b", rule["expr"]):
                    assert name in recorded or any(name in other.read_text() for other in RULES), name
