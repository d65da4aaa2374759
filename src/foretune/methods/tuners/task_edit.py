"""The edit of LoRATRF on hidden states h, s_t·D ( g(h)·(C h) ), and its gate g: equations in `methods.loratrf`."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import nn
from torch.nn.functional import linear

from foretune.errors import UsageError
from foretune.methods.tuners.positions import PositionWatch

SMALLEST_NORM = 1e-6
"""ε of the cosine: a hidden state shorter than this has no direction."""
OPEN_ABOVE = 1e-3
"""A gate above this counts as open in the statistics."""


class Gate:
    """What passed a gate: sums over tokens, gathered while `watching`, for the report and the mean gate."""

    def __init__(self) -> None:
        self.tokens, self.total, self.open = 0, 0.0, 0

    def add(self, gate: torch.Tensor) -> None:
        """Count the gates of some tokens."""
        values = gate.detach().float()
        self.tokens += values.numel()
        self.total += float(values.sum())
        self.open += int((values > OPEN_ABOVE).sum())


def stretch(kind: str, width: int) -> float:
    """What the cosine is multiplied by before it is the gate: it is about 1/√width in size."""
    return 1.0 if kind == "clamp_cos" else math.sqrt(width)


def opened(kind: str, cosine: torch.Tensor, factor: torch.Tensor | float) -> tuple[torch.Tensor, torch.Tensor]:
    """(gate, its slope) at every cosine, float32; ``factor`` is the `stretch`."""
    scaled = factor * cosine
    if kind == "sigmoid":
        gate = torch.sigmoid(scaled)
        return gate, factor * gate * (1 - gate)
    gate = scaled.clamp(0.0, 1.0)
    return gate, (gate == scaled) * factor


class Cosine(torch.autograd.Function):
    """cos(h, t) for every token in float32, keeping ``h`` as it is: autograd would keep three float32 copies of it.

    ∂cos/∂h = t/(‖h‖‖t‖) − cos·h/‖h‖²,  and the same with h and t exchanged.
    """

    @staticmethod
    def forward(ctx: Any, hidden: torch.Tensor, task: torch.Tensor) -> torch.Tensor:
        """hidden: (tokens, width); task: (width,). Returns (tokens,) float32."""
        length = torch.linalg.vector_norm(hidden, dim=-1, dtype=torch.float32)
        size = torch.linalg.vector_norm(task, dtype=torch.float32)
        norms = (length * size).clamp_min(SMALLEST_NORM)
        cosine: torch.Tensor = (hidden.float() @ task.float()) / norms
        ctx.save_for_backward(hidden, task, length, size, norms, cosine)
        return cosine

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor | None, torch.Tensor | None]:
        """gradients[0]: (tokens,) float32. Returns the gradients of ``hidden`` and ``task``."""
        hidden, task, length, size, norms, cosine = ctx.saved_tensors
        for_hidden = for_task = None
        straight, turned = gradients[0] / norms, gradients[0] * cosine
        if ctx.needs_input_grad[0]:
            shrink = (turned / length.square().clamp_min(SMALLEST_NORM)).to(hidden.dtype)
            for_hidden = torch.outer(straight.to(task.dtype), task).to(hidden.dtype).sub_(shrink[:, None] * hidden)
        if ctx.needs_input_grad[1]:
            pulled = straight.to(hidden.dtype) @ hidden
            for_task = (pulled.float() - turned.sum() * task.float() / size.square()).to(task.dtype)
        return for_hidden, for_task


def _edited(positions: str) -> int | None:
    """How many positions of a row are edited; None for all. Raises `UsageError` for what earlier versions offered."""
    if positions == "all":
        return None
    if not positions.startswith("first:"):
        raise UsageError(
            f"loratrf.trf_positions = {positions} is no longer offered: what it edited depended on the padding.",
            remedy="Train it again with all or first:4.",
        )
    return int(positions.removeprefix("first:"))


class Edit(nn.Module):
    """s_t · D ( g(h)·(C h) ) on hidden states of width ``width``."""

    def __init__(self, width: int, rank: int, config: Any) -> None:
        super().__init__()
        self.rank, self.kind, self.task_init = rank, config.trf_gate, config.trf_task_init
        scale = config.trf_alpha or config.alpha * rank / max(1, config.rank)
        self.scale = scale / rank
        self.first = _edited(config.trf_positions)
        """How many positions of a row are edited, from its beginning; None: all of them"""
        self.watch = PositionWatch()
        self.down = nn.Parameter(torch.empty(rank, width))
        self.up = nn.Parameter(torch.empty(width, rank))
        self.task = None if self.kind == "none" else nn.Parameter(torch.empty(width))
        self.seen: Gate | None = None

    def reset(self) -> None:
        """C Kaiming uniform, D = 0, t normal (``mean_hidden`` is set from data afterwards)."""
        nn.init.kaiming_uniform_(self.down, a=math.sqrt(5))
        nn.init.zeros_(self.up)
        if self.task is not None:
            nn.init.normal_(self.task)

    def gate(self, hidden: torch.Tensor) -> torch.Tensor:
        """(..., 1) or (..., width) in [0, 1], float32."""
        assert self.task is not None
        if self.kind == "channel":
            return torch.sigmoid(self.task.float()).expand(hidden.shape)
        width = hidden.shape[-1]
        flat: torch.Tensor = Cosine.apply(hidden.reshape(-1, width), self.task)  # type: ignore[no-untyped-call]
        return opened(self.kind, flat.reshape(*hidden.shape[:-1], 1), stretch(self.kind, width))[0]

    def _where(self, hidden: torch.Tensor) -> torch.Tensor | None:
        """(1 or batch, time, 1) of ones at edited positions; None for all of them."""
        if self.first is None or hidden.ndim < 3:
            return None
        return (self.watch.of(hidden) < self.first)[..., None].to(hidden.dtype)

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        """(..., rank): s_t·g·(C h), which ``up`` takes to the edit of the hidden states (..., width)."""
        kind = self.down.dtype
        h = hidden.to(kind)
        if self.kind == "none":
            inner = linear(h, self.down)
        else:
            gate = self.gate(hidden)
            if self.seen is not None:
                self.seen.add(gate)
            gate = gate.to(kind)
            inner = linear(h * gate, self.down) if self.kind == "channel" else gate * linear(h, self.down)
        where = self._where(hidden)
        scaled: torch.Tensor = self.scale * (inner if where is None else inner * where.to(kind))
        return scaled
