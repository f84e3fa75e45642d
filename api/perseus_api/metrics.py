"""Names and help texts of every Prometheus metric, by the program that exports it.

Dashboards, alerts and the operator's queries use these names; a test holds them to this list. Base units only
(seconds, joules, watts, hertz, celsius); counters end in ``_total`` (prometheus-client appends it itself, so the
constants of counters here carry the full exported name). Standard library only.
"""

from __future__ import annotations

from typing import Final

# Labels of all per-GPU and per-rank series of the agent.
RANK_LABELS: Final = ("namespace", "job", "pipeline", "stage", "tensor_rank", "pod", "gpu")
# Labels of the series that only the rank of stage 0, tensor rank 0 of each pipeline has.
PIPELINE_LABELS: Final = ("namespace", "job", "pipeline", "pod")
# Value of the recorded series perseus:rules:version: the operator reads recorded series of its own version alone.
RECORDING_RULES_VERSION: Final = 1

AGENT_METRICS: Final[dict[str, str]] = {
    "perseus_pipeline_seconds": (
        "Time of the pipeline's last iteration, from the first forward's begin to the last backward's end on stage 0 "
        "(labels PIPELINE_LABELS)."
    ),
    "perseus_pipeline_iteration": "Index of the iteration that the pipeline is in (labels PIPELINE_LABELS).",
    "perseus_pipeline_iteration_begin_timestamp_seconds": (
        "Wall-clock time at which the pipeline's current iteration began (labels PIPELINE_LABELS)."
    ),
    "perseus_instruction_seconds": (
        "Summary (_sum, _count): what the rank's instructions took. Labels RANK_LABELS and instruction."
    ),
    "perseus_instruction_compared_seconds_total": (
        "What those instructions took whose expected time is known. Labels RANK_LABELS and instruction."
    ),
    "perseus_instruction_expected_seconds_total": (
        "What the same instructions should have taken by the profile, at the clock that was asked for (the highest "
        "when unlocked): compared over expected is the slowdown of this very stage. Labels RANK_LABELS and instruction."
    ),
    "perseus_iteration_seconds": "Duration of the rank's last whole iteration, synchronisation included.",
    "perseus_iterations_total": "Iterations that the rank has finished.",
    "perseus_gpu_energy_joules_total": "Energy of the GPU over finished iterations, from NVML's counter.",
    "perseus_gpu_baseline_joules_total": (
        "Energy that the same iterations would have cost unlocked: measured energy of an unlocked iteration plus "
        "blocking power times the time beyond the unlocked duration. Label source: measured or predicted."
    ),
    "perseus_iterations_seconds_total": "Time of the iterations that the rank has finished, synchronisation included.",
    "perseus_baseline_seconds_total": (
        "Time that the same iterations would have taken unlocked. Label source: measured or predicted."
    ),
    "perseus_gpu_baseline_iteration_joules": "Measured energy of one unlocked iteration of this GPU.",
    "perseus_gpu_baseline_iteration_seconds": "Measured duration of one unlocked iteration of this GPU.",
    "perseus_gpu_clock_requested_hertz": "SM clock that the agent has locked; 0 when unlocked.",
    "perseus_gpu_clock_held_hertz": "SM clock that the device reports.",
    "perseus_gpu_power_watts": "Power draw that the device reports.",
    "perseus_gpu_temperature_celsius": "GPU temperature that the device reports.",
    "perseus_gpu_clock_event_active": "1 for each clock event reason that the device reports. Label reason.",
    "perseus_gpu_throttle_seconds_total": (
        "Time in which the device was held below its clocks, as NVML counts it since the driver was loaded. "
        "Labels RANK_LABELS and cause: power, thermal, sync_boost, board_limit, low_utilization, reliability."
    ),
    "perseus_clock_watched_seconds_total": (
        "Time under load in which the agent watched whether a locked clock is held (sampled)."
    ),
    "perseus_clock_not_held_seconds_total": (
        "The part of the watched time in which it was not held. Labels RANK_LABELS and reason: the device's own event "
        "reason, arbitration (lower without a reason) or above_request."
    ),
    "perseus_clock_interferences_total": (
        "How often somebody else set or reset the clock that was locked; the GPU is then left alone for a while."
    ),
    "perseus_clock_changes_held_back_total": (
        "Slower clocks that were not set because the rate of changes is bounded: the faster one stayed."
    ),
    "perseus_clock_intermissions_total": (
        "How often the rank's clock was given back between two iterations, because the script did something else."
    ),
    "perseus_clock_changes_total": "Successful NVML clock lock and reset calls for this GPU.",
    "perseus_plan_generation_accepted": "Newest plan generation that the agent holds for this rank.",
    "perseus_plan_generation_active": "Plan generation that sets this rank's clocks now; 0 when none.",
    "perseus_plans_late_total": "Plan changes made after the iteration that the plan named.",
    "perseus_plans_rejected_total": "Plans refused by the agent. Labels namespace, job, reason.",
    "perseus_mismatches_total": "Iterations in which the trainer did not follow the plan's order.",
    "perseus_messages_throttled_total": "How often the rank's trainer sent more messages than are read.",
    "perseus_rank_state": (
        "1 for the state that the rank is in. Labels RANK_LABELS, state (following, not_held, waiting, no_plan, "
        "mismatch, interference, refused, disconnected) and reason."
    ),
    "perseus_leases": "Open trainer connections (no labels).",
    "perseus_locks": "GPUs on this node that the agent holds locked (no labels).",
    "perseus_pod_refused": (
        "1 for a pod of a job that this agent has refused within the last quarter of a minute. Labels namespace, job, "
        "pod, reason."
    ),
    "perseus_lease_refusals_total": "Connections that the agent refused. Label reason.",
    "perseus_nvml_errors_total": "NVML calls that failed. Labels gpu, error.",
    "perseus_boundary_to_call_seconds": "Histogram: from a boundary message's receipt to the end of its NVML call.",
    "perseus_agent_build_info": "1. Label version.",
}

