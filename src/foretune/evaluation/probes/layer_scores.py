"""Scores of layers by how much alike a model's states of different rows are (Che et al. 2023, 2310.15080).

Federated partial prompt tuning sends the prompts of the layers that score highest. For a group of B rows, let S be the
B × B matrix of cosines between the rows' states behind the layer (all positions of a row as one vector), and λ_j its
eigenvalues:

    score = Σ_j log(λ_j + ε) + 1 / (λ_j + ε),    ε = 1e-5

as the authors' released code has it (llm-eff/FedPepTAO); groups stand for clients and are averaged by their rows. Rows
that look alike make S nearly singular, and the score large: a layer scores high where it does not tell rows apart yet.
Two points are ours: padding counts as zero, and positions that all rows of a group begin with (a chat template's head)
are left out, as a causal model's states there are the same and say nothing about the rows.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from foretune.data.update import MicroBatch
from foretune.errors import UsageError
from foretune.training.forward import Network
from foretune.training.prefix import blocks_of

EPSILON = 1e-5


@dataclass(frozen=True)
class LayerScore:
    """A layer with its score; the higher, the sooner it is chosen."""

    layer: int
    score: float


def score(similarities: NDArray[np.float64]) -> float:
    """The score of a (rows, rows) matrix of cosines."""
    values = np.linalg.eigvalsh(similarities).clip(0) + EPSILON
    return float((np.log(values) + 1 / values).sum())


def cosines(states: torch.Tensor) -> NDArray[np.float64]:
    """(rows, rows) cosines of (rows, time, width) states, each row's positions as one vector."""
    flat = states.double().flatten(1)
    flat = flat / flat.norm(dim=1, keepdim=True).clamp_min(torch.finfo(torch.float64).tiny)
    found: NDArray[np.float64] = (flat @ flat.T).cpu().numpy()
    return found


def by_layer(network: Network, groups: Sequence[MicroBatch]) -> list[LayerScore]:
    """The score of every layer over padded micro-batches, each a group of at least two rows, in the model's order.

    Raises `UsageError` for a model without one stack of blocks, as an encoder–decoder is.
    """
    blocks = None if network.kind == "seq2seq" else blocks_of(network.model)
    if blocks is None:
        raise UsageError(
            "layers are scored where a model has one stack of blocks; this one has none or several.",
            remedy="Choose layers with an expression, like --layers 'decoder & last:4'.",
        )
    total = np.zeros(len(blocks))
    with torch.no_grad(), network.mode(packing=False, training=False), _states(list(blocks)) as seen:
        for group in groups:
            placed = group.to(network.model.device)
            network.run(placed)
            counted = placed.attention_mask.bool()
            if network.kind == "causal":
                counted[:, : _shared(placed)] = False
            total += len(group.rows) * np.array([score(cosines(s * counted[..., None])) for s in seen])
            seen.clear()
    rows = sum(len(group.rows) for group in groups)
    return [LayerScore(layer, float(value)) for layer, value in enumerate(total / rows)]


def highest(scores: Sequence[LayerScore], count: int) -> list[int]:
    """The numbers of the ``count`` layers that score highest, rising; ties go to the lower layer."""
    chosen = sorted(scores, key=lambda one: (-one.score, one.layer))[:count]
    return sorted(one.layer for one in chosen)


def expression(layers: Sequence[int]) -> str:
    """What ``--layers`` takes for these layers (`foretune.models.selector`)."""
    return " | ".join(f"layers=={layer}" for layer in layers)


def _shared(batch: MicroBatch) -> int:
    """How many positions all rows begin with; none where a row has nothing else."""
    same = (batch.ids == batch.ids[:1]).all(0) & batch.attention_mask.bool().all(0)
    head = int(same.long().cumprod(0).sum())
    return head if head < int(batch.attention_mask.sum(1).min()) else 0


@contextmanager
def _states(blocks: Sequence[Any]) -> Iterator[list[torch.Tensor]]:
    """Inside, a pass adds what every block hands on, (rows, time, width), in their order."""
    seen: list[torch.Tensor] = []

    def look(_: Any, __: Any, output: Any) -> None:
        seen.append(output[0] if isinstance(output, tuple) else output)

    hooks = [block.register_forward_hook(look) for block in blocks]
    try:
        yield seen
    finally:
        for hook in hooks:
            hook.remove()
