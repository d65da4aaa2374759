"""The search of a fit: strategy and core from the probe, the loop over leases, and what it leaves behind."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from foretune.catalogue.selection import kept_rows
from foretune.errors import TrainingError
from foretune.execution.drive import Watch, drive
from foretune.execution.types import Executor
from foretune.fit.advice import starting_settings
from foretune.fit.folder import Clock
from foretune.fit.plan import Plan
from foretune.fit.prepare import Prepared
from foretune.fit.schedule import End, Schedule
from foretune.fit.strategy import chosen_strategy
from foretune.search.ask_tell import AskTell
from foretune.search.budget import Budget
from foretune.search.horizon import Horizon
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


def time_budget(plan: Plan) -> float | None:
    """Seconds of the whole run, or None when the budget is in trials or steps."""
    return plan.budget.total if plan.budget.kind == "time" else None


def first_plan(
    plan: Plan, prepared: Prepared, schedule: Schedule, budget: Budget, remember: Callable[..., Any], name: str = SEARCH
) -> tuple[ZeroShot, Horizon, Budget]:
    """Baseline, expert portfolio and horizon under ``budget`` as it was at first (remembered as ``name``).

    More time on resume buys more runs, not longer ones.
    """
    spec = plan.resolution.spec
    decided = remember(name, lambda: {key: getattr(budget, key) for key in DECIDED})
    at_first = replace(budget, **decided)
    advised = remember(f"{name}-advice", lambda: _advice(plan))
    first, horizon = zero_shot_plan(
        width=plan.model.shapes.width,
        kind=prepared.task.model.kind,
        train_rows=kept_rows(plan.resolution.fixed_training(), prepared.rows["train"]),
        budget=at_first,
        cost=lambda config, start, stop: schedule.cost(config, start, stop, stop),
        fixed=plan.resolution.fixed_training(),
        max_trials=spec.search.max_trials,
        advised=advised["settings"],
        avoid=tuple(advised["avoid"]),
    )
    return first, horizon, at_first


def _advice(plan: Plan) -> dict[str, Any]:
    """What rules advise the search to start from; remembered, so that rules that change do not change a run."""
    settings, _ = starting_settings(plan.advice, plan.model.shapes, plan.resolution.fixed_training())
    return {"settings": settings, "avoid": list(plan.advice.avoid)}


def open_search(
    plan: Plan,
    prepared: Prepared,
    schedule: Schedule,
    budget: Budget,
    journal: Any,
    remember: Callable[..., Any],
    *,
    task: Mapping[str, Any],
    base_losses: tuple[float, ...],
    planned: tuple[ZeroShot, Horizon, Budget] | None = None,
) -> Search:
    """The search of a plan. What fixes its decisions is computed once (``remember``) and read back on resume.

    ``task`` are the task's features for the experience, ``base_losses`` the base's loss on the rows of each rung.
    """
    first, horizon, at_first = planned or first_plan(plan, prepared, schedule, budget, remember)
    budget.spent = at_first.spent
    chosen = chosen_strategy(plan.resolution, first, plan.model.shapes, task, base_losses, remember)
    peak = plan.forecast.memory_bytes.value / plan.request.workers
    core = AskTell(
        chosen.strategy,
        budget,
        lambda config, start, stop: schedule.cost(
            config, start, stop, chosen.strategy.steps_of(config), chosen.factor(config)
        ),
        seed=plan.resolution.spec.search.seed,
        journal=journal,
        memory=lambda config: round(peak * chosen.memory(config)),
    )
    return Search(core, chosen.strategy, horizon, chosen.name)


def run_trials(
    search: Search, executor: Executor, schedule: Schedule, watch: Watch, clock: Clock, time_s: float | None, end: End
) -> str:
    """Run the search to its end; the reason it ended. Raises `TrainingError` when no trial has a result."""

    def left() -> float | None:
        return None if time_s is None else time_s - end.reserve_s - clock.used()

    def out_of_time() -> bool:
        seconds = left()
        return seconds is not None and seconds <= 0

    reason = drive(
        search.core,
        executor,
        lambda lease: schedule.order(lease, left()),
        watch,
        out_of_time=out_of_time,
        charge_overhead=time_s is not None,
    )
    if not search.strategy.finalists(search.core.runs):
        if any(run.status == "finished" for run in search.core.runs):
            raise TrainingError(
                "the budget held the default LoRA alone, and no configuration with the settings that were fixed.",
                remedy="Give a larger budget: the default LoRA is always trained first, for comparison.",
            )
        failures = "; ".join(f"{run.id}: {run.status} {run.detail}".strip() for run in search.core.runs)
        raise TrainingError(
            f"no trial produced a result ({failures or 'none could be started'}).",
            remedy="Give more time, a smaller model or shorter rows; the logs in the run folder say more.",
        )
    return reason
