"""Partial re-initialisation (after Tamkin et al. 2020, 2004.14975): which blocks hold what pre-training gave.

The paper draws some blocks anew, fine-tunes, and sees how much worse the result is; `reinit-top` and a study do that.
This probe is the cheap half: one block after the other is drawn anew, from the architecture's own initialisation, and
the loss is measured without training. A block whose loss hardly moves could have started anew.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from foretune.models.fresh import draw_anew
from foretune.models.modules import describe
from foretune.seeding import derive


@dataclass(frozen=True)
class BlockLoss:
    """The loss with one block drawn anew."""

    stack: str
    block: int
    loss: float


@torch.no_grad()
def by_block(model: Any, loss: Callable[[], float], *, seed: int = 0) -> list[BlockLoss]:
    """The loss with each block drawn anew in turn; the block is put back bit for bit before the next."""
    blocks: dict[tuple[str, int], list[str]] = {}
    for name in dict.fromkeys(name.rpartition(".")[0] for name, _ in model.named_parameters()):
        own = describe(name)
        adapter = any(part.startswith("lora_") for part in name.split("."))
        if own.layer is not None and not adapter:
            blocks.setdefault((own.stack, own.layer), []).append(name)
    found = []
    for (stack, block), names in sorted(blocks.items()):
        modules = [model.get_submodule(name) for name in names]
        before = [[weight.detach().clone() for weight in module.parameters(recurse=False)] for module in modules]
        try:
            draw_anew(model, modules, derive(seed, "fresh-block", stack, block))
            found.append(BlockLoss(stack, block, loss()))
        finally:
            for module, origins in zip(modules, before, strict=True):
                for weight, origin in zip(module.parameters(recurse=False), origins, strict=True):
                    weight.copy_(origin)
    return found
