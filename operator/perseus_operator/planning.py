"""Plans from a frontier: which variant each pipeline runs, given who straggles. Pure.

The plan document is made anew from the frontier each time and compared with the one in force: equal clocks are no new
generation.
"""

from __future__ import annotations

from dataclasses import dataclass

from perseus_api.frontier import Frontier, RealisedPlan
from perseus_api.job import Objective, ObjectiveType, PerseusJobSpec
from perseus_api.plan import Baseline, JobReference, Plan, Variant
from perseus_planner import MaximumSlowdown, MinimumEnergy, NoSlowdown, plan_for_deadline, select

FASTEST, OBJECTIVE, STRETCHED = "fastest", "objective", "stretched"


@dataclass(frozen=True)
class Stragglers:
    """Who is slow, and how long an iteration takes because of it.

    Attributes:
        pipelines: indices of the slow ones, growing; empty: nobody.
        deadline_seconds: pipeline time that the others may take.
    """

    pipelines: tuple[int, ...] = ()
    deadline_seconds: float = 0.0


def make_plan(
    job: JobReference, spec: PerseusJobSpec, frontier: Frontier, stragglers: Stragglers, generation: int, first: int
) -> Plan:
    """Return the plan document for a situation.

    Slow pipelines run the fastest plan; the others the one for the slow ones' time, which is never shorter than the
    objective's and never past T*. A pipeline that cannot be helped is not slowed further.
    """
    objective = _objective_plan(spec.objective, frontier)
    pipelines = spec.parallelism.pipelines
    slow = {index for index in stragglers.pipelines if index < pipelines}
    if slow and len(slow) < pipelines:
        stretched = plan_for_deadline(frontier, stragglers.deadline_seconds)
        if stretched.iteration_seconds < objective.iteration_seconds:
            stretched = objective
        variants: tuple[Variant, ...] = (_variant(FASTEST, frontier.plans[0]), _variant(STRETCHED, stretched))
        assignment = tuple(0 if index in slow else 1 for index in range(pipelines))
    else:
        variants = (_variant(OBJECTIVE, objective),)
        assignment = (0,) * pipelines
    return Plan(
        job=job,
        generation=generation,
        first_iteration=first,
        order=frontier.order,
        chunks=frontier.chunks,
        variants=variants,
        pipelines=assignment,
        tensor_parallel=spec.parallelism.tensor_parallel,
        baseline=Baseline(
            iteration_seconds=frontier.fastest.iteration_seconds,
            stage_joules=frontier.fastest_stage_joules,
            blocking_power_watts=frontier.blocking_power_watts,
            stage_blocking_power_watts=frontier.stage_blocking_power_watts,
        ),
        stage_seconds=_seconds_at(frontier, variants),
    )


def same_clocks(one: Plan, other: Plan) -> bool:
    """Whether two plans of one job differ in nothing but generation and first iteration."""
    return one == other.model_copy(update={"generation": one.generation, "first_iteration": one.first_iteration})


def stragglers_of(plan: Plan) -> Stragglers:
    """Return the situation that a plan was made for: how an operator that starts anew finds out where it was."""
    slow = tuple(index for index, variant in enumerate(plan.pipelines) if plan.variants[variant].name == FASTEST)
    stretched = [variant.iteration_seconds for variant in plan.variants if variant.name == STRETCHED]
    return Stragglers(slow, stretched[0]) if stretched else Stragglers()


def planned_seconds(plan: Plan, pipeline: int) -> float:
    """Return the pipeline time that a plan predicts for one pipeline."""
    return plan.variants[plan.pipelines[pipeline]].iteration_seconds


def predicted_savings(plan: Plan, stragglers: Stragglers) -> float:
    """Return the predicted savings of all pipelines together, from 0 to 1, against full speed in the same situation.

    What a pipeline waits, up to the longest pipeline's time, costs its blocking power in both cases.
    """
    baseline = plan.baseline
    longest = max(
        [stragglers.deadline_seconds, *(planned_seconds(plan, index) for index in range(len(plan.pipelines)))]
    )
    watts = baseline.blocking_power_watts * len(plan.order)
    full = sum(baseline.stage_joules) + watts * max(0.0, longest - baseline.iteration_seconds)
    planned = sum(
        plan.variants[variant].iteration_joules + watts * (longest - plan.variants[variant].iteration_seconds)
        for variant in plan.pipelines
    )
    return 1 - planned / (full * len(plan.pipelines))


def _objective_plan(objective: Objective, frontier: Frontier) -> RealisedPlan:
    if objective.type is ObjectiveType.MINIMUM_ENERGY:
        return select(frontier, MinimumEnergy())
    if objective.type is ObjectiveType.MAX_SLOWDOWN:
        return select(frontier, MaximumSlowdown(float(objective.max_slowdown_percent or 0)))
    return select(frontier, NoSlowdown())


def _seconds_at(frontier: Frontier, variants: tuple[Variant, ...]) -> tuple[dict[str, dict[int, float]], ...]:
    """What the agents compare instructions with: at these variants' clocks, at the highest one, and without one."""
    found = []
    for stage, table in enumerate(frontier.stage_seconds):
        used = {0, *frontier.fastest.clocks[stage], *(clock for each in variants for clock in each.clocks[stage])}
        found.append(
            {key: {clock: each for clock, each in seconds.items() if clock in used} for key, seconds in table.items()}
        )
    return tuple(found)


def _variant(name: str, plan: RealisedPlan) -> Variant:
    return Variant(
        name=name,
        iteration_seconds=plan.iteration_seconds,
        iteration_joules=plan.iteration_joules,
        clocks=plan.clocks,
    )
