"""Before the search: rows prepared, the machine measured, the base scored, rows ranked, the length of runs settled.

The probe times a few steps, on a machine that may have been busy with something else in that moment. So the first steps
of the first run are timed as well, and the base model's evaluation is. Where they tell of another pace, the end and the
length of all runs are planned again, once; where the plan holds, those steps are the beginning of the first run.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from foretune.catalogue.priors import DEFAULT_LORA
from foretune.catalogue.selection import NONE
from foretune.evaluation.base import Answer
from foretune.evaluation.metrics import METRICS
from foretune.execution.drive import JobFailed, Stopped, run_job
from foretune.fit.effort import FULL, measured_steps
from foretune.fit.finals import Evaluator, on_rows
from foretune.fit.outlook import replan
from foretune.fit.plan import Plan
from foretune.fit.prepare import Prepared, prepare
from foretune.fit.probe_plan import measured
from foretune.fit.schedule import End, Schedule, Speeds, plan_end
from foretune.fit.session import Session
from foretune.fit.trials import SEARCH, Common, budget_of, planned, seconds_for_trials
from foretune.search.types import Lease, Observation

PROBE_ROWS = 64
FIRST_RUN = "r001"
"""The search's first run, the default LoRA."""
TOLERATED = 1.25
"""Forecasts after a probe are right within this factor most of the time; beyond it runs would be much too long or
too short."""


@dataclass(frozen=True)
class Opening:
    """What is known when the search begins."""

    prepared: Prepared
    probe: Mapping[str, Any]
    """What the probe measured, with the speeds of the first steps where these were measured"""
    refined: Plan
    """The plan with its forecast made again from what was measured"""
    base: Mapping[str, Any]
    """The base's loss on the validation rows of the end: ``{"loss": [value, standard error, rows]}``"""
    base_losses: tuple[float, ...]
    """(6,): and on the rows of each rung"""
    selected: Mapping[str, Any]
    """What ranking the rows took; empty where all are trained on"""
    common: Common
    end: End
    generation: bool
    notes: tuple[str, ...] = ()

    @property
    def task_features(self) -> dict[str, Any]:
        """The task for the experience."""
        return {
            **self.prepared.facts["profile"],
            "base_loss": self.probe["base_loss"],
            "metric": self.prepared.task.metric,
        }


def opened(session: Session) -> Opening:
    """Carry out all that comes before the search, or read what was done of it."""
    prepared = _prepared(session)
    generation = _generation(session.plan, prepared)
    config = {**DEFAULT_LORA, **{k: v for k, v in session.plan.config.items() if k == "rows_per_update"}}
    payload = {"config": config, "rows": PROBE_ROWS, "generation": generation}
    probe = session.once("probe", "probe", lambda: session.job("probe", prepared.task, payload))
    session.on_event("probe", probe)
    refined = replan(session.plan, measured(probe), session.clock.spent("reading and splitting", "probe"))
    session.on_event("forecast", refined.forecast.to_json())
    end = _end(session.plan, prepared, Speeds.of(probe), generation)
    evaluator = Evaluator(prepared, session.folder, session.executor, session.watch, session.left)
    base = session.once("base", "base model", lambda: _base(evaluator, end.validation_rows))
    session.on_event("base", base)
    selected = _selected(session, prepared)
    common = _common(session, prepared, probe, end, generation, SEARCH)
    opening = Opening(prepared, probe, refined, base, (), selected, common, end, generation)
    return _with_base_losses(_paced(session, opening), evaluator)


def _prepared(session: Session) -> Prepared:
    def make() -> dict[str, Any]:
        return prepare(
            session.plan, session.folder, lambda line: session.on_event("progress", {"line": line})
        ).to_json()

    prepared = Prepared.from_json(session.once("prepared", "reading and splitting", make))
    session.on_event("prepared", prepared.to_json())
    return prepared


def _generation(plan: Plan, prepared: Prepared) -> bool:
    wanted = bool(plan.resolution["evaluation.generation"])
    return wanted and prepared.task.model.kind != "encoder" and prepared.task.task != "language-modelling"


def _end(plan: Plan, prepared: Prepared, speeds: Speeds, generation: bool) -> End:
    shows = generation and prepared.task.model.kind == "causal"
    return plan_end(
        speeds,
        rows=prepared.rows,
        most_rows=int(plan.resolution["evaluation.max_rows"]),
        shots=int(plan.resolution["evaluation.retrieved_examples"]) if shows else 0,
        generation=generation,
        time_s=plan.budget.total if plan.budget.kind == "time" else None,
    )


def _common(
    session: Session, prepared: Prepared, probe: Mapping[str, Any], end: End, generation: bool, name: str
) -> Common:
    schedule = Schedule(prepared.task, session.folder, prepared.rows["validation"], Speeds.of(probe), FULL, generation)
    budget = budget_of(session.plan, session.clock, end)
    return planned(session.plan, prepared, schedule, budget, session.folder.once, name)


