"""The strategy of a fit: what earlier runs say about this task, and the configurations that a plan would try first.

Experience that cannot be read never stops a fit. What it said is kept in the run folder, so that a resumed search
decides as before although the experience has grown meanwhile.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from foretune.catalogue.models import ModelKind
from foretune.catalogue.rules import Advice
from foretune.config.resolve import Resolution
from foretune.cost.shapes import ModelShapes
from foretune.errors import ForetuneError, UsageError
from foretune.experience.past import PastRun, known_runs
from foretune.files import fingerprint
from foretune.fit.advice import hints_of, starting_settings
from foretune.fit.history import model_features, plain_features
from foretune.fit.keeping import AUTO as KEEP_AUTO
from foretune.fit.planned_rows import PlannedRows
from foretune.search.budget import Budget
from foretune.search.encoding import Facts, features
from foretune.search.extras import Centre, methods_for, search_space
from foretune.search.hints import Hint
from foretune.search.menu import Menu, read_menu
from foretune.search.past_tasks import PastTask, metric_sign
from foretune.search.reasons import because
from foretune.search.strategies import (
    AUTO,
    ENOUGH_RUNS,
    ENOUGH_TASKS,
    NEED_EXPERIENCE,
    ON_TASK,
    STRATEGIES,
    Situation,
    pool_of,
    related,
    resolved_name,
    searched_methods,
)
from foretune.search.task_prior import TaskPrior, build, predicted_end
from foretune.search.zero_shot import DEFAULT_METHODS, ZeroShot
from foretune.search.zero_shot import plan as zero_shot_plan

logger = logging.getLogger(__name__)
Remember = Callable[[str, Callable[[], Any]], Any]
PRIOR = "prior"
SHOWN = 5
"""Configurations a plan shows."""
CENTRAL = 1.645
"""Standard deviations on either side that hold 90 % of a normal distribution."""
LEAST_DIFFERENT = 2
"""A configuration is shown when it differs from those before it in so many settings, or in method."""


def earlier_runs() -> list[PastRun]:
    """What ships with Foretune and what the user's store remembers; nothing where that cannot be read."""
    try:
        return known_runs()
    except ForetuneError as error:
        logger.warning("earlier runs are not used: %s", error)
        return []


def facts_of(shapes: ModelShapes, task: Mapping[str, Any], steps: int) -> Facts:
    """What is known of a task before any run on it."""
    return Facts(plain_features(task), model_features(shapes), steps)


@dataclass(frozen=True)
class Chosen:
    """The strategy of a search with what it was made from."""

    name: str
    strategy: Any
    prior: TaskPrior | None
    """None for strategies that use neither pool nor experience"""

    def factor(self, config: Mapping[str, Any]) -> float:
        """Training seconds a token over the default LoRA's."""
        return self._of("cost", config)

    def memory(self, config: Mapping[str, Any]) -> float:
        """Peak memory over the default LoRA's."""
        return self._of("memory", config)

    def _of(self, quantity: str, config: Mapping[str, Any]) -> float:
        if self.prior is None:
            return 1.0
        place = self.prior.places.get(fingerprint(dict(config)))
        return 1.0 if place is None else float(getattr(self.prior, quantity)[place])


