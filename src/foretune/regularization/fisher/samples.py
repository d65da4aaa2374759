"""What the Fisher information is taken of: samples in batches, each batch with its per-sample losses.

Three variants. ``pre-training``: the loss the model was trained on, over plain text: next tokens (causal), masked
tokens (an encoder with its masked-language-model head: 15 % of the tokens; of these 80 % masked, 10 % another token,
10 % as they are, Devlin et al. 2019), the rest of a text given its beginning (encoder–decoders). ``task``: the loss of
the labels of given rows. ``label-sampled``: labels drawn from the model's own prediction, the true Fisher information;
all that a sentence encoder without a masked-language-model head can give, with a classifier's head drawn from a seed.

A sample's loss is the mean over its scored tokens. What is drawn for a sample comes from its own stream, so batches may
be of any size.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal

import torch
from torch import nn

from foretune.catalogue.models import ModelKind
from foretune.data.encode import EncodedRow
from foretune.errors import DataError
from foretune.seeding import torch_generator

Variant = Literal["pre-training", "task", "label-sampled"]
MASKED_SHARE = 0.15
MASK_SHARE, RANDOM_SHARE = 0.8, 0.1
"""Of the masked tokens: replaced by the mask token, by another token; the rest stays."""
FEWEST_TOKENS = 4


@dataclass(frozen=True)
class Sample:
    """One text or row as token ids, with what is scored."""

    ids: torch.Tensor
    """(time,) int64: what the model reads"""
    labels: torch.Tensor
    """(time,) int64 with -100 where nothing is scored; of an encoder–decoder (decoder time,)"""
    decoder_ids: torch.Tensor | None = None
    class_label: float | int | None = None
    """Of a classifier: its class or value; None where it is drawn"""
    number: int = 0
    seed: int = 0

    def generator(self) -> torch.Generator:
        """The sample's own stream."""
        return torch_generator(self.seed, "fisher", self.number)


@dataclass(frozen=True)
class Batch:
    """Samples of about equal length."""

    samples: tuple[Sample, ...]
    loss: Callable[[nn.Module], torch.Tensor]
    """The model → (samples,) float32 losses"""


