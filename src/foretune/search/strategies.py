"""The literal registry of search strategies: from what is known about a task to a strategy that can be asked.

``auto`` is `transfer` where enough earlier runs of the same kind of model are known, else `on-task`: the same search
without them. All strategies share the horizon and the pool: they differ in which member they begin, and how far it
goes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from foretune.catalogue.methods import METHODS
from foretune.catalogue.models import ModelKind
from foretune.catalogue.priors import recommended
from foretune.errors import UsageError
from foretune.experience.past import PastRun
from foretune.files import fingerprint
from foretune.search.baselines.halving import Asha, Hyperband
from foretune.search.baselines.random_search import RandomSearch
from foretune.search.extras import Centre, fixed_for, methods_for, sequence
from foretune.search.menu import POOL, pool
from foretune.search.past_tasks import PastTask, past_tasks
from foretune.search.peers.optuna_tpe import OptunaTpe
from foretune.search.runs import Strategy
from foretune.search.task_prior import TaskPrior
from foretune.search.transfer import Transfer
from foretune.search.zero_shot import DEFAULT_METHODS, ZeroShot

AUTO, ON_TASK = "auto", "on-task"
CURATED: Mapping[ModelKind, tuple[str, ...]] = {
    "causal": ("lora", "dora", "rslora", "pissa", "loratrf", "vera", "ia3", "randlora"),
    "seq2seq": ("lora", "dora", "rslora", "ia3"),
    "encoder": ("lora", "full", "dora", "ia3", "bitfit"),
}
"""Methods that serve anywhere and differ in what they can learn; those the catalogue lacks are left out."""


@dataclass(frozen=True)
class Situation:
    """What a strategy is made from."""

    first: ZeroShot
    """Baseline, expert portfolio, horizon and what the user fixed"""
    prior: TaskPrior
    """The pool, and what is believed about it"""
    base_losses: tuple[float, ...]
    """(6,): the base's validation loss on the rows of each rung"""
    task_metric: tuple[str, float, float] | None = None
    options: Mapping[str, Any] = field(default_factory=dict)


Maker = Callable[[Situation], Strategy]


def transfer(situation: Situation) -> Transfer:
    """The default with experience."""
    first, places = situation.first, situation.prior.places
    named = {fingerprint(dict(entry.config)): entry.why for entry in first.portfolio}
    expert = {places[name]: why for name, why in named.items() if name in places}  # a menu may leave some out
    return Transfer(
        prior=situation.prior, horizon=first.horizon, base_losses=situation.base_losses, baseline=first.baseline,
        portfolio=tuple(expert), whys=tuple(expert.values()), fixed=first.fixed, menu=first.menu,
        max_trials=first.max_trials, metric=first.metric, task_metric=situation.task_metric, **situation.options,
    )  # fmt: skip


def on_task(situation: Situation) -> Transfer:
    """`transfer` with a prior that was made without earlier runs. All runs have as many steps."""
    return replace(transfer(situation), prior=situation.prior.at_equal_steps(), equal_steps=True)


def quick_tune(situation: Situation) -> Strategy:
    """The published system; ``options`` hold its surrogate as JSON and ``refit``."""
    from foretune.search.quick_tune.strategy import QuickTune
    from foretune.search.quick_tune.surrogate import Surrogate

    first, options = situation.first, situation.options
    return QuickTune(
        prior=situation.prior, horizon=first.horizon, base_losses=situation.base_losses, baseline=first.baseline,
        fixed=first.fixed, menu=first.menu, max_trials=first.max_trials, metric=first.metric,
        surrogate=Surrogate.from_json(options["surrogate"]), features=options["features"], refit=options["refit"],
    )  # fmt: skip


def _simple(kind: Callable[..., Strategy], **settings: Any) -> Maker:
    """A baseline that needs the pool alone."""

    def make(situation: Situation) -> Strategy:
        first = situation.first
        return kind(
            prior=situation.prior, horizon=first.horizon, base_losses=situation.base_losses, baseline=first.baseline,
            fixed=first.fixed, menu=first.menu, max_trials=first.max_trials, metric=first.metric, **settings,
        )  # fmt: skip

    return make


