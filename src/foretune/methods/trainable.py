"""Trainable share ⇄ settings: how many parameters a configuration trains, and which settings train a given share.

Everything here reads shapes (``config.json``) and loads no torch, so that a plan and ``foretune methods size`` answer
at once. The share is of *all* parameters of the model. A method's knob is a whole number whose count rises (or, for
RandLoRA, falls) with it; it is found by bisection. Where the method can give single targets a knob one higher
(``raised``), the rest of the share is filled with that, feed-forward and upper layers first.

What it does not do: judge whether a share is wise (`catalogue.priors`), or count methods that have no closed form.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from foretune.catalogue.methods import Declaration, declaration
from foretune.catalogue.methods.base import RAISED, Target
from foretune.cost.shapes import ModelShapes
from foretune.errors import UsageError
from foretune.methods.base import Infeasible, KnobChoice
from foretune.methods.targets import config_targets
from foretune.models.shape_parameters import picked_size

TOLERANCE = 0.02
"""A share is met when the count is this close to it, or within one step of the knob."""


def count(shapes: ModelShapes, config: Mapping[str, Any]) -> int:
    """Trainable parameters of a flat configuration; a classifier's new head is not counted.

    Raises `UsageError` for a method without a closed form or a selector that picks nothing.
    """
    declared = declaration(str(config["method"]))
    if declared.family == "whole":
        return shapes.parameters
    own, layers = declared.own(config), str(config.get("layers", "all"))
    if declared.expression:
        return _picked(declared, shapes, own, layers)
    if declared.count is None:
        raise UsageError(f"{declared.name} has no closed count; it is counted when it is attached.")
    return declared.count(config_targets(shapes, own, layers), shapes, own)


def countable(declared: Declaration) -> bool:
    """Whether `count` knows the method without attaching it."""
    return declared.family == "whole" or bool(declared.expression) or declared.count is not None


def _picked(declared: Declaration, shapes: ModelShapes, own: Mapping[str, Any], layers: str) -> int:
    size = picked_size(shapes, declared.selector(own, layers))
    if size == 0:
        raise UsageError(
            f"{declared.name} picks no parameter of a {shapes.architecture} model.", remedy="Choose another method."
        )
    return size


@dataclass(frozen=True)
class _Sizes:
    """Counts of one method on one model, by knob."""

    declared: Declaration
    shapes: ModelShapes
    own: Mapping[str, Any]
    layers: str
    targets: Sequence[Target]

    def at(self, knob: int | None, raised: int = 0) -> int:
        changes: dict[str, Any] = {} if knob is None else {self.declared.knob: knob}
        if self.declared.expression:
            return _picked(self.declared, self.shapes, {**self.own, **changes}, self.layers)
        assert self.declared.count is not None
        return self.declared.count(self.targets, self.shapes, {**self.own, **changes, RAISED: raised})


def knob_for(
    declared: Declaration, shapes: ModelShapes, trainable: float, fields: Mapping[str, Any]
) -> KnobChoice | Infeasible:
    """The settings of a method whose count is nearest to ``trainable`` of all parameters, or why there are none.

    ``fields`` are what the user fixed (``lora.targets``, ``layers``). Raises `UsageError` for a share that is none.
    """
    if not 0.0 < trainable <= 1.0:
        raise UsageError(f"a trainable share of {trainable:g} is none.", remedy="Use more than 0 and at most 100 %.")
    if declared.family == "whole":
        whole = KnobChoice({}, shapes.parameters, 1.0)
        return whole if trainable == 1.0 else Infeasible(f"{declared.name} trains every parameter", (whole,))
    if not countable(declared):
        return Infeasible(f"{declared.name} has no closed count")
    own, layers = declared.own(fields), str(fields.get("layers", "all"))
    sizes = _Sizes(declared, shapes, own, layers, () if declared.expression else config_targets(shapes, own, layers))
    wanted = trainable * shapes.parameters
    if not declared.knob:
        return _fixed(sizes, wanted)
    return _solved(sizes, wanted)


def _fixed(sizes: _Sizes, wanted: float) -> KnobChoice | Infeasible:
    choice = _choice(sizes, None)
    if abs(choice.parameters - wanted) <= TOLERANCE * wanted:
        return choice
    return Infeasible(f"{sizes.declared.name} has a fixed size of {choice.parameters:,} parameters", (choice,))


def _solved(sizes: _Sizes, wanted: float) -> KnobChoice | Infeasible:
    low, high = sizes.declared.knob_range
    rising = sizes.at(high) >= sizes.at(low)
    least, most = (low, high) if rising else (high, low)
    if wanted < sizes.at(least):
        choice = _choice(sizes, least)
        if choice.parameters - wanted <= TOLERANCE * wanted:
            return choice
        return Infeasible(
            f"{sizes.declared.knob} {least} already trains {choice.parameters:,} parameters "
            f"({100 * choice.share:.3g} %)",
            (choice,),
        )
    if wanted > (1 + TOLERANCE) * sizes.at(most):
        choice = _choice(sizes, most)
        return Infeasible(
            f"{sizes.declared.knob} {most} trains no more than {choice.parameters:,} parameters "
            f"({100 * choice.share:.3g} %)",
            (choice,),
        )
    knob = _largest_below(sizes, wanted, low, high, rising=rising)
    if sizes.declared.fills:
        return _choice(sizes, knob, _filled(sizes, knob, wanted))
    step = knob + (1 if rising else -1)
    if low <= step <= high and abs(sizes.at(step) - wanted) < abs(sizes.at(knob) - wanted):
        knob = step
    return _choice(sizes, knob)


def _largest_below(sizes: _Sizes, wanted: float, low: int, high: int, *, rising: bool) -> int:
    """The knob with the largest count that is not above ``wanted``, by bisection."""
    while low < high:
        middle = (low + high + 1) // 2 if rising else (low + high) // 2
        fits = sizes.at(middle) <= wanted
        if rising:
            low, high = (middle, high) if fits else (low, middle - 1)
        else:
            low, high = (low, middle) if fits else (middle + 1, high)
    return low


def _filled(sizes: _Sizes, knob: int, wanted: float) -> int:
    """How many targets may have the next knob without going above ``wanted``."""
    if knob >= sizes.declared.knob_range[1]:
        return 0
    low, high = 0, len(sizes.targets) - 1
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if sizes.at(knob, middle) <= wanted else (low, middle - 1)
    return low


def _choice(sizes: _Sizes, knob: int | None, raised: int = 0) -> KnobChoice:
    name = sizes.declared.name
    fields: dict[str, Any] = {} if knob is None else {f"{name}.{sizes.declared.knob}": knob}
    if raised:
        fields[f"{name}.{RAISED}"] = raised
    parameters = sizes.at(knob, raised)
    return KnobChoice(fields, parameters, parameters / sizes.shapes.parameters)
