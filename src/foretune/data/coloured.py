"""An encoded row as text with its trained tokens marked, for error messages and ``foretune data show``."""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np

from foretune.data.encode import EncodedRow

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_REVERSE, _GREEN, _RESET = "\x1b[7m", "\x1b[32m", "\x1b[0m"


def coloured(
    row: EncodedRow, tokenizer: PreTrainedTokenizerBase, *, colour: bool = False, characters: int | None = None
) -> str:
    """The row as text with its trained tokens marked: reversed green on a terminal, ``[[…]]`` in plain text.

    Control characters of the data are shown, not sent to the terminal. ``characters`` bounds each stretch, which
    then loses its middle. Decoder tokens follow the encoder's after an arrow.
    """
    marks = (f"{_REVERSE}{_GREEN}", _RESET) if colour else ("[[", "]]")
    shown = _marked(row.ids, row.target_mask, tokenizer, marks, characters)
    if row.decoder_ids is None:
        return shown
    every = np.ones(len(row.decoder_ids), np.bool_)
    return f"{shown} → {_marked(row.decoder_ids, every, tokenizer, marks, characters)}"


def _marked(
    ids: np.ndarray[Any, Any],
    mask: np.ndarray[Any, Any],
    tokenizer: PreTrainedTokenizerBase,
    marks: tuple[str, str],
    characters: int | None,
) -> str:
    if len(ids) == 0:
        return "(no tokens)"
    mask = np.resize(mask, len(ids)) if len(mask) else np.zeros(len(ids), np.bool_)  # rows that fail may be misshapen
    edges = [0, *(np.flatnonzero(np.diff(mask)) + 1).tolist(), len(ids)]
    pieces = []
    for start, end in pairwise(edges):
        text = tokenizer.decode(ids[start:end], skip_special_tokens=False, clean_up_tokenization_spaces=False)
        visible = _visible(str(text))
        if characters is not None and len(visible) > characters:
            half = characters // 2
            visible = f"{visible[:half]} … {visible[-half:]}"
        pieces.append(f"{marks[0]}{visible}{marks[1]}" if mask[start] else visible)
    return "".join(pieces)


def _visible(text: str) -> str:
    """Line breaks shown and kept; other control characters by their code."""
    return "".join(
        "↵\n" if character == "\n" else character if character.isprintable() else f"\\u{ord(character):04x}"
        for character in text
    )