STRATEGIES: dict[str, Maker] = {
    "zero-shot": lambda situation: situation.first,
    "transfer": transfer,
    ON_TASK: on_task,
    "quick-tune": quick_tune,
    "random": _simple(RandomSearch),
    "asha": _simple(Asha),
    "hyperband": _simple(Hyperband),
    "optuna-tpe": _simple(OptunaTpe),
}
NEED_EXPERIENCE = frozenset({"quick-tune"})
"""Strategies that are nothing without earlier tasks."""


def searched_methods(
    kind: ModelKind, wanted: Sequence[str] | None, strategy: str = "transfer", deploy: str = "adapter"
) -> tuple[str, ...]:
    """The methods that a search with a pool chooses among: without earlier runs the few that its expert knows.

    Those that cannot be deployed as asked (``deploy``) are left out. Raises `UsageError` where such a method, or an
    unknown one, was named.
    """
    for name in wanted or ():
        if name not in METHODS:
            raise UsageError(f"search.methods: unknown method {name!r}.", remedy=f"Known: {', '.join(METHODS)}.")
        if not _served(name, deploy):
            raise UsageError(
                f"search.methods: {name} cannot be merged, and deploy is {deploy}.",
                remedy="Use --deploy adapter, or leave it out.",
            )
    offered = DEFAULT_METHODS if strategy == ON_TASK else CURATED
    return tuple(wanted) if wanted else tuple(n for n in offered[kind] if n in METHODS and _served(n, deploy))


def _served(method: str, deploy: str) -> bool:
    return deploy == "adapter" or METHODS[method].merges_exactly({})


def pool_of(
    first: ZeroShot,
    methods: tuple[str, ...],
    *,
    width: int,
    kind: ModelKind,
    seed: int = 0,
    size: int = POOL,
) -> tuple[Mapping[str, Any], ...]:
    """The configurations of a search: the baseline, the expert's portfolio, every method at its rule's rate, and a
    Sobol sequence over the menu around these. All but the baseline agree with the menu, where anything can."""
    menu = first.menu
    chosen = methods_for(methods, first.fixed)
    listed = [first.baseline, *(entry.config for entry in first.portfolio)]
    centres: dict[str, Centre] = {}
    for name in chosen:
        settings = fixed_for(name, chosen, first.fixed)
        config = recommended(name, width=width, kind=kind, steps=first.horizon, fixed=settings).config
        centres[name] = Centre(config, float(config["learning_rate"]), float(config["learning_rate"]))
        listed.append(menu.nearest(config, first.fixed) or config)
    agreed = [listed[0], *(config for config in listed[1:] if menu.offers(config))]
    known = {fingerprint(dict(config)): config for config in agreed}
    drawn = sequence(centres, tuple(first.fixed), seed, sorted(known), menu)
    return pool(drawn, tuple(known.values()), size)


def related(runs: Sequence[PastRun], kind: str) -> tuple[PastTask, ...]:
    """The earlier tasks with enough runs to compare, if any of them is of the same kind of model."""
    tasks = past_tasks(runs)
    return tasks if any(task.facts.kind == kind for task in tasks) else ()


ENOUGH_TASKS, ENOUGH_RUNS = 8, 200
"""What ``auto`` asks of the experience before it relies on it. In replays of real runs eleven other tasks with 430 runs
helped much, five with 170 no more than they misled."""


def resolved_name(name: str, tasks: Sequence[PastTask], kind: str) -> str:
    """The strategy that ``auto`` stands for with this kind of model, or ``name``. Raises `UsageError`."""
    if name == AUTO:
        runs = [len(task.curves) for task in tasks if task.facts.kind == kind]
        return "transfer" if len(runs) >= ENOUGH_TASKS and sum(runs) >= ENOUGH_RUNS else ON_TASK
    if name not in STRATEGIES:
        raise UsageError(f"there is no search strategy {name!r}.", remedy=f"Known: {', '.join((AUTO, *STRATEGIES))}.")
    return name
