"""The forecast within a plan, before and after the probe: what is evaluated, how long a run is, how long it takes.

How many steps every run gets is decided by the search's own rule under the forecast costs, so that a plan says what
a fit will do. Once a probe has measured this machine with this model and these rows, `replan` forecasts again; no
row is read twice.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from foretune.config.resolve import Recommended, Resolution
from foretune.config.spec import FitSpec
from foretune.cost.forecast import forecast
from foretune.cost.interval import Interval
from foretune.cost.phases import RUN_SECONDS, UnitTimes, fixed_phases, unit_times
from foretune.cost.request import EvaluationSettings, ForecastRequest, Measured
from foretune.errors import BudgetError
from foretune.fit.effort import ANSWERED_RUNGS, Effort, measured_steps, offered, rung_rows, settled
from foretune.fit.keeping import Offer, offers, ranked, variants
from foretune.fit.planned_rows import PlannedRows
from foretune.fit.schedule import Speeds, plan_end
from foretune.fit.strategy import menu_of
from foretune.search.budget import Budget as SearchBudget
from foretune.search.fidelity import level_step
from foretune.search.runs import Cost
from foretune.search.zero_shot import plan as zero_shot_plan

if TYPE_CHECKING:
    from foretune.fit.plan import Plan

_SCORED_METRICS = ("loss", "loss_per_byte")
_EVALUATION_ROWS = (200, 100, 50, 25)
_EVALUATION_SHARE = 0.4  # of a time budget that evaluations may take before they are cut
_ROOM_TO_REASON = 1.25
_ROOM_STEP = 64  # tokens
_MOST_ROOM = 2048


def evaluation_settings(spec: FitSpec, kind: str, task: str, validation_rows: int) -> EvaluationSettings:
    """What a fit of ``spec`` evaluates on ``validation_rows`` rows and at the end."""
    chosen = spec.evaluation
    generates = chosen.generation and kind != "encoder" and task != "language-modelling"
    effort = offered(chosen.max_rows, fixed=True)[0]
    answers = generates and spec.data.metric not in _SCORED_METRICS
    return EvaluationSettings(
        max_rows=chosen.max_rows,
        generation=generates,
        max_answer_tokens=chosen.max_answer_tokens,
        retrieved_examples=chosen.retrieved_examples if generates and kind == "causal" else 0,
        rung_rows=effort.counts(validation_rows),
        rung_answers=ANSWERED_RUNGS * min(effort.answered_rows, validation_rows) if answers else 0,
    )


def with_room_to_reason(resolution: Resolution, rows: PlannedRows) -> Resolution:
    """``resolution`` with written answers long enough for rows that reason first: cut short, they would say nothing."""
    usual, needed = resolution.spec.evaluation.max_answer_tokens, rows.count.reasoned
    room = min(_MOST_ROOM, _ROOM_STEP * math.ceil(_ROOM_TO_REASON * needed / _ROOM_STEP))
    if room <= usual:
        return resolution
    evidence = f"19 of 20 rows reason and answer in {needed:,} tokens at most"
    return resolution.recommend({"evaluation.max_answer_tokens": Recommended(room, evidence)})


def affordable_evaluation(
    request: ForecastRequest, resolution: Resolution
) -> tuple[ForecastRequest, dict[str, Recommended]]:
    """Fewer evaluated rows where evaluations would eat the time budget and nobody chose their number."""
    if request.budget.kind != "time" or resolution.chosen("evaluation.max_rows"):
        return request, {}
    units = unit_times(request)
    limit = _EVALUATION_SHARE * request.budget.total
    for rows in _EVALUATION_ROWS:
        on_the_way = offered(rows, fixed=True)[0].counts(request.data.validation_rows)
        fewer = replace(request, evaluation=replace(request.evaluation, max_rows=rows, rung_rows=on_the_way))
        before, after = fixed_phases(fewer, units)
        needed = sum(phase.seconds.value for phase in (*before, *after) if phase.in_budget)
        if needed <= limit:
            break
    if rows >= request.evaluation.max_rows:
        return request, {}
    evidence = f"{request.evaluation.max_rows} rows would take more than {_EVALUATION_SHARE:.0%} of the time budget"
    return fewer, {"evaluation.max_rows": Recommended(rows, evidence)}


def with_horizon(request: ForecastRequest, resolution: Resolution, keeping: tuple[Offer, ...] = ()) -> ForecastRequest:
    """``request`` with the steps that the search would give every run in its budget, and the effort it would make of
    evaluating them; ``keeping`` are selections that it tries."""
    if request.budget.kind != "time":
        steps = _full_steps(request)
        if request.budget.kind == "steps" and request.budget.total >= 1:
            budget = SearchBudget("steps", request.budget.total, workers=request.workers)
            steps = _searched(request, resolution, keeping, budget, lambda config, start, stop: float(stop - start))
            request = replace(request, horizon_steps=steps)
        return _with_effort(request, offered(request.evaluation.max_rows, fixed=True)[0], steps)
    units, first = unit_times(request), unit_times(request, request.first_run)
    before, _ = fixed_phases(request, units)
    spent = sum(phase.seconds.value for phase in before if phase.in_budget)
    settings, row_s = request.evaluation, first.step.value / request.first_run.rows_per_update
    end = plan_end(
        Speeds(1 / row_s, 1 / units.score_row.value, units.generate_row.value),
        rows={"validation": request.data.validation_rows, "test": request.data.test_rows},
        most_rows=settings.max_rows,
        shots=settings.retrieved_examples,
        generation=settings.generation,
        time_s=request.budget.total,
        used_s=spent,
    )

    def under(effort: Effort) -> tuple[ForecastRequest, float]:
        def cost(config: Mapping[str, Any], start: int, stop: int) -> float:
            seconds = (stop - start) * int(config["rows_per_update"]) * row_s
            return seconds + _evaluated(_with_effort(request, effort, stop), units, stop, start, stop).value

        budget = SearchBudget("time", request.budget.total, reserve=end.reserve_s, workers=request.workers, spent=spent)
        steps = _searched(request, resolution, keeping, budget, cost)
        tried = replace(_with_effort(request, effort, steps), horizon_steps=steps)
        evaluated = _evaluated(tried, units, steps, 0, steps).value
        return tried, evaluated / (evaluated + steps * first.step.value)

    try:
        return settled(offered(settings.max_rows, fixed=resolution.chosen("evaluation.max_rows")), under)
    except BudgetError:  # not even a step beside what is kept for the end; the forecast says what would be needed
        return replace(request, horizon_steps=1)


def _searched(
    request: ForecastRequest, resolution: Resolution, keeping: tuple[Offer, ...], budget: SearchBudget, cost: Cost
) -> int:
    """The steps that the search gives every run, by its own rule."""
    _, found = zero_shot_plan(
        width=request.shapes.width,
        kind=request.shapes.kind,
        train_rows=request.data.train_rows,
        budget=budget,
        cost=cost,
        fixed=resolution.fixed_training(),
        methods=resolution.spec.search.methods,
        max_trials=resolution.spec.search.max_trials,
        variants=variants(keeping),
        menu=menu_of(resolution, request.shapes.kind),
    )
    return found.steps


def _full_steps(request: ForecastRequest) -> int:
    return request.first_run.steps(request.data.train_rows)


def _with_effort(request: ForecastRequest, effort: Effort, horizon: int) -> ForecastRequest:
    """``request`` with what runs of ``horizon`` steps are evaluated on under an effort."""
    rows, settings = request.data.validation_rows, request.evaluation
    answered = ANSWERED_RUNGS * min(effort.answered_rows, rows) if settings.rung_answers else 0
    counts = effort.counts(rows)
    scored = sum(rung_rows(counts, horizon))
    changed = replace(settings, rung_rows=counts, rung_scored=scored, rung_answers=answered)
    return replace(request, evaluation=changed)


def _evaluated(request: ForecastRequest, units: UnitTimes, horizon: int, start: int, stop: int) -> Interval:
    """Seconds of the evaluations at the rungs in (start, stop] of a run of ``horizon`` steps."""
    settings = request.evaluation
    rows = [(level_step(horizon, level), n) for level, n in enumerate(rung_rows(settings.rung_rows, horizon))]
    scored = sum(count for step, count in rows if start < step <= stop)
    steps = measured_steps(horizon)
    answering = sum(start < step <= stop for step in steps[-ANSWERED_RUNGS:]) / ANSWERED_RUNGS
    answered = (units.generate_row + units.score_row).times(settings.rung_answers * answering)
    return units.score_row.times(scored) + answered


def default_run(request: ForecastRequest, horizon: int, step: int) -> Interval:
    """Seconds of the default LoRA, training and evaluation, until ``step`` of ``horizon``."""
    units = unit_times(request, request.first_run)
    evaluated = _evaluated(request, units, horizon, 0, step)
    return request.correction.apply(RUN_SECONDS, units.step.times(step) + evaluated)


def replan(plan: Plan, measured: Measured, spent_s: float = 0.0) -> Plan:
    """``plan`` with a second forecast from what a probe measured ``spent_s`` seconds into the run."""
    request = replace(plan.request, measured=measured, spent_s=spent_s, horizon_steps=None)
    keeping = offered_in(request, plan.resolution.spec, plan.rows)
    if keeping:
        request = replace(request, selection=ranked(keeping))
    request = with_horizon(request, plan.resolution, keeping)
    return replace(plan, request=request, forecast=forecast(request, plan.placement), keeping=keeping)


def offered_in(request: ForecastRequest, spec: FitSpec, rows: PlannedRows) -> tuple[Offer, ...]:
    """The selections that the search of ``request`` would try of its own accord. Raises `UsageError`."""
    time_s = request.budget.total if request.budget.kind == "time" else None
    return offers(spec, request.shapes, rows, unit_times(request, request.first_run), time_s)
