"""The charts of a study's report, from its lines: score by budget, gap by distance, score by rows, by parent, by rate.

Every dot is a mean over seeds and tasks with its 95 % interval. Where a chart shows scores, the level of each pair is
taken out first (its mean over arms, replaced by the mean of all pairs; Cousineau 2005), because arms are compared
within pairs and tasks differ more than arms do. A chart that the grid has nothing for is left out.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from statistics import fmean

from foretune.evaluation.paired import LEAST_REPETITIONS, paired_interval
from foretune.report.xy import Chart, Dot, Series
from foretune.study.effects import BudgetFit, Crossing
from foretune.study.gaps import FULL, Gap, outcome
from foretune.study.rates import losses_by_rate
from foretune.study.results import Line
from foretune.units import format_share

SHARES = {step * 10.0**power: format_share(step * 10.0**power) for power in range(-6, 0) for step in (1, 2, 5)}


def dot(x: float, values: Sequence[float]) -> Dot:
    """The mean of ``values`` at ``x`` with Student's interval."""
    if len(values) < LEAST_REPETITIONS:
        return Dot(x, fmean(values))
    mean, low, high = paired_interval(values)
    return Dot(x, mean, low, high)


def _grouped(lines: Iterable[Line], *keys: str) -> dict[tuple[object, ...], list[Line]]:
    groups: dict[tuple[object, ...], list[Line]] = {}
    for entry in lines:
        if outcome(entry) is not None:
            groups.setdefault(tuple(entry[key] for key in keys), []).append(entry)
    return groups


def _levelled(lines: Sequence[Line]) -> dict[str, float]:
    """The outcome of every finished run by cell, the level of its pair replaced by the mean of pairs of its block."""
    found = {}
    for block in _grouped(lines, "model", "size").values():
        pairs = _grouped(block, "pair")
        means = {pair: fmean(_values(own)) for pair, own in pairs.items()}
        level = fmean(means.values())
        for pair, own in pairs.items():
            for entry, value in zip(own, _values(own), strict=True):
                found[str(entry["cell"])] = value - means[pair] + level
    return found


def _values(lines: Iterable[Line]) -> list[float]:
    return [value for entry in lines if (value := outcome(entry)) is not None]


def _scores(lines: Iterable[Line], levelled: Mapping[str, float]) -> list[float]:
    return [levelled[str(entry["cell"])] for entry in lines if str(entry["cell"]) in levelled]


def _unit(lines: Sequence[Line]) -> str:
    first = lines[0]
    return f"{first['primary']} ({first['direction']} is better)"


def _method(entry: Line) -> str:
    return str(entry["config"]["method"])


def _marks(lines: Iterable[Line]) -> dict[float, str]:
    shares = [entry["trainable"] / entry["parameters"] for entry in lines]
    return {x: name for x, name in SHARES.items() if min(shares) / 2 <= x <= max(shares) * 2}


def budget_charts(lines: Sequence[Line]) -> list[tuple[str, Chart]]:
    """By model and size: score over the trained share, a line a method, full tuning as a band."""
    charts = []
    levelled = _levelled(lines)
    for (model, size), own in _grouped(lines, "model", "size").items():
        efficient = [entry for entry in own if _method(entry) != FULL and entry["trainable"]]
        arms = _grouped(efficient, "arm")
        if len({round(math.log10(e["trainable"] / e["parameters"]), 2) for e in efficient}) < 2:
            continue
        series: dict[str, list[Dot]] = {}
        for entries in arms.values():
            share = fmean(e["trainable"] / e["parameters"] for e in entries)
            series.setdefault(_method(entries[0]), []).append(dot(share, _scores(entries, levelled)))
        full = _scores((entry for entry in own if _method(entry) == FULL), levelled)
        band = None
        if len(full) >= LEAST_REPETITIONS:
            _, low, high = paired_interval(full)
            band = (low, high, "full tuning")
        lined = tuple(Series(name, tuple(sorted(dots, key=lambda d: d.x))) for name, dots in series.items())
        chart = Chart(lined, "trained share of the parameters", _unit(own), log_x=True, band=band,
                      x_labels=_marks(efficient))  # fmt: skip
        charts.append((f"{model}, {_rows(str(size))}", chart))
    return charts


def _rows(size: str) -> str:
    return "all rows" if size == "all" else f"{size} rows"


