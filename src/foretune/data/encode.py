"""From examples to token ids with a target mask, for every kind of model, cached by content.

=====================  ==============================================================================
causal, conversation   `foretune.data.template`: chat template or plain layout
causal, labelled row   the label's name (or the number) is the answer of a conversation
causal, plain text     bos + text + eos; every token but the first is trained
encoder, labelled row  the tokenizer's own special tokens; no target token, ``label`` is trained. A pair of texts is
                       given to the tokenizer as a pair: its separators and token types, the longer text cut first
seq2seq                ``ids`` feed the encoder, ``decoder_ids`` are trained (language codes as the tokenizer sets)
=====================  ==============================================================================

Too long conversations are cut by `foretune.data.truncate`; encoder inputs by the tokenizer's own truncation (on its
``truncation_side``), because that is what the model's own pipelines do; decoder targets and plain text on the right.

What this does not do: split long documents into several rows, or batch (`foretune.data.batches`).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from foretune.catalogue.models import ModelKind
from foretune.data.encoder_inputs import cut_inputs
from foretune.data.example import Example, Turn
from foretune.data.layout import TurnLayout, encode_texts, layout_of, single_bos
from foretune.data.reasoning import reasoning_as_text
from foretune.data.row_label import LABELLED, as_conversation, is_text, label_number, label_text, where
from foretune.data.template import Rendered, prompt_ids, render_rows
from foretune.data.tools import as_text
from foretune.data.truncate import Prompt, parts_of, room
from foretune.errors import DataError, UsageError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_CHUNK_ROWS = 1024
"""Rows tokenized in one call: enough for the tokenizer's threads, little enough to hold their texts."""
_BLANK = "§"
"""Stands in for the contents of turns when the parts of a prompt are looked for."""


@dataclass(frozen=True)
class EncodedRow:
    """One row as a model takes it."""

    ids: npt.NDArray[np.int32]
    """(time,) int32"""
    target_mask: npt.NDArray[np.bool_]
    """(time,) bool: ``ids[t]`` is trained, predicted from position t-1; never true at 0"""
    prompt_length: int
    """Tokens before the last trained turn: what inference feeds"""
    answer_bytes: int
    """UTF-8 bytes of what is trained, for losses per byte"""
    label: float | int | None = None
    """Class number or value"""
    decoder_ids: npt.NDArray[np.int32] | None = None
    """(decoder time,) int32 with its end of text; sequence-to-sequence only"""
    truncated: int = 0
    """Prompt (or encoder) tokens cut"""
    cut: int = 0
    """Answer tokens cut; the end of turn is then not trained"""
    pair_start: int = 0
    """Where the second text of a pair begins for a tokenizer that tells the two apart by token types; else 0"""
    task: int | None = None
    """Number of its task (`foretune.data.tasks`), where rows have one"""

    @property
    def targets(self) -> int:
        """Trained tokens."""
        return int(self.target_mask.sum()) if self.decoder_ids is None else len(self.decoder_ids)


def encode_rows(
    examples: Sequence[Example],
    tokenizer: PreTrainedTokenizerBase,
    *,
    kind: ModelKind,
    task: str,
    labels: Sequence[str] = (),
    context_tokens: int,
    plain: bool = False,
    cache: Path | None = None,
) -> list[EncodedRow]:
    """One `EncodedRow` per example, in order. ``cache`` is a folder (see `foretune.data.token_cache`) or None.

    Raises `DataError` with the place of a row that cannot be encoded, `ModelError` for an unusable tokenizer and
    `UsageError` for a task that this kind of model cannot be trained on.
    """
    from foretune.data.token_cache import cache_key, load_rows, save_rows

    _refuse_mismatch(kind, task)
    if context_tokens < 2:
        raise UsageError(f"a context of {context_tokens} tokens cannot hold a prompt and an answer.")
    layout = layout_of(tokenizer, plain=plain) if kind == "causal" else None
    key = ""
    if cache is not None:
        settings = {"kind": kind, "task": task, "labels": list(labels), "context_tokens": context_tokens}
        key = cache_key(examples, tokenizer, layout, settings)
        if (stored := load_rows(cache, key, len(examples))) is not None:
            return stored
    rows: list[EncodedRow] = []
    for start in range(0, len(examples), _CHUNK_ROWS):
        chunk = examples[start : start + _CHUNK_ROWS]
        if layout is not None:
            rows += _causal(chunk, start, tokenizer, layout, task, labels, context_tokens)
        elif kind == "seq2seq":
            rows += _seq2seq(chunk, start, tokenizer, task, labels, context_tokens)
        else:
            rows += _encoder(chunk, start, tokenizer, task, labels, context_tokens)
    if cache is not None:
        save_rows(cache, key, rows)
    return rows


