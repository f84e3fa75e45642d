"""The conditions that tell a PerseusJob's story, and their reasons. Standard library only.

All conditions are set from the first visit: what is not known yet is Unknown. A person who reads them top-down learns
how far the job is and, when it stands, what to change.
"""

from __future__ import annotations

from enum import StrEnum


class Condition(StrEnum):
    """Types of conditions, in the order of the story."""

    ACCEPTED = "Accepted"  # the spec makes sense
    PROFILE_VALID = "ProfileValid"  # the profile can be used for this job
    FRONTIER_READY = "FrontierReady"  # the optimisation pod has written the frontier
    WORKLOAD_READY = "WorkloadReady"  # all training pods run
    PLAN_APPLIED = "PlanApplied"  # the agents of all ranks run the newest plan
    OBSERVED = "Observed"  # the straggler loop sees what it needs
    STRAGGLING = "Straggling"  # a pipeline is slow and the others have slowed down for it
    READY = "Ready"  # everything above is well


class Reason(StrEnum):
    """Reasons of conditions, in UpperCamelCase as the API conventions ask."""

    # Accepted
    VALID = "Valid"
    INVALID_SPEC = "InvalidSpec"
    SUSPENDED = "Suspended"
    # ProfileValid
    PROFILE_LOADED = "ProfileLoaded"
    PROFILE_MISSING = "ProfileMissing"
    PROFILE_INVALID = "ProfileInvalid"
    PROFILING = "Profiling"  # it is being measured
    PROFILING_FAILED = "ProfilingFailed"
    PROFILE_DRIFTED = "ProfileDrifted"  # instructions take other times: those of the profile are corrected
    PROFILE_TOO_SMALL = "ProfileTooSmall"  # fewer stages than the job has
    # FrontierReady
    OPTIMISED = "Optimised"
    OPTIMISING = "Optimising"
    OPTIMISATION_FAILED = "OptimisationFailed"
    # FrontierReady, or ProfileValid where the profile is measured: spec.schedule Recorded
    RECORDING = "Recording"  # the order that the ranks run is not known yet
    ORDERS_DIFFER = "OrdersDiffer"  # ranks that should run the same do not
    ORDER_UNUSABLE = "OrderUnusable"  # what they run is no pipeline's, or it is not known how their chunks lie
    # WorkloadReady
    PODS_RUNNING = "PodsRunning"
    PODS_STARTING = "PodsStarting"
    TEMPLATE_REFUSED = "TemplateRefused"
    WORKLOAD_KIND_MISSING = "WorkloadKindMissing"  # spec.workloadRef: the cluster does not serve the kind
    WORKLOAD_MISSING = "WorkloadMissing"
    PODS_UNLABELLED = "PodsUnlabelled"
    TRAINING_FINISHED = "TrainingFinished"
    TRAINING_FAILED = "TrainingFailed"
    # PlanApplied
    ALL_AGENTS = "AllAgents"
    DRY_RUN = "DryRun"  # predicted, and no clock is locked
    MEASURING_BASELINE = "MeasuringBaseline"
    WAITING_FOR_AGENTS = "WaitingForAgents"
    PLAN_REFUSED = "PlanRefused"
    PLAN_NOT_FOLLOWED = "PlanNotFollowed"  # the training script does something else
    RANK_REFUSED = "RankRefused"  # an agent does not serve a pod
    RANK_TWICE = "RankTwice"  # more ranks report than there are
    CLOCKS_REFUSED = "ClocksRefused"  # a device does not let its clock be set, or somebody else sets it
    # Observed
    SOURCES_ANSWER = "SourcesAnswer"
    RULES_MISSING = "RulesMissing"  # Prometheus lacks this version's recording rules: it works, at a price
    QUERY_FAILED = "QueryFailed"  # spec.straggler.query
    ANNOUNCEMENT_INVALID = "AnnouncementInvalid"  # a node's annotation
    # Straggling: where the cause is known, it is the reason
    PIPELINE_SLOW = "PipelineSlow"
    POWER_CAP = "PowerCap"
    HEAT = "Heat"
    SLOW_CHIP = "SlowChip"
    SEVERAL_GPUS_SLOW = "SeveralGpusSlow"
    NETWORK_OR_INPUT = "NetworkOrInput"
    ANNOUNCED = "Announced"  # by a node's annotation
    QUERY = "Query"  # by spec.straggler.query
    NO_STRAGGLER = "NoStraggler"
    NO_MEASUREMENTS = "NoMeasurements"
    STRAGGLERS_IGNORED = "StragglersIgnored"  # spec.straggler.enabled is false
    # No condition's: the event at the end of a job
    REPORTED = "Reported"
    # Ready (else the reason of the first condition that is not well), and any condition that waits for an earlier one
    RUNNING = "Running"
    WAITING = "Waiting"
