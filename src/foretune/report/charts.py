"""The report's charts as inline SVG, drawn twice: wide for a page, narrow for a phone; CSS shows the right one.

Colours come from CSS classes, so light, dark and print share one drawing. Each chart carries its message as a text
alternative, and the page sets the numbers as a table beside it. Nothing here needs a script. Learning curves have a
module of their own.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from foretune.report.markup import Markup, join, tag
from foretune.report.record import BudgetInfo, Calibration, Comparison, Difference, ForecastRow, MetricInfo, Phase
from foretune.report.scales import Scale, nice_step, padded, tick_labels
from foretune.report.wording import (
    POINTS_PER_SHARE,
    budget_text,
    difference_text,
    forecast_verdict,
    quantity_text,
    value_text,
)
from foretune.units import format_duration

WIDE, NARROW = 784, 340  # pixels of the two drawings
CHARACTER = 6.5  # pixels of an average character at 12 pixels
NAMES = 216.0  # pixels that names of rows take at the left of a wide drawing
NORMAL_95 = 1.96  # standard errors of a 95 % interval
ROW = 40
AXIS = 40
PALETTE = 8
_RATIO_LIMITS = (0.25, 4.0)  # the forecast chart never shrinks below these to fit an outlier


@dataclass(frozen=True)
class Whisker:
    """A row of a dot-and-whisker chart: ``low``–``high`` around ``value``; ``kind`` is its CSS class."""

    label: str
    kind: str
    value: float
    low: float
    high: float
    text: str


def figure(draw: Callable[[int], Markup], caption: Markup | str) -> Markup:
    """A figure with its wide and its narrow drawing; only one of them is displayed and read out."""
    return tag(
        "figure",
        tag("div", draw(WIDE), class_="wide"),
        tag("div", draw(NARROW), class_="narrow"),
        tag("figcaption", caption),
    )


def canvas(width: float, height: float, label: str, *children: object) -> Markup:
    """An SVG image with its text alternative."""
    size = {"viewBox": f"0 0 {width:g} {height:g}", "width": f"{width:g}", "height": f"{height:g}"}
    return tag("svg", *children, role="img", aria_label=label, **size)


def line(x1: float, y1: float, x2: float, y2: float, class_: str) -> Markup:
    """A straight line."""
    return tag("line", x1=x1, y1=y1, x2=x2, y2=y2, class_=class_)


def text(x: float, y: float, content: str, class_: str = "", anchor: str = "start") -> Markup:
    """A line of text; ``anchor`` is start, middle or end."""
    return tag("text", content, x=x, y=y, class_=class_ or None, text_anchor=None if anchor == "start" else anchor)


def fitted(content: str, pixels: float) -> str:
    """``content`` cut to what fits into ``pixels``."""
    most = max(4, int(pixels / CHARACTER))
    return content if len(content) <= most else content[: most - 1].rstrip() + "…"


def horizontal_axis(scale: Scale, y: float, top: float, title: str, labels: dict[float, str] | None = None) -> Markup:
    """Grid lines from ``top`` to ``y`` with their numbers below, and the axis title under them."""
    ticks = list(labels) if labels else scale.ticks(4 if scale.end - scale.start < WIDE / 2 else 7)
    names = list(labels.values()) if labels else tick_labels(ticks)
    pieces: list[Markup] = []
    edge = -1e9
    for tick, name in zip(ticks, names, strict=True):
        x, half = scale.at(tick), CHARACTER * len(name) / 2
        pieces.append(line(x, top, x, y, "grid"))
        if x - half > edge:  # a number that would touch its neighbour is left out
            pieces.append(text(x, y + 16, name, "tick", "middle"))
            edge = x + half + CHARACTER
    pieces.append(text((scale.start + scale.end) / 2, y + 34, title, "axis-title", "middle"))
    return join(pieces)


def whiskers(rows: Sequence[Whisker], width: int, title: str, label: str, reference: float | None) -> Markup:
    """Dots with intervals, one row each, with a dashed line at ``reference``."""
    narrow = width < WIDE
    left = 12.0 if narrow else NAMES
    low, high = padded([*(r.low for r in rows), *(r.high for r in rows), *([] if reference is None else [reference])])
    space = 14.0 if narrow else CHARACTER * max(len(row.text) for row in rows) + 14
    scale = Scale(low, high, left, width - space)
    bottom = ROW * len(rows) + 8.0
    pieces: list[Markup] = [horizontal_axis(scale, bottom, 4, title)]
    if reference is not None:
        pieces.append(line(scale.at(reference), 4, scale.at(reference), bottom, "reference"))
    for index, row in enumerate(rows):
        y = ROW * index + (30.0 if narrow else 26.0)
        if narrow:
            pieces.append(text(0, y - 13, fitted(row.label, width - CHARACTER * (len(row.text) + 2)), "name"))
            pieces.append(text(width, y - 13, row.text, "value", "end"))
        else:
            pieces.append(text(left - 16, y + 4, fitted(row.label, left - 20), "name", "end"))
            pieces.append(text(scale.at(row.high) + 10, y + 4, row.text, "value"))
        mark = tag("circle", cx=scale.at(row.value), cy=y, r=5.5 if row.kind == "winner" else 4.5)
        ends = [line(scale.at(end), y - 4, scale.at(end), y + 4, "whisker") for end in (row.low, row.high)]
        whisker = line(scale.at(row.low), y, scale.at(row.high), y, "whisker")
        pieces.append(tag("g", whisker, *ends, mark, tag("title", f"{row.label}: {row.text}"), class_=row.kind))
    return canvas(width, bottom + AXIS, label, *pieces)


def _axis_title(info: MetricInfo, better: str) -> str:
    unit = " (%)" if info.share else f" ({info.unit})" if info.unit else ""
    return f"{info.label}{unit} · {better}"


def comparison_chart(comparison: Comparison, metric: str) -> Callable[[int], Markup] | None:
    """The systems' values of ``metric`` with 95 % intervals; None when fewer than two were measured."""
    info = comparison.info(metric)
    scale = POINTS_PER_SHARE if info.share else 1.0
    rows = []
    for system in comparison.systems:
        measure = system.metrics.get(metric)
        if measure is None:
            continue
        reach = NORMAL_95 * (measure.standard_error or 0.0)
        low, high = measure.value - reach, measure.value + reach
        if info.share:
            low, high = max(0.0, low), min(1.0, high)
        values = (scale * measure.value, scale * low, scale * high)
        rows.append(Whisker(system.name, system.role, *values, text=value_text(info, measure)))
    if len(rows) < 2:
        return None
    base = next((row.value for row in rows if row.kind == "base"), None)
    better = "right is better" if info.direction == "higher" else "left is better"
    label = f"{info.label} with 95 % intervals: " + "; ".join(f"{row.label} {row.text}" for row in rows)
    return lambda width: whiskers(rows, width, _axis_title(info, better), label, base)


