"""What a set of rows looks like to a base model: the mean of its hidden states; and weights from likeness.

A representation is the mean over rows of the mean over tokens of the last hidden state. Adapters stored with the
representation of their training rows can be chosen and weighted for new rows without labels: RPE (Jin et al. 2024,
2410.09908), with its two ways of weighting,

    softmax   w_i ∝ exp(cos(z, z_i) / τ)
    linear    min_w ‖z − Σ w_i z_i‖² with Σ w_i = 1 (a small ridge keeps the solution unique)

where z and z_i are centred on the mean of the stored representations, because hidden states share a large common part.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch

from foretune.data.batches import lay_out
from foretune.data.encode import EncodedRow
from foretune.errors import UsageError
from foretune.training.forward import Network

Vector = npt.NDArray[np.float64]
RIDGE = 1e-3
"""Relative to the mean square of the representations: enough against equal adapters, too little to matter else."""


@torch.no_grad()
def representation(network: Network, rows: Sequence[EncodedRow], *, micro_batch_tokens: int, pad_id: int = 0) -> Vector:
    """(width,) float64: the mean over ``rows`` of the mean last hidden state over a row's tokens (causal models)."""
    if network.kind != "causal" or not rows:
        raise UsageError("representations are taken of rows of a causal model.")
    total = np.zeros(0)
    update = lay_out(
        rows, range(len(rows)), kind="causal", limit_tokens=micro_batch_tokens, packing=False, pad_id=pad_id
    )
    with network.mode(packing=False, training=False):
        for batch in update.micro_batches:
            there = batch.to(network.model.device)
            hidden = network.hidden(there).double()
            mask = there.attention_mask.to(hidden.dtype)[..., None]
            summed = ((hidden * mask).sum(1) / mask.sum(1)).sum(0).cpu().numpy()
            total = total + summed if len(total) else summed
    return np.asarray(total / len(rows), dtype=np.float64)


def likeness(wanted: Vector, stored: Sequence[Vector]) -> Vector:
    """(adapters,) cosines between the centred representations; 0 where one has no length."""
    z, parts = _centred(wanted, stored)
    norms = np.linalg.norm(parts, axis=1) * np.linalg.norm(z)
    cosines: Vector = np.divide(parts @ z, norms, out=np.zeros(len(parts)), where=norms > 0)
    return cosines


def weights_for(
    wanted: Vector, stored: Sequence[Vector], *, weighting: str = "softmax", temperature: float = 0.2, nearest: int = 0
) -> Vector:
    """(adapters,) float64, summing to 1. ``nearest`` keeps the so many most alike (0: all); others weigh 0.

    Raises `UsageError` for an unknown weighting or representations of other widths.
    """
    if not stored or any(len(vector) != len(wanted) for vector in stored):
        raise UsageError("the representations are of other models: their widths differ.")
    if weighting not in ("softmax", "linear"):
        raise UsageError(f"unknown weighting {weighting!r}.", remedy="Use softmax or linear.")
    near = likeness(wanted, stored)
    kept = np.argsort(-near, kind="stable")[: nearest or len(stored)]
    weights = np.zeros(len(stored))
    if weighting == "softmax":
        scores = np.exp((near[kept] - near[kept].max()) / temperature)
        weights[kept] = scores / scores.sum()
    else:
        z, parts = _centred(wanted, stored)
        weights[kept] = _combination(z, parts[kept])
    return weights


def _centred(wanted: Vector, stored: Sequence[Vector]) -> tuple[Vector, Vector]:
    parts = np.stack(stored)
    middle = parts.mean(0) if len(parts) > 1 else np.zeros_like(wanted)
    return wanted - middle, parts - middle


def _combination(z: Vector, parts: Vector) -> Vector:
    """The weights of ``parts`` that come nearest to ``z`` and sum to 1, by Lagrange's equations."""
    count = len(parts)
    gram = parts @ parts.T
    ridge = RIDGE * max(float(np.trace(gram)) / count, np.finfo(float).tiny)
    system = np.block([[gram + ridge * np.eye(count), np.ones((count, 1))], [np.ones((1, count)), np.zeros((1, 1))]])
    solution: Vector = np.linalg.solve(system, np.append(parts @ z, 1.0))[:count]
    return solution
