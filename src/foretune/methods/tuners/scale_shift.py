"""A linear layer's output scaled and shifted, γ ⊙ h + β with γ = 1 and β = 0 at the start: SSF and RED.

What is trained is γ − 1, which starts at 0: a bfloat16 number near 1 has steps of 1/128, near 0 it has none to speak
of. Merging is exact: W' = diag(γ) W, b' = γ ⊙ b + β.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from foretune.methods.tuners.layer import Update


class ScaleShift(Update):
    """(γ − 1) ⊙ h + β."""

    def __init__(self, base: nn.Module, inputs: int, outputs: int, config: Any, name: str) -> None:
        super().__init__(base, inputs, outputs, config, name)
        self.scale = nn.Parameter(torch.empty(outputs))
        self.shift = nn.Parameter(torch.empty(outputs))

    def reset(self) -> None:
        """γ = 1, β = 0."""
        nn.init.zeros_(self.scale)
        nn.init.zeros_(self.shift)

    def forward(self, x: torch.Tensor, hidden: torch.Tensor) -> torch.Tensor:
        """(..., outputs): what is added to the output ``hidden`` (..., outputs)."""
        return self.scale * hidden.to(self.scale.dtype) + self.shift

    def merged(self, weight: torch.Tensor, bias: torch.Tensor | None) -> tuple[torch.Tensor, torch.Tensor | None]:
        """diag(γ) W and γ ⊙ b + β."""
        factor = 1 + self.scale.float()
        shift = self.shift.float()
        return factor[:, None] * weight, shift if bias is None else factor * bias + shift
