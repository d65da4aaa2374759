"""The search of a fit: strategy and core from the probe, the loop over leases, and what it leaves behind."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from foretune.catalogue.selection import kept_rows
from foretune.errors import TrainingError
from foretune.execution.drive import Watch, drive
from foretune.execution.orders import InitialWeights
from foretune.fit.advice import hints_of, starting_settings
from foretune.fit.effort import Effort, offered, settled
from foretune.fit.folder import Clock
from foretune.fit.keeping import variants
from foretune.fit.plan import Plan
from foretune.fit.prepare import Prepared
from foretune.fit.schedule import End, Schedule
from foretune.fit.session import Session
from foretune.fit.strategy import chosen_strategy, menu_of
from foretune.fit.warm_start import WarmStart
from foretune.search.ask_tell import AskTell
from foretune.search.budget import Budget
from foretune.search.horizon import Horizon
from foretune.search.types import Lease
from foretune.search.warm_start import ARM, WarmStarted
from foretune.search.zero_shot import ZeroShot
from foretune.search.zero_shot import plan as zero_shot_plan

SEARCH = "search-start"
DECIDED = ("spent", "total", "reserve", "workers")


@dataclass(frozen=True)
class Search:
    """A search ready to run, or resumed from its journal."""

    core: AskTell
    strategy: Any
    horizon: Horizon
    name: str
    """The strategy's name, ``auto`` resolved"""


def budget_of(plan: Plan, clock: Clock, end: End) -> Budget:
    """What the trials may spend: the budget less what was used before them and what is reserved after them."""
    workers = plan.resolution.spec.search.workers
    if plan.budget.kind != "time":
        return Budget(plan.budget.kind, float(plan.budget.total), workers=workers)
    return Budget("time", plan.budget.total, reserve=end.reserve_s, workers=workers, spent=clock.used())


@dataclass(frozen=True)
class Common:
    """What all runs of a search share."""

    first: ZeroShot
    """Baseline and expert portfolio"""
    horizon: Horizon
    schedule: Schedule
    """With the effort of its evaluations settled"""
    budget: Budget
    """As it was at first: more time on resume buys more runs, not longer ones"""


def planned(
    plan: Plan, prepared: Prepared, schedule: Schedule, budget: Budget, remember: Callable[..., Any], name: str = SEARCH
) -> Common:
    """What all runs share under ``budget`` as it was at first (remembered as ``name``), at the speeds of ``schedule``.

    The effort of evaluations is the largest offered that leaves two thirds of a run to training.
    """
    spec = plan.resolution.spec
    at_first = replace(budget, **remember(name, lambda: {key: getattr(budget, key) for key in DECIDED}))
    advised = remember(f"{name}-advice", lambda: _advice(plan))
    efforts = offered(int(plan.resolution["evaluation.max_rows"]), fixed=plan.resolution.chosen("evaluation.max_rows"))

    def under(effort: Effort) -> tuple[Common, float]:
        tried = replace(schedule, effort=effort)
        first, horizon = zero_shot_plan(
            width=plan.model.shapes.width,
            kind=prepared.task.model.kind,
            train_rows=kept_rows(plan.resolution.fixed_training(), prepared.rows["train"]),
            budget=at_first,
            cost=lambda config, start, stop: tried.cost(config, start, stop, stop),
            fixed=plan.resolution.fixed_training(),
            methods=tuple(advised.get("methods") or ()) or None,
            max_trials=spec.search.max_trials,
            advised=advised["settings"],
            avoid=tuple(advised["avoid"]),
            variants=variants(plan.keeping),
            menu=menu_of(plan.resolution, prepared.task.model.kind),
        )
        return Common(first, horizon, tried, at_first), tried.evaluation_share(first.baseline, horizon.steps)

    return settled(efforts if budget.kind == "time" else efforts[:1], under)


