"""LoRA (Hu et al. 2021, 2106.09685) through peft: y = W₀x + (α/r)·B A drop(x), B = 0 at the start.

Count: r·(in + out) for every target linear layer. Knob: the rank.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from peft import LoraConfig, TaskType
from torch import nn

from foretune.catalogue.methods import METHODS
from foretune.catalogue.space import Space
from foretune.catalogue.traits import Traits
from foretune.cost.shapes import TARGET_ROLES, ModelShapes
from foretune.methods.base import Infeasible, KnobChoice
from foretune.methods.hf_peft import PeftAttachment
from foretune.models.modules import linear_targets


class Lora:
    """The method ``lora``."""

    name = "lora"
    traits: Traits = METHODS["lora"].traits

    def space(self) -> Space:
        """Rank, α, dropout, target modules."""
        return METHODS["lora"].space

    def count(self, shapes: ModelShapes, fields: Mapping[str, Any]) -> int:
        """r·Σ(in + out) over the target linears."""
        return shapes.lora_parameters(int(fields["lora.rank"]), TARGET_ROLES[str(fields["lora.targets"])])

    def knob_for(self, shapes: ModelShapes, trainable: float, fields: Mapping[str, Any]) -> KnobChoice | Infeasible:
        """The rank whose count is nearest to the share ``trainable`` of all parameters."""
        one = self.count(shapes, {**fields, "lora.rank": 1})
        rank = max(1, round(trainable * shapes.parameters / one))
        choice = KnobChoice({"lora.rank": rank}, rank * one, rank * one / shapes.parameters)
        if trainable * shapes.parameters < one / 2:
            return Infeasible(f"rank 1 already trains {one:,} parameters", (choice,))
        return choice

    def attach(
        self,
        model: nn.Module,
        fields: Mapping[str, Any],
        *,
        generator: torch.Generator,
        calibration: Iterable[Any] | None = None,
    ) -> PeftAttachment:
        """Inject fresh LoRA matrices; a classifier's new head is trained along."""
        config: Any = model.config
        if type(model).__name__.endswith("ForSequenceClassification"):
            task_type = TaskType.SEQ_CLS
        else:
            task_type = TaskType.SEQ_2_SEQ_LM if config.is_encoder_decoder else TaskType.CAUSAL_LM
        settings = LoraConfig(
            r=int(fields["lora.rank"]),
            lora_alpha=float(fields["lora.alpha"]),
            lora_dropout=float(fields["lora.dropout"]),
            target_modules=linear_targets(model, str(fields["lora.targets"])),
            task_type=task_type,
            bias="none",
        )
        return PeftAttachment(model, settings, self.traits, seed=generator.initial_seed())
