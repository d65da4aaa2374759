"""What a search may choose from: the curated menu, what the user restricts, and the pool of configurations it makes.

By default methods that serve well, each with its own menu (`catalogue.methods`), its learning rate around the rule's,
the schedule settings of `catalogue.training`, a few words for regularizer and selection, and the share kept. A user
fixes a setting (``training.…``: it leaves the search), names the methods (``search.methods``), or says for any setting
which values or which range may be drawn (``search.menu``), also for settings the curated menu leaves alone.

The words offered are those that `catalogue.methods.resolve` accepts for the method: an impossible combination is never
drawn. Drawing itself is `extras`.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import count, islice
from typing import Any

from foretune.catalogue import regularizers
from foretune.catalogue.methods import config_space, resolve
from foretune.catalogue.models import ModelKind
from foretune.catalogue.space import Choice, Number, Parameter, Value
from foretune.errors import UsageError

NONE = "none"
WORDS: Mapping[str, tuple[str, ...]] = {
    "regularizer": (NONE, "guided-dropout", "kl-to-base:0.1"),
    "selection": (NONE, "longest"),
}
"""The curated words of the settings that have a language of their own, the neutral one first.

Selections that score rows with the model take minutes, which the forecast of a trial does not hold: they are for
``search.menu.selection``.
"""
KEEPS = (0.3, 0.5, 0.7)
"""Shares of the rows that a selection keeps."""
POOL = 384
"""Configurations drawn for a search: each of eight methods gets about fifty."""


@dataclass(frozen=True)
class Range:
    """A user's range for a number."""

    low: float
    high: float


@dataclass(frozen=True)
class Menu:
    """A user's restrictions by setting."""

    offered: Mapping[str, tuple[Value, ...] | Range] = field(default_factory=dict)
    kind: ModelKind = "causal"
    """Some words are for some kinds of model only"""
    methods: tuple[str, ...] = ()
    """The methods that were named; () for any"""

    def offers(self, config: Mapping[str, Any]) -> bool:
        """Whether ``config`` has nothing that the user left out."""
        if self.methods and config.get("method") not in self.methods:
            return False
        own = neutral(dict(config)) if self.offered else {}
        return all(name not in own or _within(own[name], offer) for name, offer in self.offered.items())

    @property
    def restricts(self) -> bool:
        """Whether anything is left out."""
        return bool(self.offered or self.methods)

    def nearest(self, config: Mapping[str, Any], fixed: Collection[str] = ()) -> dict[str, Any] | None:
        """``config`` with what the user left out moved to the nearest that is offered; settings in ``fixed`` stay.

        None where that is no configuration: another method's, or words that exclude each other.
        """
        if self.offers(config):
            return dict(config)
        own = neutral(dict(config))
        moved = {
            name: _nearest(own[name], offer)
            for name, offer in self.offered.items()
            if name in own and name not in fixed and not _within(own[name], offer)
        }
        try:
            found = resolve({**independent_of(own, moved), **moved})
        except UsageError:
            return None
        return found if self.offers(found) else None

    def to_json(self) -> dict[str, Any]:
        """A JSON form."""
        offered = {name: vars(offer) if isinstance(offer, Range) else offer for name, offer in self.offered.items()}
        return {"offered": offered, "kind": self.kind, "methods": self.methods}

    def restricted(self, parameter: Parameter) -> Parameter:
        """``parameter`` as far as the user leaves it."""
        name = parameter.name.partition(":")[2] or parameter.name
        if name not in self.offered:
            return parameter
        return _parameter(parameter.name, name, self.offered[name], parameter.condition)

    def further(self, known: Sequence[str]) -> tuple[Parameter, ...]:
        """The settings that only the user put on the menu, but for those of methods that are not searched."""
        names = {name.partition(":")[2] or name for name in known}
        space = config_space()
        found = []
        for name, offer in self.offered.items():
            if name in names:
                continue
            found.append(_parameter(name, name, offer, space[name].condition))
        return tuple(found)


