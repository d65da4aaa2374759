"""The strategy without experience: the default LoRA, a small portfolio, then asynchronous halving over extras.

1. The default LoRA over the whole horizon: the baseline, and a candidate like any other.
2. The recommended configuration at lr0, 3·lr0 and lr0/3 up to the early rung (12 % of the steps, later in short runs).
3. When all of these have a score there: at every rung the better half goes on to the next (asynchronous successive
   halving, Li et al. 2020, reduction factor 2; a paused run continues from its checkpoint). A run whose loss has
   clearly risen over its own best is not continued and counts with its best step.
4. While a whole further run could be paid: configurations of a seeded Sobol sequence (`extras`), up to the early rung.
5. What is left finishes paused runs that are not clearly worse than the best.
6. Where it cannot finish any, the runs that are ahead of the best finished one go on as far as it goes; then the
   search is done.

Up to point 6 no run is started or continued whose end could not be paid: budget goes to runs that can win.
It learns nothing across tasks and models no curve; that is the transfer strategy's part.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from foretune.catalogue.methods import resolve, shared_settings
from foretune.catalogue.models import ModelKind
from foretune.catalogue.priors import (
    DEFAULT_LORA,
    FEWEST_STEPS,
    SMALLEST_UPDATE,
    Recommendation,
    portfolio,
    recommended,
)
from foretune.files import fingerprint
from foretune.search.budget import Budget
from foretune.search.extras import Centre, extra, fixed_for, methods_for
from foretune.search.fidelity import LAST_LEVEL, RUNG_PERCENT, level_step
from foretune.search.horizon import Horizon, early_level, horizon, total_steps
from foretune.search.menu import Menu
from foretune.search.ranking import (
    Finalist,
    agrees,
    clearly_above,
    finalists,
    has_risen,
    ranking_at,
    score_at,
)
from foretune.search.runs import DEFAULT_ARM, Continue, Cost, Proposal, Run, Start, View
from foretune.search.types import Done, Wait

REDUCTION = 2
"""One in so many runs of a rung goes on."""
DEFAULT_METHODS: Mapping[ModelKind, tuple[str, ...]] = {
    "causal": ("lora",),
    "seq2seq": ("lora",),
    "encoder": ("lora", "full"),
}
"""Encoders are small enough, and their published recipes good enough, for full fine-tuning to be tried as well."""


@dataclass(frozen=True)
class ZeroShot:
    """The strategy; `plan` builds one from facts about model, data and budget."""

    baseline: Mapping[str, Any]
    portfolio: tuple[Recommendation, ...]
    horizon: int
    fixed: Mapping[str, Any] = field(default_factory=dict)
    """Settings the user fixed: never searched."""
    menu: Menu = field(default_factory=Menu)
    """What the user left on offer"""
    max_trials: int | None = None
    metric: str = "loss"
    alone: bool = False
    """Whether the budget holds one run: the baseline, which is then the first of the portfolio. Others follow where
    something is left for them"""
    name: str = "zero-shot"

    def steps_of(self, config: Mapping[str, Any]) -> int:
        """Steps of a whole run: the same for all."""
        return self.horizon

    @property
    def early(self) -> int:
        """The rung at which the portfolio is compared first."""
        shares = [float(entry.config["warmup_share"]) for entry in self.portfolio]
        return early_level(self.horizon, max(shares, default=0.0))

    def settings(self) -> dict[str, Any]:
        """See `Strategy.settings`."""
        return {
            "baseline": dict(self.baseline),
            "portfolio": [dict(entry.config) for entry in self.portfolio],
            "horizon": self.horizon,
            "fixed": dict(self.fixed),
            "max_trials": self.max_trials,
            "metric": self.metric,
            **({"alone": True} if self.alone else {}),
            **({"menu": self.menu.to_json()} if self.menu.restricts else {}),
        }

    def finalists(self, runs: tuple[Run, ...], count: int | None = None) -> list[Finalist]:
        """The runs to re-evaluate, best first; the baseline only where it is what the user asked for."""
        able = (run for run in runs if agrees(run.config, self.fixed, self.menu))
        return finalists(able, self.metric, count)

    def propose(self, view: View) -> Proposal:
        """See `Strategy.propose`."""
        if not view.runs:
            return self._begin(view)
        if self._may_start(view) and (start := self._next_of_portfolio(view)) is not None:
            return start
        first_pass = [run for run in view.runs if run.arm != "extra"]
        if any(run.status == "running" and score_at(run, self.early, self.metric) is None for run in first_pass):
            return Wait(f"the first runs have to reach {RUNG_PERCENT[self.early]} % of their steps")
        proposal = (
            self._promotion(view)
            or self._extra(view, first_pass)
            or self._finish(view)
            or self._as_far_as_it_goes(view)
        )
        if proposal is not None:
            return proposal
        if any(run.status == "running" for run in view.runs):
            return Wait("runs under way have to report first")
        if not self._may_start(view):
            return Done(f"{len(view.runs)} configurations were tried, as many as were allowed")
        return Done("what is left of the budget does not cover another run")

    # -- the steps, in order

    def _begin(self, view: View) -> Proposal:
        if not view.affords(self.baseline, 0, self.horizon, new=True):
            return Done(f"the budget does not cover {'one run' if self.alone else 'the default LoRA'}")
        if self.alone:
            why = f"{self.portfolio[0].why}; in whole, as the budget holds no comparison"
            return Start(self.baseline, self.horizon, self.horizon, "portfolio", why)
        why = "the default LoRA, trained in whole: what every other configuration is compared with"
        return Start(self.baseline, self.horizon, self.horizon, DEFAULT_ARM, why)

    def _may_start(self, view: View) -> bool:
        return self.max_trials is None or len(view.runs) < self.max_trials

    def _next_of_portfolio(self, view: View) -> Start | None:
        if any(run.arm == "extra" for run in view.runs):
            return None
        started = {fingerprint(dict(run.config)) for run in view.runs}
        for entry in self.portfolio:
            if fingerprint(dict(entry.config)) not in started and view.affords(entry.config, 0, self.horizon, new=True):
                return self._start(entry.config, "portfolio", entry.why)
        return None

    def _start(self, config: Mapping[str, Any], arm: str, why: str) -> Start:
        level = max(self.early, early_level(self.horizon, float(config["warmup_share"])))
        why = f"{why}; first to {RUNG_PERCENT[level]} % of the steps"
        return Start(config, self.horizon, level_step(self.horizon, level), arm, why)

    def _promotion(self, view: View) -> Continue | None:
        for level in range(LAST_LEVEL - 1, self.early - 1, -1):
            ranked = ranking_at(view.runs, level, self.metric)
            for place, run in enumerate(ranked[: max(1, len(ranked) // REDUCTION)], start=1):
                if run.step == level_step(self.horizon, level) and self._can_go_on(view, run):
                    place_of = f"place {place} of {len(ranked)} at {RUNG_PERCENT[level]} % of the steps"
                    return self._continue(run, f"{place_of}: among the better half")
        return None

    def _can_go_on(self, view: View, run: Run) -> bool:
        return (
            run.status == "idle"
            and not has_risen(run, self.metric)
            and view.affords(run.config, run.step, self.horizon)
        )

    def _continue(self, run: Run, why: str) -> Continue:
        level = next(k for k in range(LAST_LEVEL + 1) if level_step(self.horizon, k) > run.step)
        return Continue(run.id, level_step(self.horizon, level), f"{why}; on to {RUNG_PERCENT[level]} %")

    def _extra(self, view: View, first_pass: list[Run]) -> Start | None:
        if not self._may_start(view) or not self.portfolio:
            return None
        earlier = [fingerprint(dict(config)) for config in (self.baseline, *(e.config for e in self.portfolio))]
        number = sum(run.arm == "extra" for run in view.runs)
        menu = self.menu if self.menu.offered else None
        config = extra(number, self._centres(first_pass), tuple(self.fixed), view.seed, earlier, menu)
        if config is None or not view.affords(config, 0, self.horizon, new=True):
            return None
        why = f"extra configuration {number + 1}: {config['method']} at {config['learning_rate']:.3g}, drawn around the"
        return self._start(config, "extra", f"{why} best learning rate of the first runs")

    def _centres(self, first_pass: list[Run]) -> dict[str, Centre]:
        """For every method of the portfolio: its rule's rate, and the best rate at the early rung.

        A run that failed after that rung still counts: the centre must not move once extras are drawn around it.
        """
        scored = [(score.value, run) for run in first_pass if (score := score_at(run, self.early, self.metric))]
        ranked = [run for _, run in sorted(scored, key=lambda pair: pair[0])]
        centres: dict[str, Centre] = {}
        for entry in self.portfolio:
            method, rate = str(entry.config["method"]), float(entry.config["learning_rate"])
            same = [float(run.config["learning_rate"]) for run in ranked if run.config["method"] == method]
            centres.setdefault(method, Centre(entry.config, rate, same[0] if same else rate))
        return centres

    def _finish(self, view: View) -> Continue | None:
        """The next paused run that what is left can finish and that is not clearly worse than the best."""
        leaders = self.finalists(tuple(run for run in view.runs if run.status == "finished"), 1)
        for candidate in finalists((run for run in view.runs if run.status == "idle"), self.metric):
            run = candidate.run
            rival = leaders[0].run.curve.get(candidate.step, {}).get(self.metric) if leaders else None
            if (rival is None or not clearly_above(candidate.score, rival)) and self._can_go_on(view, run):
                return self._continue(run, "not clearly worse than the best, and the rest of the budget can finish it")
        return None

    def _as_far_as_it_goes(self, view: View) -> Continue | None:
        """The best paused run that was ahead of the best finished one at the same step, on to the next rung.

        Only where nothing else can be paid: a run that is ahead half-way says more than budget that is left over.
        """
        leaders = self.finalists(tuple(run for run in view.runs if run.status == "finished"), 1)
        for candidate in finalists((run for run in view.runs if run.status == "idle"), self.metric):
            run = candidate.run
            rival = leaders[0].run.curve.get(candidate.step, {}).get(self.metric) if leaders else None
            ahead = rival is None or candidate.score.value < rival.value
            if not ahead or run.step >= self.horizon or has_risen(run, self.metric):
                continue
            proposal = self._continue(
                run, "ahead of the best at the same step; the rest cannot finish it, but holds this"
            )
            if view.affords(run.config, run.step, proposal.to_step):
                return proposal
        return None


def plan(
    *,
    width: int,
    kind: ModelKind,
    train_rows: int,
    budget: Budget,
    cost: Cost,
    fixed: Mapping[str, Any] | None = None,
    methods: tuple[str, ...] | None = None,
    max_trials: int | None = None,
    metric: str = "loss",
    advised: Mapping[str, Any] | None = None,
    avoid: tuple[str, ...] = (),
    variants: Sequence[tuple[Mapping[str, Any], str]] = (),
    menu: Menu | None = None,
) -> tuple[ZeroShot, Horizon]:
    """The strategy for a model of hidden ``width`` on ``train_rows`` kept rows, and its horizon with the reason.

    ``cost`` is the probe's forecast; settings in ``fixed`` are kept out of the search. The default LoRA keeps its own
    settings except the amount of training and its rows, which all runs share. ``advised`` settings (of rules) are where
    the portfolio starts, and may be left; methods in ``avoid`` are not tried unless fixed or among ``methods``.
    ``variants`` are further members of the portfolio: the recommended configuration with these settings, and why. The
    portfolio is moved onto the ``menu``. Where the budget holds one run, that is the first of the portfolio; so it is
    with one trial and settings that the default LoRA does not have. Updates have fewer rows than the default's where
    there would be less than `FEWEST_STEPS` of them.
    Raises `UsageError` and `BudgetError`.
    """
    settings, left = dict(fixed or {}), menu or Menu(kind=kind)
    hints = {name: value for name, value in (advised or {}).items() if name not in settings}
    hints = {name: value for name, value in hints.items() if name not in shared_settings(hints)}
    offered = list(methods or [name for name in DEFAULT_METHODS[kind] if name not in avoid] or ["lora"])
    if "method" in hints and (methods is None or hints["method"] in methods):
        offered = [str(hints["method"]), *(name for name in offered if name != hints["method"])]
    chosen = methods_for(tuple(offered), settings)
    start = {**{name: value for name, value in hints.items() if name != "method"}, **settings}

    def entries(steps: int, shared: Mapping[str, Any]) -> tuple[Recommendation, ...]:
        first, *others = chosen
        asked = fixed_for(first, chosen, {**start, **shared})
        own = portfolio(first, width=width, kind=kind, steps=steps, fixed=asked)
        varied = tuple(
            Recommendation(resolve({**own[0].config, **change}), f"{own[0].why}, {why}") for change, why in variants
        )
        further = tuple(
            recommended(
                name, width=width, kind=kind, steps=steps, fixed=fixed_for(name, chosen, {**settings, **shared})
            )
            for name in others
        )
        return moved(own + varied + further, left, settings)

    def with_rows(rows: int) -> tuple[dict[str, Any], tuple[Recommendation, ...], Horizon]:
        shared = {"rows_per_update": rows, **shared_settings(settings)}
        baseline = resolve({**DEFAULT_LORA, **shared})
        asked = total_steps(train_rows, baseline)
        length = horizon(asked, budget, cost, baseline, [entry.config for entry in entries(asked, shared)])
        return baseline, entries(length.steps, shared), length

    usual = rows = int(DEFAULT_LORA["rows_per_update"])
    baseline, listed, length = with_rows(rows)
    # where steps are counted, fewer rows would mean less training
    given = "rows_per_update" in settings or budget.kind == "steps"
    while length.steps < FEWEST_STEPS and rows > SMALLEST_UPDATE and not given:
        rows //= 2
        baseline, listed, length = with_rows(rows)
    if rows < usual:
        length = replace(length, why=f"{length.why} Updates have {rows} rows, so that there are more of them.")
    one_trial = max_trials == 1 or (budget.kind == "trials" and budget.total == 1)
    alone = length.alone or (one_trial and not agrees(baseline, settings, left))
    first = listed[0].config if alone else baseline
    return ZeroShot(first, listed, length.steps, settings, left, max_trials, metric, alone), length


def moved(listed: Sequence[Recommendation], menu: Menu, fixed: Mapping[str, Any]) -> tuple[Recommendation, ...]:
    """What is recommended, moved onto the menu; of what then is the same the first, and as it was where nothing is."""
    found: dict[str, Recommendation] = {}
    for entry in listed:
        config = menu.nearest(entry.config, fixed)
        if config is None:
            continue
        changes = [f"{name} {value}" for name, value in config.items() if entry.config.get(name) != value]
        why = f"{entry.why}, with {' and '.join(changes)} from the menu" if changes else entry.why
        found.setdefault(fingerprint(config), Recommendation(config, why))
    return tuple(found.values()) or tuple(listed)
