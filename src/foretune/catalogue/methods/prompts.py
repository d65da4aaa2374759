"""What the methods that put something before every row declare: prompts, prefixes, cartridges."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from foretune.catalogue.methods.base import ADAPTER_TRAITS, Count, Declaration
from foretune.catalogue.space import Choice, Number, Parameter, Space

PROMPT_TRAITS = replace(ADAPTER_TRAITS, identity_at_init=False, merge="no", packable=False)
PROMPT_RATE = 50.0
"""Times full tuning's rate: 1e-3 to 5e-3 at small widths, where the papers' rates of 0.3 are Adafactor's on T5."""


def length(name: str, setting: str, default: int, about: str) -> Number:
    """How many vectors, keys or values there are: the knob."""
    return Number(f"{name}.{setting}", 1, 4096, default, log=True, whole=True, about=about)


def before_rows(
    name: str,
    about: str,
    source: str,
    *,
    knob: Number,
    formula: str,
    count: Count,
    example: Mapping[str, Any],
    more: tuple[Parameter, ...] = (),
    options: tuple[int, ...] = (10, 20, 50, 100),
    kinds: tuple[str, ...] = ("causal",),
    layerwise: bool = False,
    notes: tuple[str, ...] = (),
) -> Declaration:
    """A method of the family: not the base at its start, never part of the weights, not in packed streams."""
    return Declaration(
        name=name, about=about, space=Space((knob, *more)), menu=Space((Choice(knob.name, options, knob.default),)),
        traits=PROMPT_TRAITS, rate_multiplier=PROMPT_RATE, short_run_multiplier=1.0,
        source=f"{source}; rate: as for prompts", knob=knob.name.rpartition(".")[2], formula=formula, count=count,
        evidence="released code", family="prompt", layerwise=layerwise, kinds=kinds, example=dict(example), notes=notes,
    )  # fmt: skip
