"""Attention over short rows on a processor: plain matrix products with their own backward pass.

torch's fused kernel for processors is made for long sequences. Over the short documents of a packed stream its
backward pass in bfloat16 takes about six times as long as the matrix products it stands for (8 documents of 20
tokens behind a head of 28, nine heads: 5.4 against 0.8 ms on one core), a quarter of all training time. Here scores
and softmax are float32, as in the kernel, products of probabilities take the precision of the inputs, and the
backward pass computes the probabilities again instead of keeping them, so memory is that of the kernel. Groups of
queries share their keys without copies of them (grouped-query attention, Ainslie et al. 2023).

What this does not do: dropout, accelerators, second derivatives.
"""

from __future__ import annotations

from typing import Any

import torch

LONGEST_KEYS = 256
"""Keys up to which this is the faster way; at 500 the fused kernel wins."""


class _ShortAttention(torch.autograd.Function):
    """``softmax(query · keyᵀ · scale + bias) · value``; shapes as in `short_attention`."""

    @staticmethod
    def forward(
        ctx: Any, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, bias: torch.Tensor, scale: float
    ) -> torch.Tensor:
        """The attended values, shaped as ``query``."""
        ctx.save_for_backward(query, key, value, bias)
        ctx.scale = scale
        probabilities = _probabilities(query, key, bias, scale)
        return (probabilities.to(value.dtype) @ value).view(query.shape)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        """Gradients of query, key and value: with P the probabilities, dS = P ∘ (dP - rowsum(P ∘ dP))."""
        query, key, value, bias = ctx.saved_tensors
        probabilities = _probabilities(query, key, bias, ctx.scale)
        attended = _grouped(gradients[0], key)
        by_value = probabilities.to(value.dtype).transpose(-1, -2) @ attended
        by_probability = (attended @ value.transpose(-1, -2)).float()
        spread = (by_probability * probabilities).sum(-1, keepdim=True)
        by_score = by_probability.sub_(spread).mul_(probabilities).mul_(ctx.scale).to(query.dtype)
        by_query = (by_score @ key).view(query.shape)
        by_key = by_score.transpose(-1, -2) @ _grouped(query, key)
        return by_query, by_key, by_value, None, None


def _grouped(tensor: torch.Tensor, key: torch.Tensor) -> torch.Tensor:
    """(batch, heads, queries, width) as (batch, key heads, group · queries, width)."""
    return tensor.reshape(tensor.shape[0], key.shape[1], -1, tensor.shape[3])


def _probabilities(query: torch.Tensor, key: torch.Tensor, bias: torch.Tensor, scale: float) -> torch.Tensor:
    """(batch, key heads, group · queries, keys) float32."""
    scores = _grouped(query, key).float() @ key.float().transpose(-1, -2)
    shape = scores.shape
    scores = scores.view(shape[0], -1, query.shape[2], key.shape[2]).mul_(scale).add_(bias)
    return torch.softmax(scores, dim=-1).view(shape)


def short_attention(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, bias: torch.Tensor, scale: float
) -> torch.Tensor:
    """(batch, heads, queries, width): attention of every query to the keys that ``bias`` leaves open.

    query: (batch, heads, queries, width); key, value: (batch, key heads, keys, width); bias: (queries, keys) float32,
    0 where a key is seen and -inf where not, with at least one key seen by every query.
    """
    return _ShortAttention.apply(query, key, value, bias, scale)  # type: ignore[no-any-return, no-untyped-call]
