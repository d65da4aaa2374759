"""The positions of the tokens in the current forward pass, for edits that depend on them.

transformers hands ``position_ids`` to its backbone and not to every module inside, so a hook in front of the backbone
keeps them. They are right for packed rows (each row counts from 0) and for answers written token by token: without
positions, tokens are counted on from those in the cache.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.utils.hooks import RemovableHandle

from foretune.models.cache import cache_of
from foretune.models.modules import first_position


class PositionWatch:
    """Keeps the positions that a backbone was called with."""

    def __init__(self) -> None:
        self._given: torch.Tensor | None = None
        self._past = 0
        """Tokens in the cache before the call"""
        self._first = 0
        """What the model calls the first position"""
        self._handles: list[RemovableHandle] = []

    def attach(self, model: Any) -> None:
        """Look at every call of ``model``'s backbone."""
        if not self._handles:
            self._first = first_position(model)
            self._handles.append(model.base_model.register_forward_pre_hook(self._look, with_kwargs=True))
            if model.config.is_encoder_decoder:
                self._handles.append(model.get_encoder().register_forward_pre_hook(self._begin))

    def detach(self) -> None:
        """Look no more."""
        while self._handles:
            self._handles.pop().remove()

    def _look(self, _: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        cache = cache_of(kwargs)
        self._given, self._past = kwargs.get("position_ids"), 0 if cache is None else cache.get_seq_length()

    def _begin(self, *_: Any) -> None:
        """An encoder is also called by itself, before an answer is written; it always begins at 0."""
        self._given, self._past = None, 0

    def of(self, hidden: torch.Tensor) -> torch.Tensor:
        """(batch or 1, time) int64 for hidden states (batch, time, width): as given, else counted, from 0."""
        time = hidden.shape[-2]
        if self._given is not None and self._given.shape[-1] == time:
            return self._given.to(hidden.device) - self._first
        return torch.arange(self._past, self._past + time, device=hidden.device)[None]
