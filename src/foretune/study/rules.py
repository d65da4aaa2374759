"""Decision rules from a study: what its grid resolves becomes a rule with a scope, everything else says what it lacks.

Four families of statements are tried, each for every efficient method of the grid (`study.effects` says how):

- budget: the gap to full tuning by log10 of the trained share, by distance, and by their product;
- rows: how the gap changes with the training rows, and the number of rows at which one overtakes the other;
- parents: the larger model with an efficient method against the smaller one tuned in full;
- arms: an arm that is better or worse than its control over all tasks.

A rule is emitted only when its interval excludes zero *and* its p-value holds after Holm's correction over all
statements that the study tried. Its scope is the range of what was run (models and their sizes, tasks, rows), no more.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import Any

from foretune.catalogue.rules import TRAINABLE, TRANSLATION, Measured, Rule, When
from foretune.evaluation.paired import holm, smallest_detectable_effect
from foretune.study.arms import CONTROL, TASKS
from foretune.study.design import CONFOUNDED, rate_label
from foretune.study.effects import CONFIDENCE, BudgetFit, Crossing, Effect, crossing, fit_budget, mean_effect
from foretune.study.gaps import (
    FULL,
    Gap,
    budget_points,
    by_method,
    by_repetition,
    distances_of,
    gaps,
    outcome,
    reference_arm,
    size_points,
)
from foretune.study.grid import GridSpec
from foretune.study.results import MIXED, Line, mixed
from foretune.study.statistics import POWER, Difference

PARAMETERS_REACH = 2.0
"""A rule speaks of models up to twice as large and half as small as those that were run."""
TOO_MUCH = 0.1
"""A trained share is enough where its mean gap is at most this part of the worst share's."""


@dataclass(frozen=True)
class Statement:
    """One thing that was tried: an effect, and the rule that it makes where it is resolved."""

    id: str
    about: str
    effect: Effect
    unit: str
    runs: int
    make: Callable[[Measured], Rule | None]

    @property
    def unresolved(self) -> str:
        """What is said where no rule is made."""
        return (
            f"{self.about}: not resolved by this grid ({self.runs} runs, {self.effect.units} units, smallest "
            f"detectable effect {self.effect.detectable:.2g} {self.unit})"
        )


@dataclass(frozen=True)
class Ruling:
    """What a study says in rules."""

    rules: tuple[Rule, ...]
    unresolved: tuple[str, ...]
    fits: Mapping[str, BudgetFit] = field(default_factory=dict)
    """By method, and ``all`` for the methods of several budgets together"""
    crossings: Mapping[str, Crossing] = field(default_factory=dict)
    effects: Mapping[str, Effect] = field(default_factory=dict)
    """Every effect that was estimated, by statement, with Holm's p-value"""


def ruling(grid: GridSpec, lines: Sequence[Line], pooled: Sequence[Difference] = ()) -> Ruling:
    """The rules of a study from its lines and its comparison over all tasks; none where outcomes differ."""
    if mixed(lines):
        return Ruling((), (MIXED,))
    reference = reference_arm(grid)
    found = gaps(lines, reference)
    scope = _scope(grid, lines)
    unit = f"of {lines[0]['primary']}" if lines else ""
    fits = _fits(grid, found, reference)
    tried = [
        *(s for method, fit in fits.items() if method != "all" for s in _budget(grid, method, fit, found, scope, unit)),
        *_rows(grid, found, scope, unit),
        *_parents(grid, lines, reference, scope, unit),
        *_arms(grid, lines, pooled, scope, unit),
    ]
    adjusted = holm([statement.effect.p_value for statement in tried])
    rules, unresolved, effects = [], [], {}
    crossings = {}
    for statement, p in zip(tried, adjusted, strict=True):
        effect = replace(statement.effect, p_holm=p)
        effects[statement.id] = effect
        measured = Measured(effect.value, effect.low, effect.high, statement.unit, statement.runs, CONFIDENCE)
        rule = statement.make(measured) if effect.resolved else None
        if rule is None:
            unresolved.append(statement.unresolved)
        else:
            rules.append(rule)
    for method, own in by_method(found).items():
        _, where = crossing(size_points(own)) if reference_is_full(grid, reference) else (None, None)
        if where is not None:
            crossings[method] = where
    return Ruling(tuple(rules), tuple(unresolved), fits, crossings, effects)


def reference_is_full(grid: GridSpec, reference: str) -> bool:
    """Whether gaps are measured from full tuning."""
    return str(grid.config(reference)["method"]) == FULL


def statements_planned(grid: GridSpec) -> int:
    """How many statements a grid will try: Holm's strictest step, for what is said before the first run."""
    arms = [method for arm in grid.arms if (method := str(grid.config(arm)["method"])) != FULL]
    by_budget = 3 * sum(arms.count(method) > 1 for method in set(arms))
    others = 1 + (len(grid.sizes) > 1) + (len(grid.model) > 1)
    return max(1, by_budget + others * len(set(arms)) + len(grid.arms) - 1)


