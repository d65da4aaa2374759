"""Noise on activations that belongs to a row, not to a batch: the same for every layout and every micro-batch.

torch's dropout draws one mask for a whole tensor, so sixteen rows in one micro-batch and in two get different noise,
and a gradient cannot be compared between them. Here the noise of a row at a place in the model comes from a stream of
its own, named by update, row and place; a stream is seeded in microseconds, and the draws are as many as before.
Recomputation in gradient checkpointing draws the same again, because nothing depends on what was drawn before.

It knows two layouts: padded batches (one row a line) and packed streams. Positions beyond a row's own tokens are left
without noise; nothing reads them.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import torch

from foretune.data.update import PADDING, MicroBatch
from foretune.seeding import derive

Noise = Literal["bernoulli", "gaussian"]
_PLACE_STRIDE = 0x9E3779B97F4A7C15
"""Odd, so that places give different seeds (Weyl sequence)."""
_SEEDS = 2**63


@dataclass(frozen=True)
class RowNoise:
    """The rows of a micro-batch, where they lie, and the seeds of their streams."""

    seeds: tuple[int, ...]
    """One a row; a shared head of a packed stream is row 0"""
    spans: tuple[tuple[int, int], ...]
    """(start, end) of every row in a packed stream; empty when padded"""
    lengths: tuple[int, ...]
    """Tokens of every row (of the encoder, for encoder–decoders)"""
    decoder_lengths: tuple[int, ...]
    """Decoder tokens of every row; empty without a decoder"""
    device: torch.device
    generator: torch.Generator

    @classmethod
    def of(cls, batch: MicroBatch, generator: torch.Generator) -> RowNoise:
        """The rows of ``batch``, seeded by ``generator`` and their data-set index."""
        root, device = generator.initial_seed(), batch.ids.device
        seeds = [derive(root, index) for index in batch.rows]
        own = torch.Generator(device=device) if device.type == "cuda" else torch.Generator()
        if batch.layout is not None:
            spans = list(batch.layout.bounds)
            if batch.layout.head:
                seeds, spans = [derive(root, "head"), *seeds], [(0, batch.layout.head), *spans]
            lengths = tuple(end - start for start, end in spans)
            return cls(tuple(seeds), tuple(spans), lengths, (), device, own)
        lengths = tuple((batch.segments != PADDING).sum(1).tolist())
        answers: tuple[int, ...] = ()
        if batch.decoder_ids is not None:  # every decoder position is scored
            _, counts = torch.unique(batch.row, return_counts=True)
            order = torch.unique_consecutive(batch.row).tolist()
            by_row = dict(zip(sorted(order), counts.tolist(), strict=True))
            answers = tuple(by_row[row] for row in order)
        return cls(tuple(seeds), (), lengths, answers, device, own)

    def _seed(self, row: int, place: int) -> torch.Generator:
        return self.generator.manual_seed((self.seeds[row] + (place + 1) * _PLACE_STRIDE) % _SEEDS)

    def parts(self, whole: torch.Tensor) -> Iterator[tuple[torch.Tensor, int, torch.Generator]]:
        """(a row's part of ``whole`` (batch, time, …), its tokens, its stream) for every row, to be filled in turn."""
        for row, length in enumerate(self.lengths):
            start, end = self.spans[row] if self.spans else (0, length)
            yield whole[0 if self.spans else row, start:end], length, self._seed(row, 0)

    def multiplier(self, like: torch.Tensor, place: int, rate: float, noise: Noise, *, decoder: bool) -> torch.Tensor:
        """(batch, time, …) as ``like``: what multiplies the activations of place number ``place``."""
        made = torch.ones_like(like)
        if self.spans:
            for row, (start, end) in enumerate(self.spans):
                _draw(made[0, start:end], rate, noise, self._seed(row, place))
            return made
        lengths = self.decoder_lengths if decoder else self.lengths
        for row, length in enumerate(lengths):
            _draw(made[row, :length], rate, noise, self._seed(row, place))
        return made

    def pair_multiplier(
        self, like: torch.Tensor, place: int, rate: float, noise: Noise, *, decoder: tuple[bool, bool]
    ) -> torch.Tensor:
        """(rows, heads, queries, keys) as ``like``: the same for attention probabilities, one row a line.

        A packed stream comes as its documents, one a line. ``decoder`` says of queries and of keys whether they are the
        decoder's.
        """
        made = torch.ones_like(like)
        sides = [self.decoder_lengths if side and self.decoder_lengths else self.lengths for side in decoder]
        for row, (queries, keys) in enumerate(zip(*sides, strict=True)):
            _draw(made[row, :, :queries, :keys], rate, noise, self._seed(row, place))
        return made


def _draw(part: torch.Tensor, rate: float, noise: Noise, generator: torch.Generator) -> None:
    """Fill ``part`` with Bernoulli(1 − rate)/(1 − rate), or with N(1, rate/(1 − rate))."""
    if noise == "gaussian":
        drawn = torch.randn(part.shape, generator=generator, device=part.device, dtype=torch.float32)
        part.copy_(drawn.mul_((rate / (1.0 - rate)) ** 0.5).add_(1.0))
        return
    keep = torch.empty(part.shape, device=part.device, dtype=part.dtype).bernoulli_(1.0 - rate, generator=generator)
    part.copy_(keep.div_(1.0 - rate))


def on_device(generator: torch.Generator, device: torch.device) -> torch.Generator:
    """A generator of the same stream that draws on ``device``."""
    if device.type != "cuda":
        return generator
    return torch.Generator(device=device).manual_seed(generator.initial_seed())
