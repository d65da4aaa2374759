"""Linear and logarithmic axes: where values lie in pixels, and which round numbers stand on the axis.

Steps are 1, 2, 2.5 or 5 times a power of ten (after Heckbert, "Nice Numbers for Graph Labels", Graphics Gems, 1990).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

NICE_STEPS = (1.0, 2.0, 2.5, 5.0, 10.0)
LOG_STEPS = (1.0, 2.0, 5.0)
ROUND_DOWN = 0.75  # a step up to a quarter too small is better than one twice too large
_SLACK = 1e-9  # rounding of ticks at the ends of an axis
_FEW = 3


@dataclass(frozen=True)
class Scale:
    """Maps [low, high] to pixels [start, end]; values outside are clipped to the ends."""

    low: float
    high: float
    start: float
    end: float
    log: bool = False

    def at(self, value: float) -> float:
        """The pixel of ``value``."""
        low, high = self.low, self.high
        value = min(max(value, low), high)
        if self.log:
            low, high, value = math.log(low), math.log(high), math.log(value)
        if high == low:
            return (self.start + self.end) / 2
        return self.start + (value - low) / (high - low) * (self.end - self.start)

    def ticks(self, count: int) -> list[float]:
        """About ``count`` round values within the axis."""
        return log_ticks(self.low, self.high, count) if self.log else nice_ticks(self.low, self.high, count)


def nice_step(span: float, count: int) -> float:
    """A round step that cuts ``span`` > 0 into about ``count`` intervals."""
    raw = ROUND_DOWN * span / max(count, 1)
    power = 10.0 ** math.floor(math.log10(raw))
    return next((nice * power for nice in NICE_STEPS if nice * power >= raw * (1 - _SLACK)), 10 * power)


def nice_ticks(low: float, high: float, count: int) -> list[float]:
    """Round values in [low, high], evenly spaced; the single value when there is no span."""
    if not high > low:
        return [low]
    step = nice_step(high - low, count)
    first, last = math.ceil(low / step - _SLACK), math.floor(high / step + _SLACK)
    return [step * i for i in range(first, last + 1)]


def log_ticks(low: float, high: float, count: int) -> list[float]:
    """1, 2 and 5 times powers of ten in [low, high] (powers alone when those are too many), low > 0."""
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    inside = [
        [step * 10.0**power for power in powers for step in steps if low * (1 - _SLACK) <= step * 10.0**power <= high]
        for steps in (LOG_STEPS, (1.0,))
    ]
    if len(inside[0]) < _FEW:
        return nice_ticks(low, high, count)
    if len(inside[0]) <= count + 1:
        return inside[0]
    every = math.ceil(len(inside[1]) / max(count, 1))
    return inside[1][::every] if len(inside[1]) >= _FEW else inside[0][:: math.ceil(len(inside[0]) / max(count, 1))]


def padded(values: Sequence[float], share: float = 0.06) -> tuple[float, float]:
    """The range of ``values`` with a margin on both sides; a made-up margin where all are equal."""
    low, high = min(values), max(values)
    margin = (high - low) * share or abs(high) * share or share
    return low - margin, high + margin


def tick_labels(ticks: Sequence[float]) -> list[str]:
    """The ticks as text: enough decimals to tell them apart, thousands as k and M, a true minus sign."""
    gaps = [abs(b - a) for a, b in pairwise(ticks) if b != a]
    return [_label(tick, min(gaps, default=abs(tick) or 1.0)) for tick in ticks]


def _label(tick: float, gap: float) -> str:
    size = abs(tick)
    for limit, suffix in ((1e9, "B"), (1e6, "M"), (1e4, "k")):
        unit = 1e3 if suffix == "k" else limit
        if size >= limit:
            return f"{tick / unit:.3g}{suffix}".replace("-", "−")
    if tick == 0:
        return "0"
    decimals = max(0, -math.floor(math.log10(gap) + _SLACK))
    if round(gap * 10**decimals, 6) % 1:  # 2.5 needs one decimal more than 2
        decimals += 1
    return f"{tick:,.{decimals}f}".replace("-", "−")


def spread_labels(wanted: Sequence[float], gap: float, low: float, high: float) -> list[float]:
    """Positions near ``wanted`` that are at least ``gap`` apart and within [low, high], in the given order.

    Neighbours that collide are merged into blocks centred on the mean of what they wanted.
    """
    order = sorted(range(len(wanted)), key=lambda i: wanted[i])
    blocks: list[list[int]] = []
    for index in order:
        blocks.append([index])
        while len(blocks) > 1 and _top(blocks[-2], wanted, gap, low, high) + gap * len(blocks[-2]) > _top(
            blocks[-1], wanted, gap, low, high
        ):
            last = blocks.pop()
            blocks[-1] += last
    placed = [0.0] * len(wanted)
    for block in blocks:
        top = _top(block, wanted, gap, low, high)
        for row, index in enumerate(block):
            placed[index] = top + gap * row
    return placed


def _top(block: Sequence[int], wanted: Sequence[float], gap: float, low: float, high: float) -> float:
    height = gap * (len(block) - 1)
    middle = sum(wanted[i] for i in block) / len(block)
    return max(low, min(middle - height / 2, high - height))
