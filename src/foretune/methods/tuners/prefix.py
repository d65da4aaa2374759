"""Learnt keys and values before those of the tokens, in the self-attention of any model that transformers can switch.

Every attention module asks `ALL_ATTENTION_FUNCTIONS` for the function that its configuration names. A module with a
prefix gets a copy of its configuration that names `IMPLEMENTATION`, which puts the prefix in front, opens the mask for
it and hands everything to the function that the model uses otherwise. So nothing depends on caches: answers that are
written token by token see the prefix at every step. Positions of tokens do not move.

Not with packed streams (their attention has no place for it, and says so) and not with FlashAttention.
"""

from __future__ import annotations

import copy
import sys
from typing import Any

import torch
from torch import nn
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from foretune.methods.tuners.layer import Update
from foretune.methods.tuners.model import AdapterModel

IMPLEMENTATION = "foretune_prefix"
WORKS_WITH = ("sdpa", "eager")
START = 0.02
"""Standard deviation of fresh keys and values: the usual one of embeddings and projections."""
_ATTRIBUTE = "foretune_prefix"


class AttentionUpdate(Update):
    """Keys and values that an attention module looks at beside the tokens' own; its output is not added to."""

    def __init__(self, base: nn.Module) -> None:
        nn.Module.__init__(self)
        if not hasattr(base, _ATTRIBUTE):
            _switch(base)

    def seen(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Keys and values ([1 or batch,] key heads, length, width)."""
        raise NotImplementedError

    def before(self, base: nn.Module) -> None:
        """The attention about to run is to look at these."""
        base.__dict__[_ATTRIBUTE].append(self)

    def after(self, base: nn.Module) -> None:
        """The next call starts with none, also where this one ended before the attention."""
        base.__dict__[_ATTRIBUTE].clear()

    def forward(self, x: torch.Tensor, hidden: torch.Tensor) -> torch.Tensor | None:  # type: ignore[override]
        """None: nothing is added behind the attention."""
        return None


class PrefixUpdate(AttentionUpdate):
    """``length`` learnt keys and values for one attention module."""

    refuses_merge = "learnt keys and values are no weight of a layer"

    def __init__(self, base: nn.Module, length: int, *, prunable: bool = False) -> None:
        super().__init__(base)
        heads, width = head_shape(base)
        self.keys = nn.Parameter(torch.empty(heads, length, width))
        self.values = nn.Parameter(torch.empty(heads, length, width))
        self.open: nn.Parameter | None = None
        """(length,) 1 for a position that is there, 0 for a pruned one; its gradient is noted and never applied"""
        self.asked: torch.Tensor | None = None
        """(length,) float32: the gradient of ``open`` since somebody last took it"""
        if prunable:
            self.open = nn.Parameter(torch.ones(length))
            self.open.register_hook(self._note)  # type: ignore[no-untyped-call]

    def reset(self) -> None:
        """Small normal keys and values."""
        nn.init.normal_(self.keys, std=START)
        nn.init.normal_(self.values, std=START)

    def _note(self, gradient: torch.Tensor) -> torch.Tensor:
        noted = gradient.detach().float()
        self.asked = noted if self.asked is None else self.asked + noted
        return torch.zeros_like(gradient)

    def seen(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Keys and values (key heads, positions that are there, width)."""
        if self.open is None:
            return self.keys, self.values
        there = self.open != 0
        factor = self.open[there, None]
        return factor * self.keys[:, there], factor * self.values[:, there]


class GivenPrefix(AttentionUpdate):
    """Keys and values that somebody else makes for every call (`put`); seen by the attention while they are there."""

    refuses_merge = "keys and values of a prompt are no weight of a layer"
    keys: torch.Tensor | None = None
    values: torch.Tensor | None = None

    def reset(self) -> None:
        """Nothing to draw."""

    def seen(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Keys and values (1 or batch, key heads, length, width)."""
        assert self.keys is not None and self.values is not None
        return self.keys, self.values

    def put(self, keys: torch.Tensor | None, values: torch.Tensor | None) -> None:
        """(1 or batch, key heads, length, width) each, or None for no prefix."""
        self.keys, self.values = keys, values

    def before(self, base: nn.Module) -> None:
        """The attention about to run is to see what was put here, if anything."""
        if self.keys is not None:
            super().before(base)


class ApartPrefix(AttentionUpdate):
    """Keys and values that have an attention of their own, whose result is let in by `opening`."""

    refuses_merge = "what an attention looks at apart is no weight of a layer"

    def opening(self) -> torch.Tensor:
        """A number that the result is multiplied by."""
        raise NotImplementedError


class PrefixModel(AdapterModel):
    """Every targeted attention module gets a prefix of the knob's length, and its own configuration back at the end."""

    prunable = False

    def build(self, config: Any, base: nn.Module, name: str) -> Update:
        """The prefix of the attention module called ``name``."""
        return PrefixUpdate(base, config.knob_of(name), prunable=self.prunable)

    def _unload_and_optionally_merge(self, *args: Any, **settings: Any) -> nn.Module:
        model = super()._unload_and_optionally_merge(*args, **settings)
        for module in model.modules():
            _restore(module)
        return model


def head_shape(attention: Any) -> tuple[int, int]:
    """(key heads, head width) of an attention module."""
    config = attention.config
    heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    width = getattr(attention, "head_dim", None) or getattr(attention, "attention_head_size", None)
    return int(heads), int(width or config.hidden_size // config.num_attention_heads)


def _switch(attention: Any) -> None:
    plain = attention.config
    attention.__dict__[_ATTRIBUTE] = []
    attention.__dict__["foretune_plain_config"] = plain
    attention.config = copy.copy(plain)
    attention.config._attn_implementation = IMPLEMENTATION


def _restore(attention: Any) -> None:
    """Give an attention module its own configuration back."""
    if _ATTRIBUTE in attention.__dict__:
        attention.config = attention.__dict__.pop("foretune_plain_config")
        del attention.__dict__[_ATTRIBUTE]


def prefixed_attention(
    module: Any,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    **settings: Any,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Attention with the module's active prefixes before its keys and values.

    query: (batch, heads, queries, width); key, value: (batch, key heads, keys, width). Returns what the model's own
    function does: (batch, queries, heads, width) and weights or None.
    """
    every = list(module.foretune_prefix)
    active = [prefix for prefix in every if not isinstance(prefix, ApartPrefix)]
    module.foretune_prefix.clear()  # before anything can go wrong: the next call starts with none
    name = module.foretune_plain_config._attn_implementation
    if name not in WORKS_WITH:
        raise ValueError(f"a learnt prefix works with {' and '.join(WORKS_WITH)} attention, not with {name}")
    plain = ALL_ATTENTION_FUNCTIONS[name] if name != "eager" else _eager(module)
    given = (query, key, value, attention_mask)
    output, weights = (
        _with_prefix(plain, module, *given, active, settings) if active else plain(module, *given, **settings)
    )
    for prefix in every:
        if isinstance(prefix, ApartPrefix):
            keys, values = (part.to(query.dtype).expand(query.shape[0], -1, -1, -1) for part in prefix.seen())
            apart, _ = plain(module, query, keys, values, None, **{**settings, "is_causal": False})
            output = output + prefix.opening().to(apart.dtype) * apart
    return output, weights


def _with_prefix(
    plain: Any,
    module: Any,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    active: list[Any],
    settings: dict[str, Any],
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Attention with the keys and values of ``active`` before the row's."""
    batch = key.shape[0]
    seen = [prefix.seen() for prefix in active]
    keys = [part.to(key.dtype).expand(batch, -1, -1, -1) for part, _ in seen]
    values = [part.to(value.dtype).expand(batch, -1, -1, -1) for _, part in seen]
    length = sum(part.shape[-2] for part in keys)
    causal = settings.get("is_causal")
    causal = getattr(module, "is_causal", True) if causal is None else causal
    mask = _opened(attention_mask, length, query, key, causal=bool(causal))
    return plain(  # type: ignore[no-any-return]
        module, query, torch.cat([*keys, key], dim=2), torch.cat([*values, value], dim=2), mask,
        **{**settings, "is_causal": False},
    )  # fmt: skip


def _opened(
    mask: torch.Tensor | None, length: int, query: torch.Tensor, key: torch.Tensor, *, causal: bool
) -> torch.Tensor | None:
    """The mask with ``length`` open columns in front; a causal one is written out where only the flag stood."""
    queries, keys = query.shape[2], key.shape[2]
    if mask is None:
        if not causal or queries == 1:
            return None
        low = torch.full((queries, keys), torch.finfo(query.dtype).min, dtype=query.dtype, device=query.device)
        mask = low.triu(keys - queries + 1)[None, None]
    return nn.functional.pad(mask[..., :keys], (length, 0), value=True if mask.dtype == torch.bool else 0.0)


def _eager(module: Any) -> Any:
    """The attention that the model's own file writes out."""
    return sys.modules[type(module).__module__].eager_attention_forward


ALL_ATTENTION_FUNCTIONS.register(IMPLEMENTATION, prefixed_attention)
