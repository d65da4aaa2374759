"""The learning curves of all trials in one chart: validation loss over training tokens (or steps).

The winner stands out with its 95 % band, the default LoRA is dashed, the others stay in the background; a trial
that failed ends in a cross, one that was stopped early in an open ring. Axes turn logarithmic where a linear one
would press most curves into a corner; spikes of diverged trials are cut at the top and marked.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from foretune.report.charts import (
    CHARACTER,
    NORMAL_95,
    WIDE,
    canvas,
    fitted,
    horizontal_axis,
    line,
    text,
    vertical_axis,
)
from foretune.report.markup import Markup, tag
from foretune.report.record import CurvePoint, Trial
from foretune.report.scales import Scale, padded, spread_labels
from foretune.report.wording import status_word

HEIGHT = 340
LABEL_GAP = 15.0
LOG_LOSS_RATIO = 6.0
"""Highest over lowest loss above which the loss axis is logarithmic."""
LOG_LENGTH_RATIO = 12.0
"""Longest over shortest curve above which the horizontal axis is logarithmic."""
SPIKE = 1.25
"""Failed trials may rise this far above the start of the others before they are cut."""
MOST_LABELLED = 8


@dataclass(frozen=True)
class Curve:
    """A trial's drawable points: (x, loss, standard error)."""

    trial: Trial
    number: int
    points: tuple[tuple[float, float, float], ...]


def curves_of(trials: Sequence[Trial]) -> tuple[list[Curve], str]:
    """The trials with at least one scored point, numbered as in the trials table, and the name of their x axis.

    Tokens are the x axis when every scored point past the start knows them: they compare trials of different rows
    per update; otherwise steps.
    """
    scored = [(number, trial, _scored(trial)) for number, trial in enumerate(trials, 1)]
    tokens = all(point.tokens > 0 for _, _, points in scored for point in points if point.step > 0)
    curves = [
        Curve(
            trial,
            number,
            tuple(
                (float(p.tokens if tokens else p.step), p.loss.value, p.loss.standard_error or 0.0)
                for p in points
                if p.loss
            ),
        )
        for number, trial, points in scored
        if points
    ]
    return curves, "training tokens" if tokens else "training steps"


def _scored(trial: Trial) -> list[CurvePoint]:
    return sorted((point for point in trial.curve if point.loss is not None), key=lambda point: point.step)


def curves_chart(
    trials: Sequence[Trial], base: CurvePoint | None, unit: str = "nats per token"
) -> Callable[[int], Markup] | None:
    """The chart of losses in ``unit``, or None when no trial was scored at all."""
    curves, x_title = curves_of(trials)
    if not curves:
        return None
    start = base.loss.value if base is not None and base.loss is not None else None
    low, high = _loss_range(curves, start)
    log_x, log_y = _logarithmic(curves), low > 0 and high / low > LOG_LOSS_RATIO
    label = _label(curves, x_title)

    def draw(width: int) -> Markup:
        narrow = width < WIDE
        right = 16.0 if narrow else 130.0
        longest = max(x for curve in curves for x, _, _ in curve.points)
        shortest = min((x for curve in curves for x, _, _ in curve.points if x > 0), default=1.0)
        across = Scale(shortest if log_x else 0.0, longest or 1.0, 46.0, width - right, log=log_x)
        down = Scale(low, high, HEIGHT - 46.0, 26.0, log=log_y)
        pieces: list[Markup] = [
            horizontal_axis(across, HEIGHT - 46, 26, x_title + (" (log)" if log_x else "")),
            vertical_axis(down, 46, width - right),
            text(0, 12, f"validation loss, {unit}" + (" (log)" if log_y else ""), "axis-title"),
        ]
        if start is not None:
            pieces.append(line(46, down.at(start), width - right, down.at(start), "reference"))
        pieces += [_draw(curve, across, down) for curve in sorted(curves, key=_layer)]
        pieces += _end_labels(curves, across, down, start, narrow)
        return canvas(width, HEIGHT, label, *pieces)

    return draw


def _layer(curve: Curve) -> int:
    return 2 if curve.trial.is_winner else 1 if curve.trial.is_default else 0


def _kind(trial: Trial) -> str:
    return "winner" if trial.is_winner else "default" if trial.is_default else "failed" if trial.failed else "other"


