"""Token weighting (Train-Attention, Seo et al. 2024, 2407.16920): the loss is Σ w · nll / Σ w over the update's tokens.

``surprise``: w = nll_base^sharpness, so that what the base knows already counts less. ``learned``: w = 2 σ(φ · f),
with f the base's normalised hidden state at the target and φ meta-learned as the paper learns its weights: a weight
is good when a step on its token lowers the loss on other rows. Of that step only the first order is taken,
∂L_meta/∂w_i ∝ −⟨∇nll_i, ∇L_meta⟩, and the inner products of all tokens come from two passes, ⟨∇nll_i, g⟩ ≈ (nll_i(θ +
εg) − nll_i(θ − εg))/2ε (Ren et al. 2018, 1803.09050, differentiate instead). A lesson is given every ``every``
updates on the update's rows against as many others; φ starts at 0, so all weights at 1. The base's states are kept a
row (`base_states`); sharpness 0 weighs all tokens alike.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch

from foretune.data.update import MicroBatch
from foretune.regularization.base import Context, Plan, Regularizer
from foretune.regularization.base_states import BaseStates, base_refusal
from foretune.seeding import generator as numpy_generator

CACHE_BYTES = 256 * 2**20
LEAST = 1e-3
"""Nats added to the base's loss: a token that the base is sure of still counts a little."""
STRIDE = 0.02
"""ε: how far weights are moved to measure inner products, relative to their norm."""


