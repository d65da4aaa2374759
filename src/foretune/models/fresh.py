"""Drawing modules anew by the architecture's own initialisation, under a stream of its own."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

_DRAWN = "_is_hf_initialized"
"""What transformers sets on modules and tensors that it must not draw again."""


def draw_anew(model: Any, modules: Sequence[Any], seed: int) -> None:
    """Draw the own weights of ``modules`` of a transformers model anew; torch's global generator is left as it was."""
    import torch

    things = [thing for module in modules for thing in (module, *module.parameters(recurse=False))]
    flags = [getattr(thing, _DRAWN, False) for thing in things]
    devices = [model.device] if model.device.type == "cuda" else []
    try:
        with torch.no_grad(), torch.random.fork_rng(devices=devices):
            torch.manual_seed(seed)
            for thing in things:
                setattr(thing, _DRAWN, False)
            for module in modules:
                model._init_weights(module)
    finally:
        for thing, flag in zip(things, flags, strict=True):
            setattr(thing, _DRAWN, flag)