def read_menu(value: Mapping[str, Any], kind: ModelKind = "causal", methods: Sequence[str] | None = None) -> Menu:
    """The menu a user wrote: ``{setting: [values]}`` or ``{setting: "low..high"}``, and the methods that were named.

    Raises `UsageError`.
    """
    space = config_space()
    offered: dict[str, tuple[Value, ...] | Range] = {}
    for name, offer in value.items():
        if name not in space.names():
            near = difflib.get_close_matches(name, space.names(), n=1)
            remedy = f"Did you mean {near[0]}?" if near else "See `foretune methods` for the settings."
            raise UsageError(f"search.menu.{name} is not a setting.", remedy=remedy)
        parameter = space[name]
        if isinstance(offer, str) and ".." in offer and isinstance(parameter, Number):
            offered[name] = _range(name, offer, parameter)
        elif isinstance(offer, list | tuple) and offer:
            offered[name] = tuple(dict.fromkeys(parameter.check(item) for item in offer))
        else:
            raise UsageError(
                f"search.menu.{name} = {offer!r} offers nothing to choose.",
                remedy="Write a list of values, or a range like 1e-4..1e-3.",
            )
    return Menu(offered, kind, tuple(methods or ()))


def _range(name: str, text: str, parameter: Number) -> Range:
    try:
        low, high = (float(part) for part in text.split("..", 1))
    except ValueError:
        raise UsageError(f"search.menu.{name} = {text} is no range.", remedy="Write it like 1e-4..1e-3.") from None
    parameter.check(low), parameter.check(high)
    if low >= high:
        raise UsageError(f"search.menu.{name} = {text}: the low end is not below the high one.")
    return Range(low, high)


def independent_of(config: Mapping[str, Any], settings: Collection[str]) -> dict[str, Any]:
    """``config`` without what only has a meaning under the present values of ``settings``."""
    space = config_space()
    return {
        name: value for name, value in config.items()
        if getattr(space[name].condition, "parameter", None) not in settings
    }  # fmt: skip


def words_for(method: str, fixed: Collection[str], kind: ModelKind) -> tuple[Parameter, ...]:
    """Choices among the curated words that ``method`` can be combined with; a setting with one word is left out."""
    known = config_space().names()
    found: list[Parameter] = []
    for name, words in WORDS.items():
        if name not in known or name in fixed:
            continue
        extra = {"keep": KEEPS[0]} if name == "selection" else {}
        accepted = tuple(
            word for word in words if word == NONE or _accepts({"method": method, name: word, **extra}, kind)
        )
        if len(accepted) > 1:
            found.append(Choice(name, accepted, NONE))
            if name == "selection" and "keep" not in fixed:
                found.append(Choice("keep", KEEPS, KEEPS[0]))
    return tuple(found)


def neutral(config: dict[str, Any]) -> dict[str, Any]:
    """A drawn configuration without what only makes sense beside something else that was not drawn."""
    if config.get("selection", NONE) == NONE:
        config.pop("keep", None)
    return config


def pool(drawn: Any, first: Sequence[Mapping[str, Any]], size: int = POOL) -> tuple[Mapping[str, Any], ...]:
    """``first``, then members of a sequence (``drawn(number)``, None beyond its end), ``size`` in all."""
    members = [config for config in islice(map(drawn, count()), size) if config is not None]
    return (*first, *members[: max(0, size - len(first))])


def _parameter(name: str, setting: str, offer: Any, condition: Any) -> Parameter:
    declared = config_space()[setting]
    if isinstance(offer, Range):
        log, whole = (declared.log, declared.whole) if isinstance(declared, Number) else (False, False)
        return Number(name, offer.low, offer.high, offer.low, log=log, whole=whole, condition=condition)
    return Choice(name, offer, offer[0], condition=condition)


def _within(value: Any, offer: tuple[Value, ...] | Range) -> bool:
    return offer.low <= value <= offer.high if isinstance(offer, Range) else value in offer


def _nearest(value: Any, offer: tuple[Value, ...] | Range) -> Value:
    """The offered value that is nearest: numbers by their ratio where both are positive; else the first."""
    if isinstance(offer, Range):
        nearest: float = min(max(value, offer.low), offer.high)
        return nearest

    def distance(other: Any) -> float:
        if isinstance(value, bool | str) or isinstance(other, bool | str):
            return 0.0
        return abs(math.log(other / value)) if min(other, value) > 0 else abs(other - value)

    return min(offer, key=distance)


def _accepts(settings: Mapping[str, Any], kind: ModelKind) -> bool:
    try:
        resolve(settings)
        regularizers.check_kind(str(settings.get(regularizers.SETTING, NONE)), kind)
    except UsageError:
        return False
    return True
