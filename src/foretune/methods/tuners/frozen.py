"""Tensors that are drawn once and never trained, made again from a seed and a name instead of being stored.

They are kept until an adapter is detached, so a forward pass draws nothing; equal requests share one tensor.
"""

from __future__ import annotations

from functools import lru_cache

import torch

from foretune.seeding import torch_generator

KEPT = 4096
"""Tensors kept: two for each of two thousand layers."""


def drawn(seed: int, name: str, shape: tuple[int, ...], bound: float, like: torch.Tensor) -> torch.Tensor:
    """``shape`` numbers uniform in [−bound, bound], the same for the same seed and name, typed and placed as ``like``.

    Drawn on the processor in float32 whatever ``like`` is, so that every device sees the same numbers.
    """
    return _drawn(seed, name, shape, bound, like.dtype, str(like.device))


@lru_cache(maxsize=KEPT)
def _drawn(seed: int, name: str, shape: tuple[int, ...], bound: float, dtype: torch.dtype, device: str) -> torch.Tensor:
    uniform = torch.rand(shape, generator=torch_generator(seed, "init", name))
    return ((2 * uniform - 1) * bound).to(device=device, dtype=dtype)


def forget() -> None:
    """Keep nothing that was drawn: another trial has another seed, and what is still needed is drawn again."""
    _drawn.cache_clear()
