"""A forecast quantity: the value and the range it is expected in four times out of five."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True)
class Interval:
    """``low`` ≤ ``value`` ≤ ``high``; an 80 % interval wherever a forecast states one."""

    low: float
    value: float
    high: float

    def __post_init__(self) -> None:
        if not self.low <= self.value <= self.high:
            raise ValueError(f"an interval must be ordered, not {self.low}, {self.value}, {self.high}")

    @classmethod
    def around(cls, value: float, factor: float) -> Interval:
        """``value`` divided and multiplied by ``factor``."""
        return cls(value / factor, value, value * factor)

    @classmethod
    def exactly(cls, value: float) -> Interval:
        """No doubt."""
        return cls(value, value, value)

    def times(self, factor: float) -> Interval:
        """Every bound multiplied by a known, non-negative factor."""
        return Interval(self.low * factor, self.value * factor, self.high * factor)

    def widen(self, factor: float) -> Interval:
        """The same value, with the bounds a factor further away."""
        return Interval(self.low / factor, self.value, self.high * factor)

    def __add__(self, other: Interval) -> Interval:
        return Interval(self.low + other.low, self.value + other.value, self.high + other.high)

    def holds(self, truth: float) -> bool:
        """Whether ``truth`` lies inside."""
        return self.low <= truth <= self.high

    def to_json(self) -> list[float]:
        """``[low, value, high]``."""
        return [self.low, self.value, self.high]


ZERO = Interval.exactly(0.0)


def total(intervals: Iterable[Interval]) -> Interval:
    """The sum, bounds added: the parts share their errors (one machine, one rate), so they do not average out."""
    result = ZERO
    for interval in intervals:
        result = result + interval
    return result
