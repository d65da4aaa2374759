"""Full fine-tuning: every weight of the base is trained.

The base's own weights move, so a copy taken at attachment is what `detach` puts back, bitwise.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from foretune.catalogue.methods import METHODS
from foretune.catalogue.space import Space
from foretune.catalogue.traits import Traits
from foretune.cost.shapes import ModelShapes
from foretune.errors import UsageError
from foretune.methods.attachment import check_fits, split_by_decay
from foretune.methods.base import Infeasible, KnobChoice


class FullAttachment:
    """All weights of a model, trainable, with a copy of how they were."""

    def __init__(self, model: Any) -> None:
        """Refuses a quantised base: its integers have no gradient."""
        if getattr(model, "is_quantized", False):
            raise UsageError(
                "a 4-bit base cannot be fully fine-tuned.", remedy="Use method lora, or load it without --quantize."
            )
        self.model = model
        self._gradients = {name: weight.requires_grad for name, weight in model.named_parameters()}
        self._before = {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}
        for weight in model.parameters():
            weight.requires_grad_(True)

    def parameter_groups(self, learning_rate: float) -> list[dict[str, Any]]:
        """All parameters; weight decay applies to matrices."""
        return split_by_decay(list(self.model.named_parameters()), learning_rate)

    def state(self) -> dict[str, torch.Tensor]:
        """Every parameter by name (tied ones once)."""
        return {name: weight.detach().clone() for name, weight in self.model.named_parameters()}

    def load_state(self, state: Mapping[str, torch.Tensor]) -> None:
        """Put the parameters back; a missing or extra name is refused."""
        own = dict(self.model.named_parameters())
        check_fits(own, state)
        with torch.no_grad():
            for name, weight in own.items():
                weight.copy_(state[name])

    def disabled(self) -> contextlib.AbstractContextManager[Any]:
        """Refused: the base weights themselves have moved."""
        raise UsageError("full fine-tuning cannot be switched off.", remedy="Use an adapter method.")

    def merge(self) -> nn.Module:
        """The trained model itself."""
        model: nn.Module = self.model
        return model

    def save(self, folder: Path) -> None:
        """A whole model folder."""
        self.model.save_pretrained(str(folder), safe_serialization=True)

    def statistics(self) -> dict[str, float]:
        """Trainable parameters and how far they moved."""
        with torch.no_grad():
            moves = [
                (weight.detach().float() - self._before[name].float()).norm()
                for name, weight in self.model.named_parameters()
            ]
        count = sum(weight.numel() for weight in self.model.parameters())
        return {"trainable_parameters": float(count), "norm": float(torch.linalg.vector_norm(torch.stack(moves)))}

    def observed(self) -> contextlib.AbstractContextManager[Any]:
        """Nothing is counted."""
        return contextlib.nullcontext()

    def detach(self) -> nn.Module:
        """Put the base's weights back, bitwise."""
        with torch.no_grad():
            for name, tensor in self.model.state_dict().items():
                tensor.copy_(self._before[name])
        for name, weight in self.model.named_parameters():
            weight.requires_grad_(self._gradients[name])
        return self.merge()


class Full:
    """The method ``full``."""

    name = "full"
    traits: Traits = METHODS["full"].traits

    def space(self) -> Space:
        """No settings of its own."""
        return METHODS["full"].space

    def count(self, shapes: ModelShapes, fields: Mapping[str, Any]) -> int:
        """All parameters."""
        return shapes.parameters

    def knob_for(self, shapes: ModelShapes, trainable: float, fields: Mapping[str, Any]) -> KnobChoice | Infeasible:
        """Only 100 % can be met."""
        choice = KnobChoice({}, shapes.parameters, 1.0)
        return choice if trainable == 1.0 else Infeasible("full fine-tuning trains every parameter", (choice,))

    def attach(
        self,
        model: nn.Module,
        fields: Mapping[str, Any],
        *,
        generator: torch.Generator,
        calibration: Iterable[Any] | None = None,
    ) -> FullAttachment:
        """Make every weight trainable; nothing is drawn."""
        return FullAttachment(model)


METHOD = Full()
