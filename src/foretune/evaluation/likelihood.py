"""Teacher-forced scores of rows: the loss of the reference answer, and for classifiers the prediction.

Rows are scored in chunks, in the order given (each chunk is laid out by length), so a time budget can stop between
chunks and what is done is a leading part; each score belongs to one row and depends on no other beyond rounding.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from foretune.data.batches import lay_out
from foretune.data.encode import EncodedRow
from foretune.training.forward import Network

CHUNK_ROWS = 64
"""Rows between two looks at the clock: a few seconds at most for short rows of a small model."""


@dataclass(frozen=True)
class RowScore:
    """One row's score. ``prediction`` is a class number or a value; None for language models."""

    row: int
    nll: float
    """Summed loss in nats (squared error for regression)."""
    tokens: int
    """Scored tokens; 1 for classification and regression."""
    prediction: float | None = None
    probability: float | None = None
    """Probability of the predicted class."""


@torch.no_grad()
def score_rows(
    network: Network,
    rows: Sequence[EncodedRow],
    chosen: Sequence[int],
    *,
    micro_batch_tokens: int,
    pad_id: int = 0,
    decoder_start_id: int = 0,
    on_chunk: Callable[[int], bool] = lambda done: True,
) -> list[RowScore]:
    """Score the ``chosen`` rows; in their order.

    ``on_chunk`` is told how many are done and returns False to stop there: the list then holds only rows done.
    """
    order = list(chosen)
    scores: dict[int, RowScore] = {}
    packing = network.packs
    with network.mode(packing=packing, training=False):
        for start in range(0, len(order), CHUNK_ROWS):
            chunk = order[start : start + CHUNK_ROWS]
            update = lay_out(
                rows,
                chunk,
                kind=network.kind,
                limit_tokens=micro_batch_tokens,
                packing=packing,
                pad_id=pad_id,
                decoder_start_id=decoder_start_id,
                tasks=network.reads_tasks,
            )
            for batch in update.micro_batches:
                scored = network.run(batch.to(network.model.device))
                losses = scored.nll().double()
                owner = scored.row
                sums = torch.zeros(len(chunk), dtype=torch.float64, device=losses.device).index_add_(0, owner, losses)
                counts = torch.bincount(owner, minlength=len(chunk))
                predictions = _predictions(network, scored.hidden, owner) if network.kind == "encoder" else {}
                for number in sorted(set(owner.tolist())):
                    value, probability = predictions.get(number, (None, None))
                    row = chunk[number]
                    scores[row] = RowScore(row, float(sums[number]), int(counts[number]), value, probability)
            if not on_chunk(len(scores)):
                break
    return [scores[i] for i in chosen if i in scores]


def _predictions(
    network: Network, logits: torch.Tensor, owner: torch.Tensor
) -> dict[int, tuple[float | None, float | None]]:
    """Row number → (class number, its probability), or (value, None) for regression. logits: (rows, classes)."""
    if logits.shape[-1] == 1:
        return {int(n): (float(v), None) for n, v in zip(owner, logits.squeeze(-1).float(), strict=True)}
    best = logits.float().softmax(-1).max(-1)
    return {
        int(number): (float(index), float(probability))
        for number, index, probability in zip(owner, best.indices, best.values, strict=True)
    }
