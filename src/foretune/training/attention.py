"""Attention over a packed stream, one document at a time, without a dense mask and without FlashAttention.

The stream is ``[shared head | document 1 | document 2 | …]``. Documents are gathered into a small batch for the
attention alone, ``(documents, heads, longest, head width)``: causal attention needs no padding mask there, because
padding lies to the right of every real query. Every document also sees the shared head, which is computed once.
The arithmetic is that of separate rows; ``is_exact`` checks it on the loaded model, and what fails the check is
trained on padded batches instead (prefix keys, score soft-capping, attention sinks, bidirectional models).

The head may also have been computed earlier: keys that a cache puts before those of the stream are a head that every
document sees. It does not cover cached decoding or encoder–decoders.
"""

from __future__ import annotations

import contextlib
import functools
import math
from collections.abc import Hashable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from torch.nn.functional import scaled_dot_product_attention
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from foretune.data.update import Layout
from foretune.regularization.places.attention import Multiply, attend, place_of
from foretune.training.short_attention import LONGEST_KEYS, short_attention

IMPLEMENTATION = "foretune_packed"
ATTENTION_DROPOUT_NAMES = ("attention_dropout", "attn_pdrop", "attention_probs_dropout_prob")
"""What configurations call the rate of dropout on attention probabilities (applied inside the kernel)."""


@dataclass(frozen=True)
class PackedPlan:
    """Index tensors of a layout, made once per micro-batch and used by every layer."""

    head: int
    """Tokens in the shared head."""
    longest: int
    """Tokens in the longest document."""
    gather: torch.Tensor
    """(documents * longest,) stream positions; padding repeats a document's last token"""
    scatter: torch.Tensor
    """(stream - head,) where each document token lies in the gathered batch"""
    documents: int
    masks: dict[Hashable, torch.Tensor] = field(default_factory=dict, compare=False)
    """What `band` and `bias` made: the layers share them"""

    @classmethod
    @functools.lru_cache(maxsize=1)  # a recorded pass comes again with the same layout
    def of(cls, layout: Layout, device: torch.device) -> PackedPlan:
        """The plan of ``layout``; its documents must follow one another without gaps."""
        lengths = [end - start for start, end in layout.bounds]
        longest = max(lengths)
        steps = torch.arange(longest)
        starts = torch.tensor([start for start, _ in layout.bounds])
        last = torch.tensor([end - 1 for _, end in layout.bounds])
        gather = torch.minimum(starts[:, None] + steps[None, :], last[:, None]).reshape(-1)
        scatter = torch.cat([torch.arange(length) + number * longest for number, length in enumerate(lengths)])
        return cls(layout.head, longest, gather.to(device), scatter.to(device), len(lengths))

    def band(self, queries: int, keys: int, window: int | None, device: torch.device) -> torch.Tensor:
        """(queries, keys) bool: causal with the last query at the last key, at most ``window`` keys back."""
        name = ("band", queries, keys, window)
        if name not in self.masks:
            key = torch.arange(keys, device=device)[None, :]
            query = torch.arange(keys - queries, keys, device=device)[:, None]
            allowed = key <= query
            self.masks[name] = allowed if window is None else allowed & (key > query - window)
        return self.masks[name]

    def bias(self, queries: int, keys: int, window: int | None, device: torch.device) -> torch.Tensor:
        """(queries, keys) float32: the same as 0 where a key is seen and -inf where not."""
        name = ("bias", queries, keys, window)
        if name not in self.masks:
            hidden = ~self.band(queries, keys, window, device)
            self.masks[name] = torch.zeros(hidden.shape, device=device).masked_fill_(hidden, -math.inf)
        return self.masks[name]


