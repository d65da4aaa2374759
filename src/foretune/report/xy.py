"""Lines and dots over a numeric axis, with intervals, a band for a reference and a marked range: a study's charts.

Names stand at the ends of their lines on a wide page; the legend below the chart names them on a narrow one. Colours
are the page's eight, in the order of the series.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import cycle

from foretune.report.charts import PALETTE, WIDE, canvas, fitted, horizontal_axis, line, text, vertical_axis
from foretune.report.markup import Markup, join, tag
from foretune.report.scales import Scale, padded, spread_labels

HEIGHT = 340
LEFT, RIGHT, TOP, BOTTOM = 62.0, 150.0, 26.0, 46.0
LABEL_GAP = 15.0
LOG_PAD = 1.15
"""A logarithmic axis goes this factor beyond its outermost points."""


@dataclass(frozen=True)
class Dot:
    """A point; ``low`` and ``high`` are its interval's ends, where it has one."""

    x: float
    y: float
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True)
class Series:
    """Dots of one name: joined by a line, or on their own; ``fit`` is a line that was fitted, without dots."""

    name: str
    dots: tuple[Dot, ...]
    style: str = "line"
    """line, dots or fit"""
    colour: int | None = None
    """A number of the palette; the place among the series when not said"""


@dataclass(frozen=True)
class Chart:
    """What is drawn."""

    series: tuple[Series, ...]
    x_title: str
    y_title: str
    log_x: bool = False
    band: tuple[float, float, str] | None = None
    """Horizontal band: low, high, its name"""
    zone: tuple[float, float, str] | None = None
    """Vertical range: low, high, its name"""
    zero: bool = False
    """Draw the line of zero"""
    x_labels: dict[float, str] = field(default_factory=dict)
    """Own numbers on the horizontal axis"""


def xy_chart(chart: Chart) -> Callable[[int], Markup] | None:
    """The drawing, or None where there is nothing to draw."""
    dots = [dot for one in chart.series for dot in one.dots]
    if not dots:
        return None
    label = _label(chart)
    ys = [y for dot in dots for y in (dot.y, dot.low, dot.high) if y is not None]
    ys += list(chart.band[:2]) if chart.band else []
    low, high = padded([*ys, *([0.0] if chart.zero else [])])
    xs = [dot.x for dot in dots]

    def draw(width: int) -> Markup:
        narrow = width < WIDE
        end = width - (16.0 if narrow else RIGHT)
        x_low, x_high = (min(xs) / LOG_PAD, max(xs) * LOG_PAD) if chart.log_x else padded(xs)
        across = Scale(x_low, x_high, LEFT, end, log=chart.log_x)
        down = Scale(low, high, HEIGHT - BOTTOM, TOP)
        pieces: list[Markup] = [_backdrop(chart, across, down)]
        title = chart.x_title + (" (log)" if chart.log_x else "")
        pieces.append(horizontal_axis(across, HEIGHT - BOTTOM, TOP, title, chart.x_labels or None))
        pieces.append(vertical_axis(down, LEFT, end))
        pieces.append(text(0, 12, chart.y_title, "axis-title"))
        if chart.zero:
            pieces.append(line(LEFT, down.at(0.0), end, down.at(0.0), "reference"))
        pieces += [_draw(one, colour, across, down) for one, colour in _coloured(chart.series)]
        if not narrow:
            pieces += _names(chart, across, down)
        return canvas(width, HEIGHT, label, *pieces)

    return draw


def legend(chart: Chart) -> Markup:
    """The series' names with their colours, for under the chart."""
    items = [
        tag("span", tag("span", class_=f"key c{colour}"), one.name)
        for one, colour in _coloured(chart.series)
        if one.style != "fit"
    ]
    return tag("span", join(items, between=" "), class_="legend")


def _coloured(series: Sequence[Series]) -> list[tuple[Series, int]]:
    numbers = cycle(range(PALETTE))
    return [(one, next(numbers) if one.colour is None else one.colour % PALETTE) for one in series]


def _backdrop(chart: Chart, across: Scale, down: Scale) -> Markup:
    pieces: list[Markup] = []
    if chart.band:
        top, bottom = down.at(chart.band[1]), down.at(chart.band[0])
        box = tag("rect", x=LEFT, y=top, width=across.end - LEFT, height=max(bottom - top, 1.5), class_="zone")
        pieces.append(tag("g", box, tag("title", chart.band[2])))
    if chart.zone:
        left, right = across.at(chart.zone[0]), across.at(chart.zone[1])
        box = tag("rect", x=left, y=TOP, width=max(right - left, 1.5), height=HEIGHT - BOTTOM - TOP, class_="zone")
        pieces += [tag("g", box, tag("title", chart.zone[2])), text((left + right) / 2, TOP + 12, chart.zone[2],
                                                                    "tick", "middle")]  # fmt: skip
    return join(pieces)


def _draw(one: Series, colour: int, across: Scale, down: Scale) -> Markup:
    places = [(across.at(dot.x), down.at(dot.y)) for dot in one.dots]
    parts: list[Markup] = []
    if one.style in ("line", "fit") and len(places) > 1:
        path = "M" + "L".join(f"{x:.1f} {y:.1f}" for x, y in places)
        parts.append(tag("path", d=path, class_="line fit" if one.style == "fit" else "line"))
    if one.style != "fit":
        for dot, (x, y) in zip(one.dots, places, strict=True):
            if dot.low is not None and dot.high is not None:
                parts.append(line(x, down.at(dot.low), x, down.at(dot.high), "whisker"))
            parts.append(tag("circle", cx=x, cy=y, r=3.5))
    said = ", ".join(f"{dot.x:.3g}: {dot.y:.4g}" for dot in one.dots)
    return tag("g", *parts, tag("title", f"{one.name}: {said}"), class_=f"series c{colour}")


def _names(chart: Chart, across: Scale, down: Scale) -> list[Markup]:
    named = [(one, colour) for one, colour in _coloured(chart.series) if one.style == "line" and one.dots]
    wanted = [(down.at(one.dots[-1].y), one.name, f"c{colour}") for one, colour in named]
    if chart.band:
        wanted.append((down.at((chart.band[0] + chart.band[1]) / 2), chart.band[2], ""))
    places = spread_labels([item[0] for item in wanted], LABEL_GAP, down.end, down.start)
    return [
        text(across.end + 8, y + 4, fitted(name, RIGHT - 10), f"end-label {kind}".strip())
        for y, (_, name, kind) in zip(places, wanted, strict=True)
    ]


def _label(chart: Chart) -> str:
    """The chart in words."""
    ends = "; ".join(f"{one.name} from {one.dots[0].y:.4g} to {one.dots[-1].y:.4g}" for one in chart.series if one.dots)
    band = f" {chart.band[2]} {chart.band[0]:.4g} to {chart.band[1]:.4g}." if chart.band else ""
    return f"{chart.y_title} over {chart.x_title}.{band} {ends}"