def _base(evaluator: Evaluator, rows: int) -> dict[str, Any]:
    """The base's loss on ``rows`` validation rows, and how fast they were scored."""
    content = evaluator.base_validation(rows)
    answers = [Answer(**value) for value in content["answers"]]
    result = METRICS["loss"].score(answers)
    return {
        "loss": [result.value, result.standard_error, len(answers)],
        "score_rows_per_s": len(answers) / content["seconds"],
    }


def _with_base_losses(opening: Opening, evaluator: Evaluator) -> Opening:
    content = evaluator.base_validation(opening.end.validation_rows)
    answers = [Answer(**value) for value in content["answers"]]
    losses = [METRICS["loss"].score(on_rows(answers, rows)).value for rows in opening.common.schedule.rungs_rows()]
    return replace(opening, base_losses=tuple(losses))


def _selected(session: Session, prepared: Prepared) -> dict[str, Any]:
    """What ranking the rows took; {} where all are trained on. Trials read the ranking from the task's folder."""
    config = session.plan.resolution.fixed_training()
    if str(config.get("selection", NONE)) == NONE:
        return {}

    def rank() -> dict[str, Any]:
        done = session.job("select", prepared.task, {"config": config, "seed": prepared.task.seed})
        if not done["complete"]:
            raise Stopped
        return done

    selected: dict[str, Any] = session.once("selection", "selection", rank)
    session.on_event("selection", selected)
    return selected


# -- the pace, looked at again


def _paced(session: Session, opening: Opening) -> Opening:
    """``opening`` as it is where the first steps took what the probe said, else planned again with their pace."""
    horizon = opening.common.horizon.steps
    pause_at = measured_steps(horizon)[0]  # the first run pauses before it is evaluated first
    if session.plan.budget.kind != "time" or pause_at >= horizon:
        return opening
    seen = session.once("pace", "trials", lambda: _first_steps(session, opening, pause_at))
    if not seen["steps"]:
        return opening
    probe = _corrected(opening, seen)
    schedule, again = opening.common.schedule, replace(opening.common.schedule, speeds=Speeds.of(probe))
    baseline = opening.common.first.baseline
    factor = again.cost(baseline, 0, horizon, horizon) / schedule.cost(baseline, 0, horizon, horizon)
    session.on_event("pace", {**seen, "factor": factor})
    if 1 / TOLERATED <= factor <= TOLERATED:
        return replace(opening, common=_spent(opening.common, seen["other_s"]))
    end = _end(session.plan, opening.prepared, Speeds.of(probe), opening.generation)
    common = _common(session, opening.prepared, probe, end, opening.generation, f"{SEARCH}-again")
    if common.horizon.steps == horizon:
        common = _spent(common, -seen["train_s"])
    elif not session.folder.journal.exists():  # they were steps of a longer or shorter schedule
        shutil.rmtree(session.folder.trial(FIRST_RUN), ignore_errors=True)
    spent_s = session.clock.spent("reading and splitting", "probe")
    refined = replan(session.plan, measured(probe), spent_s)
    session.on_event("forecast", refined.forecast.to_json())
    note = (
        f"The first steps showed that a run takes {factor:.2g} times what the probe said, so runs were planned again:"
        f" {common.horizon.steps} steps instead of {horizon}."
    )
    return replace(opening, probe=probe, refined=refined, end=end, common=common, notes=(note,))


def _first_steps(session: Session, opening: Opening, pause_at: int) -> dict[str, Any]:
    """The first steps of the first run, which it goes on from: how many, and what training and the rest took."""
    common, began_s = opening.common, session.clock.used()
    horizon = common.horizon.steps
    lease = Lease("pace", 0, FIRST_RUN, common.first.baseline, 0, horizon, 0.0, horizon=horizon)
    order = common.schedule.order(lease, seconds_for_trials(session, opening.end), pause_at=pause_at)
    try:
        seen = Observation.from_json(run_job(session.executor, order, session.watch))
    except JobFailed:  # the search meets the same and keeps it as the run's status
        return {"steps": 0, "train_s": 0.0, "other_s": session.clock.used() - began_s}
    steps = seen.step if seen.status == "paused" else 0
    return {"steps": steps, "train_s": seen.train_s, "other_s": session.clock.used() - began_s - seen.train_s}


def _corrected(opening: Opening, seen: Mapping[str, Any]) -> dict[str, Any]:
    """The probe with the speeds of the first steps and of the base's evaluation in place of its own."""
    probe, baseline = opening.probe, opening.common.first.baseline
    train = seen["steps"] * int(baseline["rows_per_update"]) / seen["train_s"]
    faster = {
        "train": train / probe["train_rows_per_s"],
        "score": opening.base["score_rows_per_s"] / probe["score_rows_per_s"],
    }
    speeds = {
        f"{work}_{unit}_per_s": probe[f"{work}_{unit}_per_s"] * factor
        for work, factor in faster.items()
        for unit in ("rows", "tokens")
    }
    return {**probe, **speeds}


def _spent(common: Common, seconds: float) -> Common:
    """``seconds`` more are spent; steps that the first run goes on from are not: they are told when it is."""
    return replace(common, budget=replace(common.budget, spent=max(0.0, common.budget.spent + seconds)))