def chosen_strategy(
    resolution: Resolution,
    first: ZeroShot,
    shapes: ModelShapes,
    task: Mapping[str, Any],
    base_losses: tuple[float, ...],
    remember: Remember,
    hints: Sequence[Hint] = (),
    *,
    accelerated: bool = False,
) -> Chosen:
    """The strategy asked for; what experience and rules say is computed once (``remember``) and read back on resume."""
    settings = resolution.spec.search

    def decide() -> dict[str, Any]:
        if first.alone:
            return {"strategy": first.name, "prior": None}
        wanted = settings.experience == "known" and settings.strategy in ("auto", "transfer", "quick-tune")
        runs = earlier_runs() if wanted else []
        tasks = related(runs, shapes.kind)
        name = strategy_name(resolution, tasks, shapes.kind)
        if name == "zero-shot":
            return {"strategy": name, "prior": None}
        if name in NEED_EXPERIENCE and not tasks:
            raise UsageError(
                f"the strategy {name} is made from earlier runs, and none of this kind of model are known.",
                remedy="Use --set search.strategy=auto, or collect some: foretune experience collect.",
            )
        known = () if name == ON_TASK else tasks
        prior = prior_of(resolution, first, shapes, task, known, hints, name=name, accelerated=accelerated)
        equal = settings.keep == KEEP_AUTO
        prior = prior.at_equal_steps() if equal else prior
        options: dict[str, Any] = {}
        if name == "quick-tune":
            from foretune.search.quick_tune.surrogate import fit

            own = features(facts_of(shapes, task, first.horizon))
            numbers = [None if math.isnan(value) else value for value in own.tolist()]
            options = {"surrogate": fit(tasks, settings.seed).to_json(), "features": numbers, "refit": settings.refit}
        return {"strategy": name, "prior": prior.to_json(), "options": options, "equal_steps": equal}

    decided = remember(PRIOR, decide)
    if decided["prior"] is None:
        return Chosen(decided["strategy"], first, None)
    prior = TaskPrior.from_json(decided["prior"])
    options = dict(decided.get("options", {}))
    if "features" in options:
        options["features"] = [math.nan if value is None else value for value in options["features"]]
    situation = Situation(first, prior, base_losses, _task_metric(task), options)
    strategy: Any = STRATEGIES[decided["strategy"]](situation)
    if decided.get("equal_steps"):
        strategy = replace(strategy, equal_steps=True)
    return Chosen(decided["strategy"], strategy, prior)


def prior_of(
    resolution: Resolution,
    first: ZeroShot,
    shapes: ModelShapes,
    task: Mapping[str, Any],
    tasks: tuple[PastTask, ...],
    hints: Sequence[Hint] = (),
    *,
    name: str = "transfer",
    accelerated: bool = False,
) -> TaskPrior:
    """What ``tasks`` and ``hints`` say about the pool of a fit with the strategy ``name``."""
    settings = resolution.spec.search
    members = pool_of(
        first,
        searched_methods(shapes.kind, settings.methods, name, resolution.spec.output.deploy),
        width=shapes.width,
        kind=shapes.kind,
        seed=settings.seed,
    )
    return build(
        tasks, facts_of(shapes, task, first.horizon), members, settings.seed, hints=hints, accelerated=accelerated
    )


def check_search(resolution: Resolution, shapes: ModelShapes) -> None:
    """Refuse methods and menus that do not exist, before anything runs. Raises `UsageError`."""
    settings = resolution.spec.search
    searched_methods(shapes.kind, settings.methods, deploy=resolution.spec.output.deploy)
    menu_of(resolution, shapes.kind)


def menu_of(resolution: Resolution, kind: ModelKind) -> Menu:
    """What the settings leave on offer. Raises `UsageError`."""
    settings = resolution.spec.search
    return read_menu(settings.menu, kind, settings.methods)


def planned_proposals(
    resolution: Resolution,
    shapes: ModelShapes,
    rows: PlannedRows,
    steps: int,
    runs: Sequence[PastRun],
    rules: Advice,
    *,
    accelerated: bool = False,
) -> Outlook:
    """What a search would try first by ``runs`` and ``rules``, for a plan: nothing is measured yet."""
    tasks = related(runs, shapes.kind) if resolution.spec.search.experience == "known" else ()
    search = searched(resolution, shapes, tasks)
    if not tasks or resolution.spec.search.strategy in ("zero-shot", ON_TASK):
        return Outlook(search=search)
    row = rows.count.row
    task = {
        "log10_rows": math.log10(max(1, rows.train)),
        "prompt_tokens": {"mean": row.prompt},
        "answer_tokens": {"mean": row.answer},
        "answer_share": row.answer / max(1.0, row.prompt + row.answer),
    }
    fixed = resolution.fixed_training()
    methods = resolution.spec.search.methods
    advised, _ = starting_settings(rules, shapes, fixed, methods)
    first, _ = zero_shot_plan(
        width=shapes.width, kind=shapes.kind, train_rows=rows.train, budget=Budget("trials", SHOWN),
        cost=lambda config, start, stop: 0.0, fixed=fixed, methods=methods, advised=advised, avoid=tuple(rules.avoid),
        menu=menu_of(resolution, shapes.kind),
    )  # fmt: skip
    prior = prior_of(
        resolution, replace(first, horizon=steps), shapes, task, tasks, hints_of(rules, fixed), accelerated=accelerated
    )
    said = f"{prior.runs} runs on {prior.tasks} earlier tasks, {prior.similar} of them similar"
    said += ", too few for the search to go by" if strategy_name(resolution, tasks, shapes.kind) == ON_TASK else ""
    return Outlook(proposals(prior), said, search)


