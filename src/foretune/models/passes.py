"""Whether two passes of a model say the same up to rounding: for trials of a shorter or another way to compute it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

RELATIVE_TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 0.05, torch.float16: 0.02}
"""Largest root-mean-square difference of logits, relative to their spread, that counts as equal: accumulated rounding
of each precision. A leak between documents shows as 0.2 and more."""
FAILURES = (ValueError, TypeError, RuntimeError, KeyError, AttributeError, IndexError)
"""What a model raises that is called or wired in a way of its own."""


def before_head(model: Any, run: Callable[[], torch.Tensor]) -> torch.Tensor:
    """What a pass of ``model`` is compared by: what ``run`` returns, or for a classifier its last linear layer's input.

    The scores of a fresh head lie close together, all the more where there is one a text: rounding would look like a
    difference, and a difference like rounding.
    """
    linear = [module for module in model.modules() if isinstance(module, torch.nn.Linear)]
    if not linear or linear[-1].out_features != getattr(model.config, "num_labels", None):
        return run()
    read: list[torch.Tensor] = []
    hook = linear[-1].register_forward_pre_hook(lambda _, given: read.append(given[0]))
    try:
        returned = run()
    finally:
        hook.remove()
    return read[-1] if read else returned


def close(one: torch.Tensor, other: torch.Tensor) -> bool:
    """Whether two passes differ by accumulated rounding only."""
    tolerance = RELATIVE_TOLERANCE.get(one.dtype, RELATIVE_TOLERANCE[torch.float32])
    difference = (one.float() - other.float()).pow(2).mean().sqrt()
    return bool(difference <= tolerance * other.float().std())