def _scope(grid: GridSpec, lines: Sequence[Line]) -> When:
    sizes = [int(entry["rows"]) for entry in lines] or [0]
    parameters = [int(entry["parameters"]) for entry in lines] or [0]
    translation = any("distance" in entry["covariates"] for entry in lines)
    tasks = {str(entry["task_kind"]) for entry in lines}
    return When(
        kinds=tuple(sorted({str(entry["kind"]) for entry in lines})),
        tasks=(TRANSLATION,) if translation else tuple(sorted(tasks)),
        rows=(float(min(sizes)), float(max(sizes))),
        parameters=(min(parameters) / PARAMETERS_REACH, max(parameters) * PARAMETERS_REACH),
    )


def _source(grid: GridSpec) -> str:
    return f"study {grid.name}{f', {CONFOUNDED}' if CONFOUNDED in rate_label(grid) else ''}"


# -- budget and distance


def _fits(grid: GridSpec, found: Sequence[Gap], reference: str) -> dict[str, BudgetFit]:
    if not reference_is_full(grid, reference):
        return {}
    alpha = (1 - CONFIDENCE) / statements_planned(grid)
    methods = by_method(found)
    with_budgets = [own for own in methods.values() if len({gap.arm for gap in own}) > 1]
    together = [gap for own in with_budgets for gap in own]
    fits = {}
    for name, own in {**methods, **({"all": together} if len(with_budgets) > 1 else {})}.items():
        other = {gap.task: gap.fertility for gap in own}
        fit = fit_budget(budget_points(own), distances_of(own), other=other, alpha=alpha)
        if fit is not None:
            fits[name] = fit
    return fits


def _budget(
    grid: GridSpec, method: str, fit: BudgetFit, found: Sequence[Gap], scope: When, unit: str
) -> list[Statement]:
    own = [gap for gap in found if gap.method == method]
    runs = 2 * len(own)
    texts = {
        "budget": (f"{method}: ten times the trained share changes the gap to full tuning", f"{unit} per tenfold share",
                   "gap by budget"),
        "distance": (f"{method}: a more distant target changes the gap to full tuning", f"{unit} per unit of distance",
                     "gap by distance"),
        "interaction": (f"{method}: a more distant target changes what the trained share is worth",
                        f"{unit} per tenfold share and unit of distance", "gap by budget and distance"),
    }  # fmt: skip
    statements = []
    for name, effect in fit.effects().items():
        about, units, quantity = texts[name]

        def make(measured: Measured, about: str = about, quantity: str = quantity, name: str = name) -> Rule:
            advice = _share_advice(method, fit, own) if name != "distance" else {}
            return Rule(
                id=f"{grid.name}:{method}:{name}", statement=about, when=scope, advice=advice, strength="measured",
                source=_source(grid), quantity=quantity, measured=measured,
            )  # fmt: skip

        statements.append(Statement(f"{method}:{name}", about, effect, units, runs, make))
    return statements


def _share_advice(method: str, fit: BudgetFit, own: Sequence[Gap]) -> dict[str, Any]:
    """The smallest share of the grid that is enough (`TOO_MUCH`); nothing where none is or more does not help."""
    by_share: dict[str, list[Gap]] = {}
    for gap in own:
        by_share.setdefault(gap.arm, []).append(gap)
    means = sorted(
        (sum(g.share for g in arm) / len(arm), sum(g.value for g in arm) / len(arm)) for arm in by_share.values()
    )
    worst = max(mean for _, mean in means)
    if fit.budget is None or (not fit.budget.resolved and fit.budget.value >= 0) or worst <= 0:
        return {}
    enough = [share for share, mean in means if mean <= TOO_MUCH * worst]
    return {"method": method, TRAINABLE: float(f"{enough[0]:.2g}")} if enough else {}


# -- rows


def _rows(grid: GridSpec, found: Sequence[Gap], scope: When, unit: str) -> list[Statement]:
    if not reference_is_full(grid, reference_arm(grid)):
        return []
    alpha = (1 - CONFIDENCE) / statements_planned(grid)
    statements = []
    for method, own in by_method(found).items():
        slope, where = crossing(size_points(own), alpha=alpha)
        smallest = min(gap.rows for gap in own)
        few = by_repetition(gap for gap in own if gap.rows == smallest)
        at_few = mean_effect("few rows", list(few.values()), alpha=alpha)
        about = f"{method} against full tuning on {smallest} rows"
        if at_few is not None:

            def make_few(m: Measured, method: str = method, about: str = about, smallest: int = smallest) -> Rule:
                when = replace(scope, rows=(scope.rows[0], float(smallest)))
                return Rule(
                    id=f"{grid.name}:{method}:few-rows", statement=about, when=when,
                    advice={"method": method if m.high < 0 else FULL}, strength="measured", source=_source(grid),
                    quantity="gap at few rows", measured=m,
                )  # fmt: skip

            statements.append(Statement(f"{method}:few-rows", about, at_few, unit, 2 * len(own), make_few))
        if slope is not None:
            about = f"{method}: ten times the training rows change the gap to full tuning"

            def make_slope(
                m: Measured, method: str = method, about: str = about, where: Crossing | None = where
            ) -> Rule:
                ahead = "full tuning" if m.value > 0 else method
                found_at = "" if where is None else (
                    f"; {ahead} overtakes at about {where.rows:,.0f} rows [{where.low:,.0f}, {where.high:,.0f}]"
                )  # fmt: skip
                inside = where is not None and where.high <= (scope.rows[1] or 0.0) and m.low > 0
                when = replace(scope, rows=(where.high, scope.rows[1])) if inside and where else scope
                return Rule(
                    id=f"{grid.name}:{method}:rows", statement=about + found_at, when=when,
                    advice={"method": FULL} if inside else {}, strength="measured", source=_source(grid),
                    quantity="gap by rows", measured=m,
                )  # fmt: skip

            statements.append(
                Statement(f"{method}:rows", about, slope, f"{unit} per tenfold rows", 2 * len(own), make_slope)
            )
    return statements


