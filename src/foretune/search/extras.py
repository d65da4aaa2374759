"""Configurations beyond the portfolio: a seeded Sobol sequence over a method's menu around the best rate so far.

The sequence is a function of the seed, the fixed settings, the menu and its centre alone; the centre is settled before
the first extra configuration is drawn, so the sequence is the same whatever the number of workers and their timing.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import islice
from typing import Any

import numpy as np

from foretune.catalogue import regularizers
from foretune.catalogue.methods import METHODS, declaration, resolve
from foretune.catalogue.priors import rounded
from foretune.catalogue.space import Choice, Condition, Number, Parameter, Space, Value
from foretune.catalogue.training import TRAINING_MENU
from foretune.errors import UsageError
from foretune.files import canonical_json, fingerprint
from foretune.search.menu import Menu, neutral, words_for
from foretune.seeding import derive

RATE_DECADE = 10.0
"""Rates stay within one decade of the rule's."""
RATE_SPAN = 5.0
"""Rates are drawn within this factor of the centre."""
REMEMBERED = 8
"""Sequences kept: one a search is enough, a study runs a few side by side."""
SEQUENCE_BITS = 10
"""The sequence has 2**10 members: more than a search of full runs can start."""


@dataclass(frozen=True)
class Centre:
    """A method with the rule's learning rate for it and the best one seen."""

    base: Mapping[str, Value]
    """The complete configuration around which is drawn."""
    rule_rate: float
    best_rate: float

    @property
    def rates(self) -> tuple[float, float]:
        """The lowest and highest learning rate drawn."""
        low, high = self.rule_rate / RATE_DECADE, self.rule_rate * RATE_DECADE
        best = min(max(self.best_rate, low), high)
        return max(low, best / RATE_SPAN), min(high, best * RATE_SPAN)


def search_space(centres: Mapping[str, Centre], fixed: Collection[str], menu: Menu | None = None) -> Space:
    """What is drawn: the method where there is a choice, its learning rate, the training menu, the method's menu.

    With a ``menu`` also the curated words for regularizer and selection, and what the user put on it or restricted.
    A setting that belongs to one method is named ``"<method>:<setting>"`` where the methods differ in it.
    """
    methods = tuple(centres)
    parameters: list[Parameter] = [Choice("method", methods, methods[0])]
    parameters += TRAINING_MENU.parameters
    for name in methods:
        condition = Condition("method", (name,))
        low, high = centres[name].rates
        rate = Number(f"{name}:learning_rate", low, high, centres[name].best_rate, log=True, condition=condition)
        own = [_conditional(parameter, condition) for parameter in declaration(name).menu.parameters]
        parameters += [rate, *own]
        if menu is not None:
            words = words_for(name, fixed, menu.kind)
            parameters += [replace(word, name=f"{name}:{word.name}", condition=condition) for word in words]
    if menu is not None:
        parameters += menu.further([parameter.name for parameter in parameters])
        parameters = [menu.restricted(parameter) for parameter in parameters]
    others = tuple(f"{name}." for name in METHODS if name not in methods)
    single = {"method"} if len(methods) == 1 else set()
    kept = [
        parameter
        for parameter in parameters
        if parameter.name not in single
        and (parameter.name.partition(":")[2] or parameter.name) not in fixed
        and not parameter.name.startswith(others)
    ]
    if single:
        kept = [_conditional(parameter, None) if _on_method(parameter) else parameter for parameter in kept]
    return Space(tuple(kept))


def _on_method(parameter: Parameter) -> bool:
    return isinstance(parameter.condition, Condition) and parameter.condition.parameter == "method"


def extra(
    number: int,
    centres: Mapping[str, Centre],
    fixed: Collection[str],
    seed: int,
    exclude: Collection[str],
    menu: Menu | None = None,
) -> Mapping[str, Value] | None:
    """Configuration ``number`` (from 0) of the `sequence`, or None beyond its end."""
    return sequence(centres, fixed, seed, exclude, menu)(number)


