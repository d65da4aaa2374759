"""LoFiT (Yin, Ye & Durrett 2024, 2406.01563): a learnt offset on the outputs of a few attention heads.

A head's output z ∈ R^{d_head} enters the output projection W_o; with an offset v the projection gives W_o(z + v), so
what is added is the constant W_o v, and merging moves it into the projection's bias exactly.

Heads are the K whose offset the loss asks for most: by the norm of the loss's gradient with respect to v at v = 0, on
calibration rows. (The paper trains a scale for each head under an L1 penalty first.) Without rows they are drawn.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from foretune.catalogue.methods.lofit import chosen_heads
from foretune.catalogue.methods.sites import sites_of
from foretune.errors import UsageError
from foretune.methods.adapter import AdapterMethod, Request
from foretune.methods.tuners.config import AdapterConfig
from foretune.methods.tuners.layer import Update
from foretune.methods.tuners.model import define


@dataclass
class LofitConfig(AdapterConfig):
    """Settings of LoFiT."""

    heads: dict[str, list[int]] = field(default_factory=dict, metadata={"help": "Module -> numbers of its heads."})
    head_dim: int = field(default=0, metadata={"help": "Width of a head."})

    method = "lofit"
    knob = ""

    def heads_of(self, module: str) -> list[int]:
        """Numbers of the chosen heads of a module."""
        return next((heads for name, heads in self.heads.items() if module == name or module.endswith(f".{name}")), [])


class Lofit(Update):
    """The constant W_o v of one layer."""

    def __init__(self, base: nn.Module, inputs: int, outputs: int, config: Any, name: str) -> None:
        super().__init__(base, inputs, outputs, config, name)
        heads, width = config.heads_of(name), config.head_dim
        self.offsets = nn.Parameter(torch.empty(len(heads), width))
        columns = torch.tensor(heads)[:, None] * width + torch.arange(width)
        self.register_buffer("columns", columns.reshape(-1), persistent=False)
        self.__dict__["base"] = base  # the layer's own module, not a child of the update

    def reset(self) -> None:
        """V = 0."""
        nn.init.zeros_(self.offsets)

    def _constant(self, weight: torch.Tensor) -> torch.Tensor:
        """(outputs,): W_o v for the weight (outputs, inputs)."""
        columns: Any = self.columns
        return weight[:, columns] @ self.offsets.reshape(-1).to(weight.dtype)

    def forward(self, x: torch.Tensor, hidden: torch.Tensor) -> torch.Tensor:
        """(..., outputs): W_o v at every position."""
        return self._constant(_weight(self.base)).expand_as(hidden)

    def merged(self, weight: torch.Tensor, bias: torch.Tensor | None) -> tuple[torch.Tensor, torch.Tensor | None]:
        """The weight, and b + W_o v."""
        constant = self._constant(weight)
        return weight, constant if bias is None else bias + constant


def _weight(base: Any) -> torch.Tensor:
    """(outputs, inputs) of a linear layer, of GPT-2's transposed one too."""
    weight: torch.Tensor = base.weight
    return weight.T if type(base).__name__ == "Conv1D" else weight


def gradient_scores(
    model: Any, modules: list[str], heads: int, head_dim: int, calibration: Iterable[Any]
) -> torch.Tensor:
    """(modules, heads) float32: the norm of the loss's gradient with respect to each head's offset.

    ``calibration`` yields keyword arguments of the model, labels among them. An offset is the same at every position,
    so its gradient is the sum over positions of the gradient of the head's output.
    """
    sums = torch.zeros(len(modules), heads, head_dim)
    probes = [torch.zeros(heads * head_dim, requires_grad=True) for _ in modules]

    def adding(probe: torch.Tensor) -> Any:
        return lambda _, inputs: (inputs[0] + probe.to(inputs[0]), *inputs[1:])

    hooks = [
        model.get_submodule(name).register_forward_pre_hook(adding(probe))
        for name, probe in zip(modules, probes, strict=True)
    ]
    try:
        with torch.enable_grad():
            for batch in calibration:
                gradients = torch.autograd.grad(model(**batch).loss, probes)
                sums += torch.stack([gradient.reshape(heads, head_dim).float() for gradient in gradients])
    finally:
        for hook in hooks:
            hook.remove()
    norms: torch.Tensor = torch.linalg.vector_norm(sums, dim=-1)
    return norms


def build(request: Request) -> LofitConfig:
    """The peft configuration, with the heads chosen."""
    modules = [site.exit for site in sites_of(request.targets, "after_attention")]
    config: Any = request.model.config
    config = config.get_text_config()
    heads = int(config.num_attention_heads)
    model: Any = request.model
    weight = _weight(model.get_submodule(modules[0]))
    if weight.shape[1] % heads or not weight.is_floating_point():
        raise UsageError("LoFiT needs attention heads of equal width and a base that is not quantised.")
    head_dim = weight.shape[1] // heads
    count = chosen_heads(len(modules), heads, float(request.own["share"]))

    def highest(scores: torch.Tensor) -> torch.Tensor:
        return scores.reshape(-1).argsort(descending=True)[:count].sort().values

    def look(calibration: Iterable[Any]) -> dict[str, torch.Tensor]:
        return {"heads": highest(gradient_scores(model, modules, heads, head_dim, calibration))}

    asked = request.from_rows(look) if request.own["selection"] == "gradient" else None
    drawn = torch.rand(len(modules), heads, generator=torch.Generator().manual_seed(request.seed % 2**31))
    chosen: dict[str, list[int]] = {}
    for number in (highest(drawn) if asked is None else asked["heads"]).tolist():
        chosen.setdefault(modules[number // heads], []).append(number % heads)
    return LofitConfig(
        target_modules=list(chosen),
        heads=chosen,
        head_dim=head_dim,
        task_type=request.task_type,
        seed=request.seed % 2**31,
    )


define(LofitConfig, Lofit)
METHOD = AdapterMethod("lofit", build)