OPERATOR_METRICS: Final[dict[str, str]] = {
    "perseus_job_plan_generation": "Generation of the plan last written. Labels namespace, job.",
    "perseus_job_planned_iteration_seconds": ("Pipeline time that the plan predicts. Labels namespace, job, pipeline."),
    "perseus_job_straggler_slowdown_ratio": (
        "Slowest pipeline's time over the planned time while a straggler is acted on; else 1. Labels namespace, job."
    ),
    "perseus_job_predicted_savings_ratio": "Savings that the plan predicts (a prediction). Labels namespace, job.",
    "perseus_job_energy_joules": (
        "Energy of the job since its start, over restarts of pods, agents and operator. Labels namespace, job."
    ),
    "perseus_job_baseline_joules": (
        "Energy that the same iterations would have cost unlocked. Labels namespace, job, source (measured, predicted)."
    ),
    "perseus_job_saved_joules": (
        "Baseline less energy since the job's start, by what was done: intrinsic (uneven stages) or straggler. Labels "
        "namespace, job, cause."
    ),
    "perseus_job_iterations": "Training iterations accounted since the job's start. Labels namespace, job.",
    "perseus_job_slowdown_ratio": (
        "Time of those iterations over the time they would have taken unlocked, less 1. Labels namespace, job."
    ),
    "perseus_operator_reconcile_seconds": "Histogram: duration of a reconcile.",
    "perseus_operator_reconciles_total": "Reconciles. Label outcome: settled, waiting, refused, failed.",
    "perseus_operator_api_writes_total": "Writes to the Kubernetes API. Labels kind, verb.",
    "perseus_operator_replans_total": (
        "Plan generations pushed. Label reason: initial, objective, straggler, recovery, restart."
    ),
    "perseus_job_straggler_cause_ratio": (
        "Measured over planned time of each pipeline that is acted on as a straggler. Labels namespace, job, pipeline, "
        "cause, pod, node, gpu (the last three empty where no GPU is at fault)."
    ),
    "perseus_job_profile_correction_ratio": (
        "Factor on the profile's times that is furthest from 1, of the frontier in force; 1 where nothing has drifted. "
        "Labels namespace, job."
    ),
    "perseus_operator_straggler_rounds_total": "Straggler rounds. Label outcome: answered, no_data, failed.",
    "perseus_operator_visit_errors_total": (
        "Visits that failed and are repeated. Label reason: http_STATUS or the error's class."
    ),
    "perseus_operator_api_request_seconds": "Histogram: duration of requests to the Kubernetes API. Label verb.",
    "perseus_operator_api_refusals_total": "Answers of the Kubernetes API with 400 or more, 404 aside. Label code.",
    "perseus_operator_queue_depth": "Visits that are due and wait for a worker.",
    "perseus_operator_queue_overdue_seconds": "For how long the longest waiting visit has been due.",
    "perseus_operator_missed_jobs": "Jobs of which the watch has told nothing while the list shows them.",
    "perseus_operator_straggler_round_seconds": "Histogram: duration of a straggler round, with Prometheus's answers.",
    "perseus_operator_plan_confirmation_seconds": (
        "Histogram: from the scrape that showed a pipeline's change to the scrape that showed a rank's agent holding "
        "the plan for it, one observation for each rank."
    ),
    "perseus_operator_source_errors_total": (
        "Sources of slowdowns that could not be read. Label source: query, announcement, cause, drift."
    ),
    "perseus_operator_build_info": "1. Label version.",
}
