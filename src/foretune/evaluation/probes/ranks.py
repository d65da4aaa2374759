"""KL to the base by rank (after Das et al. 2024, 2405.18572): how much of the shift sits in how few directions.

Every LoRA update s·BA is cut to its first r singular directions, from 0 to all, and the divergence of the next-token
distributions from the base's is measured on the same rows. The paper compares adapters trained at different ranks; a
small rank there stays nearer to the base, biases included. Cutting one adapter shows at which rank its own shift is
made. The factors are put back bit for bit.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch

from foretune.errors import UsageError


@dataclass(frozen=True)
class RankPoint:
    """The divergence at one rank."""

    rank: int
    divergence: float
    """Mean KL(base ‖ tuned) over the scored tokens, in nats"""
    share_of_update: float
    """‖cut update‖² over ‖update‖²"""


@dataclass
class _Factors:
    down: Any
    up: Any
    left: torch.Tensor
    values: torch.Tensor
    right: torch.Tensor


def lora_factors(model: Any) -> list[tuple[Any, Any]]:
    """(A, B) of every LoRA layer. Raises `UsageError` when there is none."""
    found = []
    for module in model.modules():
        downs, ups = (module._modules.get(part) for part in ("lora_A", "lora_B"))
        if isinstance(downs, torch.nn.ModuleDict) and isinstance(ups, torch.nn.ModuleDict):
            found += [(downs[name].weight, ups[name].weight) for name in downs]
    if not found:
        raise UsageError("this system has no LoRA layers to cut.", remedy="The probe by rank needs a LoRA adapter.")
    return found


@torch.no_grad()
def by_rank(model: Any, ranks: Sequence[int] | None, divergence: Callable[[], float]) -> list[RankPoint]:
    """The divergence with every update cut to each of ``ranks`` (0, 1, 2, 4, … up to the adapter's own)."""
    with _decomposed(model) as factors:
        most = max(len(one.values) for one in factors)
        total = sum(float(one.values.pow(2).sum()) for one in factors)
        chosen = ranks or [0, *(2**power for power in range(most.bit_length())), most]
        points = []
        for rank in sorted({min(rank, most) for rank in chosen}):
            for one in factors:
                root = one.values.clone()
                root[rank:] = 0
                root = root.sqrt()
                one.up.copy_(one.left * root)
                one.down.copy_(root[:, None] * one.right)
            kept = sum(float(one.values[:rank].pow(2).sum()) for one in factors)
            points.append(RankPoint(rank, divergence(), kept / total if total else 0.0))
        return points


@contextmanager
def _decomposed(model: Any) -> Iterator[list[_Factors]]:
    """The singular value decomposition of every update; the factors are put back at the end."""
    pairs = lora_factors(model)
    before = [(down.detach().clone(), up.detach().clone()) for down, up in pairs]
    factors = []
    for down, up in pairs:  # B A = (Q_b R_b)(R_aᵀ Q_aᵀ): a small matrix to decompose
        up_q, up_r = torch.linalg.qr(up.float())
        down_q, down_r = torch.linalg.qr(down.float().T)
        left, values, right = torch.linalg.svd(up_r @ down_r.T)
        factors.append(_Factors(down, up, up_q @ left, values, right @ down_q.T))
    try:
        yield factors
    finally:
        for (down, up), (down_before, up_before) in zip(pairs, before, strict=True):
            down.copy_(down_before)
            up.copy_(up_before)
