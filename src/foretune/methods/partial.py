"""Tuning a selection of the model's own parameters, as a peft tuner: what is chosen is copied, trained and swapped in.

A module that owns chosen parameters is wrapped; its adapter holds copies of them, and the forward pass runs the module
with the copies in place of its own (`torch.func.functional_call`). The base stays as it is, so switching off, two
selections on one base, saving only what was trained, and detaching are those of any adapter; merging copies the values
in. A selection that picks a tied embedding is refused: its other end, the head, would keep the old values.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from peft.tuners.tuners_utils import check_adapters_to_merge
from torch import nn

from foretune.catalogue.methods.partial import SELECTIONS
from foretune.errors import UsageError
from foretune.methods.adapter import AdapterMethod, Request
from foretune.methods.tuners.config import AdapterConfig
from foretune.methods.tuners.layer import AdapterLayer, Update
from foretune.methods.tuners.model import AdapterModel, define
from foretune.models.modules import roles
from foretune.models.selector import select


@dataclass
class PartialConfig(AdapterConfig):
    """Settings of a selection."""

    chosen: dict[str, list[str]] = field(default_factory=dict, metadata={"help": "Module -> its trained parameters."})

    method = "partial"
    knob = ""

    def chosen_of(self, module: str) -> list[str]:
        """Names of the trained parameters of a module."""
        return next((own for name, own in self.chosen.items() if module == name or module.endswith(f".{name}")), [])


class Replacement(Update):
    """Copies of some parameters of one module."""

    def __init__(self, base: nn.Module, inputs: int, outputs: int, config: Any, name: str) -> None:
        super().__init__(base, inputs, outputs, config, name)
        values = {own: base.get_parameter(own).detach() for own in config.chosen_of(name)}
        if not all(value.is_floating_point() for value in values.values()):
            raise TypeError(f"{name} is quantised, and integers have no gradient")
        self.values = nn.ParameterDict({own: nn.Parameter(value.clone()) for own, value in values.items()})

    def reset(self) -> None:
        """The base's own values."""

    def tensors(self) -> dict[str, torch.Tensor]:
        """Parameter name -> its value."""
        return dict(self.values.items())


class ReplacingLayer(AdapterLayer):
    """A module that runs with other values of some of its parameters."""

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """The module's output under the values of the active adapter (of the last one, where several are)."""
        if self.disable_adapters and self.merged:
            self.unmerge()
        active: list[Any] = self._active()
        if self.disable_adapters or self.merged or not active:
            return self.base_layer(*args, **kwargs)
        return torch.func.functional_call(self.base_layer, active[-1].tensors(), args, kwargs)

    def merge(self, safe_merge: bool = False, adapter_names: list[str] | None = None) -> None:
        """Copy the values into the module; what it held is kept until `unmerge`."""
        for name in check_adapters_to_merge(self, adapter_names):
            if name in self.updates:
                update: Any = self.updates[name]
                held = {own: self.base_layer.get_parameter(own).data for own in update.tensors()}
                for own, value in update.tensors().items():
                    if not bool(torch.isfinite(value).all()):
                        raise ValueError(f"the trained {own} holds NaN or infinity")
                    self.base_layer.get_parameter(own).data = value.detach().to(held[own].dtype).clone()
                self._held: dict[str, torch.Tensor] = {**held, **getattr(self, "_held", {})}
                self.merged_adapters.append(name)

    def unmerge(self) -> None:
        """Put the module's values back, bitwise."""
        for own, value in getattr(self, "_held", {}).items():
            self.base_layer.get_parameter(own).data = value
        self._held = {}
        self.merged_adapters = []


class PartialBase(AdapterModel):
    """Any module that owns chosen parameters is wrapped."""

    layer_class = ReplacingLayer

    def build(self, config: Any, base: nn.Module, name: str) -> Update:
        """The copies of the module called ``name``."""
        return Replacement(base, 0, 0, config, name)

    def _mergeable(self, base: nn.Module) -> bool:
        return True


def build(request: Request) -> PartialConfig:
    """The peft configuration: the chosen parameters by module, heads left out. Raises `UsageError`."""
    declared = SELECTIONS[request.method]
    names = select(request.model, declared.selector(request.own, request.layers))
    heads = {role.name for role in roles(request.model) if role.role == "head"}
    chosen: dict[str, list[str]] = {}
    for name in names:
        module, _, own = name.rpartition(".")
        if module not in heads:
            chosen.setdefault(module, []).append(own)
    table = request.model.get_input_embeddings()
    tied = getattr(request.model.config, "tie_word_embeddings", False)
    if tied and any(request.model.get_submodule(module) is table for module in chosen):
        raise UsageError(
            "the selection picks the embedding, which is tied to the head.",
            remedy="Add & !embedding to the expression.",
        )
    settings = {**request.settings(), "target_modules": list(chosen)}
    return PartialConfig(**settings, chosen=chosen)


define(PartialConfig, Replacement, model=PartialBase)
PARTIAL_METHODS = {name: AdapterMethod(name, build) for name in SELECTIONS}