def _loss_range(curves: Sequence[Curve], start: float | None) -> tuple[float, float]:
    usable = [loss for curve in curves if not curve.trial.failed for _, loss, _ in curve.points]
    every = [loss for curve in curves for _, loss, _ in curve.points]
    values = (usable or every) + ([] if start is None else [start])
    ceiling = max(values) * SPIKE if usable else max(every)
    low, high = padded([*values, *(min(loss, ceiling) for loss in every)])
    return (low if low > 0 else min(values) * 0.9 if min(values) > 0 else low), high


def _logarithmic(curves: Sequence[Curve]) -> bool:
    ends = [curve.points[-1][0] for curve in curves if curve.points[-1][0] > 0 and not curve.trial.failed]
    return bool(ends) and max(ends) / min(ends) > LOG_LENGTH_RATIO


def _draw(curve: Curve, across: Scale, down: Scale) -> Markup:
    places = [(across.at(x), down.at(loss)) for x, loss, _ in curve.points]
    path = "M" + "L".join(f"{x:.1f} {y:.1f}" for x, y in places)
    band = None
    if curve.trial.is_winner and len(places) > 1:
        upper = [(across.at(x), down.at(v + NORMAL_95 * e)) for x, v, e in curve.points]
        lower = [(across.at(x), down.at(v - NORMAL_95 * e)) for x, v, e in reversed(curve.points)]
        band = tag("path", d="M" + "L".join(f"{x:.1f} {y:.1f}" for x, y in upper + lower) + "z", class_="band")
    parts = [band, tag("path", d=path, class_="line"), _end_mark(curve, *places[-1])]
    if curve.trial.is_winner and curve.trial.best is not None:
        best = curve.trial.best.loss.value if curve.trial.best.loss else 0.0
        spot = min(curve.points, key=lambda point: abs(point[1] - best))
        parts.append(tag("circle", cx=across.at(spot[0]), cy=down.at(spot[1]), r=6, class_="best"))
    if any(loss > down.high for _, loss, _ in curve.points):
        x = next(across.at(x) for x, loss, _ in curve.points if loss > down.high)
        parts.append(tag("path", d=f"M{x - 4:.1f} 25l4 -7l4 7z", class_="cut"))
    return tag("g", *parts, tag("title", describe(curve)), class_=f"curve {_kind(curve.trial)}")


def _end_mark(curve: Curve, x: float, y: float) -> Markup:
    if curve.trial.failed:
        return tag("path", d=f"M{x - 4:.1f} {y - 4:.1f}l8 8m0 -8l-8 8", class_="cross")
    stopped = curve.trial.status in ("stopped", "paused")
    return tag("circle", cx=x, cy=y, r=3, class_="open" if stopped else "end")


def describe(curve: Curve) -> str:
    """A curve in words, for tooltips and the text alternative."""
    best = curve.trial.best
    seen = f", best {best.loss.value:.3f} at step {best.step:,}" if best is not None and best.loss else ""
    return f"{_name(curve)}: {status_word(curve.trial.status)}{seen}"


def _name(curve: Curve) -> str:
    role = " (winner)" if curve.trial.is_winner else " (default LoRA)" if curve.trial.is_default else ""
    return f"trial {curve.number}{role}"


def _label(curves: Sequence[Curve], x_title: str) -> str:
    shown = [describe(curve) for curve in curves if _layer(curve)]
    others = len(curves) - len(shown)
    tail = f"; {others} other trial{'' if others == 1 else 's'} in the table below" if others else ""
    return f"Validation loss over {x_title}. " + "; ".join(shown) + tail


def _end_labels(curves: Sequence[Curve], across: Scale, down: Scale, start: float | None, narrow: bool) -> list[Markup]:
    wanted: list[tuple[float, str, str]] = []
    if not narrow:
        room = WIDE - across.end - 14
        named = curves if len(curves) <= MOST_LABELLED else [curve for curve in curves if _layer(curve)]
        for curve in named:
            mark = {2: " · winner", 1: " · default"}.get(_layer(curve), " · failed" if curve.trial.failed else "")
            if curve.points[-1][0] >= across.high * 0.6 or _layer(curve):
                place = down.at(curve.points[-1][1])
                wanted.append((place, fitted(f"{curve.number}{mark}", room), _kind(curve.trial)))
        if start is not None:
            wanted.append((down.at(start), "base model", "base"))
    elif start is not None:
        return [text(across.end, down.at(start) - 5, "base model", "tick", "end")]
    places = spread_labels([item[0] for item in wanted], LABEL_GAP, down.end, down.start)
    return [
        text(across.end + CHARACTER + 4, y + 4, name, f"end-label {kind}")
        for y, (_, name, kind) in zip(places, wanted, strict=True)
    ]
