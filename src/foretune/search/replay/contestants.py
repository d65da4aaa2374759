"""Who takes part in a replay: the literal table of contestants, each made for one world from the other tasks.

A contestant never sees the task it is judged on: the trees, the portfolio and the cost model come from the others.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any

import numpy as np

from foretune.catalogue.priors import DEFAULT_LORA, PORTFOLIO_FACTORS
from foretune.files import fingerprint
from foretune.search.baselines.halving import Asha, Hyperband
from foretune.search.baselines.listed import Listed
from foretune.search.baselines.random_search import RandomSearch
from foretune.search.encoding import RATE, Encoding, Facts, Floats, described, features
from foretune.search.horizon import EARLY_LEVEL
from foretune.search.past_tasks import LARGEST_Z, PastTask
from foretune.search.peers.conversation import Conversing
from foretune.search.peers.dehb import Dehb
from foretune.search.peers.optuna_tpe import OptunaTpe
from foretune.search.peers.smac import Smac
from foretune.search.peers.syne_tune import SEARCHERS, SyneTune
from foretune.search.pooled import Pooled
from foretune.search.quick_tune.strategy import QuickTune, Refit
from foretune.search.replay.adversaries import ADVERSARIES
from foretune.search.replay.world import FULL_RUNS, World
from foretune.search.task_prior import TaskPrior, build
from foretune.search.transfer import Transfer

if TYPE_CHECKING:
    from foretune.search.quick_tune.surrogate import Surrogate

LONGEST_PORTFOLIO = 8
REFIT_EVERY = 6
"""About twenty refits in a budget of twenty whole runs with six rungs"""


@dataclass(frozen=True)
class Draw:
    """A world with the tasks that may be learnt from."""

    world: World
    others: tuple[PastTask, ...]
    seed: int = 0
    """Of what is learnt: trees, networks. `REDRAWN` learn anew for each seed of a search; all others learn once,
    `transfer` and its ablations among them: their seeds show the luck of searches, not that of learning."""
    options: Mapping[str, Any] = field(default_factory=dict)

    @cached_property
    def pool(self) -> tuple[Mapping[str, Any], ...]:
        """The world's configurations."""
        return tuple(entry.config for entry in self.world.entries)

    @cached_property
    def informed(self) -> TaskPrior:
        """What the others say."""
        return self.prior(self.others, self.world.task.facts)

    @cached_property
    def blank(self) -> TaskPrior:
        """The pool without experience."""
        return self.prior((), self.world.task.facts)

    @cached_property
    def deep_pair(self) -> Surrogate:
        """Quick-Tune's models of the others."""
        from foretune.search.quick_tune.surrogate import fit

        return fit(self.others, self.seed)

    def prior(self, others: Sequence[PastTask], facts: Facts) -> TaskPrior:
        """What ``others`` say of the world; its steps are shares of a run, whatever the settings."""
        accelerated = any(curve.accelerated for curve in self.world.task.curves)
        return build(others, facts, self.pool, self.seed, accelerated=accelerated).at_equal_steps()

    def costs(self, prior: TaskPrior) -> dict[str, float]:
        """Forecast factors by configuration, their median one."""
        factors = prior.cost / max(float(np.median(prior.cost)), 1e-9)
        return {fingerprint(dict(config)): float(f) for config, f in zip(prior.pool, factors, strict=True)}

    def nearest(self, config: Mapping[str, Any]) -> int:
        """The pool member most like ``config``."""
        facts = self.world.task.facts
        rows = [described(member, facts) for member in self.pool]
        encoding = Encoding.of([*rows, described(config, facts)])
        places = encoding.dense([*rows, described(config, facts)])
        return int(np.argmin(((places[:-1] - places[-1]) ** 2).sum(1)))

    def made(self, kind: Callable[..., Pooled], prior: TaskPrior, **options: Any) -> Pooled:
        """A strategy over the world's configurations."""
        return kind(prior, self.world.horizon, equal_steps=True, **options)

    def searching(self, prior: TaskPrior, **options: Any) -> Pooled:
        """`Transfer`, whose expert begins as in `fit`."""
        return self.made(Transfer, prior, portfolio=around_the_rule(self), **options)


Maker = Callable[[Draw], Pooled]


def _own(**options: Any) -> Maker:
    return lambda draw: draw.searching(draw.informed, **options)


def _blank(kind: Callable[..., Pooled], **options: Any) -> Maker:
    return lambda draw: draw.made(kind, draw.blank, **options)


def _without_features(draw: Draw) -> Pooled:
    facts = Facts({}, draw.world.task.facts.model, draw.world.task.facts.steps)
    return draw.searching(draw.prior(ADVERSARIES["no-features"](draw.others, draw.seed), facts))


def _no_transfer(draw: Draw) -> Pooled:
    """Without earlier runs, as `fit` begins then."""
    return draw.searching(draw.blank)


def _spoiled(name: str) -> Maker:
    def make(draw: Draw) -> Pooled:
        spoilt = ADVERSARIES[name](draw.others, draw.seed)
        return draw.searching(draw.prior(spoilt, draw.world.task.facts))

    return make


def by_rule(draw: Draw, decades: float = 0.0) -> tuple[int, ...]:
    """The pool members nearest to the rule's learning rate, or so many decades above it, LoRA first."""
    facts = draw.world.task.facts
    rates = np.asarray([float(described(config, facts)[RATE]) for config in draw.pool])
    lora = np.asarray([config.get("method") == DEFAULT_LORA["method"] for config in draw.pool])
    off = np.where(np.isfinite(rates), np.abs(rates - decades), 9.0) + np.where(lora | ~lora.any(), 0.0, 10.0)
    return tuple(int(place) for place in np.argsort(off, kind="stable"))


