"""NEFTune (Jain et al. 2023, 2310.05914): uniform noise on the input embeddings while training.

x ← x + U(−1, 1)·α/√(L·d) with L the row's length in tokens and d the embedding width. No cost, no state; evaluation
and the export never see it. Of an encoder–decoder the encoder's input gets it.
"""

from __future__ import annotations

from typing import Any

import torch

from foretune.data.update import MicroBatch
from foretune.models.modules import input_embeddings
from foretune.regularization.base import Context, Plan, Regularizer
from foretune.regularization.row_noise import RowNoise

DEFAULT_ALPHA = 5.0
"""The value the paper uses for most of its models."""


class Neftune(Regularizer):
    """Noise on the output of the embedding layer, through a forward hook."""

    name = "neftune"

    def __init__(self, alpha: float = DEFAULT_ALPHA) -> None:
        self.alpha = alpha
        self._handle: Any = None
        self._noise: torch.Tensor | None = None
        self._width = 0

    def check(self, context: Context) -> Plan:
        """One site: the input embeddings."""
        return Plan(f"uniform noise, α = {self.alpha:g}, on the input embeddings", sites=("embedding",))

    def setup(self, context: Context) -> None:
        """Place the hook."""
        embedding = input_embeddings(context.model)
        self._width = embedding.weight.shape[1]
        self._handle = embedding.register_forward_hook(self._add)

    def pre_forward(self, step: int, batch: MicroBatch, generator: torch.Generator) -> None:
        """Draw the noise of this micro-batch: (batch, time, width), row by row, scaled by each row's own length."""
        noise = torch.zeros((*batch.ids.shape, self._width), device=batch.ids.device)
        for part, length, own in RowNoise.of(batch, generator).parts(noise):
            scale = self.alpha / (length * self._width) ** 0.5
            drawn = torch.rand(part.shape, generator=own, device=part.device)
            part.copy_(drawn.mul_(2).sub_(1).mul_(scale))
        self._noise = noise

    def _add(self, module: Any, inputs: Any, output: torch.Tensor) -> torch.Tensor:
        if not module.training or self._noise is None or self._noise.shape != output.shape:
            return output
        return output + self._noise.to(output.dtype)

    def teardown(self) -> None:
        """Remove the hook."""
        if self._handle is not None:
            self._handle.remove()
            self._handle = None

    def report(self) -> dict[str, float]:
        """The strength used."""
        return {"alpha": self.alpha}
