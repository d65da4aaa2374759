"""The diagonal Fisher information by one backward pass a sample: the plain form, kept as the reference.

It holds a gradient of every parameter and needs dense weights. `norms` gives the same means from batches.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import nn


def diagonal(model: nn.Module, losses: Iterable[Callable[[nn.Module], torch.Tensor]]) -> dict[str, torch.Tensor]:
    """(1/n) Σ_x (∂L(x)/∂θ)², element by element, by parameter name; each of ``losses`` gives one sample's () loss."""
    sums: dict[str, torch.Tensor] = {}
    names = [name for name, weight in model.named_parameters() if weight.requires_grad]
    weights = [weight for weight in model.parameters() if weight.requires_grad]
    count = 0
    for loss in losses:
        gradients = torch.autograd.grad(loss(model).sum(), weights, allow_unused=True)
        for name, gradient in zip(names, gradients, strict=True):
            if gradient is not None:
                square = gradient.detach().double().pow_(2)
                sums[name] = sums[name].add_(square) if name in sums else square
        count += 1
    return {name: total / count for name, total in sums.items()}