def difference_chart(comparison: Comparison, metric: str) -> Callable[[int], Markup] | None:
    """The winner's paired differences from every other system, around zero; None when there are none."""
    winner = comparison.system("winner")
    info = comparison.info(metric)
    scale = POINTS_PER_SHARE if info.share else 1.0
    pairs: list[tuple[str, Difference]] = []
    for system in comparison.systems:
        difference = winner.difference(metric, system.role) if winner else None
        if difference is not None:
            pairs.append((f"minus {system.name}", difference))
    if not pairs:
        return None
    rows = [
        Whisker(
            label=name,
            kind=item.verdict.replace(" ", "-"),
            value=scale * item.value,
            low=scale * item.low,
            high=scale * item.high,
            text=difference_text(info, item, unit=False),
        )
        for name, item in pairs
    ]
    title = f"difference in {info.label}" + (" (points)" if info.share else f" ({info.unit})" if info.unit else "")
    label = "Paired differences of the fine-tuned model: " + "; ".join(f"{row.label} {row.text}" for row in rows)
    return lambda width: whiskers(rows, width, title, label, 0.0)


def budget_chart(budget: BudgetInfo) -> Callable[[int], Markup]:
    """One bar: the phases one after the other, then what is left of a time budget."""
    used = sum(phase.seconds for phase in budget.phases)
    total = budget.total if budget.kind == "time" else used
    span = max(total, used) or 1.0
    label = f"{budget_text(budget)}; " + ", ".join(f"{p.name} {format_duration(p.seconds)}" for p in budget.phases)

    def draw(width: int) -> Markup:
        scale = Scale(0.0, span, 1.0, width - 1.0)
        pieces: list[Markup] = []
        start = 0.0
        for index, phase in enumerate(budget.phases):
            pieces.append(_segment(scale, start, phase, index))
            start += phase.seconds
        if total > used:
            x = scale.at(used)
            pieces.append(tag("rect", x=x, y=8, width=max(scale.at(total) - x, 0.0), height=34, class_="unspent"))
        if budget.kind == "time":
            pieces.append(line(scale.at(total), 2, scale.at(total), 48, "limit"))
        return canvas(width, 84, label, *pieces, _duration_axis(scale))

    return draw


def _segment(scale: Scale, start: float, phase: Phase, index: int) -> Markup:
    left, right = scale.at(start), scale.at(start + phase.seconds)
    box = tag("rect", x=left, y=8, width=max(right - left - 1, 0.6), height=34)
    fits = right - left > CHARACTER * len(phase.name) + 12
    name = text(left + 7, 29, phase.name, "inside") if fits else None
    title = tag("title", f"{phase.name}: {format_duration(phase.seconds)}")
    return tag("g", box, name, title, class_=f"phase c{index % PALETTE}")


def _duration_axis(scale: Scale) -> Markup:
    unit, name = next(
        ((u, n) for u, n in ((3600.0, "hours"), (60.0, "minutes")) if scale.high >= 2 * u), (1.0, "seconds")
    )
    step = nice_step(scale.high / unit, 6)
    ticks = [step * i for i in range(int(scale.high / unit / step) + 1)]
    pieces = []
    for tick, label in zip(ticks, tick_labels(ticks), strict=True):
        x = scale.at(tick * unit)
        anchor = "start" if x < 12 else "end" if x > scale.end - 12 else "middle"
        pieces += [line(x, 42, x, 48, "tickmark"), text(x, 62, label, "tick", anchor)]
    return join([*pieces, text((scale.start + scale.end) / 2, 80, name, "axis-title", "middle")])