def inference_ids(
    example: Example,
    tokenizer: PreTrainedTokenizerBase,
    *,
    kind: ModelKind = "causal",
    context_tokens: int | None = None,
    answer_tokens: int = 0,
    plain: bool = False,
    layout: TurnLayout | None = None,
) -> npt.NDArray[np.int32]:
    """(time,) int32: what is fed to predict the last turn of ``example`` (or to label it, or to continue its text).

    With ``context_tokens`` the prompt is cut as training cuts it, leaving room for ``answer_tokens``. Raises
    `DataError` when not even the template's own tokens fit. ``layout`` saves probing the tokenizer again.
    """
    if kind != "causal":
        example = as_text(example)
        limit = {} if context_tokens is None else {"truncation": True, "max_length": context_tokens}
        return _ids(tokenizer(*(example.pair or [example.prompt]), verbose=False, **limit)["input_ids"])
    layout = layout or layout_of(tokenizer, plain=plain)
    example = layout.told(as_conversation(example))
    if is_text(example):
        ids = [*layout.begin, *encode_texts(tokenizer, [example.turns[0].content])[0]]
        parts = Prompt(len(ids), len(layout.begin), 0, len(layout.begin))
    else:
        ids = prompt_ids([example], tokenizer, layout)[0]
        parts = Prompt(len(ids), 0, 0, 0)
    if context_tokens is not None and len(ids) + answer_tokens > context_tokens:
        if not is_text(example):
            parts = _parts(example, ids, tokenizer, layout)
        limit_tokens = context_tokens - answer_tokens
        if limit_tokens < max(parts.smallest, 1):
            raise _no_room(example, 0, context_tokens, parts)
        head, start = parts.cut(limit_tokens, ids, layout.bos)
        ids = ids[:head] + ids[start:]
    return _ids(ids)


def _refuse_mismatch(kind: ModelKind, task: str) -> None:
    if kind == "encoder" and task not in LABELLED:
        raise UsageError(
            f"an encoder cannot be trained on the task {task!r}: it has no language-model head.",
            remedy="Choose a causal or sequence-to-sequence model, or give the rows labels.",
        )
    if kind == "seq2seq" and task == "language-modelling":
        raise UsageError("a sequence-to-sequence model needs pairs, not plain text.", remedy="Choose a causal model.")


def _ids(ids: Iterable[int]) -> npt.NDArray[np.int32]:
    return np.asarray(list(ids), dtype=np.int32)


def _no_room(example: Example, index: int, context_tokens: int, parts: Prompt) -> DataError:
    return DataError(
        f"the prompt cannot fit: the template's own tokens ({parts.smallest}) and an answer do not fit into "
        f"{context_tokens} tokens.",
        place=where(example, index),
        remedy="Raise the context length.",
    )


def _parts(example: Example, ids: Sequence[int], tokenizer: PreTrainedTokenizerBase, layout: TurnLayout) -> Prompt:
    """The parts of an uncut prompt that do not depend on what is said in it (the system turn excepted)."""
    turns = tuple(turn if turn.role == "system" else Turn(turn.role, _BLANK) for turn in example.turns)
    try:
        blanked = prompt_ids([replace(example, turns=turns)], tokenizer, layout)[0]
    except DataError:
        return parts_of(ids, None, layout.bos)
    return parts_of(ids, blanked, layout.bos)


def _causal(
    examples: Sequence[Example],
    first: int,
    tokenizer: PreTrainedTokenizerBase,
    layout: TurnLayout,
    task: str,
    labels: Sequence[str],
    context: int,
) -> list[EncodedRow]:
    numbers = [label_number(example, first + i, task, labels) for i, example in enumerate(examples)]
    rows = [layout.told(as_conversation(example) if task in LABELLED else example) for example in examples]
    texts = [i for i, row in enumerate(rows) if is_text(row)]
    chats = [i for i, row in enumerate(rows) if not is_text(row)]
    placed = [replace(rows[i], place=where(rows[i], first + i)) for i in chats]
    encoded: dict[int, EncodedRow] = {}
    for i, example, rendered in zip(chats, placed, render_rows(placed, tokenizer, layout), strict=True):
        if rendered is None:
            raise DataError(
                "the row has no answer to train on.",
                place=example.place,
                remedy="Name the column that holds the answers (--answer-column), or leave the row out.",
            )
        encoded[i] = replace(_fitted(example, rendered, tokenizer, layout, context), label=numbers[i])
    for i, ids in zip(texts, encode_texts(tokenizer, [rows[i].turns[0].content for i in texts]), strict=True):
        encoded[i] = _text_row(rows[i].turns[0].content, ids, tokenizer, layout, context)
    return [encoded[i] for i in range(len(rows))]


