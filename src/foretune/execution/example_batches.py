"""Training rows as the model's own keyword arguments, for methods that look at data before they train.

One row a batch, so that nothing is padded; a seeded sample, the same for the same seed. Built when it is asked for.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import torch

from foretune.seeding import generator

if TYPE_CHECKING:
    from foretune.execution.bench import Bench

MOST_ROWS = 32
IGNORED_LABEL = -100
"""What transformers leaves out of a loss."""


class ExampleBatches:
    """At most `MOST_ROWS` training rows of a bench."""

    def __init__(self, bench: Bench, seed: int) -> None:
        self.bench, self.seed = bench, seed

    def __iter__(self) -> Iterator[dict[str, Any]]:
        rows = self.bench.split("train").rows
        order = generator(self.seed, "init", "calibration").permutation(len(rows))[:MOST_ROWS]
        for index in order:
            yield self._batch(rows[int(index)])

    def _batch(self, row: Any) -> dict[str, Any]:
        device = self.bench.model.device
        ids = torch.tensor(row.ids[None].astype("int64"), device=device)
        batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
        if self.bench.kind == "encoder":
            kind = torch.float32 if isinstance(row.label, float) else torch.int64
            return {**batch, "labels": torch.tensor([row.label], dtype=kind, device=device)}
        if self.bench.kind == "seq2seq":
            return {**batch, "labels": torch.tensor(row.decoder_ids[None].astype("int64"), device=device)}
        scored = torch.tensor(row.target_mask[None], device=device)
        return {**batch, "labels": ids.masked_fill(~scored, IGNORED_LABEL)}
