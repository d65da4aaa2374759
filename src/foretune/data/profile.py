"""The meta-features of a task that need no model: what search, cost and reports know about the data.

Lengths are in tokens when a counter is given, else estimated from characters and said to be. Everything is measured
on the training rows (at most `PROFILED_ROWS` of them, chosen by content, so the order of the file does not matter);
duplicates and labels are counted on all. No text is kept: the profile may go into the experience store.
"""

from __future__ import annotations

import math
import zlib
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from foretune.data.example import Example, Task, normalised, task_of
from foretune.data.languages import is_code, language_of, scripts
from foretune.data.reasoning import reasoned_answer
from foretune.data.split import Splits
from foretune.files import fingerprint

PROFILED_ROWS = 2000
"""Enough for every mean to within a few percent; keeps `plan` fast on large data."""
_COMPRESSED_BYTES = 2**20
"""Text that is compressed for the compression ratio: the same amount for all data sets of more than this."""
_ESTIMATED_BYTES_PER_TOKEN = 4.0
"""UTF-8 bytes per token of English text under usual vocabularies."""
_COMPRESSION_LEVEL = 6
_P95 = 95


@dataclass(frozen=True)
class Lengths:
    """Lengths in tokens."""

    mean: float
    std: float
    p95: float

    @classmethod
    def of(cls, counts: Sequence[int]) -> Lengths:
        """Mean, standard deviation (population) and 95th percentile; zeros for no counts."""
        if not counts:
            return cls(0.0, 0.0, 0.0)
        values = np.asarray(counts, dtype=np.float64)
        return cls(float(values.mean()), float(values.std()), float(np.percentile(values, _P95)))


@dataclass(frozen=True)
class Profile:
    """Numbers about a task's data. Shares are in [0, 1]."""

    task: Task
    rows: Mapping[str, int]
    log10_rows: float
    """Of the training rows."""
    prompt_tokens: Lengths
    answer_tokens: Lengths
    tokens_estimated: bool
    """Whether lengths are estimates (no tokenizer was at hand)."""
    answer_share: float
    """Answer tokens over all tokens."""
    turns: float
    """Mean turns a row."""
    type_token_ratio: float
    """Different words over words, in the first words of the profiled rows."""
    compression_ratio: float
    """Bytes over their zlib-compressed bytes: higher is more repetitive."""
    duplicate_share: float
    """Rows that repeat an earlier one, exactly or nearly, over all splits."""
    unique_answers: float
    """Different answers over rows (normalised)."""
    scripts: Mapping[str, float]
    languages: Mapping[str, float]
    """Share of rows by language code; ``unknown`` where the evidence is not plain."""
    code_share: float
    """Share of rows with program code in prompt or answer."""
    labels: Mapping[str, int]
    """Training rows by class; empty unless classification."""
    imbalance: float | None
    """Largest class over smallest; None without classes."""
    fingerprint: str
    """Hash of the content of all splits, whatever the order of the rows."""

    def to_json(self) -> dict[str, Any]:
        """A JSON form; `from_json` reads it back."""
        return asdict(self)

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Profile:
        """The inverse of `to_json`."""
        lengths = {name: Lengths(**value[name]) for name in ("prompt_tokens", "answer_tokens")}
        return cls(**{**value, **lengths})


def estimate_tokens(text: str) -> int:
    """Tokens of ``text`` guessed without a tokenizer: its words or a quarter of its bytes, whichever is more."""
    return max(len(text.split()), math.ceil(len(text.encode("utf-8")) / _ESTIMATED_BYTES_PER_TOKEN))


def profile(splits: Splits, *, count_tokens: Callable[[str], int] | None = None) -> Profile:
    """The profile of ``splits``. ``count_tokens`` gives the number of tokens of a text (without special tokens)."""
    train = splits.train
    sampled = _sampled(train)
    count = count_tokens or estimate_tokens
    prompts, answers = [_prompt(row) for row in sampled], [reasoned_answer(row) for row in sampled]
    prompt_counts, answer_counts = [count(text) for text in prompts], [count(text) for text in answers]
    texts = [f"{prompt}\n{answer}" for prompt, answer in zip(prompts, answers, strict=True)]
    languages = Counter(language_of(text) for text in texts)
    everything = [row for name in ("train", "validation", "test") for row in splits.of(name)]
    return Profile(
        task=task_of(everything),
        rows={name: len(splits.of(name)) for name in ("train", "validation", "test")},
        log10_rows=math.log10(len(train)) if train else 0.0,
        prompt_tokens=Lengths.of(prompt_counts),
        answer_tokens=Lengths.of(answer_counts),
        tokens_estimated=count_tokens is None,
        answer_share=sum(answer_counts) / max(sum(prompt_counts) + sum(answer_counts), 1),
        turns=sum(len(row.turns) for row in sampled) / max(len(sampled), 1),
        type_token_ratio=_type_token_ratio(texts),
        compression_ratio=_compression_ratio(texts),
        duplicate_share=_duplicate_share(splits, len(everything)),
        unique_answers=len({normalised(row.answer) for row in train}) / max(len(train), 1),
        scripts=scripts(texts),
        languages={name: rows / len(sampled) for name, rows in languages.most_common()} if sampled else {},
        code_share=sum(map(is_code, texts)) / max(len(sampled), 1),
        labels=dict(splits.report.labels.get("train", {})),
        imbalance=splits.report.imbalance,
        fingerprint=fingerprint(
            [sorted(row.id for row in splits.of(name)) for name in ("train", "validation", "test")]
        ),
    )


def _sampled(rows: Sequence[Example]) -> list[Example]:
    """At most `PROFILED_ROWS` rows, chosen and ordered by their content hash."""
    return sorted(rows, key=lambda row: row.id)[:PROFILED_ROWS]


def _prompt(row: Example) -> str:
    """The prompt; nothing for plain text, which is all answer (all of it is trained on)."""
    return "" if row.turns and row.turns[0].role == "text" else row.prompt


_RATIO_WORDS = 10_000
"""The type-token ratio falls with length, so it is taken over at most this many words."""


def _type_token_ratio(texts: Sequence[str]) -> float:
    words: list[str] = []
    for text in texts:
        words += text.lower().split()
        if len(words) >= _RATIO_WORDS:
            break
    words = words[:_RATIO_WORDS]
    return len(set(words)) / len(words) if words else 0.0


def _compression_ratio(texts: Sequence[str]) -> float:
    content = "\n".join(texts).encode("utf-8")[:_COMPRESSED_BYTES]
    return len(content) / len(zlib.compress(content, _COMPRESSION_LEVEL)) if content else 1.0


def _duplicate_share(splits: Splits, rows: int) -> float:
    report = splits.report
    return (report.duplicates + report.near_duplicates) / max(rows + len(report.removed), 1)