def _fitted(
    example: Example, rendered: Rendered, tokenizer: PreTrainedTokenizerBase, layout: TurnLayout, context: int
) -> EncodedRow:
    """A rendered conversation cut to ``context`` tokens, with its mask."""
    ids, start = rendered.ids, rendered.prompt_length
    answer = len(ids) - start
    parts = Prompt(start, 0, 0, 0)
    if len(ids) > context:
        parts = _parts(example, ids[:start], tokenizer, layout)
    rooms = room(parts, answer, context)
    if rooms is None:
        raise _no_room(example, 0, context, parts)
    head, resume = parts.cut(rooms[0], ids, layout.bos)
    kept = answer if rooms[1] >= answer else rooms[1]
    mask = np.zeros(len(ids), dtype=np.bool_)
    said = 0
    for target, (begin, end) in zip(rendered.turns, rendered.spans, strict=True):
        if begin == start or begin > resume or head == start:  # the last turn; wholly kept; nothing was cut
            mask[begin:end] = True
            turn = example.turns[target]
            said += len((turn.reasoning + turn.content).encode()) if end <= start + kept else 0
    mask[list(rendered.holes)] = False
    keep = np.r_[0:head, resume : start + kept]
    if kept < answer:
        said += len(str(tokenizer.decode(ids[start : start + kept], skip_special_tokens=True)).encode())
    return EncodedRow(
        ids=_ids(ids)[keep],
        target_mask=mask[keep],
        prompt_length=head + start - resume,
        answer_bytes=said,
        truncated=resume - head,
        cut=answer - kept,
    )


def _text_row(
    text: str, ids: list[int], tokenizer: PreTrainedTokenizerBase, layout: TurnLayout, context: int
) -> EncodedRow:
    whole = single_bos([*layout.begin, *ids], layout.bos)
    if not whole or whole[-1] != tokenizer.eos_token_id:
        whole.append(int(tokenizer.eos_token_id))
    kept = _ids(whole[:context])
    cut = len(whole) - len(kept)
    said = str(tokenizer.decode(kept, skip_special_tokens=True)) if cut else text
    return EncodedRow(kept, np.arange(len(kept)) > 0, min(1, len(kept)), len(said.encode()), cut=cut)


def _encoder(
    examples: Sequence[Example],
    first: int,
    tokenizer: PreTrainedTokenizerBase,
    task: str,
    labels: Sequence[str],
    context: int,
) -> list[EncodedRow]:
    numbers = [label_number(example, first + i, task, labels) for i, example in enumerate(examples)]
    return [
        EncodedRow(
            ids=_ids(read.ids),
            target_mask=np.zeros(len(read.ids), np.bool_),
            prompt_length=len(read.ids),
            answer_bytes=0,
            label=number,
            truncated=read.truncated,
            pair_start=read.pair_start,
        )
        for read, number in zip(cut_inputs(tokenizer, examples, context), numbers, strict=True)
    ]


def _seq2seq(
    examples: Sequence[Example],
    first: int,
    tokenizer: PreTrainedTokenizerBase,
    task: str,
    labels: Sequence[str],
    context: int,
) -> list[EncodedRow]:
    if tokenizer.eos_token_id is None:
        raise UsageError("the tokenizer has no end-of-text token, so no answer could ever end.")
    numbers = [label_number(example, first + i, task, labels) for i, example in enumerate(examples)]
    for i, example in enumerate(examples):
        if not example.targets and example.label is None:
            raise DataError("the row has no answer to train on.", place=where(example, first + i))
    examples = [as_text(reasoning_as_text(example)) for example in examples]
    inputs = cut_inputs(tokenizer, examples, context)
    answers = [example.answer if example.targets else label_text(example.label) for example in examples]
    decoded = tokenizer(text_target=answers, padding=False, truncation=False, verbose=False)["input_ids"]
    rows = []
    for read, answer, target, number in zip(inputs, answers, decoded, numbers, strict=True):
        whole = _ended(list(target), int(tokenizer.eos_token_id))
        kept = _ids(whole[:context])
        cut = len(whole) - len(kept)
        said = str(tokenizer.decode(kept, skip_special_tokens=True)) if cut else answer
        rows.append(
            EncodedRow(
                ids=_ids(read.ids),
                target_mask=np.zeros(len(read.ids), np.bool_),
                prompt_length=len(read.ids),
                answer_bytes=len(said.encode()),
                label=number,
                decoder_ids=kept,
                truncated=read.truncated,
                cut=cut,
            )
        )
    return rows


def _ended(target: list[int], end: int) -> list[int]:
    """A target that ends with the end of text: the first mBART writes a language code behind it."""
    if end not in target[-2:]:
        return [*target, end]
    return target[: len(target) - target[::-1].index(end)]


def shared_head(rows: Sequence[EncodedRow]) -> int:
    """Length of the longest prefix that all rows share and none trains, for computing it once.

    Every row keeps at least one token of its own before its first target: the hidden state that predicts the first
    target has to be in the row's own part.
    """
    if not rows:
        return 0
    first = rows[0].ids
    longest = min(_before_target(row) for row in rows)
    for row in rows[1:]:
        longest = min(longest, len(first), len(row.ids))
        differing = np.flatnonzero(first[:longest] != row.ids[:longest])
        longest = int(differing[0]) if len(differing) else longest
    return max(longest, 0)


def _before_target(row: EncodedRow) -> int:
    trained = np.flatnonzero(row.target_mask)
    return (int(trained[0]) if len(trained) else len(row.ids)) - 1
