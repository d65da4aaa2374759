"""A slice of the loss around a model: L(W + t·D) along one random direction of a stated norm.

D is Gaussian, each row scaled to the norm of its row of W (filter normalisation, Li et al. 2018, 1712.09913) and the
whole then to ``norm`` times the norm of all base weights together: two systems over one base are moved by the very same
D, so that their slices can be compared; without equal norms the flatter one is only the one that was moved less. The
linear layers of the base are moved, which moves the merged weight of an adapter alike, and put back bit for bit.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from foretune.errors import UsageError
from foretune.models.modules import describe, is_linear
from foretune.seeding import torch_generator

POSITIONS = (-1.0, -0.75, -0.5, -0.25, 0.0, 0.25, 0.5, 0.75, 1.0)


@dataclass(frozen=True)
class Slice:
    """Losses along one direction."""

    positions: tuple[float, ...]
    losses: tuple[float, ...]
    norm: float
    """‖D‖ over ‖W‖"""
    seed: int

    @property
    def rise(self) -> float:
        """Mean loss at the two ends minus the loss in the middle."""
        middle = min(range(len(self.positions)), key=lambda i: abs(self.positions[i]))
        return (self.losses[0] + self.losses[-1]) / 2 - self.losses[middle]


@torch.no_grad()
def slice_of(
    model: Any, loss: Callable[[], float], *, norm: float, seed: int = 0, positions: Sequence[float] = POSITIONS
) -> Slice:
    """The slice of ``model``; ``loss`` measures it as it stands. Raises `UsageError` for packed (4-bit) weights."""
    weights = _weights(model)
    with _kept(weights):
        before = [weight.detach().clone() for weight in weights]
        direction = _direction(before, norm, seed)
        losses = []
        for position in positions:
            for weight, origin, part in zip(weights, before, direction, strict=True):
                weight.copy_(origin.float().add(part, alpha=position))
            losses.append(loss())
    return Slice(tuple(positions), tuple(losses), norm, seed)


def _weights(model: Any) -> list[Any]:
    """Weights of the linear layers inside the blocks, an adapter's own left out."""
    found = []
    for name, module in model.named_modules():
        inside = describe(name).layer is not None and not any(part.startswith("lora_") for part in name.split("."))
        if inside and is_linear(module) and "weight" in module._parameters:
            found.append(module.weight)
    if not found or any(not weight.is_floating_point() for weight in found):
        raise UsageError("the landscape needs dense linear layers.", remedy="Load the base without 4 bits.")
    return found


def _direction(weights: Sequence[torch.Tensor], norm: float, seed: int) -> list[torch.Tensor]:
    own = torch_generator(seed, "landscape")
    parts = []
    for weight in weights:
        drawn = torch.randn(weight.shape, generator=own).to(weight.device)
        rows = drawn.norm(dim=1, keepdim=True).clamp_min(torch.finfo(torch.float32).tiny)
        parts.append(drawn / rows * weight.float().norm(dim=1, keepdim=True))
    whole = torch.linalg.vector_norm(torch.stack([weight.float().norm() for weight in weights]))
    length = torch.linalg.vector_norm(torch.stack([part.norm() for part in parts]))
    return [part.mul_(norm * whole / length) for part in parts]


@contextmanager
def _kept(weights: Sequence[nn.Parameter]) -> Iterator[None]:
    before = [weight.detach().clone() for weight in weights]
    try:
        yield
    finally:
        for weight, origin in zip(weights, before, strict=True):
            weight.copy_(origin)