def around_the_rule(draw: Draw) -> tuple[int, ...]:
    """LoRA at the rule's learning rate, three times and a third of it, or what is nearest."""
    return tuple(dict.fromkeys(by_rule(draw, math.log10(factor))[0] for factor in PORTFOLIO_FACTORS))


def agnostic_portfolio(draw: Draw) -> tuple[int, ...]:
    """Members that are together best over the other tasks, as they were measured there: no features of this task.

    Greedy on the mean over tasks of the best scaled gain; a member that a task never tried counts there as its nearest.
    """
    kind = draw.world.task.facts.kind
    same = [task for task in draw.others if task.facts.kind == kind] or list(draw.others)
    if not same:
        return by_rule(draw)[:LONGEST_PORTFOLIO]
    scores = np.stack([_measured(draw, task) for task in same])
    chosen: list[int] = []
    best = np.full(len(same), -np.inf)
    for _ in range(min(LONGEST_PORTFOLIO, len(draw.pool))):
        gain = np.maximum(scores, best[:, None]).mean(0)
        gain[chosen] = -np.inf
        chosen.append(int(np.argmax(gain)))
        best = np.maximum(best, scores[:, chosen[-1]])
    return tuple(chosen)


def _measured(draw: Draw, task: PastTask) -> Floats:
    """(pool,): scaled gain of each member, or of the nearest run, on an earlier task; failures are as bad as can be."""
    rows = [described(config, task.facts) for config in draw.pool]
    encoding = Encoding.of([*rows, *(curve.row for curve in task.curves)])
    own, theirs = encoding.dense(rows), encoding.dense([curve.row for curve in task.curves])
    nearest = np.argmin(((own[:, None, :] - theirs[None, :, :]) ** 2).sum(2), axis=1)
    scaled = task.scaled(np.asarray([curve.final for curve in task.curves]))
    return np.asarray(np.where(np.isfinite(scaled), scaled, -LARGEST_Z)[nearest])


def _portfolio(count: int) -> Maker:
    return lambda draw: draw.made(Listed, draw.blank, order=agnostic_portfolio(draw)[:count])


def _zero_shot(draw: Draw) -> Pooled:
    """The strategy of that name over a pool: around the rule, then whatever is nearest to it, halved."""
    begun = around_the_rule(draw)
    rest = tuple(place for place in by_rule(draw) if place not in begun)
    return draw.made(Asha, draw.blank, order=(*begun, *rest), first_level=EARLY_LEVEL)


def _portfolio_halving(draw: Draw) -> Pooled:
    order = agnostic_portfolio(draw)
    rest = [place for place in range(len(draw.pool)) if place not in order]
    return draw.made(Asha, draw.blank, order=(*order, *rest), first_level=EARLY_LEVEL)


CONTESTANTS: dict[str, Maker] = {
    "transfer": _own(),
    "default-lora": lambda draw: draw.made(Listed, draw.blank, order=(draw.nearest(DEFAULT_LORA),)),
    "zero-shot": _zero_shot,
    "rule": lambda draw: draw.made(Listed, draw.blank, order=by_rule(draw)[:1]),
    "portfolio-1": _portfolio(1),
    "portfolio-2": _portfolio(2),
    "portfolio-3": _portfolio(3),
    "portfolio-halving": _portfolio_halving,
    "random": _blank(RandomSearch),
    "random-one-rung": _blank(RandomSearch, rung=EARLY_LEVEL),
    "asha": _blank(Asha),
    "hyperband": _blank(Hyperband),
}
ABLATIONS: dict[str, Maker] = {
    "no-transfer": _no_transfer,
    "no-features-at-all": _without_features,
    "no-loss-channel": _own(loss_channel=False),
    "no-residual": _own(residual=False),
    "no-guard": _own(guard=False),
    "end-only": _own(randomised=False),
}
SPOILED: dict[str, Maker] = {name: _spoiled(name) for name in ADVERSARIES}
DETERMINISTIC = frozenset(
    {"default-lora", "zero-shot", "rule", "portfolio-1", "portfolio-2", "portfolio-3", "portfolio-halving"}
)
"""One seed says all."""


def _quick_tune(refit: Refit) -> Maker:
    def make(draw: Draw) -> Pooled:
        own = features(draw.world.task.facts)
        return draw.made(
            QuickTune, draw.informed, surrogate=draw.deep_pair, features=own, refit=refit, refit_every=REFIT_EVERY
        )

    return make


def _syne_tune(searcher: str) -> Maker:
    def make(draw: Draw) -> Pooled:
        peer = partial(SyneTune, searcher=searcher, tasks=draw.others)
        return draw.made(Conversing, draw.blank, peer=peer, name=f"syne-tune-{searcher}")

    return make


PEERS: dict[str, Maker] = {
    "quick-tune": _quick_tune("none"),
    "quick-tune-refit": _quick_tune("full"),
    "optuna-tpe": _blank(OptunaTpe),
    "dehb": _blank(Conversing, peer=Dehb, name="dehb"),
    "smac": _blank(Conversing, peer=partial(Smac, whole_runs=FULL_RUNS), name="smac"),
    **{f"syne-tune-{searcher}": _syne_tune(searcher) for searcher in SEARCHERS},
}
"""The published system, which needs torch, and other packages' searchers, from the extra ``peers``."""
REDRAWN = frozenset({"quick-tune", "quick-tune-refit"})
"""Contestants whose networks are drawn anew for each seed: their searches decide without chance, and one drawing of the
networks would be one search repeated."""


def every() -> dict[str, Maker]:
    """Every contestant by name."""
    return {**CONTESTANTS, **ABLATIONS, **SPOILED, **PEERS}
