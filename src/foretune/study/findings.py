"""The five findings of Üstün & Cooper Stickland (2022) on a study's own runs: replicated, not resolved, contradicted.

(i)   adapters or LoRA at about a tenth of the parameters match full tuning: not worse by more than `MARGIN` of what
      full tuning gains over the untouched base (non-inferiority, one-sided at 2.5 %)
(ii)  the gap shrinks with the trained share
(iii) it shrinks more for distant targets
(iv)  a larger parent tuned efficiently is better than a smaller one tuned in full
(v)   on the smallest training size efficient tuning is better than full tuning of the same parent

Each is judged by an interval over the units it speaks of (pairs for ii and iii; task × seed for the others), at this
grid's scale and nothing beyond. A finding whose contrast the grid lacks is not judged. Efficient are the methods that
add something at a budget one can choose; those that train a selection of the model's own parameters (biases, norms,
cross-attention) have their rows in the tables.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any, Literal

from foretune.catalogue.methods import declaration
from foretune.evaluation.paired import LEAST_REPETITIONS
from foretune.study.effects import Effect, mean_effect
from foretune.study.gaps import Gap, by_repetition, gaps, reference_arm
from foretune.study.grid import GridSpec
from foretune.study.results import Line, mixed
from foretune.study.rules import Ruling, parent_differences, reference_is_full

MARGIN = 0.1
"""A tenth of full tuning's gain over the base: less is called a match."""
LARGE_SHARE = (0.05, 0.15)
"""Trained shares that count as about a tenth."""
Judgement = Literal["replicated", "not resolved", "contradicted", "not judged"]


@dataclass(frozen=True)
class Finding:
    """One finding and what this study says of it."""

    number: str
    claim: str
    judgement: Judgement
    evidence: str


def findings(
    grid: GridSpec,
    lines: Sequence[Line],
    ruled: Ruling,
    base: Mapping[tuple[str, str], Mapping[str, Any]],
) -> tuple[Finding, ...]:
    """All five; empty for a study without full tuning as its reference, or whose tasks have different outcomes."""
    reference = reference_arm(grid)
    if not lines or mixed(lines) or not reference_is_full(grid, reference):
        return ()
    found = [gap for gap in gaps(lines, reference) if adapts(gap.method)]
    unit = str(lines[0]["primary"])
    fit = ruled.fits.get("all") or next(iter(ruled.fits.values()), None)
    return (
        _match(found, base, lines, unit),
        _sign("ii", "the gap to full tuning shrinks as the trained share grows", None if fit is None else fit.budget,
              f"{unit} per tenfold share"),
        _sign("iii", "it shrinks more for distant targets", None if fit is None else fit.interaction,
              f"{unit} per tenfold share and unit of distance"),
        _parents(grid, lines, reference, unit),
        _few(found, unit),
    )  # fmt: skip


def adapts(method: str) -> bool:
    """Whether a method adds something to the model, at a budget that can be chosen."""
    return declaration(method).family not in ("whole", "selection")


def _sign(number: str, claim: str, effect: Effect | None, unit: str) -> Finding:
    """A claim that an effect is negative."""
    if effect is None:
        return Finding(number, claim, "not judged", "the grid has no contrast for it")
    judgement: Judgement = "not resolved"
    if effect.high < 0:
        judgement = "replicated"
    elif effect.low > 0:
        judgement = "contradicted"
    return Finding(number, claim, judgement, _said(effect, unit))


def _said(effect: Effect, unit: str) -> str:
    said = f"{effect.value:+.3g} [{effect.low:+.3g}, {effect.high:+.3g}] {unit}, {effect.units} units"
    return f"{said}; smallest detectable effect {effect.detectable:.2g}" if effect.low <= 0 <= effect.high else said


def _match(
    found: Sequence[Gap], base: Mapping[tuple[str, str], Mapping[str, Any]], lines: Sequence[Line], unit: str
) -> Finding:
    claim = "about a tenth of the parameters matches full tuning"
    own = [gap for gap in found if LARGE_SHARE[0] <= gap.share <= LARGE_SHARE[1]]
    gains = []
    for gap in own:
        measured = base.get((gap.model, gap.task), {}).get(unit)
        if measured is not None:
            gains.append(abs(float(measured[0]) - gap.reference))
    effect = _over_repetitions(own)
    if effect is None or not gains:
        return Finding("i", claim, "not judged", "the grid has no arm of that share, or no measured base")
    margin = MARGIN * fmean(gains)
    judgement: Judgement = "not resolved"
    if effect.high < margin:
        judgement = "replicated"
    elif effect.low > margin:
        judgement = "contradicted"
    said = f"gap {effect.value:+.3g} [{effect.low:+.3g}, {effect.high:+.3g}] {unit}, {effect.units} units"
    return Finding("i", claim, judgement, f"{said}; a match is below {margin:.3g}, a tenth of full tuning's gain")


def _over_repetitions(found: Sequence[Gap]) -> Effect | None:
    """The mean gap over (task, seed), which share rows between sizes and models."""
    repeated = by_repetition(found)
    if len(repeated) < LEAST_REPETITIONS:
        return None
    return mean_effect("gap", list(repeated.values()), alpha=0.05)


def _parents(grid: GridSpec, lines: Sequence[Line], reference: str, unit: str) -> Finding:
    claim = "a larger parent tuned efficiently is better than a smaller one tuned in full"
    cells: dict[tuple[str, int], list[float]] = {}
    for arm, values in parent_differences(grid, lines, reference).items():
        if not adapts(str(grid.config(arm)["method"])):
            continue
        for (task, _, seed), value in values.items():
            cells.setdefault((task, seed), []).append(value)
    effect = None
    if len(cells) >= LEAST_REPETITIONS:
        effect = mean_effect("parents", [fmean(values) for values in cells.values()], alpha=0.05)
    return _sign("iv", claim, effect, unit)


def _few(found: Sequence[Gap], unit: str) -> Finding:
    claim = "on little data efficient tuning is better than full tuning of the same parent"
    sizes = sorted({gap.rows for gap in found})
    if len(sizes) < 2:
        return Finding("v", claim, "not judged", "the grid has one training size")
    judged = _sign("v", claim, _over_repetitions([gap for gap in found if gap.rows == sizes[0]]), unit)
    return Finding("v", claim, judged.judgement, f"on {sizes[0]} rows: {judged.evidence}")
