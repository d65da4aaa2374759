"""Fresh top blocks (Zhang et al. 2021, 2006.05987): the last L blocks are drawn anew before training.

The weights come from the architecture's own initialisation under a stream of the run's seed; a BERT-type pooler,
which belongs to the pre-training task, is drawn anew as well. The paper's other two cures are the loop's and the
user's: AdamW here has its bias correction, and ``epochs`` may be raised. Blocks that are not trained may not be drawn
anew.
"""

from __future__ import annotations

import re
from typing import Any

import torch

from foretune.models.fresh import draw_anew
from foretune.models.modules import describe
from foretune.regularization.base import Context, Plan, Regularizer
from foretune.seeding import derive

_POOLER = re.compile(r"(?:^|\.)pooler(?:\.|$)")


class ReinitTop(Regularizer):
    """New weights for the last blocks."""

    name = "reinit-top"

    def __init__(self, blocks: float = 2) -> None:
        self.blocks = int(blocks)
        self._drawn = 0

    def check(self, context: Context) -> Plan:
        """Refused where there are not that many blocks, or where they are frozen."""
        names, count = self._modules(context.model)
        if self.blocks >= count:
            return Plan(self.name, refusal=f"the model has {count} blocks. Draw fewer than that anew.")
        trained = set(map(id, context.weights))
        modules = dict(context.model.named_modules())
        frozen = any(id(w) not in trained for name in names for w in modules[name].parameters(recurse=False))
        if frozen:
            return Plan(self.name, refusal="fresh blocks have to be trained. Use --set training.method=full.")
        return Plan(f"the last {self.blocks} of {count} blocks start anew", sites=tuple(names), shares_head=True)

    def _modules(self, model: Any) -> tuple[list[str], int]:
        """(modules with parameters of their own in the last blocks of the last stack, blocks of that stack)."""
        described = {name: describe(name) for name, _ in model.named_modules()}
        layers = [(one.stack, one.layer) for one in described.values() if one.layer is not None]
        last = "decoder" if ("decoder", 0) in layers else layers[-1][0] if layers else ""
        count = max((layer + 1 for stack, layer in layers if stack == last), default=0)

        def chosen(name: str) -> bool:
            own = described[name]
            in_top = own.layer is not None and own.stack == last and own.layer >= count - self.blocks
            return in_top or bool(_POOLER.search(name))

        owners = dict.fromkeys(name.rpartition(".")[0] for name, _ in model.named_parameters())
        return [name for name in owners if chosen(name)], count

    @torch.no_grad()
    def setup(self, context: Context) -> None:
        """Draw the blocks anew, in the model and in the masters."""
        model: Any = context.model
        names, _ = self._modules(model)
        modules = [model.get_submodule(name) for name in names]
        draw_anew(model, modules, derive(context.seed, "reinit-top"))
        self._drawn = sum(weight.numel() for module in modules for weight in module.parameters(recurse=False))
        for weight, master in zip(context.weights, context.masters, strict=True):
            if weight is not master:
                master.copy_(weight)

    def report(self) -> dict[str, float]:
        """Blocks and weights drawn anew."""
        return {"blocks": float(self.blocks), "weights": float(self._drawn)}
