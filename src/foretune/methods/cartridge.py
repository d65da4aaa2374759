"""Cartridges (Eyuboglu et al. 2025, 2506.06266): a text's own keys and values, trained on as a prefix.

The prefix starts as what the base computes of the first n tokens of calibration rows, so a fresh cartridge is that text
before every row, whose positions move behind it. The first key and value stay as they are: much attention rests there.
With ``start=random`` they are drawn, as of a prefix. The paper's training on a model's own conversations about the text
is a matter of the rows.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from foretune.catalogue.methods.sites import attentions_of
from foretune.errors import UsageError
from foretune.methods.adapter import AdapterMethod, Request
from foretune.methods.attachment import PeftAttachment
from foretune.methods.cpt import context_of
from foretune.methods.tuners.config import AdapterConfig
from foretune.methods.tuners.layer import AdapterLayer, Update
from foretune.methods.tuners.model import define
from foretune.methods.tuners.prefix import PrefixModel, PrefixUpdate
from foretune.methods.tuners.prompt import row_positions
from foretune.models.cache import cache_of

FROZEN = 1
"""Leading keys and values that are not trained"""


@dataclass
class CartridgeConfig(AdapterConfig):
    """Settings of a cartridge."""

    prefix: int = field(default=64, metadata={"help": "Keys and values of each attention."})

    method = "cartridge"
    knob = "prefix"


class Cartridge(PrefixUpdate):
    """Keys and values whose first one is held still."""

    def seen(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Keys and values (key heads, length, width)."""
        return _anchored(self.keys), _anchored(self.values)


def _anchored(tensor: torch.Tensor) -> torch.Tensor:
    return torch.cat([tensor[:, :FROZEN].detach(), tensor[:, FROZEN:]], dim=1)


class CartridgeModel(PrefixModel):
    """Attention modules get their part, and the backbone a hook that moves the rows' positions behind it."""

    def build(self, config: Any, base: nn.Module, name: str) -> Update:
        """The part of the attention module called ``name``."""
        return Cartridge(base, config.knob_of(name))

    def _post_injection_hook(self, model: Any, config: Any, adapter_name: str) -> None:
        if "handle" not in self.__dict__:
            self.__dict__["handle"] = model.base_model.register_forward_pre_hook(self._shift, with_kwargs=True)

    def _shift(self, backbone: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        layers = [layer for layer in self._layers() if not layer.disable_adapters and layer._active()]
        if not layers:
            return None
        active: list[Any] = layers[0]._active()
        length = sum(update.keys.shape[1] for update in active)
        return args, {**kwargs, "position_ids": row_positions(args, kwargs) + length}

    def _unload_and_optionally_merge(self, *args: Any, **settings: Any) -> nn.Module:
        model = super()._unload_and_optionally_merge(*args, **settings)
        self.__dict__["handle"].remove()
        return model


def build(request: Request) -> CartridgeConfig:
    """The peft configuration."""
    names = attentions_of(request.targets)
    return CartridgeConfig(target_modules=names, prefix=request.own["prefix"], task_type=request.task_type)


def start(attachment: PeftAttachment, request: Request) -> None:
    """Give the cartridge the base's keys and values of a text. Raises `UsageError` where there is none."""
    if request.own["start"] == "random":
        return
    length = int(request.own["prefix"])
    found = request.from_rows(lambda calibration: {"tokens": torch.tensor(context_of(calibration, length)[0])})
    tokens = [] if found is None else found["tokens"].tolist()
    if len(tokens) < length:
        raise UsageError(
            f"cartridge.start=rows needs {length} tokens of training rows, and there are {len(tokens)}.",
            remedy="Use a shorter cartridge.prefix, or cartridge.start=random.",
        )
    model = attachment.model
    with attachment.disabled(), torch.no_grad():
        output = model.base_model(input_ids=torch.tensor([tokens], device=model.device), use_cache=True)
    layers = [module for module in model.modules() if isinstance(module, AdapterLayer)]
    for layer, kept in zip(layers, cache_of(output).layers, strict=True):
        update: Any = layer._active()[0]
        update.keys.data.copy_(kept.keys[0])
        update.values.data.copy_(kept.values[0])


define(CartridgeConfig, Cartridge, model=CartridgeModel)
METHOD = AdapterMethod("cartridge", build, start)
