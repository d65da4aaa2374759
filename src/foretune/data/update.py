"""One optimiser update, however it is laid out in memory.

An *update* is a set of rows. Packing (or padding) only lays its rows out in *micro-batches*. Every loss term is a
sum with its denominator over the whole update, so the gradient does not depend on the layout: sixteen rows in one
micro-batch equal sixteen rows in four.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Protocol, runtime_checkable

import numpy as np
import torch

PADDING = -1
"""The segment number of padding positions."""


@dataclass(frozen=True)
class Layout:
    """Where the documents of a packed stream lie, in host integers (the attention reads them every layer).

    The stream is ``[shared head | document 1 | document 2 | …]``: every document sees the head and itself.
    """

    head: int
    """Length of the shared head in tokens; 0 when nothing is shared."""
    bounds: tuple[tuple[int, int], ...]
    """(start, end) of every document in the stream, the head excluded."""


@dataclass(frozen=True)
class MicroBatch:
    """Tensors of one forward pass.

    For causal models the score of a label comes from the hidden state one position earlier. For sequence
    classification ``target_index`` counts rows and ``labels`` are class numbers or regression values.
    """

    ids: torch.Tensor
    """(batch, time) int64"""
    positions: torch.Tensor
    """(batch, time) int64"""
    segments: torch.Tensor
    """(batch, time) int64: document number in a packed stream, 0 = shared head, -1 = padding"""
    target_index: torch.Tensor
    """(targets,) int64 into the flattened hidden states: the positions whose next token is scored"""
    labels: torch.Tensor
    """(targets,) int64 token ids or class numbers; float for regression"""
    row: torch.Tensor
    """(targets,) int64: which row of the update a target belongs to"""
    rows: tuple[int, ...] = ()
    """Data-set indices of the rows of this micro-batch, in the order of ``row`` numbers they use"""
    layout: Layout | None = None
    """Present when packed; absent when padded (one row per line)"""
    decoder_ids: torch.Tensor | None = None
    """(batch, decoder time) int64 for encoder–decoders; ``target_index`` then refers to decoder positions"""
    token_weights: torch.Tensor | None = None
    """(targets,) float: weights from a regularizer, or None for ones"""
    types: torch.Tensor | None = None
    """(batch, time) int64: 1 at the second text of a pair, for encoders that tell the two apart; else None"""
    tasks: torch.Tensor | None = None
    """Task numbers for methods that read them: (batch, time) int64 when packed, (batch,) when padded; else None"""

    @property
    def attention_mask(self) -> torch.Tensor:
        """(batch, time) int64: 1 where a token is, 0 at padding."""
        return (self.segments != PADDING).to(torch.int64)

    @property
    def real_tokens(self) -> int:
        """Tokens that are not padding."""
        return int((self.segments != PADDING).sum())

    def to(self, device: torch.device) -> MicroBatch:
        """The same micro-batch on another device."""

        def moved(tensor: torch.Tensor) -> torch.Tensor:
            return tensor.to(device, non_blocking=True)

        return replace(
            self,
            ids=moved(self.ids),
            positions=moved(self.positions),
            segments=moved(self.segments),
            target_index=moved(self.target_index),
            labels=moved(self.labels),
            row=moved(self.row),
            decoder_ids=None if self.decoder_ids is None else moved(self.decoder_ids),
            token_weights=None if self.token_weights is None else moved(self.token_weights),
            types=None if self.types is None else moved(self.types),
            tasks=None if self.tasks is None else moved(self.tasks),
        )


@dataclass(frozen=True)
class Update:
    """A set of rows and the micro-batches that lay them out."""

    rows: tuple[int, ...]
    micro_batches: tuple[MicroBatch, ...]

    @property
    def targets(self) -> int:
        """The number of scored tokens (or rows): the denominator of the loss."""
        return sum(int(batch.labels.shape[0]) for batch in self.micro_batches)

    @property
    def tokens(self) -> int:
        """Real tokens over all micro-batches."""
        return sum(batch.real_tokens for batch in self.micro_batches)


class RowSource(Protocol):
    """Decides which rows make up the update of a step: plain epochs, random subsets, iterative selection."""

    def rows(self, step: int) -> Sequence[int]:
        """The data-set indices of update ``step`` (0-based): a function of the step, not of call history."""
        ...


@runtime_checkable
class StatefulRowSource(RowSource, Protocol):
    """A row source that also depends on what it chose before; its state goes into checkpoints."""

    def state(self) -> dict[str, torch.Tensor]:
        """What `load_state` takes back."""
        ...

    def load_state(self, state: Mapping[str, torch.Tensor]) -> None:
        """Continue as the source whose state this is."""
        ...


@dataclass(frozen=True)
class Epochs:
    """Plain epochs: a fresh seeded permutation each, cut into updates of ``rows_per_update``; the last is short."""

    size: int
    rows_per_update: int
    seed: int

    @property
    def updates_per_epoch(self) -> int:
        """Updates in one epoch."""
        return -(-self.size // self.rows_per_update)

    def rows(self, step: int) -> Sequence[int]:
        """The rows of update ``step``."""
        from foretune.seeding import generator

        epoch, update = divmod(step, self.updates_per_epoch)
        order: np.ndarray[tuple[int], np.dtype[np.int64]] = generator(self.seed, "data", epoch).permutation(self.size)
        return [int(i) for i in order[update * self.rows_per_update : (update + 1) * self.rows_per_update]]


def chunks(count: int, size: int) -> Iterator[slice]:
    """Slices of at most ``size`` that cover ``range(count)``."""
    for start in range(0, count, size):
        yield slice(start, min(start + size, count))
