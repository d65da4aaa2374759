"""A micro-batch as the keyword arguments of a transformers model, labels among them.

For what looks at a model from outside the loop: starts that read activations or gradients of some training rows.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from foretune.catalogue.models import ModelKind
from foretune.data.batches import lay_out
from foretune.data.encode import EncodedRow
from foretune.data.update import MicroBatch

IGNORED = -100
"""The label that transformers' losses leave out."""


def keywords(batch: MicroBatch, kind: ModelKind) -> dict[str, torch.Tensor]:
    """The ids, attention mask and labels of a padded batch, and the decoder's ids for an encoder–decoder."""
    given = {"input_ids": batch.ids, "attention_mask": batch.attention_mask}
    if kind == "encoder":
        return {**given, "labels": batch.labels}
    side = batch.ids if batch.decoder_ids is None else batch.decoder_ids
    labels = torch.full_like(side, IGNORED).reshape(-1)
    at = batch.target_index if batch.decoder_ids is not None else batch.target_index + 1
    labels[at] = batch.labels  # a causal model compares position t with label t + 1 itself
    labels = labels.reshape(side.shape)
    return {**given, "labels": labels} | ({} if batch.decoder_ids is None else {"decoder_input_ids": side})


@dataclass(frozen=True)
class Calibration:
    """Some training rows, laid out when somebody iterates: most methods never do."""

    rows: Sequence[EncodedRow]
    kind: ModelKind
    micro_batch_tokens: int
    pad_id: int
    decoder_start_id: int
    device: torch.device
    taken: dict[str, torch.Tensor] = field(default_factory=dict)
    """What a method made of the rows and does not train: put here by the run that began, used by one that goes on"""

    def __iter__(self) -> Iterator[dict[str, Any]]:
        """Keyword arguments of the model, batch by batch."""
        update = lay_out(
            self.rows, range(len(self.rows)), kind=self.kind, limit_tokens=self.micro_batch_tokens, packing=False,
            pad_id=self.pad_id, decoder_start_id=self.decoder_start_id,
        )  # fmt: skip
        for batch in update.micro_batches:
            yield keywords(batch.to(self.device), self.kind)