def forecast_chart(forecast: Sequence[ForecastRow]) -> Callable[[int], Markup] | None:
    """Each quantity relative to its forecast: the interval as a bar, the truth as a diamond, on a log axis."""
    rows = [row for row in forecast if row.value > 0 and row.low > 0]
    if not rows:
        return None
    ratios = [r / row.value for row in rows for r in (row.low, row.high, row.measured) if r is not None and r > 0]
    low, high = max(min([*ratios, 0.8]) * 0.9, _RATIO_LIMITS[0]), min(max([*ratios, 1.25]) * 1.1, _RATIO_LIMITS[1])
    marks = {
        r: n
        for r, n in (
            (0.25, "¼"),
            (0.5, "½"),
            (0.8, "0.8"),
            (1.0, "as forecast"),
            (1.25, "1.25"),
            (2.0, "2×"),
            (4.0, "4×"),
        )
    }
    label = "Measured against forecast: " + "; ".join(
        f"{r.quantity} {quantity_text(r.unit, r.measured)} ({forecast_verdict(r)} the interval)" for r in rows
    )

    def draw(width: int) -> Markup:
        narrow = width < WIDE
        scale = Scale(low, high, 12.0 if narrow else NAMES, width - 16.0, log=True)
        bottom = ROW * len(rows) + 8.0
        shown = {ratio: name for ratio, name in marks.items() if low <= ratio <= high}
        pieces = [horizontal_axis(scale, bottom, 4, "measured ÷ forecast", shown)]
        for index, row in enumerate(rows):
            y = ROW * index + (32.0 if narrow else 26.0)
            at = (0.0, y - 14, "start") if narrow else (NAMES - 16, y + 4, "end")
            pieces.append(text(at[0], at[1], fitted(row.quantity, width if narrow else NAMES - 20), "name", at[2]))
            pieces.append(_forecast_row(row, scale, y))
        return canvas(width, bottom + AXIS, label, *pieces)

    return draw


def _forecast_row(row: ForecastRow, scale: Scale, y: float) -> Markup:
    left, right = scale.at(row.low / row.value), scale.at(row.high / row.value)
    bar = tag("rect", x=left, y=y - 5, width=max(right - left, 1.0), height=10, rx=5, class_="interval")
    middle = line(scale.at(1.0), y - 5, scale.at(1.0), y + 5, "middle")
    diamond = None
    if row.measured is not None and row.measured > 0:
        x = scale.at(row.measured / row.value)
        diamond = tag("path", d=f"M{x:.1f} {y - 7:.1f}l7 7l-7 7l-7 -7z", class_="diamond")
    said, came = quantity_text(row.unit, row.value), quantity_text(row.unit, row.measured)
    title = f"{row.quantity}: forecast {said}, measured {came}"
    return tag("g", bar, middle, diamond, tag("title", title), class_=f"forecast {forecast_verdict(row)}")


def calibration_chart(calibration: Calibration) -> Callable[[int], Markup] | None:
    """Share correct against confidence by bin, with the diagonal of perfect calibration."""
    bins = [b for b in calibration.bins if b.rows]
    if not bins:
        return None
    most = max(b.rows for b in bins)
    label = "Reliability: " + "; ".join(f"confidence {b.confidence:.2f}, correct {b.accuracy:.2f}" for b in bins)

    def draw(width: int) -> Markup:
        side, top = 240.0, 26.0
        across, down = Scale(0.0, 1.0, 40.0, 40.0 + side), Scale(0.0, 1.0, top + side, top)
        pieces = [horizontal_axis(across, top + side, top, "confidence"), vertical_axis(down, 40, 40 + side)]
        pieces.append(text(0, 12, "share of right answers", "axis-title"))
        pieces.append(line(across.at(0), down.at(0), across.at(1), down.at(1), "reference"))
        for b in bins:
            title = tag("title", f"{b.rows} rows: confidence {b.confidence:.2f}, correct {b.accuracy:.2f}")
            radius = 3 + 6 * (b.rows / most) ** 0.5  # area grows with rows
            dot = tag("circle", title, cx=across.at(b.confidence), cy=down.at(b.accuracy), r=radius)
            pieces.append(tag("g", dot, class_="winner"))
        return canvas(min(width, 60 + side), side + top + AXIS, label, *pieces)

    return draw


def vertical_axis(scale: Scale, left: float, right: float) -> Markup:
    """Horizontal grid lines with their numbers on the left."""
    ticks = scale.ticks(5)
    pieces = []
    for tick, name in zip(ticks, tick_labels(ticks), strict=True):
        y = scale.at(tick)
        pieces += [line(left, y, right, y, "grid"), text(left - 8, y + 4, name, "tick", "end")]
    return join(pieces)
