"""Child-tuning (Xu et al. 2021, 2109.05687): gradients of most weights are masked.

F (``random``): a fresh Bernoulli mask an update, the rest scaled up by its inverse share. D (``fisher``): the weights
of highest task Fisher information, taken once before training on single rows, (1/n) Σ (∂L/∂w)²; the mask is fixed. An
adapter whose product is zero at the start has no gradient on one factor, so its Fisher ranking is empty there:
refused.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from foretune.data.update import MicroBatch
from foretune.errors import UsageError
from foretune.regularization.base import Context, Plan, Regularizer
from foretune.seeding import generator as numpy_generator

NO_ROWS = "the task Fisher needs training rows, and there are none."


class ChildTuning(Regularizer):
    """The mask on the gradients."""

    name = "child-tuning"

    def __init__(self, share: float = 0.3, by: str = "random", fisher_rows: float = 128) -> None:
        self.share, self.by, self.fisher_rows = share, by, int(fisher_rows)
        self._masks: list[torch.Tensor] = []
        self._root: torch.Generator | None = None
        self._first = True
        """Whether the next pass is the first of an update"""
        self._kept = 1.0

    def check(self, context: Context) -> Plan:
        """Which kind of mask."""
        if self.by == "fisher" and (not len(context.rows) or context.lay_out is None):
            return Plan(self.name, refusal=NO_ROWS)
        count = sum(weight.numel() for weight in context.weights)
        how = "of highest task Fisher" if self.by == "fisher" else "drawn anew at every update"
        held = count if self.by == "fisher" and self.share < 1 else 0
        return Plan(f"{self.share:.0%} of {count} weights move, {how}", extra_bytes=held, shares_head=True)

    def setup(self, context: Context) -> None:
        """Take the task Fisher, for D. Raises `UsageError` where it is empty for a tensor."""
        if self.by != "fisher" or self.share == 1:
            return
        scores = task_fisher(context, self.fisher_rows)
        for name, score in zip(context.names, scores, strict=True):
            if not bool((score > 0).any()):
                raise UsageError(
                    f"child-tuning by Fisher cannot rank {name}: its gradient is zero before training.",
                    remedy="Use child-tuning.by=random, or --set training.method=full.",
                )
        flat = torch.cat([score.flatten() for score in scores])
        least = flat.kthvalue(max(1, flat.numel() - round(self.share * flat.numel()) + 1)).values
        self._masks = [score >= least for score in scores]
        self._kept = sum(int(mask.sum()) for mask in self._masks) / flat.numel()

    def pre_forward(self, step: int, batch: MicroBatch, generator: torch.Generator) -> None:
        """Keep the stream of the update's first pass; the mask is drawn when its gradients are complete."""
        if self._first:
            self._root, self._first = generator, False

    def end_forward(self) -> None:
        """The next pass is another update's, or this one's again: its stream is its own."""
        self._first = True

    @torch.no_grad()
    def pre_step(self, params: Sequence[torch.Tensor], learning_rate: float) -> None:
        """Mask the gradients."""
        if self.share == 1:
            return
        if self._masks:
            for param, mask in zip(params, self._masks, strict=True):
                if param.grad is not None:
                    param.grad.mul_(mask)
            return
        assert self._root is not None
        for param in params:
            if param.grad is not None:
                mask = torch.empty(param.shape).bernoulli_(self.share, generator=self._root)
                param.grad.mul_(mask.div_(self.share).to(param.device))
        self._kept = self.share

    def report(self) -> dict[str, float]:
        """The share that moves."""
        return {"share": self._kept}


def task_fisher(context: Context, rows: int) -> list[torch.Tensor]:
    """(1/n) Σ (∂L/∂w)² of every trained tensor over single training rows, drawn from the run's seed, without noise."""
    assert context.lay_out is not None
    order = numpy_generator(context.seed, "child-tuning", "rows").permutation(len(context.rows))[:rows]
    sums = [torch.zeros_like(weight, dtype=torch.float32) for weight in context.weights]
    for row in order:
        (batch,) = context.lay_out([int(row)]).micro_batches
        with torch.enable_grad():
            loss = context.quiet_pass(batch.to(context.weights[0].device)).nll().mean()
            gradients = torch.autograd.grad(loss, list(context.weights), allow_unused=True)
        for total, gradient in zip(sums, gradients, strict=True):
            if gradient is not None:
                total.add_(gradient.float().pow(2))
    return [total / len(order) for total in sums]
