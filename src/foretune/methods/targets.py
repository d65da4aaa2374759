"""Which linear layers a configuration adapts: ``<method>.targets`` and the key ``layers``, on shapes and on models.

Both sides read names only (`foretune.models.modules`), so that a count made from ``config.json`` and the adapter on
the loaded model agree layer by layer. Loads no torch.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from foretune.catalogue.methods.base import Target
from foretune.cost.shapes import ModelShapes
from foretune.models.modules import ModuleRole, chosen_linears, describe, is_linear, roles
from foretune.models.selector import select_modules

if TYPE_CHECKING:
    from torch import nn

ALL_LINEAR = "all-linear"


@lru_cache(maxsize=8)
def shape_linears(shapes: ModelShapes) -> tuple[Target, ...]:
    """Every linear layer inside the layers of a model that is known by its shapes, layer by layer."""
    found = []
    for linear in shapes.linears:
        for name in linear.names():
            role = describe(name)
            found.append(Target(name, role.role, linear.inputs, linear.outputs, role.layer, linear.bias))
    stacks = {name: describe(name).stack for name in (target.name for target in found)}
    return tuple(sorted(found, key=lambda target: (stacks[target.name] != "encoder", target.layer or 0)))


def shape_targets(shapes: ModelShapes, which: str = ALL_LINEAR, layers: str = "all") -> list[Target]:
    """The targets on a model known by its shapes. Raises `UsageError` when nothing answers to the words."""
    known = {target.name: target for target in shape_linears(shapes)}
    return [known[role.name] for role in _chosen([describe(name) for name in known], which, layers)]


def model_targets(model: nn.Module, which: str = ALL_LINEAR, layers: str = "all") -> list[Target]:
    """The targets on a loaded model. Raises `UsageError` when nothing answers to the words."""
    modules: dict[str, Any] = dict(model.named_modules())
    linears = [role for role in roles(model) if is_linear(modules[role.name])]
    return [_target(role, modules[role.name]) for role in _chosen(linears, which, layers)]


def config_targets(source: ModelShapes | nn.Module, own: Mapping[str, Any], layers: str = "all") -> list[Target]:
    """The targets that a method's own settings and ``layers`` choose."""
    which = str(own.get("targets", ALL_LINEAR))
    if isinstance(source, ModelShapes):
        return shape_targets(source, which, layers)
    return model_targets(source, which, layers)


def _chosen(linears: Sequence[ModuleRole], which: str, layers: str) -> list[ModuleRole]:
    chosen = chosen_linears(linears, which)
    if layers == "all":
        return chosen
    kept = {role.name for role in select_modules(linears, layers)}
    both = [role for role in chosen if role.name in kept]
    return both or select_modules(chosen, layers)  # the second raises with the roles there are


def _target(role: ModuleRole, module: Any) -> Target:
    outputs, inputs = tuple(module.weight.shape)[:2]
    if hasattr(module, "in_features"):
        inputs, outputs = module.in_features, module.out_features
    elif hasattr(module, "nf"):  # GPT-2's Conv1D keeps its matrix as (inputs, outputs)
        inputs, outputs = outputs, inputs
    return Target(role.name, role.role, inputs, outputs, role.layer, module.bias is not None)