def _attend(
    plan: PackedPlan,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    scaling: float | None,
    window: int | None,
    dropout: float,
    noise: Multiply | None = None,
) -> torch.Tensor:
    """(batch, heads, queries, width): causal attention, the last query at the last key; keys may have fewer heads."""
    queries, keys = query.shape[2], key.shape[2]
    if noise is not None:
        scale = query.shape[3] ** -0.5 if scaling is None else scaling
        return attend(query, key, value, plan.bias(queries, keys, window, query.device), scale, noise)
    if query.device.type == "cpu" and dropout == 0 and keys <= LONGEST_KEYS:
        scale = query.shape[3] ** -0.5 if scaling is None else scaling
        return short_attention(query, key, value, plan.bias(queries, keys, window, query.device), scale)
    plain = queries == keys and (window is None or window >= keys)
    repeats = query.shape[1] // key.shape[1]
    return scaled_dot_product_attention(
        query,
        _repeat(key, repeats),
        _repeat(value, repeats),
        attn_mask=None if plain else plan.band(queries, keys, window, query.device),
        dropout_p=dropout,
        is_causal=plain and queries > 1,
        scale=scaling,
    )


def packed_attention(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    sliding_window: int | None = None,
    packed_plan: PackedPlan | None = None,
    **unused: Any,
) -> tuple[torch.Tensor, None]:
    """Causal attention within each document of a packed stream.

    query: (1, heads, stream, head width); key, value: (1, key heads, earlier + stream, head width), where the earlier
    ones come from a cache and are then the whole head of the stream.
    Returns (1, stream, heads, head width) and None, as transformers' attention functions do.
    """
    unsupported = [name for name in ("softcap", "s_aux", "position_bias") if unused.get(name) is not None]
    if packed_plan is None or attention_mask is not None or unsupported:
        raise ValueError(f"packed attention needs its plan, no mask and none of {unsupported}")
    plan, noise = packed_plan, place_of(module)
    earlier = key.shape[2] - query.shape[2]
    if earlier and plan.head:
        raise ValueError("a packed stream has its head either in itself or in a cache")
    if noise is not None and (plan.head or earlier):
        raise ValueError("noise on attention probabilities belongs to a row, and this stream shares a head")

    def documents(tensor: torch.Tensor) -> torch.Tensor:
        heads, width = tensor.shape[1], tensor.shape[3]
        stream = tensor[0, :, tensor.shape[2] - query.shape[2] :]
        batch = stream.index_select(1, plan.gather).view(heads, plan.documents, plan.longest, width)
        return batch.transpose(0, 1)

    document_key, document_value = documents(key), documents(value)
    if plan.head or earlier:
        head_key, head_value = (tensor[:, :, : plan.head or earlier] for tensor in (key, value))
        shape = (plan.documents, -1, -1, -1)
        document_key = torch.cat([head_key.expand(shape), document_key], dim=2)
        document_value = torch.cat([head_value.expand(shape), document_value], dim=2)
    output = _attend(plan, documents(query), document_key, document_value, scaling, sliding_window, dropout, noise)
    flat = output.permute(0, 2, 1, 3).reshape(plan.documents * plan.longest, query.shape[1], query.shape[3])
    stream = flat.index_select(0, plan.scatter)
    if plan.head:
        head = _attend(plan, query[:, :, : plan.head], head_key, head_value, scaling, sliding_window, dropout)
        stream = torch.cat([head[0].transpose(0, 1), stream])
    return stream.unsqueeze(0), None


def _repeat(tensor: torch.Tensor, copies: int) -> torch.Tensor:
    """(batch, heads, time, width) with every head repeated ``copies`` times (grouped-query attention)."""
    return tensor if copies == 1 else tensor.repeat_interleave(copies, dim=1)


ALL_ATTENTION_FUNCTIONS.register(IMPLEMENTATION, packed_attention)


@contextlib.contextmanager
def attention(model: Any, implementation: str) -> Iterator[None]:
    """Inside, ``model`` (a transformers model) uses ``implementation``; afterwards what it used before."""
    before = model.config._attn_implementation
    if implementation == before:
        yield
        return
    model.set_attn_implementation(implementation)
    try:
        yield
    finally:
        model.set_attn_implementation(before)
