"""AdamW on float32 masters of the trainable weights, and the learning-rate schedules.

The model computes in bfloat16 where that is fast; a bfloat16 weight has eight bits of mantissa, and late in the
schedule most updates would round away. So the optimiser steps a float32 master of each trainable tensor, and the
model gets the rounded copy. Gradients of micro-batches are summed in float32 on the master.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch

Schedule = Literal["linear", "cosine", "constant"]
ADAM_BETAS = (0.9, 0.999)
ADAM_EPSILON = 1e-8
MASTER = "master/"
"""What the names of weights begin with in `MasterWeights.state`; moments are called otherwise."""


@dataclass(frozen=True)
class OptimizerSettings:
    """How the weights move."""

    learning_rate: float
    total_steps: int
    schedule: Schedule = "linear"
    warmup_share: float = 0.03
    weight_decay: float = 0.0
    max_gradient_norm: float = 1.0

    def factor(self, step: int) -> float:
        """The share of the peak learning rate in update ``step`` (0-based).

        Warm-up rises linearly from 0 over ⌈share · total⌉ updates, but never over all of them; then linear or cosine
        decay towards 0 at ``total_steps``, as transformers' schedules of the same names.
        """
        warmup = min(math.ceil(self.warmup_share * self.total_steps), self.total_steps - 1)
        if step < warmup:
            return step / max(1, warmup)
        if self.schedule == "constant":
            return 1.0
        progress = (step - warmup) / max(1, self.total_steps - warmup)
        if self.schedule == "linear":
            return max(0.0, 1.0 - progress)
        return max(0.0, 0.5 * (1.0 + math.cos(math.pi * progress)))


class MasterWeights:
    """Float32 masters of the trainable tensors, their gradients and their optimiser."""

    def __init__(self, groups: Sequence[Mapping[str, Any]], settings: OptimizerSettings) -> None:
        """``groups`` come from `Attachment.parameter_groups`: names, params, lr, weight_decay (bool), and for tensors
        that train in a part of the run only its ``window``, two shares of it."""
        self.settings = settings
        self.names: list[str] = []
        self.weights: list[torch.Tensor] = []
        self.masters: list[torch.Tensor] = []
        self._windows: list[tuple[list[torch.Tensor], tuple[float, float]]] = []
        optimizer_groups = []
        for group in groups:
            masters = []
            for name, weight in zip(group["names"], group["params"], strict=True):
                same = weight.dtype == torch.float32
                master = weight if same else weight.detach().float().requires_grad_(True)
                self.names.append(name)
                self.weights.append(weight)
                self.masters.append(master)
                masters.append(master)
            if "window" in group:
                self._windows.append((masters, group["window"]))
            decay = settings.weight_decay if group["weight_decay"] else 0.0
            optimizer_groups.append({"params": masters, "lr": group["lr"], "peak": group["lr"], "weight_decay": decay})
        self.optimizer: torch.optim.Optimizer = torch.optim.AdamW(
            optimizer_groups, betas=ADAM_BETAS, eps=ADAM_EPSILON, fused=True
        )

    def collect(self) -> None:
        """Move the gradients of the computing copies to the masters, adding in float32."""
        begun: tuple[list[torch.Tensor], list[torch.Tensor]] = ([], [])
        added: tuple[list[torch.Tensor], list[torch.Tensor]] = ([], [])
        for weight, master in zip(self.weights, self.masters, strict=True):
            if weight is master or weight.grad is None:
                continue
            sums, parts = added
            if master.grad is None:
                master.grad = torch.empty_like(master)
                sums, parts = begun
            sums.append(master.grad)
            parts.append(weight.grad)
            weight.grad = None
        if begun[0]:
            torch._foreach_copy_(*begun)
        if added[0]:
            torch._foreach_add_(*added)

    def hold(self, step: int) -> None:
        """Forget the gradients of tensors that do not train in update ``step`` (0-based)."""
        for masters, (first, last) in self._windows:
            if not first <= step / self.settings.total_steps < last:
                for master in masters:
                    master.grad = None

    def clear(self) -> None:
        """Forget all gradients."""
        for tensor in (*self.weights, *self.masters):
            tensor.grad = None

    def gradient_norm(self) -> float:
        """The Euclidean norm of all gradients together; NaN or infinite when any element is."""
        gradients = [master.grad for master in self.masters if master.grad is not None]
        return float(torch.nn.utils.get_total_norm(gradients)) if gradients else 0.0

    def rate(self, step: int) -> float:
        """The learning rate of update ``step`` (0-based) in the first group."""
        return float(self.optimizer.param_groups[0]["peak"]) * self.settings.factor(step)

    def step(self, step: int, gradient_norm: float) -> None:
        """Clip the gradients to the norm's limit and take optimiser step ``step`` (0-based)."""
        limit = self.settings.max_gradient_norm
        if limit > 0 and gradient_norm > limit:
            scale = limit / (gradient_norm + 1e-6)  # the guard against 0 that torch's clipping uses
            torch._foreach_mul_([master.grad for master in self.masters if master.grad is not None], scale)
        for group in self.optimizer.param_groups:
            group["lr"] = group["peak"] * self.settings.factor(step)
        self.optimizer.step()

    def publish(self) -> None:
        """Copy the masters into the weights the model computes with."""
        pairs = [(w, m) for w, m in zip(self.weights, self.masters, strict=True) if w is not m]
        if pairs:
            with torch.no_grad():
                torch._foreach_copy_([weight for weight, _ in pairs], [master for _, master in pairs])

    def state(self) -> dict[str, torch.Tensor]:
        """Masters and moments by name, as safetensors stores them."""
        tensors: dict[str, torch.Tensor] = {}
        for name, master in zip(self.names, self.masters, strict=True):
            tensors[MASTER + name] = master.detach()
            for key, value in self.optimizer.state.get(master, {}).items():
                tensors[f"{key}/{name}"] = value.detach()
        return tensors

    def load_state(self, tensors: Mapping[str, torch.Tensor]) -> None:
        """Put back `state`, then publish; a missing master raises KeyError."""
        with torch.no_grad():
            for name, master in zip(self.names, self.masters, strict=True):
                master.copy_(tensors[MASTER + name])
                moments = {
                    key: tensors[f"{key}/{name}"].clone().to(master.device)  # the fused step counts on the device too
                    for key in ("step", "exp_avg", "exp_avg_sq")
                    if f"{key}/{name}" in tensors
                }
                if moments:
                    self.optimizer.state[master] = moments
        self.publish()


def without_moments(state: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The weights of a `MasterWeights.state`, from which a training can start but not go on."""
    return {name: tensor for name, tensor in state.items() if name.startswith(MASTER)}
