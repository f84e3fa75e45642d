"""The node dashboard: GPUs, locks, leases, temperatures, event reasons, and how the agents are."""

from __future__ import annotations

from typing import Any

from dashboards.parts import Column, Look, Query, document, label_variable, new_dashboard, number, over_time, rows

UID = "perseus-node"
_NODE = 'node=~"$node"'


def node_dashboard() -> dict[str, Any]:
    """Return the dashboard."""
    made = new_dashboard(
        UID, "Perseus / Node", "GPUs that Perseus serves, by node: clocks, locks, heat, and the agents' health."
    ).with_variable(label_variable("node", "Node", "perseus_agent_build_info", several=True))
    for panel in (*_numbers(), *_gpus(), *_agents()):
        made = made.with_panel(panel)
    return document(made)


def _numbers() -> list[Any]:
    return [
        number("Agents", "That answer.", "none", Query(f"count(perseus_agent_build_info{{{_NODE}}})"), 4, 0),
        number("Leases", "Training processes connected.", "none", Query(f"sum(perseus_leases{{{_NODE}}})"), 4, 0),
        number("GPUs locked", "By the agents.", "none", Query(f"sum(perseus_locks{{{_NODE}}})"), 4, 0),
        number("Hottest GPU", "As the device reports.", "celsius",
               Query(f"max(perseus_gpu_temperature_celsius{{{_NODE}}})"), 4, 0),
        number("Power", "Of all GPUs served.", "watt", Query(f"sum(perseus_gpu_power_watts{{{_NODE}}})"), 4, 1),
        number("Boundary to NVML call", "99 of 100 calls are made within this time after their boundary.", "s",
               Query("histogram_quantile(0.99, sum by (le) "
                     f"(rate(perseus_boundary_to_call_seconds_bucket{{{_NODE}}}[$__rate_interval])))"), 4, 4),
    ]  # fmt: skip


def _gpus() -> list[Any]:
    by = "max by (node, gpu, namespace, job, pod, pipeline, stage)"
    columns = [
        Column(Query(f"{by} (perseus_gpu_clock_requested_hertz{{{_NODE}}})"), "requested clock", "hertz", 2),
        Column(Query(f"{by} (perseus_gpu_clock_held_hertz{{{_NODE}}})"), "held clock", "hertz", 2),
        Column(Query(f"{by} (perseus_gpu_power_watts{{{_NODE}}})"), "power", "watt", 0),
        Column(Query(f"{by} (perseus_gpu_temperature_celsius{{{_NODE}}})"), "temperature", "celsius", 0),
    ]
    shown = ("node", "gpu", "namespace", "job", "pipeline", "stage", "pod")
    return [
        rows("GPUs", "Each GPU that is served, and for whom.", columns, {name: name for name in shown}, height=10),
        over_time(
            "Locks and leases",
            "A lock without a lease is given back within seconds.",
            "none",
            [
                Query(f"sum by (node) (perseus_locks{{{_NODE}}})", "{{node}} locks"),
                Query(f"sum by (node) (perseus_leases{{{_NODE}}})", "{{node}} leases"),
            ],
            Look(lowest=0, decimals=0),
        ),
        over_time(
            "Temperature",
            "As the devices report it.",
            "celsius",
            [Query(f"max by (node, gpu) (perseus_gpu_temperature_celsius{{{_NODE}}})", "{{node}} {{gpu}}")],
        ),
        over_time(
            "Power",
            "As the devices report it, at the moment of the scrape.",
            "watt",
            [Query(f"sum by (node) (perseus_gpu_power_watts{{{_NODE}}})", "{{node}}")],
            Look(lowest=0),
        ),
        over_time(
            "Clock event reasons",
            "How many GPUs report each; gpu_idle and applications_clocks_setting are no trouble.",
            "none",
            [
                Query(
                    f"sum by (node, reason) (perseus_gpu_clock_event_active{{{_NODE}}}) or vector(0)",
                    "{{node}} {{reason}}",
                )
            ],
            Look(lowest=0, decimals=0),
        ),
        over_time(
            "Clock not held",
            "Share of the time under load in which a GPU ran at another clock than asked.",
            "percentunit",
            [
                Query(
                    f"sum by (node, gpu) (rate(perseus_clock_not_held_seconds_total{{{_NODE}}}[$__rate_interval]))"
                    f" / sum by (node, gpu) (rate(perseus_clock_watched_seconds_total{{{_NODE}}}[$__rate_interval]))"
                    " or 0 * sum by (node, gpu) "
                    f"(rate(perseus_clock_watched_seconds_total{{{_NODE}}}[$__rate_interval]))",
                    "{{node}} {{gpu}}",
                )
            ],
            Look(lowest=0),
        ),
        over_time(
            "Throttled",
            "Part of the time in which devices were held below their clocks, as NVML counts it.",
            "percentunit",
            [
                Query(
                    f"max by (node, cause) (rate(perseus_gpu_throttle_seconds_total{{{_NODE}}}[$__rate_interval]))"
                    " or vector(0)",
                    "{{node}} {{cause}}",
                )
            ],
            Look(lowest=0),
        ),
    ]


def _agents() -> list[Any]:
    return [
        over_time(
            "Trouble with NVML and trainers",
            "A second: calls that failed, refused connections, iterations out of the plan's order, throttled messages.",
            "ops",
            [
                Query(
                    f"sum by (node, error) (rate(perseus_nvml_errors_total{{{_NODE}}}[$__rate_interval])) or vector(0)",
                    "{{node}} NVML {{error}}",
                ),
                Query(
                    f"sum by (node, reason) (rate(perseus_lease_refusals_total{{{_NODE}}}[$__rate_interval]))"
                    " or vector(0)",
                    "{{node}} refused {{reason}}",
                ),
                Query(
                    f"sum by (node) (rate(perseus_mismatches_total{{{_NODE}}}[$__rate_interval]))", "{{node}} mismatch"
                ),
                Query(
                    f"sum by (node) (rate(perseus_messages_throttled_total{{{_NODE}}}[$__rate_interval]))",
                    "{{node}} throttled",
                ),
            ],
            Look(lowest=0, width=8),
        ),
        over_time(
            "Plans",
            "A second: changes made late, and plans rejected.",
            "ops",
            [
                Query(f"sum by (node) (rate(perseus_plans_late_total{{{_NODE}}}[$__rate_interval]))", "{{node}} late"),
                Query(
                    f"sum by (node, reason) (rate(perseus_plans_rejected_total{{{_NODE}}}[$__rate_interval]))"
                    " or vector(0)",
                    "{{node}} rejected {{reason}}",
                ),
            ],
            Look(lowest=0, width=8),
        ),
        over_time(
            "Clock changes",
            "NVML calls a second by node, and those that the bound on the rate held back.",
            "ops",
            [
                Query(f"sum by (node) (rate(perseus_clock_changes_total{{{_NODE}}}[$__rate_interval]))", "{{node}}"),
                Query(
                    f"sum by (node) (rate(perseus_clock_changes_held_back_total{{{_NODE}}}[$__rate_interval]))",
                    "{{node}} held back",
                ),
            ],
            Look(lowest=0, width=8),
        ),
    ]