def _advice(plan: Plan) -> dict[str, Any]:
    """What rules advise the search to start from, and the methods that were named for it.

    Remembered, so that rules that change do not change a run.
    """
    methods = plan.resolution.spec.search.methods
    settings, _ = starting_settings(plan.advice, plan.model.shapes, plan.resolution.fixed_training(), methods)
    return {"settings": settings, "avoid": list(plan.advice.avoid), "methods": methods}


def open_search(
    plan: Plan,
    common: Common,
    total: Budget,
    journal: Any,
    remember: Callable[..., Any],
    *,
    task: Mapping[str, Any],
    base_losses: tuple[float, ...],
    warm_start: WarmStart | None = None,
) -> Search:
    """The search of a plan. What fixes its decisions is computed once (``remember``) and read back on resume.

    ``total`` is the budget now, ``task`` are the task's features for the experience, ``base_losses`` the base's loss on
    the rows of each rung, ``warm_start`` a further run.
    """
    budget = replace(total, spent=common.budget.spent)
    hints = hints_of(plan.advice, plan.resolution.fixed_training())
    chosen = chosen_strategy(
        plan.resolution, common.first, plan.model.shapes, task, base_losses, remember, hints,
        accelerated=plan.placement.layout.device == "cuda",
    )  # fmt: skip
    peak = plan.forecast.memory_bytes.value / plan.request.workers
    strategy: Any = chosen.strategy
    if warm_start is not None:
        strategy = WarmStarted(strategy, warm_start.config, warm_start.seed, warm_start.why)
    core = AskTell(
        strategy,
        budget,
        lambda config, start, stop: common.schedule.cost(
            config, start, stop, strategy.steps_of(config), chosen.factor(config)
        ),
        seed=plan.resolution.spec.search.seed,
        journal=journal,
        memory=lambda config: round(peak * chosen.memory(config)),
    )
    return Search(core, strategy, common.horizon, chosen.name)


def seconds_for_trials(session: Session, end: End) -> float | None:
    """What is left of the time budget for trials, below 0 when it is used up; None without one."""
    return None if session.time_s is None else session.time_s - end.reserve_s - session.clock.used()


def run_trials(
    search: Search, session: Session, schedule: Schedule, end: End, watch: Watch, warm_start: WarmStart | None = None
) -> str:
    """Run the search to its end; the reason it ended. Raises `TrainingError` when no trial has a result."""

    def left() -> float | None:
        return seconds_for_trials(session, end)

    def out_of_time() -> bool:
        seconds = left()
        return seconds is not None and seconds <= 0

    def begins_at(lease: Lease) -> InitialWeights | None:
        if warm_start is None or search.core.run(lease.run).arm != ARM:
            return None
        return warm_start.initial_weights

    reason = drive(
        search.core,
        session.executor,
        lambda lease: schedule.order(lease, left(), initial_weights=begins_at(lease)),
        watch,
        out_of_time=out_of_time,
        charge_overhead=session.time_s is not None,
    )
    if not search.strategy.finalists(search.core.runs):
        if any(run.status == "finished" for run in search.core.runs):
            raise TrainingError(
                "the budget held the default LoRA alone, and no configuration that was asked for.",
                remedy="Give a larger budget: beside others the default LoRA is trained first, for comparison.",
            )
        failures = "; ".join(f"{run.id}: {run.status} {run.detail}".strip() for run in search.core.runs)
        raise TrainingError(
            f"no trial produced a result ({failures or 'none could be started'}).",
            remedy=f"{_remedy({run.status for run in search.core.runs})}; the logs in the run folder say more.",
        )
    return reason


def _remedy(ended: set[str]) -> str:
    """What helps where all runs ended so."""
    if ended == {"refused"}:
        return "Change or leave out the setting that is refused"
    if ended == {"oom"}:
        return "Use a smaller model, shorter rows or --quantize 4bit"
    return "Give more time, a smaller model or shorter rows"