class TokenWeighting(Regularizer):
    """Weights of the task loss's tokens."""

    name = "token-weighting"

    def __init__(self, sharpness: float = 1.0, by: str = "surprise", every: float = 4, rate: float = 0.1) -> None:
        self.sharpness, self.by, self.every, self.rate = sharpness, by, int(every), rate
        self._context: Context | None = None
        self._states: BaseStates | None = None
        self._attention: torch.Tensor | None = None
        self._batches: list[MicroBatch] = []
        """The update's micro-batches, also after its passes: a lesson looks at them again"""
        self._ended = True
        self._step = 0
        self._spread = 0.0
        self._lessons = 0

    def check(self, context: Context) -> Plan:
        """Refused for classifiers and where the base cannot be asked."""
        if context.kind == "encoder":
            return Plan(self.name, refusal="a classifier has one target a row. Leave token-weighting out.")
        if why := base_refusal(context):
            return Plan(self.name, refusal=why)
        return Plan(f"tokens weighed by {self.by}", extra_bytes=CACHE_BYTES, shares_head=True)

    def setup(self, context: Context) -> None:
        """Get ready to ask the base."""
        self._context = context
        self._states = BaseStates(context, CACHE_BYTES)
        if self.by == "learned":
            embedding = context.model.get_input_embeddings()  # type: ignore[operator]
            self._attention = torch.zeros(embedding.weight.shape[1] + 1, device=embedding.weight.device)

    def prepare(self, batch: MicroBatch) -> None:
        """Ask the base about rows that are not kept."""
        if self._states is not None:
            self._states.prepare(batch)
            self._batches = [batch] if self._ended else [*self._batches, batch]
            self._ended = False

    def token_weights(self, batch: MicroBatch) -> torch.Tensor | None:
        """(targets,) weights of a micro-batch."""
        if self._states is None or self.sharpness == 0:
            return None
        if self._attention is None:
            weights = (self._states.nll(batch.rows) + LEAST) ** self.sharpness
        else:
            weights = self._learned(self._attention, batch)
        self._spread = float(weights.std() / weights.mean()) if len(weights) > 1 else 0.0
        return weights

    def _learned(self, attention: torch.Tensor, batch: MicroBatch) -> torch.Tensor:
        assert self._states is not None
        states = self._states.hidden(batch.rows).float()
        features = torch.nn.functional.layer_norm(states, states.shape[-1:]) / states.shape[-1] ** 0.5
        return 2 * torch.sigmoid(self.sharpness * (features @ attention[:-1] + attention[-1]))

    def pre_forward(self, step: int, batch: MicroBatch, generator: torch.Generator) -> None:
        """Note the step."""
        self._step = step

    def end_forward(self) -> None:
        """The next micro-batch that is prepared begins an update."""
        self._ended = True

    def post_step(self, params: Sequence[torch.Tensor], learning_rate: float) -> None:
        """Give the weights a lesson, every so many updates."""
        if self._attention is not None and self.sharpness > 0 and self._step % self.every == 0:
            self._lesson(self._attention)
        self._end()

    def _lesson(self, attention: torch.Tensor) -> None:
        """Move φ towards weights whose tokens help the other rows."""
        context = self._context
        assert context is not None and context.lay_out is not None
        own = {row for batch in self._batches for row in batch.rows}
        others = [row for row in range(len(context.rows)) if row not in own] or sorted(own)
        draw = numpy_generator(context.seed, self.name, "lesson", self._step)
        chosen = [others[i] for i in draw.permutation(len(others))[: len(own)]]
        slope = self._slope(context, chosen)
        norm = float(torch.linalg.vector_norm(torch.stack([part.norm() for part in slope])))
        if norm == 0:
            return
        helped = self._inner_products(context, [part / norm for part in slope])
        helped = helped / helped.pow(2).mean().sqrt().clamp_min(1e-12)
        with torch.enable_grad():
            phi = attention.clone().requires_grad_(True)
            weights = torch.cat([self._learned(phi, batch) for batch in self._batches])
            gain = (weights * helped).sum() / weights.sum()
            (direction,) = torch.autograd.grad(gain, phi)
        attention.add_(direction, alpha=self.rate)
        self._lessons += 1

    def _slope(self, context: Context, rows: Sequence[int]) -> list[torch.Tensor]:
        """The gradient of the mean loss on ``rows``, without noise."""
        assert context.lay_out is not None
        total = [torch.zeros_like(weight, dtype=torch.float32) for weight in context.weights]
        update = context.lay_out(rows)
        for batch in update.micro_batches:
            with torch.enable_grad():
                loss = context.quiet_pass(batch.to(context.weights[0].device)).nll().sum() / update.targets
                parts = torch.autograd.grad(loss, list(context.weights), allow_unused=True)
            for into, part in zip(total, parts, strict=True):
                if part is not None:
                    into.add_(part.float())
        return total

    @torch.no_grad()
    def _inner_products(self, context: Context, direction: Sequence[torch.Tensor]) -> torch.Tensor:
        """(tokens,) ⟨∇nll_i, direction⟩ of the update's tokens by central differences; the weights are put back."""
        before = [weight.detach().clone() for weight in context.weights]
        size = STRIDE * float(torch.linalg.vector_norm(torch.stack([weight.float().norm() for weight in before])))
        found: list[torch.Tensor] = []
        try:
            for sign in (1.0, -1.0):
                for weight, origin, part in zip(context.weights, before, direction, strict=True):
                    weight.copy_(origin.float().add(part, alpha=sign * size))
                found.append(torch.cat([context.quiet_pass(batch).nll() for batch in self._batches]))
        finally:
            for weight, origin in zip(context.weights, before, strict=True):
                weight.copy_(origin)
        return (found[0] - found[1]) / (2 * size)

    def _end(self) -> None:
        self._batches = []
        if self._states is not None:
            self._states.end()

    def teardown(self) -> None:
        """Let go of all states."""
        self._states = self._context = None
        self._batches = []

    def state_dict(self) -> dict[str, torch.Tensor]:
        """φ, where it is learnt."""
        return {} if self._attention is None else {"attention": self._attention.clone()}

    def load_state_dict(self, state: Mapping[str, torch.Tensor]) -> None:
        """Put φ back."""
        if self._attention is not None:
            self._attention.copy_(state["attention"])

    def report(self) -> dict[str, float]:
        """How far apart weights are, and the lessons given."""
        return {"sharpness": self.sharpness, "relative_spread": self._spread, "lessons": float(self._lessons)}
