"""The fleet dashboard: what Perseus is worth, which jobs save, and which do not and why."""

from __future__ import annotations

from typing import Any

from dashboards.parts import (
    Column,
    Look,
    Query,
    document,
    label_variable,
    new_dashboard,
    number,
    number_variable,
    over_time,
    rows,
)

UID = "perseus-fleet"
_JOBS = 'namespace=~"$namespace"'
_KWH = 3.6e6
_SAVED = f"(sum(perseus_job_baseline_joules{{{_JOBS}}}) - sum(perseus_job_energy_joules{{{_JOBS}}}))"
# A job below this saves nothing worth the name.
_NOTHING = 0.01


def fleet_dashboard() -> dict[str, Any]:
    """Return the dashboard."""
    made = (
        new_dashboard(UID, "Perseus / Fleet", "What all PerseusJobs of the cluster save, in energy, money and carbon.")
        .with_variable(label_variable("namespace", "Namespace", "perseus_job_plan_generation", several=True))
        .with_variable(number_variable("price", "Price per kWh", "In any currency.", "0.15"))
        .with_variable(number_variable("grams", "g CO2 per kWh", "Of the site's electricity.", "400"))
    )
    for panel in (*_numbers(), *_jobs(), *_operator()):
        made = made.with_panel(panel)
    return document(made)


def _numbers() -> list[Any]:
    power, baseline = (
        f"sum({name}{{{_JOBS}}})" for name in ("perseus:job_power:watts", "perseus:job_baseline_power:watts")
    )
    return [
        number(
            "Savings now", "Measured, of the last ten minutes.", "percentunit", Query(f"1 - {power} / {baseline}"), 4, 1
        ),
        number("Power saved now", "Baseline less power, ten minutes.", "watt", Query(f"{baseline} - {power}"), 4, 1),
        number(
            "Energy saved", "By all jobs that are there, since each began.", "watth", Query(f"{_SAVED} / 3600"), 4, 2
        ),
        number("Money saved", "At the price above.", "none", Query(f"$price * {_SAVED} / {_KWH:.0f}"), 4, 2),
        number("CO2 avoided", "At the grams above.", "massg", Query(f"$grams * {_SAVED} / {_KWH:.0f}"), 4, 1),
        number(
            "Jobs with a plan", "PerseusJobs.", "none", Query(f"count(perseus_job_plan_generation{{{_JOBS}}})"), 4, 0
        ),
    ]


def _jobs() -> list[Any]:
    by = "sum by (namespace, job)"
    energy, baseline = (f"{by} (perseus_job_{name}_joules{{{_JOBS}}})" for name in ("energy", "baseline"))
    return [
        over_time(
            "Power against the baseline",
            "Of all jobs: measured, and what the same iterations would use unlocked.",
            "watt",
            [
                Query(f"sum by (namespace, job) (perseus:job_power:watts{{{_JOBS}}})", "{{namespace}}/{{job}}"),
                Query(f"sum(perseus:job_baseline_power:watts{{{_JOBS}}})", "baseline of all"),
            ],
            Look(stacked=True, lines="baseline of all", lowest=0),
        ),
        over_time(
            "Savings by job",
            "Measured, of the last ten minutes.",
            "percentunit",
            [Query(f"max by (namespace, job) (perseus:job_savings:ratio{{{_JOBS}}})", "{{namespace}}/{{job}}")],
        ),
        rows(
            "Jobs by savings",
            "Since each began. Slowdown: time over unlocked time, less 1, stragglers included.",
            [
                Column(Query(f"sort_desc(1 - {energy} / {baseline})"), "savings", "percentunit", 1),
                Column(Query(f"({baseline} - {energy}) / 3600"), "energy saved", "watth", 2),
                Column(
                    Query(f"max by (namespace, job) (perseus_job_slowdown_ratio{{{_JOBS}}})"),
                    "slowdown",
                    "percentunit",
                    1,
                ),
                Column(Query(f"max by (namespace, job) (perseus_job_iterations{{{_JOBS}}})"), "iterations", "none", 0),
            ],
            {"namespace": "namespace", "job": "job"},
            width=12,
        ),
        rows(
            "Jobs that do not save now, and why",
            "Ranks by their state, of jobs that have saved less than 1 % in the last ten minutes. no_plan and waiting "
            "belong to a job's beginning; not_held, mismatch, interference and refused are to be looked at.",
            [
                Column(
                    Query(
                        f"sum by (namespace, job, state, reason) (perseus_rank_state{{{_JOBS}}})"
                        f" and on (namespace, job) (max by (namespace, job) (perseus:job_savings:ratio{{{_JOBS}}})"
                        f" < {_NOTHING})"
                    ),
                    "ranks",
                    "none",
                    0,
                )
            ],
            {"namespace": "namespace", "job": "job", "state": "state", "reason": "reason"},
            width=12,
        ),
        over_time(
            "Stragglers by cause",
            "Pipelines that are acted on as stragglers.",
            "none",
            [
                Query(f"count by (cause) (perseus_job_straggler_cause_ratio{{{_JOBS}}})", "{{cause}}"),
                Query(f"count(perseus_job_straggler_slowdown_ratio{{{_JOBS}}} > 1) or vector(0)", "jobs that wait"),
            ],
            Look(points=True, lowest=0, decimals=0),
        ),
        over_time(
            "Energy saved, by what was done",
            "Intrinsic: on uneven stages. Straggler: while a slow pipeline is waited for, beyond the intrinsic.",
            "joule",
            [Query(f"sum by (cause) (perseus_job_saved_joules{{{_JOBS}}})", "{{cause}}")],
            Look(stacked=True),
        ),
    ]


def _operator() -> list[Any]:
    return [
        over_time(
            "Reconciles",
            "Visits of the operator to jobs, by outcome.",
            "ops",
            [Query("sum by (outcome) (rate(perseus_operator_reconciles_total[$__rate_interval]))", "{{outcome}}")],
            Look(lowest=0, width=8),
        ),
        over_time(
            "Straggler rounds",
            "Questions to Prometheus, by outcome: failed means that nobody sees stragglers.",
            "ops",
            [
                Query(
                    "sum by (outcome) (rate(perseus_operator_straggler_rounds_total[$__rate_interval]))", "{{outcome}}"
                )
            ],
            Look(lowest=0, width=8),
        ),
        over_time(
            "From a change to the plan at the agents",
            "From the scrape that showed a pipeline's change to the scrape that showed a rank holding the plan for it.",
            "s",
            [
                Query(
                    f"histogram_quantile({quantile}, sum by (le) "
                    "(rate(perseus_operator_plan_confirmation_seconds_bucket[$__rate_interval])))",
                    legend,
                )
                for quantile, legend in ((0.5, "half of the ranks"), (0.95, "95 %"))
            ],
            Look(lowest=0, width=8),
        ),
    ]
