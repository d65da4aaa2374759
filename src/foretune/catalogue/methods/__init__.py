"""The literal registry of fine-tuning methods: settings, promises, counts and learning-rate scale, without torch.

`METHODS` is read by the planner, the search, the trainable-share solver and the command line; `foretune.methods` holds
the code of each. A configuration is one flat dictionary: ``method``, ``layers``, the settings of `catalogue.training`,
and the method's own settings under its name (``lora.rank``). `resolve` completes and checks one.

It does not say what is good: defaults are what is widely used, rules are in `catalogue.priors`. A new method is one
file beside this one and one line in `METHODS`; a method from a plugin comes through `declare`.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from foretune.catalogue import regularizers, selection
from foretune.catalogue.methods.adalink import ADALINK
from foretune.catalogue.methods.adaption_prompt import ADAPTION_PROMPT
from foretune.catalogue.methods.base import Declaration
from foretune.catalogue.methods.bottleneck import BOTTLENECK
from foretune.catalogue.methods.cartridge import CARTRIDGE
from foretune.catalogue.methods.contextpeft import CONTEXTPEFT
from foretune.catalogue.methods.cpt import CPT
from foretune.catalogue.methods.dept import DEPT
from foretune.catalogue.methods.direft import DIREFT
from foretune.catalogue.methods.dsee import DSEE
from foretune.catalogue.methods.e2vpt import E2VPT
from foretune.catalogue.methods.eva import EVA
from foretune.catalogue.methods.full import FULL
from foretune.catalogue.methods.lofit import LOFIT
from foretune.catalogue.methods.lora import LORA
from foretune.catalogue.methods.lorafa import LORAFA
from foretune.catalogue.methods.loraga import LORAGA
from foretune.catalogue.methods.loraplus import LORAPLUS
from foretune.catalogue.methods.lorasp import LORASP
from foretune.catalogue.methods.loratrf import LORATRF
from foretune.catalogue.methods.loreft import LOREFT
from foretune.catalogue.methods.loretta import LORETTA
from foretune.catalogue.methods.loretta_adp import LORETTA_ADP
from foretune.catalogue.methods.mam import MAM
from foretune.catalogue.methods.melora import MELORA
from foretune.catalogue.methods.mora import MORA
from foretune.catalogue.methods.mtllora import MTLLORA
from foretune.catalogue.methods.multitask_prompt_tuning import MULTITASK_PROMPT_TUNING
from foretune.catalogue.methods.nola import NOLA
from foretune.catalogue.methods.p_tuning import P_TUNING
from foretune.catalogue.methods.partial import SELECTIONS
from foretune.catalogue.methods.peft_rows import PEFT, REFUSED
from foretune.catalogue.methods.prefix_tuning import PREFIX_TUNING
from foretune.catalogue.methods.promot import PROMOT
from foretune.catalogue.methods.prompt_tuning import PROMPT_TUNING
from foretune.catalogue.methods.red import RED
from foretune.catalogue.methods.ssf import SSF
from foretune.catalogue.space import Choice, Condition, Parameter, Space, Text, Value
from foretune.catalogue.training import AMOUNT, TRAINING
from foretune.errors import UsageError

__all__ = [
    "LAYERS",
    "METHODS",
    "Declaration",
    "applicable",
    "config_space",
    "declaration",
    "declare",
    "resolve",
    "shared_settings",
]

METHODS: dict[str, Declaration] = {
    item.name: item
    for item in (
        FULL,
        LORA,
        LORATRF,
        MTLLORA,
        MORA,
        MELORA,
        LORASP,
        LORETTA,
        DSEE,
        NOLA,
        BOTTLENECK,
        LOREFT,
        DIREFT,
        RED,
        SSF,
        ADALINK,
        LOFIT,
        *SELECTIONS.values(),
        *(row.declaration for row in PEFT.values()),
        CONTEXTPEFT,
        MAM,
        DEPT,
        E2VPT,
        LORETTA_ADP,
        PROMPT_TUNING,
        P_TUNING,
        MULTITASK_PROMPT_TUNING,
        CPT,
        PREFIX_TUNING,
        CARTRIDGE,
        ADAPTION_PROMPT,
        PROMOT,
        LORAPLUS,
        LORAFA,
        EVA,
        LORAGA,
    )
}

LAYERS = Text(
    "layers",
    "all",
    r"[^\n]{1,400}",
    about="Which layers the method goes to: all, last:8, first:4, or an expression like decoder & layers>=3.",
)

_SPACES: dict[tuple[str, ...], Space] = {}
"""`config_space` by methods: the space of sixty methods is asked for at every check of a configuration."""


def declaration(name: str) -> Declaration:
    """The declaration of a method. Raises `UsageError` with the nearest known name."""
    if name in REFUSED:
        raise UsageError(f"peft's {name} cannot be used: {REFUSED[name]}.", remedy="Choose another method.")
    if name not in METHODS:
        raise UsageError(f"unknown method {name!r}.", remedy=_nearest(name, tuple(METHODS)))
    return METHODS[name]


def declare(item: Declaration) -> None:
    """Add a method from outside (a plugin). Raises `UsageError` for a name that is taken by another method."""
    known = METHODS.get(item.name)
    if known is not None and known != item:
        raise UsageError(f"there is a method {item.name!r} already.", remedy="Give the plugin's method another name.")
    METHODS[item.name] = item
    _SPACES.clear()


def config_space(methods: tuple[str, ...] | None = None) -> Space:
    """Every setting of a configuration over ``methods`` (all); a method's own settings depend on ``method``."""
    chosen = tuple(METHODS) if methods is None else methods
    if chosen not in _SPACES:
        default = "lora" if "lora" in chosen else chosen[0]
        parameters: tuple[Parameter, ...] = (Choice("method", chosen, default, about="How the model is adapted."),)
        parameters += (LAYERS, *TRAINING.parameters, *selection.config_part().parameters, *regularizers.settings())
        for name in chosen:
            parameters += _only_with(name, declaration(name).space)
        _SPACES[chosen] = Space(parameters)
    return _SPACES[chosen]


