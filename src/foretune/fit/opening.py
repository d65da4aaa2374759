"""Before the search: rows prepared, the machine measured, the base scored, rows ranked, the length of runs settled.

The probe times a few steps, on a machine that may have been busy with something else in that moment. So the first steps
of the first run are timed as well, and the base model's evaluation is. Where they tell of another pace, the end and the
length of all runs are planned again, once; where the plan holds, those steps are the beginning of the first run.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from foretune.catalogue.priors import DEFAULT_LORA
from foretune.catalogue.selection import NONE
from foretune.evaluation.metrics import METRICS
from foretune.execution.drive import JobFailed, Stopped, run_job
from foretune.fit.base import Base, answered
from foretune.fit.begun import with_offers_as_begun
from foretune.fit.effort import FULL, measured_steps
from foretune.fit.finals import Evaluator
from foretune.fit.keeping import Offer
from foretune.fit.outlook import replan
from foretune.fit.plan import Plan
from foretune.fit.prepare import Prepared, prepare
from foretune.fit.probe_plan import measured
from foretune.fit.schedule import End, Schedule, Speeds, plan_end
from foretune.fit.selected import named
from foretune.fit.session import Session
from foretune.fit.trials import SEARCH, Common, budget_of, planned, seconds_for_trials
from foretune.fit.warm_start import WarmStart, chosen
from foretune.search.past_tasks import LOWER
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
    base_answers: Base
    """What it did on them, for its score on any of them"""
    selected: Mapping[str, Any]
    """What ranking the rows took; empty where all are trained on"""
    common: Common
    end: End
    generation: bool
    notes: tuple[str, ...] = ()
    warm_start: WarmStart | None = None
    """A further run, at the weights of an earlier fit"""

    @property
    def base_losses(self) -> tuple[float, ...]:
        """(6,): the base's loss on the rows of each rung."""
        return tuple(self.base_answers.loss(rows).value for rows in self.common.schedule.rungs_rows())

    @property
    def task_features(self) -> dict[str, Any]:
        """The task for the experience."""
        metric, horizon = self.prepared.task.metric, self.common.horizon.steps
        base = self.base_answers.at(self.common.schedule, horizon, horizon)
        known: dict[str, Any] = {f"base_{metric}": base[metric].value} if metric != "loss" and metric in base else {}
        known |= {"base_loss": self.probe["base_loss"], "metric": metric, LOWER: METRICS[metric].direction == "lower"}
        return {**self.prepared.facts["profile"], **known}


def opened(session: Session) -> Opening:
    """Carry out all that comes before the search, or read what was done of it."""
    prepared = _prepared(session)
    generation = _generation(session.plan, prepared)
    config = {**DEFAULT_LORA, **{k: v for k, v in session.plan.config.items() if k == "rows_per_update"}}
    payload = {"config": config, "rows": PROBE_ROWS, "generation": generation}
    probe = session.once("probe", "probe", lambda: session.job("probe", prepared.task, payload))
    session.on_event("probe", probe)
    refined = replan(session.plan, measured(probe), session.clock.spent("reading and splitting", "probe"))
    refined = with_offers_as_begun(refined, session.folder.once)
    session.on_event("forecast", refined.forecast.to_json())
    used_s = session.clock.spent("reading and splitting", "probe")
    end = _end(session.plan, prepared, Speeds.of(probe), generation, used_s)
    evaluator = Evaluator(prepared, session.folder, session.executor, session.watch, session.left)
    base = session.once("base", "base model", lambda: _base(evaluator, end.validation_rows))
    session.on_event("base", base)
    selected = _selected(session, prepared, refined.keeping)
    common = _common(session, refined, prepared, probe, end, generation, SEARCH)
    opening = Opening(prepared, probe, refined, base, Base(()), selected, common, end, generation)
    opening = _with_base(session, _paced(session, opening), evaluator)
    return _covered(session, _warm_started(session, opening, evaluator))


def _prepared(session: Session) -> Prepared:
    def make() -> dict[str, Any]:
        return prepare(
            session.plan, session.folder, lambda line: session.on_event("progress", {"line": line})
        ).to_json()

    prepared = Prepared.from_json(session.once("prepared", "reading and splitting", make))
    task = replace(prepared.task, folder=str(session.folder.task.resolve()))  # the folder may have been moved since
    prepared = replace(prepared, task=task)
    session.on_event("prepared", prepared.to_json())
    return prepared


def _generation(plan: Plan, prepared: Prepared) -> bool:
    wanted = bool(plan.resolution["evaluation.generation"])
    return wanted and prepared.task.model.kind != "encoder" and prepared.task.task != "language-modelling"


def _end(plan: Plan, prepared: Prepared, speeds: Speeds, generation: bool, used_s: float) -> End:
    shows = generation and prepared.task.model.kind == "causal"
    return plan_end(
        speeds,
        rows=prepared.rows,
        most_rows=int(plan.resolution["evaluation.max_rows"]),
        shots=int(plan.resolution["evaluation.retrieved_examples"]) if shows else 0,
        generation=generation,
        time_s=plan.budget.total if plan.budget.kind == "time" else None,
        used_s=used_s,
    )


def _common(
    session: Session,
    plan: Plan,
    prepared: Prepared,
    probe: Mapping[str, Any],
    end: End,
    generation: bool,
    name: str,
) -> Common:
    schedule = Schedule(prepared.task, session.folder, prepared.rows["validation"], Speeds.of(probe), FULL, generation)
    budget = budget_of(session.plan, session.clock, end)
    return planned(plan, prepared, schedule, budget, session.folder.once, name)