def distance_chart(method: str, found: Sequence[Gap], fit: BudgetFit | None, unit: str) -> Chart | None:
    """The gap to full tuning over the distance of the languages, a colour a budget, with the fitted lines."""
    own = [gap for gap in found if gap.method == method and gap.distance is not None]
    if len({gap.distance for gap in own}) < 2:
        return None
    by_arm: dict[str, list[Gap]] = {}
    for gap in own:
        by_arm.setdefault(gap.arm, []).append(gap)
    ordered = sorted(by_arm.items(), key=lambda item: fmean(g.share for g in item[1]))
    series = []
    for colour, (arm, gaps_of_arm) in enumerate(ordered):
        at: dict[float, list[float]] = {}
        for gap in gaps_of_arm:
            assert gap.distance is not None
            at.setdefault(gap.distance, []).append(gap.value)
        series.append(Series(arm, tuple(dot(x, values) for x, values in sorted(at.items())), "dots", colour))
        if fit is not None and (line := _fitted(fit, gaps_of_arm, sorted(at))) is not None:
            series.append(Series(arm, line, "fit", colour))
    return Chart(tuple(series), "distance from the source language", f"gap to full tuning, {unit}", zero=True)


def _fitted(fit: BudgetFit, own: Sequence[Gap], xs: Sequence[float]) -> tuple[Dot, ...] | None:
    parts = (fit.level, fit.budget, fit.distance, fit.interaction)
    if any(part is None for part in parts) or fit.mean_distance is None:
        return None
    a, b, c, e = (part.value for part in parts if part is not None)
    log_share = fmean(gap.log_share for gap in own) - fit.mean_log_budget
    return tuple(
        Dot(x, a + b * log_share + (c + e * log_share) * (x - fit.mean_distance)) for x in (xs[0], xs[-1])
    )  # fmt: skip


def size_charts(lines: Sequence[Line], crossings: Mapping[str, Crossing]) -> list[tuple[str, Chart]]:
    """By model: score over training rows, a line an arm, the crossing with full tuning as a range."""
    charts = []
    levelled = _levelled(lines)
    for (model,), own in _grouped(lines, "model").items():
        if len({entry["rows"] for entry in own}) < 2:
            continue
        series = []
        for (arm,), entries in _grouped(own, "arm").items():
            series.append(Series(str(arm), _dots(entries, "rows", levelled)))
        zone = None
        if crossings:
            method, where = next(iter(crossings.items()))
            least, most = min(e["rows"] for e in own), max(e["rows"] for e in own)
            if least <= where.rows <= most:
                zone = (where.low, where.high, f"{method} = full")
        marks = {float(rows): f"{rows:,}" for rows in sorted({int(e["rows"]) for e in own})}
        charts.append((str(model), Chart(tuple(series), "training rows", _unit(own), log_x=True, zone=zone,
                                         x_labels=marks)))  # fmt: skip
    return charts


def parent_chart(lines: Sequence[Line]) -> Chart | None:
    """Score over the size of the model, a line an arm, over all tasks and sizes: the frontier of parents."""
    if len({entry["parameters"] for entry in lines}) < 2:
        return None
    levelled = _levelled(lines)
    series = [
        Series(str(arm), _dots(entries, "parameters", levelled)) for (arm,), entries in _grouped(lines, "arm").items()
    ]
    return Chart(tuple(series), "parameters of the model", _unit(lines), log_x=True)


def _dots(lines: Sequence[Line], key: str, levelled: Mapping[str, float]) -> tuple[Dot, ...]:
    """Mean scores over a numeric entry of the lines."""
    groups = sorted(((int(str(x)), own) for (x,), own in _grouped(lines, key).items()), key=lambda item: item[0])
    return tuple(dot(float(x), _scores(own, levelled)) for x, own in groups)


def rate_charts(lines: Sequence[Line]) -> list[tuple[str, Chart]]:
    """By model and task: validation loss of the sweep over the learning rate, a line an arm."""
    charts = []
    places: dict[str, dict[str, list[Line]]] = {}
    for entry in lines:
        places.setdefault(f"{entry['model']}, {entry['task']}", {}).setdefault(entry["arm"], []).append(entry)
    for place, arms in places.items():
        series = tuple(
            Series(arm, tuple(Dot(rate, loss) for rate, loss in sorted(losses_by_rate(own).items())))
            for arm, own in arms.items()
            if losses_by_rate(own)
        )
        if series:
            charts.append((place, Chart(series, "learning rate", "validation loss, nats per token", log_x=True)))
    return charts