def resolve(settings: Mapping[str, Any]) -> dict[str, Value]:
    """``settings`` checked and completed with the defaults of its method.

    Raises `UsageError` for an unknown setting (naming the nearest), a setting of another method, or a bad value.
    """
    method = str(settings.get("method", "lora"))
    declaration(method)
    everything = config_space()
    settings = regularizers.with_strengths(settings)
    for name in settings:
        if name not in everything:
            raise UsageError(f"unknown setting {name!r}.", remedy=_nearest(name, everything.names()))
        condition = everything[name].condition
        if condition is not None and not condition.holds(decided := _decided(everything, settings)):
            parameter = condition.parameter
            raise UsageError(
                f"{name} does not belong to the {parameter} {str(decided[parameter])!r}.",
                remedy=f"Leave it out, or set {parameter} to {condition.values[0]}.",
            )
    space = config_space((method,))
    checked = space.check(settings)
    if not declaration(method).layerwise and checked.get("layers", "all") != "all":
        raise UsageError(f"{method} cannot be restricted to some layers.", remedy="Leave out layers.")
    complete = space.check(space.restrict(checked).defaults() | checked)
    selection.check(complete)
    regularizers.check(complete, disables_to_base=declaration(method).traits.disables_to_base)
    return {name: complete[name] for name in space.names() if name in complete}


def shared_settings(settings: Mapping[str, Any]) -> dict[str, Any]:
    """The part of ``settings`` that every run of one search shares: how much is trained, and on which rows."""
    return {name: settings[name] for name in AMOUNT if name in settings} | selection.selection_keys(settings)


def applicable(settings: Mapping[str, Any]) -> dict[str, Any]:
    """``settings`` without those that belong to a method or selector that these settings do not choose."""
    space = config_space()
    decided = _decided(space, settings)
    known = [name for name in settings if name in space]
    foreign = [
        name for name in known if (condition := space[name].condition) is not None and not condition.holds(decided)
    ]
    return {name: value for name, value in settings.items() if name not in foreign}


def _decided(space: Space, settings: Mapping[str, Any]) -> dict[str, Any]:
    """What conditions ask for: the settings, and the defaults of those that are always there."""
    return {p.name: p.default for p in space.parameters if p.condition is None} | dict(settings)


def _only_with(method: str, space: Space) -> tuple[Parameter, ...]:
    condition = Condition("method", (method,))
    return tuple(
        replace(parameter, condition=condition) if parameter.condition is None else parameter
        for parameter in space.parameters
    )


def _nearest(name: str, known: tuple[str, ...]) -> str:
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    return f"Did you mean {close[0]}?" if close else f"Known: {', '.join(known)}."
