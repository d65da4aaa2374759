"""Search spaces: typed, conditional, unit-aware parameters, and drawing from them.

A `Space` is a tuple of parameters. A value is a plain JSON value; a configuration is a flat dictionary of
``"group.name"`` to value. A conditional parameter is present only while its condition holds. Numbers map to and
from the unit interval (logarithmically where declared), which is all a surrogate or a Sobol sequence needs.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from foretune.errors import UsageError

Value = float | int | str | bool


@dataclass(frozen=True)
class Condition:
    """``parameter`` holds one of ``values``."""

    parameter: str
    values: tuple[Value, ...]

    def holds(self, config: Mapping[str, Any]) -> bool:
        """Whether the condition is met by ``config``."""
        return config.get(self.parameter) in self.values


@dataclass(frozen=True)
class Mentions:
    """The text ``parameter``, a word of a small language, names ``name``: ``ifd:60%+delift`` mentions both."""

    parameter: str
    name: str

    @property
    def values(self) -> tuple[Value, ...]:
        """What the parameter has to name."""
        return (self.name,)

    def holds(self, config: Mapping[str, Any]) -> bool:
        """Whether the condition is met by ``config``."""
        return self.name in re.findall(r"[a-z][a-z0-9-]*", str(config.get(self.parameter, "")))


@dataclass(frozen=True)
class Number:
    """A real or whole number in [low, high], searched on a logarithmic scale when ``log``."""

    name: str
    low: float
    high: float
    default: float
    log: bool = False
    whole: bool = False
    unit: str = ""
    condition: Condition | Mentions | None = None
    about: str = ""

    def from_unit(self, position: float) -> Value:
        """The value at ``position`` in [0, 1]."""
        if self.log:
            value = math.exp(math.log(self.low) + position * (math.log(self.high) - math.log(self.low)))
        else:
            value = self.low + position * (self.high - self.low)
        value = min(max(value, self.low), self.high)
        return round(value) if self.whole else value

    def to_unit(self, value: Value) -> float:
        """The position of ``value`` in [0, 1]."""
        number = float(value)
        if self.log:
            return (math.log(number) - math.log(self.low)) / (math.log(self.high) - math.log(self.low))
        return (number - self.low) / (self.high - self.low)

    def check(self, value: Any) -> Value:
        """``value`` as this parameter's type, or a `UsageError`."""
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
            raise UsageError(f"{self.name} must be a number, not {value!r}.")
        if not self.low <= value <= self.high:
            raise UsageError(
                f"{self.name} = {value} is outside its range.",
                remedy=f"Use {self.low:g} to {self.high:g}{' ' + self.unit if self.unit else ''}.",
            )
        return round(value) if self.whole else float(value)


@dataclass(frozen=True)
class Choice:
    """One of a few named options."""

    name: str
    options: tuple[Value, ...]
    default: Value
    condition: Condition | Mentions | None = None
    about: str = ""

    def from_unit(self, position: float) -> Value:
        """The option at ``position`` in [0, 1]."""
        return self.options[min(int(position * len(self.options)), len(self.options) - 1)]

    def to_unit(self, value: Value) -> float:
        """The middle of the option's share of [0, 1]."""
        return (self.options.index(value) + 0.5) / len(self.options)

    def check(self, value: Any) -> Value:
        """``value`` if it is an option, else a `UsageError`."""
        if value not in self.options:
            raise UsageError(
                f"{self.name} = {value!r} is not an option.",
                remedy=f"Use one of {', '.join(map(str, self.options))}.",
            )
        return value  # type: ignore[no-any-return]


@dataclass(frozen=True)
class Text:
    """A word in a small language of its own, such as ``last:8`` or ``guided-dropout,kl-to-base:0.1``.

    It has no place on the unit interval: a menu offers it as a `Choice` among a few words.
    """

    name: str
    default: str
    pattern: str
    """Regular expression of the whole word"""
    condition: Condition | Mentions | None = None
    about: str = ""

    def from_unit(self, position: float) -> Value:
        """The default, wherever ``position`` is: a word is never drawn."""
        return self.default

    def to_unit(self, value: Value) -> float:
        """The middle of the interval, for every word."""
        return 0.5

    def check(self, value: Any) -> Value:
        """``value`` if it has the word's form, else a `UsageError`."""
        if not isinstance(value, str) or re.fullmatch(self.pattern, value) is None:
            raise UsageError(f"{self.name} = {value!r} is not of its form.", remedy=self.about)
        return value


Parameter = Number | Choice | Text


@dataclass(frozen=True)
class Space:
    """An ordered set of parameters; conditions may refer to earlier ones only."""

    parameters: tuple[Parameter, ...] = ()

    def __post_init__(self) -> None:
        seen: set[str] = set()
        for parameter in self.parameters:
            if parameter.name in seen:
                raise ValueError(f"{parameter.name} is declared twice")
            if parameter.condition is not None and parameter.condition.parameter not in seen:
                raise ValueError(f"{parameter.name} depends on {parameter.condition.parameter}, not declared before")
            seen.add(parameter.name)

    @cached_property
    def _by_name(self) -> dict[str, Parameter]:
        return {parameter.name: parameter for parameter in self.parameters}

    def __getitem__(self, name: str) -> Parameter:
        return self._by_name[name]

    def __contains__(self, name: object) -> bool:
        return name in self._by_name

    def names(self) -> tuple[str, ...]:
        """The parameter names, in order."""
        return tuple(self._by_name)

    def join(self, other: Space) -> Space:
        """This space followed by ``other``."""
        return Space(self.parameters + other.parameters)

    def restrict(self, fixed: Mapping[str, Any]) -> Space:
        """The space without the parameters in ``fixed``, whose conditions are decided by it."""
        kept = []
        for parameter in self.parameters:
            condition = parameter.condition
            if parameter.name in fixed:
                continue
            if condition is not None and condition.parameter in fixed:
                if not condition.holds(fixed):
                    continue
                parameter = _without_condition(parameter)
            kept.append(parameter)
        return Space(tuple(kept))

    def defaults(self) -> dict[str, Value]:
        """The configuration of all defaults that apply."""
        return self._assemble({parameter.name: parameter.default for parameter in self.parameters})

    def at(self, position: Sequence[float]) -> dict[str, Value]:
        """The configuration at a point of the unit cube, one coordinate a parameter."""
        return self._assemble({p.name: p.from_unit(float(u)) for p, u in zip(self.parameters, position, strict=True)})

    def check(self, config: Mapping[str, Any]) -> dict[str, Value]:
        """``config`` with every value checked; unknown names are refused. Raises `UsageError`."""
        unknown = set(config) - set(self.names())
        if unknown:
            raise UsageError(f"unknown setting {sorted(unknown)[0]!r}.", remedy=f"Known: {', '.join(self.names())}.")
        return {name: self[name].check(value) for name, value in config.items()}

    def _assemble(self, values: Mapping[str, Value]) -> dict[str, Value]:
        config: dict[str, Value] = {}
        for parameter in self.parameters:
            if parameter.condition is None or parameter.condition.holds(config):
                config[parameter.name] = values[parameter.name]
        return config


def _without_condition(parameter: Parameter) -> Parameter:
    from dataclasses import replace

    return replace(parameter, condition=None)
