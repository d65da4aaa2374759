"""How far two next-token distributions are apart, at the scored positions, without ever holding two of them whole.

Under a frozen head the distributions are functions of the hidden states alone, so, as for the loss
(`training.forward`), what is kept for the backward pass is the gradient with respect to each hidden state, (targets,
width). With q = softmax(h W) and p fixed: ∂KL(p ‖ q)/∂h = (q - p) W. For the symmetric ½ KL(a ‖ b) + ½ KL(b ‖ a) =
½ Σ (a - b)(log a - log b): ∂/∂z_a = ½ [a (log a - log b - KL(a ‖ b)) + a - b], and with a and b exchanged. Other heads
(trained, scaled, of a classifier) go chunk by chunk through autograd.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.nn.functional import linear, log_softmax
from torch.utils.checkpoint import checkpoint

from foretune.data.update import chunks

CHUNK_TARGETS = 128
"""Half of the loss's chunk: two distributions are held at a time."""
Logits = Callable[[torch.Tensor], torch.Tensor]


def divergence(own: torch.Tensor, fixed: torch.Tensor, logits: Logits, head: Any | None) -> torch.Tensor:
    """(targets,) float32 KL(p_fixed ‖ p_own). own, fixed: (targets, width); ``head``: frozen and plain, or None."""
    if head is not None:
        return _Divergence.apply(own, fixed, head.weight, head.bias)  # type: ignore[no-any-return, no-untyped-call]

    def piece(own_part: torch.Tensor, fixed_part: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            target = log_softmax(logits(fixed_part).float(), dim=-1)
        return _kl(target, log_softmax(logits(own_part).float(), dim=-1))

    return _in_pieces(piece, own, fixed)


def symmetric_divergence(one: torch.Tensor, other: torch.Tensor, logits: Logits, head: Any | None) -> torch.Tensor:
    """(targets,) float32 ½ KL(one ‖ other) + ½ KL(other ‖ one), with gradients to both; arguments as `divergence`."""
    if head is not None:
        return _Symmetric.apply(one, other, head.weight, head.bias)  # type: ignore[no-any-return, no-untyped-call]

    def piece(one_part: torch.Tensor, other_part: torch.Tensor) -> torch.Tensor:
        a, b = (log_softmax(logits(part).float(), dim=-1) for part in (one_part, other_part))
        return ((a.exp() - b.exp()) * (a - b)).sum(-1) / 2

    return _in_pieces(piece, one, other)


def _in_pieces(
    piece: Callable[[torch.Tensor, torch.Tensor], torch.Tensor], one: torch.Tensor, other: torch.Tensor
) -> torch.Tensor:
    parts = [
        checkpoint(piece, one[chunk], other[chunk], use_reentrant=False)
        if torch.is_grad_enabled()
        else piece(one[chunk], other[chunk])
        for chunk in chunks(one.shape[0], CHUNK_TARGETS)
    ]
    return torch.cat(parts) if parts else one.new_zeros(0, dtype=torch.float32)


def _kl(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """KL(a ‖ b) of log-probabilities, (…, classes) → (…)."""
    return (a.exp() * (a - b)).sum(-1)


class _Divergence(torch.autograd.Function):
    """KL(p ‖ q) under a frozen linear head, p without gradient."""

    @staticmethod
    def forward(
        ctx: Any, own: torch.Tensor, fixed: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None
    ) -> torch.Tensor:
        """own, fixed: (targets, width); weight: (classes, width). Returns (targets,) float32."""
        found = torch.empty(own.shape[0], dtype=torch.float32, device=own.device)
        slopes = torch.empty_like(own)
        for chunk in chunks(own.shape[0], CHUNK_TARGETS):
            p = log_softmax(linear(fixed[chunk], weight, bias).float(), dim=-1)
            q = log_softmax(linear(own[chunk], weight, bias).float(), dim=-1)
            found[chunk] = _kl(p, q)
            slopes[chunk] = (q.exp_() - p.exp_()).to(weight.dtype) @ weight
        ctx.save_for_backward(slopes)
        return found

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        """gradients[0]: (targets,)."""
        (slopes,) = ctx.saved_tensors
        return slopes * gradients[0][:, None].to(slopes.dtype), None, None, None


class _Symmetric(torch.autograd.Function):
    """½ KL(a ‖ b) + ½ KL(b ‖ a) under a frozen linear head, with gradients to both."""

    @staticmethod
    def forward(
        ctx: Any, one: torch.Tensor, other: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None
    ) -> torch.Tensor:
        """one, other: (targets, width); weight: (classes, width). Returns (targets,) float32."""
        found = torch.empty(one.shape[0], dtype=torch.float32, device=one.device)
        slopes = [torch.empty_like(one), torch.empty_like(other)]
        for chunk in chunks(one.shape[0], CHUNK_TARGETS):
            a = log_softmax(linear(one[chunk], weight, bias).float(), dim=-1)
            b = log_softmax(linear(other[chunk], weight, bias).float(), dim=-1)
            p, q, ratio = a.exp(), b.exp(), a - b
            ahead, back = (p * ratio).sum(-1, keepdim=True), -(q * ratio).sum(-1, keepdim=True)
            found[chunk] = (ahead + back).squeeze(-1) / 2
            slopes[0][chunk] = ((p * (ratio - ahead) + p - q) / 2).to(weight.dtype) @ weight
            slopes[1][chunk] = ((q * (-ratio - back) + q - p) / 2).to(weight.dtype) @ weight
        ctx.save_for_backward(*slopes)
        return found

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        """gradients[0]: (targets,)."""
        one, other = (slopes * gradients[0][:, None].to(slopes.dtype) for slopes in ctx.saved_tensors)
        return one, other, None, None
