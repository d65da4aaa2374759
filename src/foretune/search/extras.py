"""Configurations beyond the portfolio: a seeded Sobol sequence over a method's menu around the best rate so far.

The sequence is a function of the seed, the fixed settings and its centre alone; the centre is settled before the
first extra configuration is drawn, so the sequence is the same whatever the number of workers and their timing.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from functools import lru_cache
from itertools import islice
from typing import Any

import numpy as np

from foretune.catalogue import regularizers
from foretune.catalogue.methods import declaration, resolve
from foretune.catalogue.priors import rounded
from foretune.catalogue.space import Choice, Condition, Number, Parameter, Space, Value
from foretune.catalogue.training import TRAINING_MENU
from foretune.errors import UsageError
from foretune.files import canonical_json, fingerprint
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


def search_space(centres: Mapping[str, Centre], fixed: Collection[str]) -> Space:
    """What is drawn: the method where there is a choice, its learning rate, the training menu, the method's menu."""
    methods = tuple(centres)
    parameters: list[Parameter] = [Choice("method", methods, methods[0])]
    parameters += TRAINING_MENU.parameters
    for name in methods:
        condition = Condition("method", (name,))
        low, high = centres[name].rates
        rate = Number(f"{name}:learning_rate", low, high, centres[name].best_rate, log=True, condition=condition)
        own = [_conditional(parameter, condition) for parameter in declaration(name).menu.parameters]
        parameters += [rate, *own]
    hidden = {f"{name}:learning_rate" for name in methods} if "learning_rate" in fixed else set()
    single = {"method"} if len(methods) == 1 else set()
    kept = [parameter for parameter in parameters if parameter.name not in {*fixed, *hidden, *single}]
    if single:
        kept = [_conditional(parameter, None) for parameter in kept]
    return Space(tuple(kept))


def extra(
    number: int, centres: Mapping[str, Centre], fixed: Collection[str], seed: int, exclude: Collection[str]
) -> Mapping[str, Value] | None:
    """Configuration ``number`` (from 0) of the sequence, or None beyond its end.

    Configurations are complete and distinct; none has a fingerprint in ``exclude``.
    """
    key = canonical_json([{name: asdict(c) for name, c in centres.items()}, sorted(fixed), seed, sorted(exclude)])
    drawn, rest = _memory.setdefault(key, ([], _extras(centres, fixed, seed, exclude)))
    drawn.extend(islice(rest, number + 1 - len(drawn)) if number >= len(drawn) else ())
    if len(_memory) > REMEMBERED:
        del _memory[next(iter(_memory))]
    return drawn[number] if number < len(drawn) else None


_memory: dict[str, tuple[list[dict[str, Value]], Iterator[dict[str, Value]]]] = {}
"""Sequences under way, by all that defines them: a searcher asks for one member after the other."""


def _extras(
    centres: Mapping[str, Centre], fixed: Collection[str], seed: int, exclude: Collection[str]
) -> Iterator[dict[str, Value]]:
    space = search_space(centres, fixed)
    if not space.parameters:
        return
    seen = set(exclude)
    for point in _sobol(len(space.parameters), derive(seed, "search", "sobol")):
        drawn: dict[str, Any] = space.at(point.tolist())
        method = str(drawn.get("method", next(iter(centres))))
        rate = drawn.pop(f"{method}:learning_rate", None)
        config = resolve(
            {**centres[method].base, **drawn, **({} if rate is None else {"learning_rate": rounded(rate)})}
        )
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
