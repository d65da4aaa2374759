"""LoRA-FA (Zhang et al. 2023, 2308.03303): A is frozen as drawn, B alone is trained.

``corrected`` turns the gradient of B into the one whose update of the weight is nearest to full fine-tuning's,

    g_B ← g_B (A Aᵀ)⁻¹ / s²        the solution of min ‖s·g_B A − g_W‖²

(the form of peft's LoRA-FA optimiser). A never changes, so the inverse is taken once; the rest is AdamW as always.
"""

from __future__ import annotations

from typing import Any

import torch
from peft import LoraConfig

from foretune.methods import lora
from foretune.methods.adapter import AdapterMethod, Request
from foretune.methods.attachment import PeftAttachment

RIDGE = 1e-8
"""Added to the diagonal of A Aᵀ before it is inverted, as peft does: a row of A may be nearly another's."""


def build(request: Request) -> LoraConfig:
    """LoRA's configuration."""
    return lora.build(request)


def start(attachment: PeftAttachment, request: Request) -> None:
    """Freeze every A, and correct the gradients of every B."""
    for module in attachment.peft_model.modules():
        if not hasattr(module, "lora_A"):
            continue
        layer: Any = module
        for name, down in layer.lora_A.items():
            down.weight.requires_grad_(False)
            if request.own["corrected"]:
                layer.lora_B[name].weight.register_hook(_Corrected(down.weight, float(layer.scaling[name])))


class _Corrected:
    """The hook on a B: multiplies its gradient by (A Aᵀ)⁻¹ / s²."""

    def __init__(self, down: torch.Tensor, scale: float) -> None:
        a = down.detach().float()
        ridge = RIDGE * torch.eye(a.shape[0], device=a.device)
        self.inverse = torch.linalg.pinv(a @ a.T + ridge) / scale**2

    def __call__(self, gradient: torch.Tensor) -> torch.Tensor:
        """gradient: (outputs, rank)."""
        corrected: torch.Tensor = gradient.float() @ self.inverse
        return corrected.to(gradient.dtype)


METHOD = AdapterMethod("lorafa", build, start)