def sequence(
    centres: Mapping[str, Centre],
    fixed: Collection[str],
    seed: int,
    exclude: Collection[str],
    menu: Menu | None = None,
) -> Callable[[int], Mapping[str, Value] | None]:
    """Configurations by number, counted from 0; None beyond the end.

    They are complete and distinct; none has a fingerprint in ``exclude``.
    """
    around = {name: vars(centre) for name, centre in centres.items()}
    key = canonical_json([around, sorted(fixed), seed, sorted(exclude), menu and menu.to_json()])
    drawn, rest = _memory.setdefault(key, ([], _extras(centres, fixed, seed, exclude, menu)))
    if len(_memory) > REMEMBERED:
        del _memory[next(iter(_memory))]

    def member(number: int) -> Mapping[str, Value] | None:
        drawn.extend(islice(rest, number + 1 - len(drawn)) if number >= len(drawn) else ())
        return drawn[number] if number < len(drawn) else None

    return member


_memory: dict[str, tuple[list[dict[str, Value]], Iterator[dict[str, Value]]]] = {}
"""Sequences under way, by all that defines them: a searcher asks for one member after the other."""


def _extras(
    centres: Mapping[str, Centre], fixed: Collection[str], seed: int, exclude: Collection[str], menu: Menu | None
) -> Iterator[dict[str, Value]]:
    space = search_space(centres, fixed, menu)
    if not space.parameters:
        return
    seen = set(exclude)
    for point in _sobol(len(space.parameters), derive(seed, "search", "sobol")):
        drawn: dict[str, Any] = space.at(point.tolist())
        method = str(drawn.get("method", next(iter(centres))))
        settings = {name.removeprefix(f"{method}:"): value for name, value in drawn.items()}
        if "learning_rate" in settings:
            settings["learning_rate"] = rounded(settings["learning_rate"])
        try:
            config = resolve({**centres[method].base, **neutral(settings)})
        except UsageError:  # two words that each fit the method, and not each other
            continue
        if (key := fingerprint(config)) not in seen:
            seen.add(key)
            yield config


def methods_for(methods: tuple[str, ...], fixed: Mapping[str, Any]) -> tuple[str, ...]:
    """The methods left by the fixed settings, regularizers included. Raises `UsageError` where none is left."""
    chosen = (str(fixed["method"]),) if "method" in fixed else methods
    for declared, _ in regularizers.named(str(fixed.get(regularizers.SETTING, regularizers.NONE))):
        left = tuple(
            name
            for name in chosen
            if regularizers.fits_method(declared, name, disables_to_base=declaration(name).traits.disables_to_base)
        )
        if not left:
            raise UsageError(f"{declared.name} does not work with {' or '.join(chosen)}.", remedy=declared.fix)
        chosen = left
    return tuple(declaration(name).name for name in chosen)


def fixed_for(method: str, methods: tuple[str, ...], fixed: Mapping[str, Any]) -> dict[str, Any]:
    """The fixed settings that concern ``method``: those of other offered methods are left to them."""
    others = tuple(f"{name}." for name in methods if name != method)
    return {name: value for name, value in fixed.items() if not name.startswith(others)}


def _conditional(parameter: Parameter, condition: Condition | None) -> Parameter:
    return replace(parameter, condition=condition)


@lru_cache(maxsize=4)
def _sobol(dimensions: int, seed: int) -> np.ndarray[tuple[int, int], np.dtype[np.float64]]:
    """(2**SEQUENCE_BITS, dimensions) scrambled Sobol points in the unit cube."""
    from scipy.stats import qmc

    points: np.ndarray[tuple[int, int], np.dtype[np.float64]] = qmc.Sobol(
        dimensions, scramble=True, seed=np.random.Generator(np.random.PCG64(seed))
    ).random_base2(SEQUENCE_BITS)
    return points
