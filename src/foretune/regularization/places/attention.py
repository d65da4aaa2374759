"""Attention whose probabilities can be multiplied by a row's own noise: plain matrix products, softmax in float32.

The fused kernels draw one dropout mask for a whole batch from torch's global generator, know no other noise, and some
ignore the rate altogether. Where a regularizer drops attention probabilities the model computes attention here instead:
padded batches through transformers' table of attention functions (`IMPLEMENTATION`), packed streams through
`foretune.training.attention`, which calls `attend` for each document. The rate is not the kernel's: it hangs on the
attention module (`PLACE`), together with the rows that are in the batch.

It does not know score soft-capping, attention sinks or prefix keys; models that need them are refused.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS, eager_mask
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from foretune.models.passes import FAILURES, before_head, close

IMPLEMENTATION = "foretune_noisy"
PLACE = "foretune_place"
"""The attribute of an attention module that holds its `Multiply`."""
UNSUPPORTED = ("softcap", "s_aux")

Multiply = Callable[[torch.Tensor], torch.Tensor]
"""(rows, heads, queries, keys) probabilities → the same with noise"""


def place_of(module: torch.nn.Module) -> Multiply | None:
    """The noise of an attention module in training; None where it has none."""
    return module.__dict__.get(PLACE) if module.training else None


def attend(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    bias: torch.Tensor | None,
    scale: float,
    multiply: Multiply | None,
) -> torch.Tensor:
    """(batch, heads, queries, width): softmax(query · keyᵀ · scale + bias), multiplied by noise, times value.

    query: (batch, heads, queries, width); key, value: (batch, key heads, keys, width), each serving a group of heads;
    bias: what broadcasts to (batch, heads, queries, keys), 0 where a key is seen.
    """
    copies = query.shape[1] // key.shape[1]
    if copies > 1:
        key, value = (tensor.repeat_interleave(copies, dim=1) for tensor in (key, value))
    scores = (query @ key.transpose(-1, -2)).float() * scale
    if bias is not None:
        scores = scores + bias
    probabilities = torch.softmax(scores, dim=-1)
    if multiply is not None:
        probabilities = multiply(probabilities)
    return probabilities.to(value.dtype) @ value


def noisy_attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    position_bias: torch.Tensor | None = None,
    **unused: Any,
) -> tuple[torch.Tensor, None]:
    """As transformers' attention functions: returns (batch, queries, heads, width) and None."""
    if any(unused.get(name) is not None for name in UNSUPPORTED):
        raise ValueError(f"noisy attention knows none of {UNSUPPORTED}")
    bias = attention_mask
    if position_bias is not None:
        bias = position_bias if bias is None else bias + position_bias
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    attended = attend(query, key, value, bias, scale, place_of(module))
    return attended.transpose(1, 2).contiguous(), None


ALL_ATTENTION_FUNCTIONS.register(IMPLEMENTATION, noisy_attention)
ALL_MASK_ATTENTION_FUNCTIONS.register(IMPLEMENTATION, eager_mask)


@torch.no_grad()
def agrees(model: Any, runner: Any, implementation: str = IMPLEMENTATION) -> bool:
    """Whether the model computes padded rows alike with `noisy_attention` and with its own, by trial on few tokens."""
    vocabulary = model.get_input_embeddings().weight.shape[0]
    ids = ((torch.arange(12) * 7 + 11) % vocabulary).to(model.device).view(2, 6)
    mask = torch.ones_like(ids)
    mask[1, -2:] = 0
    inputs = {"input_ids": ids, "attention_mask": mask}
    if getattr(model.config, "is_encoder_decoder", False):
        inputs["decoder_input_ids"] = ids
    before = runner.training_attention
    try:
        with runner.mode(packing=False, training=False):
            own = before_head(model, lambda: model(**inputs).logits)
            model.set_attn_implementation(implementation)
            other = before_head(model, lambda: model(**inputs).logits)
    except FAILURES:
        return False
    finally:
        runner.training_attention = before
    seen = mask.bool() if own.ndim == 3 and own.shape[:2] == mask.shape else ...
    return close(other[seen], own[seen])
