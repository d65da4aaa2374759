"""Attention by matrix products: values and gradients of torch's own attention, in both precisions."""

from __future__ import annotations

import math

import pytest
import torch
from torch.nn.functional import scaled_dot_product_attention

from foretune.data.update import Layout
from foretune.training.attention import PackedPlan
from foretune.training.short_attention import short_attention

SHAPES = {  # documents, heads, key heads, queries, shared head, window
    "grouped behind a head": (4, 6, 2, 7, 5, None),
    "one query": (2, 4, 4, 1, 9, None),
    "window": (3, 4, 1, 8, 6, 4),
    "no head": (2, 2, 2, 11, 0, None),
}


def tensors(name: str, dtype: torch.dtype) -> tuple[list[torch.Tensor], torch.Tensor, torch.Tensor]:
    documents, heads, key_heads, queries, head, window = SHAPES[name]
    keys = queries + head
    torch.manual_seed(0)
    inputs = [
        torch.randn(documents, count, length, 16, dtype=torch.float64).to(dtype).requires_grad_()
        for count, length in ((heads, queries), (key_heads, keys), (key_heads, keys))
    ]
    allowed = torch.ones(queries, keys, dtype=torch.bool).tril(keys - queries)
    if window is not None:
        allowed &= ~torch.ones(queries, keys, dtype=torch.bool).tril(keys - queries - window)
    return inputs, allowed, torch.randn(documents, heads, queries, 16, dtype=torch.float64)


def gradients(output: torch.Tensor, inputs: list[torch.Tensor], slope: torch.Tensor) -> list[torch.Tensor]:
    return [output.detach(), *torch.autograd.grad(output, inputs, slope.to(output.dtype))]


@pytest.mark.parametrize("name", SHAPES)
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 2e-2)])
def test_values_and_gradients_are_those_of_torch(name: str, dtype: torch.dtype, tolerance: float) -> None:
    documents, heads, key_heads, queries, head, window = SHAPES[name]
    inputs, allowed, slope = tensors(name, dtype)
    plan = PackedPlan.of(Layout(head, tuple((head + i * queries, head + (i + 1) * queries) for i in range(documents))),
                         torch.device("cpu"))  # fmt: skip
    bias = plan.bias(queries, queries + head, window, causal=True)
    assert torch.equal(bias == 0, allowed) and bool((bias[~allowed] == -math.inf).all())
    ours = gradients(short_attention(*inputs, bias, 0.3), inputs, slope)
    exact = [tensor.detach().double().requires_grad_() for tensor in inputs]
    repeated = [exact[0], *(tensor.repeat_interleave(heads // key_heads, dim=1) for tensor in exact[1:])]
    theirs = gradients(scaled_dot_product_attention(*repeated, attn_mask=allowed, scale=0.3), exact, slope)
    for mine, other in zip(ours, theirs, strict=True):
        assert mine.dtype == dtype
        assert torch.allclose(mine.double(), other, rtol=tolerance, atol=tolerance * float(other.std()))


def test_layers_share_one_mask() -> None:
    plan = PackedPlan.of(Layout(2, ((2, 5), (5, 9))), torch.device("cpu"))
    assert plan.bias(4, 6, None, causal=True) is plan.bias(4, 6, None, causal=True)
    assert plan.bias(4, 6, 2, causal=True) is not plan.bias(4, 6, None, causal=True)