def _base(evaluator: Evaluator, rows: int) -> dict[str, Any]:
    """The base's loss on ``rows`` validation rows, and how fast they were scored."""
    seconds = evaluator.base_validation(rows).get("seconds")  # not known where somebody was killed just then
    loss = answered(evaluator, rows).loss(())
    speed = loss.n / seconds if seconds else None
    return {"loss": [loss.value, loss.standard_error, loss.n], "score_rows_per_s": speed}


def _with_base(session: Session, opening: Opening, evaluator: Evaluator) -> Opening:
    """``opening`` with the base's scores on what runs are scored on; what it takes to write answers is spent."""
    schedule, rows = opening.common.schedule, opening.end.validation_rows
    began_s = session.clock.used()

    def write() -> dict[str, float]:
        answered(evaluator, rows, schedule.written_rows)
        return {"seconds": session.clock.used() - began_s}

    spent = session.once("base-written", "base model", write)
    return replace(
        opening,
        base_answers=answered(evaluator, rows, schedule.written_rows),
        common=_spent(opening.common, spent["seconds"]),
    )


def _warm_started(session: Session, opening: Opening, evaluator: Evaluator) -> Opening:
    """``opening`` with an earlier fit's weights to begin a run at, where `search.warm_start` names some that help."""
    where = session.plan.resolution.spec.search.warm_start
    if where is None:
        return opening
    began_s = session.clock.used()

    def choose() -> dict[str, Any]:
        found = chosen(
            evaluator, str(opening.probe["weights_hash"]), opening.base_answers, Path(where),
            rows=opening.end.validation_rows, baseline=opening.common.first.baseline,
            fixed=session.plan.resolution.fixed_training(), menu=opening.common.first.menu,
        )  # fmt: skip
        return {**found, "seconds": session.clock.used() - began_s}

    found = session.once("warm-start", "warm start", choose)
    start = None if found["start"] is None else WarmStart.from_json(found["start"])
    notes = (*opening.notes, *found["notes"])
    return replace(opening, notes=notes, warm_start=start, common=_spent(opening.common, found["seconds"]))


def _selected(session: Session, prepared: Prepared, keeping: Sequence[Offer]) -> dict[str, Any]:
    """What ranking the rows took, by selection and share (`named`); {} where all rows are trained on.

    Trials read the rankings from the task's folder.
    """
    fixed = session.plan.resolution.fixed_training()
    asked = [{**fixed, **arm} for offer in keeping for arm in offer.arms]
    if not keeping and str(fixed.get("selection", NONE)) != NONE:
        asked = [fixed]

    def rank() -> dict[str, Any]:
        found = {}
        for config in asked:
            done = session.job("select", prepared.task, {"config": config, "seed": prepared.task.seed})
            if not done["complete"]:
                raise Stopped
            found[named(config)] = done
            session.on_event("selection", done)
        return found

    return dict(session.once("selection", "selection", rank)) if asked else {}


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
    spent_s = session.clock.spent("reading and splitting", "probe")
    end = _end(session.plan, opening.prepared, Speeds.of(probe), opening.generation, spent_s)
    generation, refined = opening.generation, opening.refined
    common = _common(session, refined, opening.prepared, probe, end, generation, f"{SEARCH}-again")
    if _same_start(common, opening.common):
        common = _spent(common, -seen["train_s"])
    elif not session.folder.journal.exists():  # they were steps of another schedule or configuration
        shutil.rmtree(session.folder.trial(FIRST_RUN), ignore_errors=True)
    again_refined = with_offers_as_begun(replan(session.plan, measured(probe), spent_s), session.folder.once)
    session.on_event("forecast", again_refined.forecast.to_json())
    note = (
        f"The first steps showed that a run takes {factor:.2g} times what the probe said, so runs were planned again:"
        f" {common.horizon.steps} steps instead of {horizon}."
    )
    return replace(opening, probe=probe, refined=again_refined, end=end, common=common, notes=(note,))


def _same_start(one: Common, other: Common) -> bool:
    """Whether the first run of both is the same, so that its first steps are steps of either."""
    return one.horizon.steps == other.horizon.steps and one.first.baseline == other.first.baseline


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
    score = opening.base["score_rows_per_s"] or probe["score_rows_per_s"]
    faster = {"train": train / probe["train_rows_per_s"], "score": score / probe["score_rows_per_s"]}
    speeds = {
        f"{work}_{unit}_per_s": probe[f"{work}_{unit}_per_s"] * factor
        for work, factor in faster.items()
        for unit in ("rows", "tokens")
    }
    return {**probe, **speeds}


def _covered(session: Session, opening: Opening) -> Opening:
    """``opening`` with runs and an end short enough for what base and first steps have left of the budget."""
    common, horizon = opening.common, opening.common.horizon.steps
    if common.budget.kind != "time":
        return opening
    if common.budget.can_afford(common.schedule.cost(common.first.baseline, 0, horizon, horizon)):
        return opening
    used_s = session.once("left", "trials", lambda: {"used_s": session.clock.used()})["used_s"]
    end = _end(session.plan, opening.prepared, Speeds.of(opening.probe), opening.generation, used_s)
    left = _common(session, opening.refined, opening.prepared, opening.probe, end, opening.generation, f"{SEARCH}-left")
    if not _same_start(left, common) and not session.folder.journal.exists():
        shutil.rmtree(session.folder.trial(FIRST_RUN), ignore_errors=True)
    return replace(opening, common=left, end=end)


def _spent(common: Common, seconds: float) -> Common:
    """``seconds`` more of a time budget are spent; but for steps that the first run goes on from: it tells them."""
    if common.budget.kind != "time":
        return common
    return replace(common, budget=replace(common.budget, spent=max(0.0, common.budget.spent + seconds)))
