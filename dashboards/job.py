"""The job dashboard: what one training job saves, what it would use unlocked, and what the plan makes of its stages."""

from __future__ import annotations

from typing import Any

from grafana_foundation_sdk.builders import dashboard as builders

from dashboards.parts import (
    Look,
    Query,
    annotation,
    document,
    label_variable,
    new_dashboard,
    number,
    number_variable,
    over_time,
)

UID = "perseus-job"
_JOB = 'namespace=~"$namespace", job=~"$job"'
_KWH = 3.6e6


def job_dashboard() -> dict[str, Any]:
    """Return the dashboard."""
    made = (
        new_dashboard(UID, "Perseus / Job", "What a training job saves, and how.")
        .with_variable(label_variable("namespace", "Namespace", "perseus_job_plan_generation"))
        .with_variable(label_variable("job", "Job", 'perseus_job_plan_generation{namespace=~"$namespace"}'))
        .with_variable(number_variable("price", "Price per kWh", "In any currency.", "0.15"))
        .with_variable(number_variable("grams", "g CO2 per kWh", "Of the site's electricity.", "400"))
    )
    for panel in (*_numbers(), *_energy(), *_time(), *_plans()):
        made = made.with_panel(panel) if not isinstance(panel, builders.Row) else made.with_row(panel)
    found = document(made)
    found["annotations"] = {
        "list": [
            annotation(
                "Stragglers", "red", f"perseus_job_straggler_cause_ratio{{{_JOB}}} > 1",
                "Pipeline {{pipeline}}: {{cause}}", "GPU {{gpu}} of pod {{pod}} on node {{node}}",
            ),
            annotation(
                "Plan generations", "blue",
                f"changes(perseus_job_plan_generation{{{_JOB}}}[$__rate_interval]) > 0",
                "New plan", "{{namespace}}/{{job}}",
            ),
        ]
    }  # fmt: skip
    return found


def _numbers() -> list[Any]:
    saved = f"(sum(perseus_job_baseline_joules{{{_JOB}}}) - sum(perseus_job_energy_joules{{{_JOB}}}))"
    now = (
        f"1 - sum(rate(perseus_gpu_energy_joules_total{{{_JOB}}}[$__rate_interval]))"
        f" / sum(rate(perseus_gpu_baseline_joules_total{{{_JOB}}}[$__rate_interval]))"
    )
    return [
        number("Savings now", "Measured, of the last minute: 1 - energy / baseline.", "percentunit", Query(now), 4, 1),
        number(
            "Savings so far", "Measured, since the job began, over restarts (docs/accounting.md).", "percentunit",
            Query(f"1 - sum(perseus_job_energy_joules{{{_JOB}}}) / sum(perseus_job_baseline_joules{{{_JOB}}})"), 4, 1,
        ),
        number("Energy saved so far", "Baseline less energy.", "watth", Query(f"{saved} / 3600"), 4, 2),
        number("Money saved so far", "At the price above.", "none", Query(f"$price * {saved} / {_KWH:.0f}"), 4, 2),
        number("CO2 avoided so far", "At the grams above.", "massg", Query(f"$grams * {saved} / {_KWH:.0f}"), 4, 1),
        number(
            "Slowdown so far", "Time of all iterations over unlocked time, less 1; stragglers included.", "percentunit",
            Query(f"max(perseus_job_slowdown_ratio{{{_JOB}}})"), 4, 1,
        ),
    ]  # fmt: skip


def _energy() -> list[Any]:
    energy = f"rate(perseus_gpu_energy_joules_total{{{_JOB}}}[$__rate_interval])"
    baseline = f"rate(perseus_gpu_baseline_joules_total{{{_JOB}}}[$__rate_interval])"
    return [
        over_time(
            "Power by stage against the baseline",
            "Measured energy of finished iterations a second; the line is what the same iterations would use unlocked.",
            "watt",
            [Query(f"sum by (stage) ({energy})", "stage {{stage}}"), Query(f"sum({baseline})", "baseline")],
            Look(stacked=True, lines="baseline", lowest=0, height=9),
        ),
        over_time(
            "Savings",
            "Measured, and what the plan in force predicts (a prediction).",
            "percentunit",
            [
                Query(f"1 - sum({energy}) / sum({baseline})", "measured"),
                Query(f"max(perseus_job_predicted_savings_ratio{{{_JOB}}})", "predicted"),
            ],
            Look(height=9),
        ),
        over_time(
            "Energy saved so far, by what was done",
            "Intrinsic: on uneven stages. Straggler: while a slow pipeline is waited for, beyond the intrinsic.",
            "joule",
            [Query(f"sum by (cause) (perseus_job_saved_joules{{{_JOB}}})", "{{cause}}")],
            Look(stacked=True),
        ),
        over_time(
            "Power as the devices report it",
            "Sum over the GPUs of each pipeline, at the moment of the scrape.",
            "watt",
            [Query(f"sum by (pipeline) (perseus_gpu_power_watts{{{_JOB}}})", "pipeline {{pipeline}}")],
            Look(lowest=0),
        ),
    ]