# -- parents


def parent_differences(
    grid: GridSpec, lines: Sequence[Line], reference: str
) -> dict[str, dict[tuple[str, str, int], float]]:
    """By efficient arm: larger parent with that arm minus smaller parent tuned in full, positive where it is worse.

    Neighbouring parents by size; by (task, size, seed). Empty with one parent or without full tuning.
    """
    sizes = {str(entry["model"]): int(entry["parameters"]) for entry in lines}
    ordered = sorted(sizes, key=lambda name: sizes[name])
    if len(ordered) < 2 or not reference_is_full(grid, reference):
        return {}
    score = {(e["model"], e["arm"], e["task"], e["size"], e["seed"]): e for e in lines if outcome(e) is not None}
    found: dict[str, dict[tuple[str, str, int], float]] = {}
    for small, large in pairwise(ordered):
        for (model, arm, task, size, seed), entry in score.items():
            against = score.get((small, reference, task, size, seed))
            if model != large or arm == reference or against is None or entry["config"]["method"] == FULL:
                continue
            sign = 1.0 if entry["direction"] == "lower" else -1.0
            key = (task, f"{small}<{large}:{size}", int(seed))
            found.setdefault(arm, {})[key] = sign * (outcome(entry) - outcome(against))  # type: ignore[operator]
    return found


def _parents(grid: GridSpec, lines: Sequence[Line], reference: str, scope: When, unit: str) -> list[Statement]:
    alpha = (1 - CONFIDENCE) / statements_planned(grid)
    by_arm = parent_differences(grid, lines, reference)
    methods: dict[str, dict[tuple[str, int], list[float]]] = {}
    for arm, values in by_arm.items():
        method = str(grid.config(arm)["method"])
        for (task, _, seed), value in values.items():
            methods.setdefault(method, {}).setdefault((task, seed), []).append(value)
    statements = []
    for method, cells in methods.items():
        effect = mean_effect("parents", [sum(v) / len(v) for v in cells.values()], alpha=alpha)
        if effect is None:
            continue
        about = f"the larger parent with {method} against the smaller one tuned in full"

        def make(m: Measured, method: str = method, about: str = about) -> Rule:
            return Rule(
                id=f"{grid.name}:{method}:parents", statement=about, when=scope, strength="measured",
                source=_source(grid), quantity="larger efficient minus smaller full", measured=m,
            )  # fmt: skip

        runs = 2 * sum(len(v) for v in cells.values())
        statements.append(Statement(f"{method}:parents", about, effect, unit, runs, make))
    return statements


# -- arms against the control


def _arms(
    grid: GridSpec, lines: Sequence[Line], pooled: Sequence[Difference], scope: When, unit: str
) -> list[Statement]:
    statements = []
    direction = lines[0]["direction"] if lines else "lower"
    alpha = (1 - CONFIDENCE) / statements_planned(grid)
    for difference in pooled:
        if difference.low is None or difference.high is None or difference.mean is None or difference.sd is None:
            continue
        effect = Effect(
            difference.arm, difference.mean, difference.low, difference.high, difference.p_value,
            difference.pairs - 1, difference.pairs,
            smallest_detectable_effect(difference.sd, difference.pairs, power=POWER, alpha=alpha), alpha,
        )  # fmt: skip
        control = grid.arms[difference.arm].get(CONTROL, grid.control)
        about = f"{difference.arm} against {control}"
        settings = {key: value for key, value in grid.arms[difference.arm].items() if key not in (TASKS, CONTROL)}
        own = settings if control == grid.control else {}  # better than another arm is no reason yet

        def make(m: Measured, arm: str = difference.arm, about: str = about, own: Mapping[str, Any] = own) -> Rule:
            better = (m.value < 0) == (direction == "lower")
            return Rule(
                id=f"{grid.name}:{arm}", statement=f"{about}: {'better' if better else 'worse'}", when=scope,
                advice=dict(own) if better else {}, strength="measured", source=_source(grid), measured=m,
            )  # fmt: skip

        statements.append(Statement(f"arm:{difference.arm}", about, effect, unit, 2 * difference.pairs, make))
    return statements