def searched(resolution: Resolution, shapes: ModelShapes, tasks: Sequence[PastTask]) -> str:
    """How a search chooses, and among what."""
    settings, kind = resolution.spec.search, shapes.kind
    name = strategy_name(resolution, tasks, kind)
    fixed = resolution.fixed_training()
    if name == "zero-shot":
        methods = methods_for(settings.methods or DEFAULT_METHODS[kind], fixed)
        return f"zero-shot: {', '.join(methods)} at the rule's learning rate and around it, rungs decide"
    why = ""
    if settings.strategy == AUTO and name == ON_TASK:
        known = [len(task.curves) for task in tasks if task.facts.kind == kind]
        why = (
            f"; earlier runs choose from {ENOUGH_TASKS} tasks and {ENOUGH_RUNS} runs of such models on"
            f" ({len(known)} and {sum(known)} are known)"
        )
    methods = methods_for(searched_methods(kind, settings.methods, name, resolution.spec.output.deploy), fixed)
    centres = {method: Centre({"method": method}, 1.0, 1.0) for method in methods}
    parameters = search_space(centres, tuple(fixed), menu_of(resolution, kind)).parameters
    drawn = dict.fromkeys(parameter.name.partition(":")[2] or parameter.name for parameter in parameters)
    return f"{name}: methods {', '.join(methods)}; draws {', '.join(item for item in drawn if item != 'method')}{why}"


def strategy_name(resolution: Resolution, tasks: Sequence[PastTask], kind: ModelKind) -> str:
    """The strategy that the settings mean."""
    settings = resolution.spec.search
    if settings.strategy == AUTO and (settings.methods or settings.menu):
        return "transfer"  # a menu of one's own needs a strategy that draws from it
    return resolved_name(settings.strategy, tasks, kind)


@dataclass(frozen=True)
class Outlook:
    """What experience says in a plan."""

    proposals: tuple[Proposed, ...] = ()
    experience: str = ""
    search: str = ""
    """How the search chooses, and among what"""


def _task_metric(task: Mapping[str, Any]) -> tuple[str, float, float] | None:
    name = str(task.get("metric", "loss"))
    base = float(task.get(f"base_{name}", 0.0))
    return None if name == "loss" else (name, metric_sign(task), base)


@dataclass(frozen=True)
class Proposed:
    """A configuration as a plan shows it."""

    config: Mapping[str, Any]
    differs: Mapping[str, Any]
    """Its settings that are not the default LoRA's"""
    loss_below_base: tuple[float, float, float]
    """Expected share by which its loss lies below the base's: (low, value, high), 90 %"""
    p_fail: float
    seconds_factor: float
    why: str

    def to_json(self) -> dict[str, Any]:
        """A JSON form."""
        return {**vars(self), "config": dict(self.config), "differs": dict(self.differs),
                "loss_below_base": list(self.loss_below_base)}  # fmt: skip


def proposals(prior: TaskPrior, count: int = SHOWN) -> tuple[Proposed, ...]:
    """The best configurations by prediction, near-copies of better ones left out."""
    mean, sd = predicted_end(prior)
    worth = mean * (1 - prior.odds)
    found: list[Proposed] = []
    for place in np.argsort(-worth, kind="stable"):
        config = prior.pool[int(place)]
        if any(_alike(config, shown.config) for shown in found):
            continue
        low, value, high = (1 - math.exp(-float(mean[place] + k * sd[place])) for k in (-CENTRAL, 0.0, CENTRAL))
        found.append(
            Proposed(
                config=config,
                differs={key: item for key, item in config.items() if prior.pool[0].get(key) != item},
                loss_below_base=(low, value, high),
                p_fail=float(prior.odds[place]),
                seconds_factor=float(prior.cost[place] * prior.amount[place]),
                why=because(prior, int(place)) or "near the rule's learning rate",
            )
        )
        if len(found) == count:
            break
    return tuple(found)


def _alike(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    differing = sum(one.get(name) != other.get(name) for name in {*one, *other})
    return one.get("method") == other.get("method") and differing < LEAST_DIFFERENT
