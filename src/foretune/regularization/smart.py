"""SMART (Jiang et al. 2020, 1911.03437): predictions may not change under a small adversarial change of the embeddings.

The adversary: a perturbation δ of every row's input embeddings starts as small noise and climbs ``ascents`` times along
the gradient of KL(clean ‖ perturbed), each row's step ended on the Euclidean sphere of radius ``radius`` times the
embeddings' size (the sphere of virtual adversarial training, Miyato et al. 2018, 1704.03976; the paper's ball is of the
largest entry); the term is the symmetric KL of the clean and the perturbed pass. All passes share the clean pass's
dropout, so the divergence is the perturbation's alone. Costs ``ascents + 1`` further passes.

The proximal step (Bregman, with momentum: the paper's equations 5 and 6): predictions may not move far from those of an
average of the weights, D = symmetric KL(p_θ, p_θ̄) with θ̄ ← β θ̄ + (1 − β) θ after every update. θ̄ is asked without
dropout and gets no gradient. Costs a pass without gradients and a copy of the trained weights.

The loss is weight · (adversary + proximal · D). Symmetric KL is the mean of both directions, half of the paper's sum.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from foretune.data.update import MicroBatch
from foretune.models.modules import input_embeddings
from foretune.regularization.base import Context, Forward, Plan, Regularizer, Rerun, Term
from foretune.regularization.r_drop import NO_CHECKPOINTING
from foretune.regularization.row_noise import RowNoise

START = 0.1
"""Size of the first perturbation, relative to the radius: the gradient of a divergence at 0 is 0, near it rounding."""
EARLY_SHARE, EARLY_MEMORY, MEMORY = 0.1, 0.99, 0.999
"""β of the average of the weights: 0.99 for the first tenth of the updates, then 0.999, as in the paper."""
TRAINED_HEAD = (
    "the head is trained, and the average of the weights could not answer with its own. "
    "Use --set training.method=lora, or --set training.smart.proximal=0."
)


class Smart(Regularizer):
    """The adversary, the proximal step, and their term."""

    name = "smart"

    def __init__(self, weight: float = 1.0, radius: float = 1e-2, ascents: float = 1, proximal: float = 1.0) -> None:
        self.weight, self.radius, self.ascents, self.proximal = weight, radius, int(ascents), proximal
        self._context: Context | None = None
        self._average: dict[str, torch.Tensor] = {}
        """Float32, by name of the trained tensor; empty without the proximal step"""
        self._answers: dict[tuple[int, ...], Forward] = {}
        """What the average says of the update's micro-batches, by their rows"""
        self._step = 0
        self._moved = 0.0
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
        if self.proximal > 0 and context.kind != "encoder" and _head_is_trained(context):
            return Plan(self.name, refusal=TRAINED_HEAD)
        what = f"{self.ascents + 1} further passes under a perturbation of {self.radius:g}"
        if self.proximal == 0:
            return Plan(what, sites=("embedding",))
        held = sum(8 * weight.numel() for weight in context.weights)
        return Plan(f"{what}, and one of the weights' average", sites=("embedding",), extra_bytes=held)

    def setup(self, context: Context) -> None:
        """Place the hook, measure the embeddings, and begin the average."""
        embedding = input_embeddings(context.model)
        self._width = embedding.weight.shape[1]
        self._scale = float(embedding.weight.detach().float().pow(2).mean().sqrt())
        self._handle = embedding.register_forward_hook(self._add)
        if self.weight > 0 and self.proximal > 0:
            self._context = context
            pairs = zip(context.names, context.masters, strict=True)
            self._average = {name: master.detach().clone() for name, master in pairs}

    @torch.no_grad()
    def prepare(self, batch: MicroBatch) -> None:
        """Ask the average of the weights about a micro-batch; the weights are put back, bit for bit."""
        context = self._context
        if context is None:
            return
        before = [weight.detach().clone() for weight in context.weights]
        try:
            for weight, average in zip(context.weights, self._average.values(), strict=True):
                weight.copy_(average)
            self._answers[batch.rows] = context.quiet_pass(batch)
        finally:
            for weight, own in zip(context.weights, before, strict=True):
                weight.copy_(own)

    def _add(self, module: Any, inputs: Any, output: torch.Tensor) -> torch.Tensor:
        if self._delta is None or not module.training or self._delta.shape != output.shape:
            return output
        return output + self._delta.to(output.dtype)

    def pre_forward(self, step: int, batch: MicroBatch, generator: torch.Generator) -> None:
        """Note the step and the rows of the batch."""
        self._step = step
        self._batch, self._noise = batch, RowNoise.of(batch, generator)

    def loss(self, forward: Forward, rerun: Rerun, targets: int) -> Term | None:
        """Weight · Σ (symmetric KL under the adversary's perturbation + proximal · symmetric KL to the average)."""
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
        count = max(1, forward.labels.shape[0])
        self._divergence = float(divergence.detach()) / count
        if self._answers and self._batch is not None:
            moved = forward.symmetric_divergence(self._answers[self._batch.rows]).sum()
            self._moved = float(moved.detach()) / count
            divergence = divergence + self.proximal * moved
        return Term(self.weight * divergence, targets)

    def end_forward(self) -> None:
        """Let go of the average's answers."""
        self._answers = {}

    @torch.no_grad()
    def post_step(self, params: Sequence[torch.Tensor], learning_rate: float) -> None:
        """Let the average follow the weights."""
        if self._context is None:
            return
        early = self._step < EARLY_SHARE * self._context.total_steps
        for average, param in zip(self._average.values(), params, strict=True):
            average.lerp_(param, 1 - (EARLY_MEMORY if early else MEMORY))

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
        """Remove the hook and let go of the average."""
        self._context = None
        self._average, self._answers = {}, {}
        if self._handle is not None:
            self._handle.remove()
            self._handle = None

    def state_dict(self) -> dict[str, torch.Tensor]:
        """The average of the weights."""
        return dict(self._average)

    def load_state_dict(self, state: Mapping[str, torch.Tensor]) -> None:
        """Put the average back."""
        for name, average in self._average.items():
            average.copy_(state[name])

    def report(self) -> dict[str, float]:
        """Weight, and the last divergences in nats a target: of the adversary, and from the average."""
        return {"weight": self.weight, "last_divergence": self._divergence, "last_from_average": self._moved}


def _head_is_trained(context: Context) -> bool:
    head = context.model.get_output_embeddings()  # type: ignore[operator]
    return head is not None and any(
        weight is parameter for weight in context.weights for parameter in head.parameters()
    )
