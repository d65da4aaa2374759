"""Everything peft has, by name: one method for each row of `catalogue.methods.peft_rows`.

peft's own configuration is built from the row; a few methods need a setting that follows from the targets' widths
(block sizes must divide them). Methods that rewrite the base when they are attached (PiSSA, OLoRA, KaSA) are given back
their base when they are detached, and refuse to be switched off, because what is left is not the base.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import peft
import torch
from torch import nn

from foretune.catalogue.methods.base import knob_values
from foretune.catalogue.methods.peft_rows import (
    PEFT,
    PeftRow,
    circulant_block,
    common_width,
    divisor,
    sparsity,
)
from foretune.errors import UsageError
from foretune.methods.adalink import token_embeddings
from foretune.methods.adapter import AdapterMethod, Request
from foretune.methods.attachment import PeftAttachment


def _divide(field: str, *, outputs: bool = False) -> Callable[[Request, dict[str, Any]], dict[str, Any]]:
    """The setting lowered to a divisor of every target's width."""

    def change(request: Request, settings: dict[str, Any]) -> dict[str, Any]:
        return {field: divisor(common_width(request.targets, outputs=outputs), int(settings[field]))}

    return change


def _circulant(request: Request, settings: dict[str, Any]) -> dict[str, Any]:
    wanted = int(settings["block_size"])
    sizes = {target.name: circulant_block(target.inputs, target.outputs, wanted) for target in request.targets}
    return {"block_size": min(sizes.values()), "block_size_pattern": sizes}


def _feed_forward(request: Request, settings: dict[str, Any]) -> dict[str, Any]:
    keys = [target.name for target in request.targets if target.role.endswith((".k", ".v"))]
    down = [target.name for target in request.targets if target.role == "mlp.down"]
    if not keys and not down:
        raise UsageError("ia3 needs separate key and value layers, or a feed-forward layer; these targets have none.")
    return {"target_modules": [*keys, *down], "feedforward_modules": down}


def _even(request: Request, settings: dict[str, Any]) -> dict[str, Any]:
    return {"r": int(settings["r"]) + int(settings["r"]) % 2}


def _road(request: Request, settings: dict[str, Any]) -> dict[str, Any]:
    widths = [target.outputs for target in request.targets]
    return {"group_size": divisor(common_width([*request.targets], outputs=True), min(64, *widths))}


def _last_tokens(request: Request, settings: dict[str, Any]) -> dict[str, Any]:
    """Embeddings that the model calls on its tokens, and the numbers of its vocabulary's last tokens."""
    size = request.model.get_input_embeddings().weight.shape[0]
    count = min(int(settings["token_indices"]), size)
    return {"target_modules": token_embeddings(request.model)[:1], "token_indices": list(range(size - count, size))}


SPECIAL: Mapping[str, Callable[[Request, dict[str, Any]], dict[str, Any]]] = {
    "oft": _divide("oft_block_size"),
    "boft": _divide("boft_block_size"),
    "vblora": _divide("vector_length", outputs=True),
    "c3a": _circulant,
    "ia3": _feed_forward,
    "gralora": _even,
    "hra": _even,
    "road": _road,
    "trainable_tokens": _last_tokens,
    "supertuning": lambda request, settings: {"sparsity": sparsity(int(settings["sparsity"]))},
    "kasa": lambda request, settings: {"kasa_config": peft.KasaConfig()},
    "osf": lambda request, settings: {"effective_rank": _smallest_width(request, int(settings["effective_rank"]))},
}
"""Settings that follow from others: name -> what is put in place of peft's settings."""


def _smallest_width(request: Request, kept: int) -> int:
    smallest = min(min(target.inputs, target.outputs) for target in request.targets)
    if kept >= smallest:
        raise UsageError(
            f"osf.kept = {kept} leaves nothing to train in the narrowest layer.", remedy=f"Use at most {smallest - 1}."
        )
    return kept


def _check_widths(request: Request) -> None:
    """Refuse a knob above the width of a target; peft would cut it in silence or fail midway."""
    values = knob_values(request.targets, request.own, request.knob)
    for target, value in zip(request.targets, values, strict=True):
        width = min(target.inputs, target.outputs)
        if value > width:
            raise UsageError(
                f"{request.method}.{request.knob} = {value} is above the width {width} of {target.name}.",
                remedy=f"Use at most {width}, or choose other targets.",
            )


class PeftMethod(AdapterMethod):
    """A method of peft."""

    def __init__(self, row: PeftRow) -> None:
        self.row = row
        super().__init__(row.declaration.name, self._config)

    def _config(self, request: Request) -> peft.PeftConfig:
        row = self.row
        if row.within_width:
            _check_widths(request)
        settings: dict[str, Any] = {"target_modules": request.names, "task_type": request.task_type, **row.fixed}
        settings |= {name: request.own[ours] for ours, name in row.names.items()}
        if row.pattern:
            settings[row.pattern] = request.pattern
        if self.name in SPECIAL:
            settings |= SPECIAL[self.name](request, settings)
        return getattr(peft, row.config)(**settings)

    def settle(self, attachment: PeftAttachment) -> None:
        """AdaLoRA keeps its rank in a parameter, which must not be trained."""
        for name, weight in attachment.peft_model.named_parameters():
            if "ranknum" in name:
                weight.requires_grad_(False)

    def attach(
        self,
        model: nn.Module,
        fields: Mapping[str, Any],
        *,
        generator: torch.Generator,
        calibration: Iterable[Any] | None = None,
    ) -> PeftAttachment:
        """As every adapter; the base of a method that rewrites it is kept and put back at `detach`."""
        if not self.row.moves_base:
            return super().attach(model, fields, generator=generator, calibration=calibration)
        modules = dict(model.named_modules())
        chosen = self.request(model, fields, generator.initial_seed()).names
        before: dict[str, Any] = {name: modules[name].weight.detach().clone() for name in chosen}
        try:
            attachment = super().attach(model, fields, generator=generator, calibration=calibration)
        except BaseException:
            for name, weight in before.items():
                modules[name].weight.data = weight
            raise
        attachment.restores = before
        return attachment


PEFT_METHODS: dict[str, PeftMethod] = {name: PeftMethod(row) for name, row in PEFT.items()}
