"""SMART (Jiang et al. 2020, 1911.03437): predictions may not change under a small adversarial change of the embeddings.

A perturbation δ of every row's input embeddings starts as small noise and climbs ``ascents`` times along the gradient
of KL(clean ‖ perturbed), each row's step normalised and ended on the sphere of radius ``radius`` times the
embeddings' size; the term is weight · symmetric KL of the clean and the perturbed pass. All passes share the clean
pass's dropout, so the divergence is the perturbation's alone. The paper's second part, the Bregman proximal step, is
not here: kl-to-base and l2-sp are its neighbours. Costs ``ascents + 1`` further passes.
"""

from __future__ import annotations

from typing import Any

import torch

from foretune.data.update import MicroBatch
from foretune.regularization.base import Context, Forward, Plan, Regularizer, Rerun, Term
from foretune.regularization.r_drop import NO_CHECKPOINTING
from foretune.regularization.row_noise import RowNoise

START = 0.1
"""Size of the first perturbation, relative to the radius: the gradient of a divergence at 0 is 0, near it rounding."""


class Smart(Regularizer):
    """The adversary and its term."""

    name = "smart"

    def __init__(self, weight: float = 1.0, radius: float = 1e-2, ascents: float = 1) -> None:
        self.weight, self.radius, self.ascents = weight, radius, int(ascents)
        self._handle: Any = None
        self._delta: torch.Tensor | None = None
        self._noise: RowNoise | None = None
        self._batch: MicroBatch | None = None
        self._scale = 1.0
        self._width = 0
        self._divergence = 0.0

    def check(self, context: Context) -> Plan:
        """Refused with gradient checkpointing, which would recompute passes with another perturbation."""
        if getattr(context.model, "is_gradient_checkpointing", False):
            return Plan(self.name, refusal=NO_CHECKPOINTING)
        return Plan(f"{self.ascents + 1} further passes under a perturbation of {self.radius:g}", sites=("embedding",))

    def setup(self, context: Context) -> None:
        """Place the hook and measure the embeddings."""
        embedding = context.model.get_input_embeddings()  # type: ignore[operator]
        self._width = embedding.weight.shape[1]
        self._scale = float(embedding.weight.detach().float().pow(2).mean().sqrt())
        self._handle = embedding.register_forward_hook(self._add)

    def _add(self, module: Any, inputs: Any, output: torch.Tensor) -> torch.Tensor:
        if self._delta is None or not module.training or self._delta.shape != output.shape:
            return output
        return output + self._delta.to(output.dtype)

    def pre_forward(self, step: int, batch: MicroBatch, generator: torch.Generator) -> None:
        """Note the rows of the batch."""
        self._batch, self._noise = batch, RowNoise.of(batch, generator)

    def loss(self, forward: Forward, rerun: Rerun, targets: int) -> Term | None:
        """Weight · Σ symmetric KL under the adversary's perturbation."""
        if self.weight == 0:
            return None
        delta = self._start()
        fixed = forward.hidden.detach()
        try:
            for _ in range(self.ascents):
                self._delta = delta.requires_grad_(True)
                perturbed = rerun(fresh=False)
                slope = torch.autograd.grad(perturbed.divergence_from(fixed).sum(), self._delta)[0]
                delta = self._on_sphere(slope.detach())
            self._delta = delta
            divergence = forward.symmetric_divergence(rerun(fresh=False)).sum()
        finally:
            self._delta = None
        self._divergence = float(divergence.detach()) / max(1, forward.labels.shape[0])
        return Term(self.weight * divergence, targets)

    def _start(self) -> torch.Tensor:
        """(batch, time, width) small noise, each row's own."""
        assert self._batch is not None and self._noise is not None
        delta = torch.zeros((*self._batch.ids.shape, self._width), device=self._batch.ids.device)
        for part, _, own in self._noise.parts(delta):
            part.copy_(torch.randn(part.shape, generator=own, device=part.device))
        return delta.mul_(START * self.radius * self._scale)

    def _on_sphere(self, slope: torch.Tensor) -> torch.Tensor:
        """The point of each row's sphere in the direction of ``slope``; rows without slope stay at 0."""
        assert self._noise is not None
        for part, length, _ in self._noise.parts(slope):
            size = self.radius * self._scale * (length * self._width) ** 0.5
            part.mul_(size / part.norm().clamp_min(torch.finfo(part.dtype).tiny))
        return slope

    def teardown(self) -> None:
        """Remove the hook."""
        if self._handle is not None:
            self._handle.remove()
            self._handle = None

    def report(self) -> dict[str, float]:
        """Weight and last divergence in nats a target."""
        return {"weight": self.weight, "last_divergence": self._divergence}