@dataclass(frozen=True)
class Source:
    """How samples are made from texts or rows."""

    kind: ModelKind
    variant: Variant
    tokenizer: Any
    context_tokens: int = 128
    seed: int = 0
    pad_id: int = 0
    decoder_start_id: int = 0
    special: frozenset[int] = field(default=frozenset())

    @cached_property
    def _words(self) -> tuple[int, int]:
        """(size of the vocabulary, the mask token): fast tokenizers count their words anew at every call."""
        return len(self.tokenizer), int(self.tokenizer.mask_token_id)

    def of_texts(self, texts: Sequence[str]) -> list[Sample]:
        """Samples of plain texts; long ones are cut into pieces. Raises `DataError` when there are none."""
        pieces = [piece for text in texts for piece in self._pieces(text)]
        if not pieces:
            raise DataError("the text holds no passage to take the Fisher information of.", remedy="Give more text.")
        return [self._sample(torch.tensor(piece), number) for number, piece in enumerate(pieces)]

    def of_rows(self, rows: Sequence[EncodedRow]) -> list[Sample]:
        """Samples of task rows, scored where training scores them."""
        return [self._row(row, number) for number, row in enumerate(rows)]

    def _pieces(self, text: str) -> Iterator[list[int]]:
        """A text in pieces of at most the context, each with the tokenizer's own special tokens."""
        cut = {"truncation": True, "max_length": self.context_tokens, "return_overflowing_tokens": True}
        for ids in self.tokenizer(text, verbose=False, **cut)["input_ids"]:
            if len(ids) >= FEWEST_TOKENS:
                yield list(ids)

    def _sample(self, ids: torch.Tensor, number: int) -> Sample:
        blank = torch.full_like(ids, -100)
        if self.kind == "encoder" and self.variant == "label-sampled":
            return Sample(ids, blank, number=number, seed=self.seed)
        if self.kind == "encoder":
            return self._masked(ids, number)
        if self.kind == "seq2seq":
            half = max(1, len(ids) // 2)
            start = torch.tensor([self.decoder_start_id])
            return Sample(ids[:half], ids[half:], torch.cat([start, ids[half:-1]]), number=number, seed=self.seed)
        return Sample(ids, torch.cat([ids.new_tensor([-100]), ids[1:]]), number=number, seed=self.seed)

    def _masked(self, ids: torch.Tensor, number: int) -> Sample:
        plain = Sample(ids, ids, number=number, seed=self.seed)
        generator = plain.generator()
        open_to = torch.tensor([int(i) not in self.special for i in ids])
        drawn = torch.rand(len(ids), generator=generator).masked_fill(~open_to, 2.0)
        count = max(1, round(MASKED_SHARE * int(open_to.sum())))
        chosen = drawn.argsort()[:count]
        how = torch.rand(count, generator=generator)
        vocabulary, mask = self._words
        others = torch.randint(0, vocabulary, (count,), generator=generator)
        read = ids.clone()
        read[chosen[how < MASK_SHARE]] = mask
        other = (how >= MASK_SHARE) & (how < MASK_SHARE + RANDOM_SHARE)
        read[chosen[other]] = others[other]
        labels = torch.full_like(ids, -100)
        labels[chosen] = ids[chosen]
        return Sample(read, labels, number=number, seed=self.seed)

    def _row(self, row: EncodedRow, number: int) -> Sample:
        ids = torch.tensor(row.ids.astype("int64"))
        if self.kind == "encoder":
            label = row.label if self.variant == "task" else None
            return Sample(ids, torch.full_like(ids, -100), class_label=label, number=number, seed=self.seed)
        if self.kind == "seq2seq" and row.decoder_ids is not None:
            answer = torch.tensor(row.decoder_ids.astype("int64"))
            shifted = torch.cat([torch.tensor([self.decoder_start_id]), answer[:-1]])
            return Sample(ids, answer, shifted, number=number, seed=self.seed)
        labels = ids.masked_fill(~torch.tensor(row.target_mask), -100)
        return Sample(ids, labels, number=number, seed=self.seed)

    def batches(self, samples: Sequence[Sample], limit_tokens: int) -> Iterator[Batch]:
        """All samples, the longest first, at most ``limit_tokens`` padded tokens a batch (at least one sample)."""
        order = sorted(samples, key=lambda sample: (-len(sample.ids), sample.number))
        group: list[Sample] = []
        for sample in order:
            if group and len(group[0].ids) * (len(group) + 1) > limit_tokens:
                yield self._batch(tuple(group))
                group = []
            group.append(sample)
        if group:
            yield self._batch(tuple(group))

    def _batch(self, samples: tuple[Sample, ...]) -> Batch:
        return Batch(samples, lambda model: self._losses(model, samples))

    def _losses(self, model: nn.Module, samples: tuple[Sample, ...]) -> torch.Tensor:
        device = next(model.parameters()).device
        ids = _padded([s.ids for s in samples], self.pad_id).to(device)
        mask = _padded([torch.ones_like(s.ids) for s in samples], 0).to(device)
        inputs: dict[str, Any] = {"input_ids": ids, "attention_mask": mask}
        if self.kind == "seq2seq":
            decoder = [s.decoder_ids for s in samples if s.decoder_ids is not None]
            inputs["decoder_input_ids"] = _padded(decoder, self.pad_id).to(device)
        else:
            inputs |= {"use_cache": False} if self.kind == "causal" else {}
        logits = model(**inputs).logits.float()
        if logits.ndim == 2:
            return self._class_losses(logits, samples)
        labels = _padded([s.labels for s in samples], -100).to(device)
        if self.kind == "causal":
            logits, labels = logits[:, :-1], labels[:, 1:]
        if self.variant == "label-sampled":
            labels = _drawn(logits.detach(), labels, samples)
        scored = labels != -100
        picked = logits.log_softmax(-1).gather(-1, labels.clamp_min(0)[..., None]).squeeze(-1)
        losses: torch.Tensor = -(picked * scored).sum(1) / scored.sum(1).clamp_min(1)
        return losses

    def _class_losses(self, logits: torch.Tensor, samples: tuple[Sample, ...]) -> torch.Tensor:
        if logits.shape[-1] == 1:
            values = torch.tensor([float(s.class_label or 0.0) for s in samples], device=logits.device)
            if self.variant == "label-sampled":  # a value of unit variance around the prediction
                noise = [torch.randn((), generator=s.generator()) for s in samples]
                values = logits.detach().squeeze(-1) + torch.stack(noise).to(logits.device)
            return (logits.squeeze(-1) - values) ** 2
        if self.variant == "label-sampled":
            chances = logits.detach().softmax(-1).cpu()
            drawn = [torch.multinomial(c, 1, generator=s.generator()) for c, s in zip(chances, samples, strict=True)]
            classes = torch.cat(drawn).to(logits.device)
        else:
            classes = torch.tensor([int(s.class_label or 0) for s in samples], device=logits.device)
        return torch.nn.functional.cross_entropy(logits, classes, reduction="none")


def _drawn(logits: torch.Tensor, labels: torch.Tensor, samples: Sequence[Sample]) -> torch.Tensor:
    """Labels drawn from the model's prediction where ``labels`` scores; (samples, time)."""
    drawn = torch.full_like(labels, -100)
    for line, sample in enumerate(samples):
        at = (labels[line] != -100).nonzero().squeeze(-1)
        chances = logits[line, at].softmax(-1).cpu()
        drawn[line, at] = torch.multinomial(chances, 1, generator=sample.generator()).squeeze(-1).to(labels.device)
    return drawn


def _padded(sequences: Sequence[torch.Tensor], value: int) -> torch.Tensor:
    return torch.nn.utils.rnn.pad_sequence(list(sequences), batch_first=True, padding_value=value)
