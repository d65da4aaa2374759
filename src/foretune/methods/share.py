"""``--trainable 0.5%``: the settings of a run that trains that share of the model's parameters.

The user's method is kept; its knob is solved. Where the share is out of reach on all linear layers (rank 1 of LoRA is
0.227 % of SmolLM2-135M), fewer layers are adapted, unless the user fixed them, and where no method was named, another
one may be taken. What was changed is said. Loads no torch.

Alpha stays what it is when the rank changes, in a fit and in a study: an update scaled by alpha / rank learns about as
fast at every rank for one learning rate (Schulman et al. 2025), so the rule's rate stays right. With alpha / rank kept
instead, small ranks would learn too slowly.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from foretune.catalogue.methods import METHODS, Declaration, declaration
from foretune.catalogue.methods.base import RAISED, TARGET_CHOICES
from foretune.catalogue.space import Choice, Number
from foretune.cost.shapes import ModelShapes
from foretune.errors import UsageError
from foretune.methods.base import Infeasible, KnobChoice
from foretune.methods.trainable import count, countable, knob_for
from foretune.units import format_share

PREFERRED = ("lora", "vera", "fourierft", "bitfit")
"""Methods that are tried in this order where none was named: the most tested first, then the smallest."""
FEWEST_LAYERS = 1
MENU_EXEMPT = frozenset({"alpha", "dropout"})


@dataclass(frozen=True)
class Sized:
    """A method sized for a share."""

    method: str
    settings: Mapping[str, Any]
    """What is fixed by it: the knob, and where it was changed ``layers`` or targets"""
    parameters: int
    share: float
    changed: str = ""
    """What was changed besides the knob to meet the share; empty where nothing was"""


@dataclass(frozen=True)
class Missed:
    """A method that cannot meet the share, and the sizes nearest to it."""

    method: str
    why: str
    nearest: KnobChoice | None


def size(declared: Declaration, shapes: ModelShapes, trainable: float, fixed: Mapping[str, Any]) -> Sized | Missed:
    """One method at the share ``trainable``, on fewer layers where it must be; ``fixed`` are the user's settings."""
    try:
        first = knob_for(declared, shapes, trainable, fixed)
    except UsageError as error:  # such parameters are not in this model
        return Missed(declared.name, error.what.rstrip("."), None)
    if isinstance(first, KnobChoice):
        return Sized(declared.name, first.fields, first.parameters, first.share)
    for changes, words in _fewer_layers(declared, shapes, fixed):
        choice = _tried(declared, shapes, trainable, {**fixed, **changes})
        if choice is not None:
            return Sized(declared.name, {**changes, **choice.fields}, choice.parameters, choice.share, words)
    nearest = first.alternatives[0] if first.alternatives else None
    return Missed(declared.name, first.why, nearest)


def _tried(declared: Declaration, shapes: ModelShapes, trainable: float, fixed: Mapping[str, Any]) -> KnobChoice | None:
    try:
        choice = knob_for(declared, shapes, trainable, fixed)
    except UsageError:  # such layers are not in this model
        return None
    return None if isinstance(choice, Infeasible) else choice


def _fewer_layers(
    declared: Declaration, shapes: ModelShapes, fixed: Mapping[str, Any]
) -> Iterator[tuple[dict[str, Any], str]]:
    """Ever fewer layers: the feed-forward or attention ones alone, then the upper half, quarter, … of all."""
    if declared.family == "selection":
        return
    targets = f"{declared.name}.targets"
    if targets in declared.space and targets not in fixed:
        for which in TARGET_CHOICES[:0:-1]:
            yield {targets: which}, f"only {which} layers are adapted"
    if declared.layerwise and fixed.get("layers", "all") == "all":
        kept = max(shapes.layers, shapes.encoder_layers) // 2
        while kept >= FEWEST_LAYERS:
            yield {"layers": f"last:{kept}"}, f"only the upper {kept} layers of a stack are adapted"
            if targets in declared.space and targets not in fixed:
                which = "attention"
                changes = {"layers": f"last:{kept}", targets: which}
                yield changes, f"only {which} in the upper {kept} layers of a stack is adapted"
            kept //= 2


def settings_for(shapes: ModelShapes, trainable: float, fixed: Mapping[str, Any]) -> Sized:
    """What ``--trainable`` fixes beside the user's ``fixed`` settings. Raises `UsageError` with alternatives."""
    if "method" in fixed:
        found = size(declaration(str(fixed["method"])), shapes, trainable, fixed)
        if isinstance(found, Sized):
            return _settled(found, shapes, fixed)
        raise _refusal(found, shapes, trainable)
    missed: list[Missed] = []
    for name in PREFERRED:
        if name not in METHODS or shapes.kind not in METHODS[name].kinds:
            continue
        found = size(METHODS[name], shapes, trainable, fixed)
        if isinstance(found, Sized):
            if missed:
                said = "; ".join(filter(None, (f"{missed[0].method} cannot ({missed[0].why})", found.changed)))
                found = Sized(found.method, found.settings, found.parameters, found.share, said)
            return _settled(found, shapes, fixed)
        missed.append(found)
    raise _refusal(missed[0], shapes, trainable)


def _settled(found: Sized, shapes: ModelShapes, fixed: Mapping[str, Any]) -> Sized:
    """Also fix what a search would draw and what changes the count: the share is kept in every trial."""
    declared = declaration(found.method)
    settings: dict[str, Any] = {"method": found.method, **found.settings}
    config = {**fixed, **settings}
    own = declared.own(config)
    for parameter in declared.menu.parameters:
        name = parameter.name.removeprefix(f"{declared.name}.")
        if parameter.name in config or name in MENU_EXEMPT:
            continue
        options = parameter.options if isinstance(parameter, Choice) else ()
        if isinstance(parameter, Number) or any(
            count(shapes, {**config, parameter.name: option}) != found.parameters for option in options
        ):
            settings[parameter.name] = own[name]
    return Sized(found.method, settings, found.parameters, found.share, found.changed)


def _refusal(missed: Missed, shapes: ModelShapes, trainable: float) -> UsageError:
    others = []
    for name, declared in METHODS.items():
        if name == missed.method or declared.family == "whole" or not countable(declared):
            continue
        if shapes.kind in declared.kinds and isinstance(size(declared, shapes, trainable, {}), Sized):
            others.append(name)
    nearest = missed.nearest
    near = "" if nearest is None else f"Its nearest share is {format_share(nearest.share)}. "
    instead = f"Methods that can: {', '.join(others[:8])}." if others else "No other method can."
    return UsageError(
        f"{missed.method} cannot train {format_share(trainable)} of {shapes.parameters:,} parameters: {missed.why}.",
        remedy=near + instead,
    )


def with_share(config: Mapping[str, Any], share: float, shapes: ModelShapes) -> dict[str, Any]:
    """``config`` with the knob of its method set to train ``share`` of the parameters; raises `UsageError`.

    Targets, layers and alpha stay as they are.
    """
    declared = declaration(str(config["method"]))
    knob = f"{declared.name}.{declared.knob}"
    found = knob_for(declared, shapes, share, {key: value for key, value in config.items() if key != knob})
    if isinstance(found, Infeasible):
        nearest = found.alternatives[0] if found.alternatives else None
        raise UsageError(
            f"{declared.name} cannot train {format_share(share)} of {shapes.parameters:,} parameters: {found.why}.",
            remedy="" if nearest is None else f"Its nearest share is {format_share(nearest.share)}.",
        )
    return {**config, **({f"{declared.name}.{RAISED}": 0} if declared.fills else {}), **found.fields}
