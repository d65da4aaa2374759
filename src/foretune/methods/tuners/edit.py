"""Edits of activations: updates that look at a module's output (or at what its sub-layer reads) and change it.

`EditUpdate` is the base of an edit, `EditModel` the tuner that finds the width of linear layers, embeddings and whole
blocks, and hands an edit the input of another module (`Tap`) where it needs one: the parallel adapters of He et al.
(2022) read a sub-layer's input and add to its output, and in no architecture but the newest are these the ends of one
module.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from foretune.methods.tuners.config import AdapterConfig
from foretune.methods.tuners.layer import Update, widths_of
from foretune.methods.tuners.model import AdapterModel
from foretune.methods.tuners.positions import PositionWatch

Activation = Callable[[torch.Tensor], torch.Tensor]
ACTIVATIONS: dict[str, Activation] = {
    "relu": torch.relu,
    "gelu": nn.functional.gelu,
    "silu": nn.functional.silu,
    "none": lambda x: x,
}


@dataclass
class EditConfig(AdapterConfig):
    """What every edit of activations keeps in its file."""

    entries: dict[str, str] = field(
        default_factory=dict, metadata={"help": "Edited module -> the module whose input its edit reads."}
    )


class Tap(Update):
    """Adds nothing: keeps the input of its module until the edit that wants it has taken it."""

    refuses_merge = "an edit of activations is no change of a weight"

    def __init__(self) -> None:
        nn.Module.__init__(self)
        self.seen: torch.Tensor | None = None

    def reset(self) -> None:
        """Nothing to draw."""

    def forward(self, x: torch.Tensor, hidden: torch.Tensor) -> torch.Tensor | None:  # type: ignore[override]
        """x: (batch, time, width) is kept."""
        self.seen = x
        return None

    def take(self) -> torch.Tensor:
        """What was kept, once."""
        assert self.seen is not None, "the sub-layer's first module runs before its last"
        taken, self.seen = self.seen, None
        return taken


class EditUpdate(Update):
    """An edit of hidden states of width ``outputs``. A method writes `edit`."""

    refuses_merge = "an edit of activations is no change of a weight"
    positions: PositionWatch | None = None
    """Positions of the tokens of this pass, for edits that look at them"""

    def edit(self, hidden: torch.Tensor) -> torch.Tensor:
        """What is added to the hidden states (batch, time, width)."""
        raise NotImplementedError

    def forward(self, x: torch.Tensor, hidden: torch.Tensor) -> torch.Tensor:
        """(batch, time, width): what is added to the module's output."""
        return self.edit(hidden.to(next(self.parameters()).dtype))


class EditModel(AdapterModel):
    """The tuner of edits: blocks and embeddings are as wide as the model."""

    def build(self, config: Any, base: nn.Module, name: str) -> Update:
        """The edit of the module called ``name``, or the tap of one that is only read."""
        if name in config.entries.values():
            return self._tap(name)
        _, outputs = widths_of(base)
        width = outputs or int(self.model.config.get_text_config().hidden_size)
        update = self.update_class(base, width, width, config, name)
        if name in config.entries:
            update.__dict__["tap"] = self._tap(
                config.entries[name]
            )  # no child of the edit: it belongs to another layer
        if isinstance(update, EditUpdate):
            update.__dict__["positions"] = self._watch()
        return update

    def _tap(self, entry: str) -> Tap:
        taps: dict[str, Tap] = self.__dict__.setdefault("taps", {})
        return taps.setdefault(entry, Tap())

    def _watch(self) -> PositionWatch:
        watch: PositionWatch | None = self.__dict__.get("watch")
        if watch is None:
            watch = self.__dict__["watch"] = PositionWatch()
        return watch

    def _post_injection_hook(self, model: nn.Module, config: Any, adapter_name: str) -> None:
        if str(getattr(config, "positions", "all")) != "all":
            self._watch().attach(model)

    def _unload_and_optionally_merge(self, *args: Any, **settings: Any) -> nn.Module:
        model = super()._unload_and_optionally_merge(*args, **settings)
        self._watch().detach()
        return model
