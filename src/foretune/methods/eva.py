"""EVA (Paischer et al. 2024, 2410.07170): LoRA whose A starts as the top right singular vectors of the layer's inputs.

B = 0 as always, so the start is the base. The singular vectors of all tokens' inputs are found batch by batch: what is
kept of a layer is a matrix of 4r rows whose Gram matrix approximates that of everything seen. Ranks stay equal (ρ = 1
of the paper), so that the number of parameters is the one that was asked for.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from peft import LoraConfig

from foretune.methods import lora
from foretune.methods.adapter import AdapterMethod, Request
from foretune.methods.attachment import PeftAttachment

KEPT_FACTOR = 4
"""Rows kept for each direction that is wanted: what lies beyond can still grow with later batches."""


class Directions:
    """The leading directions of rows that come in batches."""

    def __init__(self, kept: int) -> None:
        self.kept = kept
        self.rows: torch.Tensor | None = None

    def add(self, inputs: torch.Tensor) -> None:
        """inputs: (tokens, width); the leading ``kept`` weighted directions of all so far are kept."""
        rows = inputs.float() if self.rows is None else torch.cat([self.rows, inputs.float()])
        if len(rows) <= self.kept:
            self.rows = rows
            return
        _, vectors = torch.linalg.eigh(rows @ rows.T)  # rising eigenvalues
        self.rows = vectors[:, -self.kept :].T @ rows

    def leading(self, count: int) -> torch.Tensor:
        """(at most count, width) float32 with orthonormal rows, the strongest first."""
        assert self.rows is not None
        _, sizes, found = torch.linalg.svd(self.rows, full_matrices=False)
        directions: torch.Tensor = found
        real = int((sizes > sizes[0] * torch.finfo(sizes.dtype).eps * max(self.rows.shape)).sum())
        return directions[: min(count, real)]


def input_directions(
    model: Any, modules: Mapping[str, int], calibration: Iterable[Mapping[str, Any]]
) -> dict[str, torch.Tensor]:
    """Module name -> (rank, width) leading directions of its inputs; ``modules`` gives each one's rank.

    Modules that are called with the same tensor share one computation. Padding is left out.
    """
    found = {name: Directions(KEPT_FACTOR * max(modules.values())) for name in modules}
    owner: dict[str, str] = {}
    last: list[tuple[str, torch.Tensor]] = []
    mask: list[torch.Tensor] = []

    def look(name: str) -> Any:
        def hook(_: Any, inputs: tuple[torch.Tensor, ...]) -> None:
            x = inputs[0].detach()
            if last and last[0][1] is inputs[0]:
                owner[name] = owner.get(last[0][0], last[0][0])
                return
            owner[name] = name
            last[:] = [(name, inputs[0])]
            real = mask[0].bool() if mask[0].shape == x.shape[:-1] else torch.ones(x.shape[:-1], dtype=torch.bool)
            found[name].add(x[real.to(x.device)])

        return hook

    hooks = [model.get_submodule(name).register_forward_pre_hook(look(name)) for name in modules]
    try:
        with torch.no_grad():
            for batch in calibration:
                mask[:] = [batch["attention_mask"]]
                last.clear()
                model(**batch)
    finally:
        for hook in hooks:
            hook.remove()
    return {name: found[owner[name]].leading(rank) for name, rank in modules.items()}


def build(request: Request) -> LoraConfig:
    """LoRA's configuration."""
    return lora.build(request)


def start(attachment: PeftAttachment, request: Request) -> None:
    """Put the directions of the layers' inputs into A; with fewer than r of them the other rows stay as drawn."""
    if request.calibration is None:
        return
    model: Any = attachment.model
    layers = {name: module for name, module in model.named_modules() if "default" in getattr(module, "lora_A", {})}
    ranks = {name: int(layer.lora_A["default"].weight.shape[0]) for name, layer in layers.items()}
    for name, directions in input_directions(model, ranks, request.calibration).items():
        weight = layers[name].lora_A["default"].weight
        with torch.no_grad():
            weight[: len(directions)] = directions.to(weight.dtype)


METHOD = AdapterMethod("eva", build, start)
