"""LoRA-GA (Wang, Yu & Li 2024, 2407.05000): LoRA whose first step goes where full fine-tuning's would.

With U S Vᵀ the decomposition of the gradient of a weight on some training rows (equations 7 to 9 of the paper),

    A₀ = (o^¼ / √γ) V[:, :r]ᵀ        B₀ = (o^¼ / √γ) U[:, r:2r]        y = W₀ x + s (B A − B₀ A₀) x

The paper takes s·B₀A₀ off the base weights; here the frozen pair (A₀, B₀) does, so the base stays what it is, switching
off gives it bitwise, and merging is exact. s = α/√r, as the paper has it. Without rows the start is LoRA's.

The gradients of all adapted weights are held at once, in float32: as much memory as those weights take.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from torch.nn.functional import linear

from foretune.methods.adapter import AdapterMethod, Request
from foretune.methods.attachment import PeftAttachment
from foretune.methods.tuners.config import AdapterConfig
from foretune.methods.tuners.layer import AdapterLayer, Update
from foretune.methods.tuners.model import define

OVERSAMPLING, POWER_ITERATIONS = 4, 4
"""Of the randomised decomposition (as peft's): 4r directions are looked for and 2r are used."""


@dataclass
class LoragaConfig(AdapterConfig):
    """Settings of LoRA-GA."""

    rank: int = field(default=16, metadata={"help": "Rank of the update."})
    alpha: float = field(default=32.0, metadata={"help": "The update is scaled by alpha over the root of the rank."})
    dropout: float = field(default=0.0, metadata={"help": "Dropout on the input of the update."})

    method = "loraga"


class Loraga(Update):
    """s (B A − B₀ A₀)."""

    def __init__(self, base: nn.Module, inputs: int, outputs: int, config: Any, name: str) -> None:
        super().__init__(base, inputs, outputs, config, name)
        rank = config.knob_of(name)
        self.scale: float = config.alpha / math.sqrt(rank)
        self.a = nn.Parameter(torch.empty(rank, inputs))
        self.b = nn.Parameter(torch.empty(outputs, rank))
        self.register_buffer("first_a", torch.zeros(rank, inputs))
        self.register_buffer("first_b", torch.zeros(outputs, rank))

    def reset(self) -> None:
        """LoRA's start: A Kaiming uniform, B = 0, nothing to take off."""
        nn.init.kaiming_uniform_(self.a, a=math.sqrt(5))
        nn.init.zeros_(self.b)

    def begin(self, a: torch.Tensor, b: torch.Tensor) -> None:
        """Start at A₀ (rank, inputs) and B₀ (outputs, rank), as rounded to the number type that is computed in."""
        with torch.no_grad():
            self.a.copy_(a)
            self.b.copy_(b)
            self.get_buffer("first_a").copy_(self.a)
            self.get_buffer("first_b").copy_(self.b)

    def forward(self, x: torch.Tensor, hidden: torch.Tensor) -> torch.Tensor:
        """(..., outputs)."""
        x = self.dropout(x)
        first_a, first_b = (self.get_buffer(name).to(x.dtype) for name in ("first_a", "first_b"))
        moved: torch.Tensor = linear(linear(x, self.a), self.b) - linear(linear(x, first_a), first_b)
        return moved * self.scale

    def delta(self) -> torch.Tensor:
        """(outputs, inputs) float."""
        first_a, first_b = self.get_buffer("first_a").float(), self.get_buffer("first_b").float()
        moved: torch.Tensor = self.b.float() @ self.a.float() - first_b @ first_a
        return self.scale * moved


def weight_gradients(
    model: Any, weights: Mapping[str, torch.Tensor], calibration: Iterable[Mapping[str, Any]]
) -> dict[str, torch.Tensor]:
    """Name -> float32 gradient of the summed losses of the batches with respect to that weight."""
    sums = {name: torch.zeros(weight.shape, device=weight.device) for name, weight in weights.items()}
    asked = {name: weight.requires_grad for name, weight in weights.items()}
    try:
        for weight in weights.values():
            weight.requires_grad_(True)
        with torch.enable_grad():
            for batch in calibration:
                gradients = torch.autograd.grad(model(**batch).loss, list(weights.values()), allow_unused=True)
                for total, gradient in zip(sums.values(), gradients, strict=True):
                    if gradient is not None:
                        total += gradient.float()
    finally:
        for name, weight in weights.items():
            weight.requires_grad_(asked[name])
    return sums


def first_factors(gradient: torch.Tensor, rank: int, gamma: float) -> tuple[torch.Tensor, torch.Tensor]:
    """A₀ (rank, inputs) and B₀ (outputs, rank) for a gradient (outputs, inputs); zeros where 2·rank is too many."""
    found = min(OVERSAMPLING * rank, min(gradient.shape))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)  # of the sketch alone
        u, _, v = torch.svd_lowrank(gradient, q=found, niter=POWER_ITERATIONS)
    v = v.T
    size = gradient.shape[0] ** 0.25 / math.sqrt(gamma)
    a, b = torch.zeros(rank, gradient.shape[1]), torch.zeros(gradient.shape[0], rank)
    kept = min(rank, len(v))
    other = u[:, rank : 2 * rank]
    a[:kept], b[:, : other.shape[1]] = size * v[:kept], size * other
    return a, b


def build(request: Request) -> LoragaConfig:
    """The peft configuration."""
    return LoragaConfig(**request.settings("rank", "alpha", "dropout"))


def start(attachment: PeftAttachment, request: Request) -> None:
    """Find every layer's start from the gradient of its weight."""
    model: Any = attachment.model
    layers = {name: module for name, module in model.named_modules() if isinstance(module, AdapterLayer)}
    updates: dict[str, Any] = {name: layer.updates["default"] for name, layer in layers.items()}

    def look(calibration: Iterable[Mapping[str, Any]]) -> dict[str, torch.Tensor]:
        weights: dict[str, Any] = {name: layer.base_layer.weight for name, layer in layers.items()}
        if not all(weight.is_floating_point() for weight in weights.values()):
            raise ValueError("a 4-bit base has no gradient of its weights")
        found: dict[str, torch.Tensor] = {}
        for name, gradient in weight_gradients(model, weights, calibration).items():
            transposed = type(layers[name].base_layer).__name__ == "Conv1D"
            rank, gamma = len(updates[name].a), float(request.own["gamma"])
            a, b = first_factors(gradient.T if transposed else gradient, rank, gamma)
            found |= {f"{name}.a": a, f"{name}.b": b}
        return found

    if (first := request.from_rows(look)) is not None:
        for name, update in updates.items():
            update.begin(first[f"{name}.a"], first[f"{name}.b"])


define(LoragaConfig, Loraga)
METHOD = AdapterMethod("loraga", build, start)
