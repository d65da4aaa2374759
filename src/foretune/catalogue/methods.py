"""The literal registry of fine-tuning methods: settings, promises and learning-rate scale, without importing torch.

`METHODS` is read by the planner, the search and the command line; `foretune.methods` holds the code of each. A
configuration is one flat dictionary: ``method``, the settings of `catalogue.training`, and the method's own settings
under its name (``lora.rank``). `resolve` completes and checks one.

It does not say what is good: defaults are what is widely used, rules are in `catalogue.priors`.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from foretune.catalogue import regularizers
from foretune.catalogue.space import Choice, Condition, Number, Parameter, Space, Value
from foretune.catalogue.training import TRAINING
from foretune.catalogue.traits import Traits
from foretune.errors import UsageError


@dataclass(frozen=True)
class Declaration:
    """What is known of a method without loading it."""

    name: str
    about: str
    space: Space
    """Every setting it has, named ``"<method>.<setting>"``, with the default."""
    menu: Space
    """The part of the space, and the values, that a search draws from."""
    traits: Traits
    rate_multiplier: float
    """Its best learning rate as a multiple of full fine-tuning's."""
    short_run_multiplier: float
    """A further factor for runs shorter than `priors.SHORT_RUN_STEPS`."""
    source: str
    """Where method and multipliers come from."""


FULL = Declaration(
    name="full",
    about="Every weight of the model is trained.",
    space=Space(),
    menu=Space(),
    traits=Traits(
        identity_at_init=True, merge="exact", disables_to_base=False, packable=True, deterministic=True, servable=True
    ),
    rate_multiplier=1.0,
    short_run_multiplier=1.0,
    source="the reference of all multipliers",
)

LORA = Declaration(
    name="lora",
    about="A low-rank update beside each chosen linear layer; the base stays frozen.",
    space=Space(
        (
            Number("lora.rank", 1, 1024, 16, log=True, whole=True, about="Rank of the update."),
            Number("lora.alpha", 1e-3, 4096, 32, log=True, about="The update is scaled by alpha / rank."),
            Number("lora.dropout", 0.0, 0.9, 0.0, about="Dropout on the input of the update."),
            Choice("lora.targets", ("all-linear", "attention", "mlp"), "all-linear", about="Which linear layers."),
        )
    ),
    menu=Space(
        (
            Choice("lora.rank", (8, 16, 32, 64), 16),
            Choice("lora.alpha", (16, 32, 64), 32),
            Choice("lora.dropout", (0.0, 0.05, 0.1), 0.0),
            Choice("lora.targets", ("all-linear", "attention", "mlp"), "all-linear"),
        )
    ),
    traits=Traits(
        identity_at_init=True, merge="exact", disables_to_base=True, packable=True, deterministic=True, servable=True
    ),
    rate_multiplier=10.0,
    short_run_multiplier=1.5,
    source="Hu et al. 2021 (2106.09685); multipliers: Schulman et al. 2025, 'LoRA Without Regret'",
)

METHODS: dict[str, Declaration] = {declaration.name: declaration for declaration in (FULL, LORA)}


def declaration(name: str) -> Declaration:
    """The declaration of a method. Raises `UsageError` with the nearest known name."""
    if name not in METHODS:
        raise UsageError(f"unknown method {name!r}.", remedy=_nearest(name, tuple(METHODS)))
    return METHODS[name]


def config_space(methods: tuple[str, ...] = tuple(METHODS)) -> Space:
    """Every setting of a configuration over ``methods``; a method's own settings depend on ``method``."""
    default = "lora" if "lora" in methods else methods[0]
    space = Space((Choice("method", methods, default, about="How the model is adapted."),)).join(TRAINING)
    space = Space(space.parameters + regularizers.settings())
    for name in methods:
        space = Space(space.parameters + _only_with(name, declaration(name).space))
    return space


def resolve(settings: Mapping[str, Any]) -> dict[str, Value]:
    """``settings`` checked and completed with the defaults of its method.

    Raises `UsageError` for an unknown setting (naming the nearest), a setting of another method, or a bad value.
    """
    space = config_space()
    for name in settings:
        if name not in space.names():
            raise UsageError(f"unknown setting {name!r}.", remedy=_nearest(name, space.names()))
    checked = space.check(regularizers.with_strengths(settings))
    method = str(checked.get("method", space["method"].default))
    chosen = {"method": method, regularizers.SETTING: checked.get(regularizers.SETTING, regularizers.NONE)}
    for name in checked:
        condition = space[name].condition
        if condition is not None and condition.parameter in chosen and not condition.holds(chosen):
            raise UsageError(
                f"{name} does not belong to the {condition.parameter} {chosen[condition.parameter]!r}.",
                remedy=f"Leave it out, or set {condition.parameter} to {condition.values[0]}.",
            )
    complete = space.check(space.restrict(checked).defaults() | checked)
    regularizers.check(complete)
    return {name: complete[name] for name in space.names() if name in complete}


def _only_with(method: str, space: Space) -> tuple[Parameter, ...]:
    condition = Condition("method", (method,))
    return tuple(
        replace(parameter, condition=condition) if parameter.condition is None else parameter
        for parameter in space.parameters
    )


def _nearest(name: str, known: tuple[str, ...]) -> str:
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    return f"Did you mean {close[0]}?" if close else f"Known: {', '.join(known)}."