def _time() -> list[Any]:
    return [
        over_time(
            "Iteration time against plan and baseline",
            "Pipelines: first forward's begin to last backward's end. Iteration: with the synchronisation. Baseline: "
            "a measured unlocked iteration.",
            "s",
            [
                Query(f"max(perseus_iteration_seconds{{{_JOB}}})", "iteration"),
                Query(f"max by (pipeline) (perseus_pipeline_seconds{{{_JOB}}})", "pipeline {{pipeline}}"),
                Query(
                    f"max by (pipeline) (perseus_job_planned_iteration_seconds{{{_JOB}}})",
                    "plan, pipeline {{pipeline}}",
                ),
                Query(f"avg(perseus_gpu_baseline_iteration_seconds{{{_JOB}}})", "baseline iteration"),
            ],
            Look(decimals=3),
        ),
        over_time(
            "Slowdown by stage",
            "What a stage's instructions took over what the profile says at the clock asked for: who is at fault.",
            "none",
            [
                Query(
                    f"max by (pipeline, stage) (perseus:rank_slowdown:ratio{{{_JOB}}})",
                    "pipeline {{pipeline}} stage {{stage}}",
                )
            ],
            Look(decimals=2),
        ),
        over_time(
            "Requested and held clock by stage",
            "Mean over the stage's GPUs at the moment of the scrape; unlocked GPUs are not in the requested ones.",
            "hertz",
            [
                Query(f"avg by (stage) (perseus_gpu_clock_requested_hertz{{{_JOB}}} > 0)", "stage {{stage}} requested"),
                Query(f"avg by (stage) (perseus_gpu_clock_held_hertz{{{_JOB}}})", "stage {{stage}} held"),
            ],
            Look(height=9),
        ),
        over_time(
            "Clock not held",
            "Share of the time under load in which a stage's GPUs ran at another clock than asked.",
            "percentunit",
            [
                Query(
                    f"sum by (stage) (rate(perseus_clock_not_held_seconds_total{{{_JOB}}}[$__rate_interval]))"
                    f" / sum by (stage) (rate(perseus_clock_watched_seconds_total{{{_JOB}}}[$__rate_interval]))"
                    f" or 0 * sum by (stage) (rate(perseus_clock_watched_seconds_total{{{_JOB}}}[$__rate_interval]))",
                    "stage {{stage}}",
                )
            ],
            Look(height=9, lowest=0),
        ),
    ]


def _plans() -> list[Any]:
    return [
        over_time(
            "Stragglers",
            "Measured over planned time of each pipeline that is acted on, with its cause; empty while there is none.",
            "none",
            [
                Query(
                    f"max by (pipeline, cause, gpu) (perseus_job_straggler_cause_ratio{{{_JOB}}})",
                    "pipeline {{pipeline}}: {{cause}} {{gpu}}",
                ),
                Query(f"max(perseus_job_straggler_slowdown_ratio{{{_JOB}}})", "acted on"),
            ],
            Look(points=True, decimals=2),
        ),
        over_time(
            "Plan generations",
            "Written by the operator, held by every agent, run by every GPU.",
            "none",
            [
                Query(f"max(perseus_job_plan_generation{{{_JOB}}})", "written"),
                Query(f"min(perseus_plan_generation_accepted{{{_JOB}}})", "held by all agents"),
                Query(f"min(perseus_plan_generation_active{{{_JOB}}})", "run by all GPUs"),
            ],
            Look(decimals=0),
        ),
        over_time(
            "States of the ranks",
            "How many ranks follow the plan, wait for it, or run unlocked, and why.",
            "none",
            [Query(f"sum by (state, reason) (perseus_rank_state{{{_JOB}}})", "{{state}} {{reason}}")],
            Look(stacked=True, decimals=0, lowest=0),
        ),
        over_time(
            "Clock changes",
            "Calls a second of the busiest GPU: the rate is bounded, for many calls disturb collectives.",
            "ops",
            [Query(f"max(rate(perseus_clock_changes_total{{{_JOB}}}[$__rate_interval]))", "busiest GPU")],
            Look(lowest=0),
        ),
    ]
