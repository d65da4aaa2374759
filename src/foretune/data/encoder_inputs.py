"""What an encoder reads of a row: one text or a pair of texts, with the tokenizer's own special tokens.

A pair is given to the tokenizer as a pair. Where it tells the two texts apart by token types (BERT's kind does), the
place where the second begins is kept, and training gives the model the same types as its own pipelines do.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from foretune.data.example import Example

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True)
class EncoderInput:
    """What the encoder reads of one row."""

    ids: list[int]
    pair_start: int
    """Where the token types turn to the second text of a pair; 0 where they do not"""
    truncated: int
    """Tokens that the tokenizer's truncation took"""


def cut_inputs(tokenizer: PreTrainedTokenizerBase, examples: Sequence[Example], context: int) -> list[EncoderInput]:
    """Encoder inputs with the tokenizer's special tokens, texts and pairs each in one call."""
    made: dict[int, EncoderInput] = {}
    single = [i for i, example in enumerate(examples) if example.pair is None]
    pairs = [i for i, example in enumerate(examples) if example.pair is not None]
    for group in (single, pairs):
        texts = [list(part) for part in zip(*(examples[i].pair or (examples[i].prompt,) for i in group), strict=True)]
        full = _tokenized(tokenizer, texts, None)
        long = [place for place, (ids, _) in enumerate(full) if len(ids) > context]
        shorter = dict(
            zip(long, _tokenized(tokenizer, [[part[i] for i in long] for part in texts], context), strict=True)
        )
        for place, i in enumerate(group):
            ids, start = shorter.get(place, full[place])
            made[i] = EncoderInput(ids, start, len(full[place][0]) - len(ids))
    return [made[i] for i in range(len(examples))]


def _tokenized(
    tokenizer: PreTrainedTokenizerBase, texts: Sequence[list[str]], context: int | None
) -> list[tuple[list[int], int]]:
    """Ids of texts (one list) or of pairs (two), and where token types turn to the second text (0: nowhere)."""
    if not texts or not texts[0]:
        return []
    cut: dict[str, Any] = {"truncation": False} if context is None else {"truncation": True, "max_length": context}
    encoded = tokenizer(*texts, padding=False, return_attention_mask=False, verbose=False, **cut)
    types = encoded.get("token_type_ids") if len(texts) > 1 else None
    starts = [0] * len(texts[0]) if types is None else [row.index(1) if 1 in row else 0 for row in types]
    return [(list(ids), start) for ids, start in zip(encoded["input_ids"], starts, strict=True)]
