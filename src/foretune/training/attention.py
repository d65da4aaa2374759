"""Attention over a packed stream, one document at a time, without a dense mask and without FlashAttention.

The stream is ``[shared head | document 1 | document 2 | …]``. Documents are gathered into a small batch for the
attention alone, ``(documents, heads, longest, head width)``. Causal attention needs no padding mask there, because
padding lies to the right of every real query; every document also sees the shared head, which is computed once. In an
encoder every token of a document sees all of it (`BIDIRECTIONAL`), padding is masked, and no head is shared; what
comes behind its blocks (pooling, classifier) reads one document a line, which `documents_as_lines` hands it.
The arithmetic is that of separate rows; `Network.packs` checks it on the loaded model, and what fails the check is
trained on padded batches instead (prefix keys, score soft-capping, attention sinks, pooling by a mask).

The head may also have been computed earlier: keys that a cache puts before those of the stream are a head that every
document sees. It does not cover cached decoding or encoder–decoders.
"""

from __future__ import annotations

import contextlib
import functools
import math
from collections.abc import Hashable, Iterator, Mapping
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
BIDIRECTIONAL = "foretune_packed_encoder"


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
    real: torch.Tensor
    """(documents, longest) bool: where the gathered batch holds a token"""
    masks: dict[Hashable, torch.Tensor] = field(default_factory=dict, compare=False)
    """What `allowed` and `bias` made: the layers share them"""

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
        real = starts[:, None] + steps[None, :] <= last[:, None]
        return cls(layout.head, longest, gather.to(device), scatter.to(device), len(lengths), real.to(device))

    def gathered(self, stream: torch.Tensor, dim: int = 0) -> torch.Tensor:
        """``stream`` with its tokens along ``dim`` as (documents, longest); padding repeats a document's last token."""
        return torch.unflatten(stream.index_select(dim, self.gather), dim, (self.documents, self.longest))

    def allowed(self, queries: int, keys: int, window: int | None, *, causal: bool) -> torch.Tensor:
        """bool, True where a query sees a key that is less than ``window`` keys away.

        Causal: (queries, keys) with the last query at the last key. Else (documents, 1, 1 or queries, keys).
        """
        name = ("allowed", queries, keys, window, causal)
        if name not in self.masks:
            device = self.real.device
            key = torch.arange(keys, device=device)[None, :]
            query = torch.arange(keys - queries, keys, device=device)[:, None]
            if causal:
                found = key <= query
                found = found if window is None else found & (key > query - window)
            else:
                found = self.real[:, None, None, :]
                if window is not None and window < keys:  # padding sees all, or its empty softmax would be nan
                    found = found & ((key - query).abs() < window) | ~self.real[:, None, :, None]
            self.masks[name] = found
        return self.masks[name]

    def bias(self, queries: int, keys: int, window: int | None, *, causal: bool) -> torch.Tensor:
        """`allowed` in float32: 0 where a key is seen and -inf where not."""
        name = ("bias", queries, keys, window, causal)
        if name not in self.masks:
            hidden = ~self.allowed(queries, keys, window, causal=causal)
            self.masks[name] = torch.zeros(hidden.shape, device=hidden.device).masked_fill_(hidden, -math.inf)
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
    *,
    causal: bool = True,
) -> torch.Tensor:
    """(batch, heads, queries, width): the last query at the last key; keys may have fewer heads."""
    queries, keys = query.shape[2], key.shape[2]
    scale = query.shape[3] ** -0.5 if scaling is None else scaling
    if noise is not None:
        return attend(query, key, value, plan.bias(queries, keys, window, causal=causal), scale, noise)
    if query.device.type == "cpu" and dropout == 0 and keys <= LONGEST_KEYS:
        return short_attention(query, key, value, plan.bias(queries, keys, window, causal=causal), scale)
    plain = causal and queries == keys and (window is None or window >= keys)
    repeats = query.shape[1] // key.shape[1]
    return scaled_dot_product_attention(
        query,
        _repeat(key, repeats),
        _repeat(value, repeats),
        attn_mask=None if plain else plan.allowed(queries, keys, window, causal=causal),
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
    causal: bool = True,
    **unused: Any,
) -> tuple[torch.Tensor, None]:
    """Attention within each document of a packed stream; not ``causal``: of every token to all of its document.

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
    if not causal and (plan.head or earlier):
        raise ValueError("where attention goes both ways, documents share no head")

    def documents(tensor: torch.Tensor) -> torch.Tensor:
        stream = tensor[0, :, tensor.shape[2] - query.shape[2] :]
        return plan.gathered(stream, 1).transpose(0, 1)

    document_key, document_value = documents(key), documents(value)
    if plan.head or earlier:
        head_key, head_value = (tensor[:, :, : plan.head or earlier] for tensor in (key, value))
        shape = (plan.documents, -1, -1, -1)
        document_key = torch.cat([head_key.expand(shape), document_key], dim=2)
        document_value = torch.cat([head_value.expand(shape), document_value], dim=2)
    output = _attend(
        plan, documents(query), document_key, document_value, scaling, sliding_window, dropout, noise, causal=causal
    )
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
ALL_ATTENTION_FUNCTIONS.register(BIDIRECTIONAL, functools.partial(packed_attention, causal=False))


@contextlib.contextmanager
def documents_as_lines(last_block: nn.Module) -> Iterator[None]:
    """Inside, an encoder's ``last_block`` gives (documents, longest, width) where it got a packed stream."""
    hook = last_block.register_forward_hook(_as_lines, with_kwargs=True)
    try:
        yield
    finally:
        hook.remove()


def _as_lines(_block: nn.Module, _given: Any, named: Mapping[str, Any], output: Any) -> Any:
    plan: PackedPlan | None = named.get("packed_plan")
    states = output[0] if isinstance(output, tuple) else output
    if plan is None or len(states) != 1:  # padded, or an outer `documents_as_lines` was here
        return output
    lines = plan.gathered(states[0])
    return (lines, *output[1:]) if isinstance(output, tuple) else lines


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
