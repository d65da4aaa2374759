"""Encoded rows on disk, found by a hash of everything that made them.

The key covers the tokenizer (its full definition and chat template), what the template renders today, the settings
and the content of every example, so a stale entry is never found, only left behind. An entry is one safetensors
file (nothing is unpickled) that carries a digest of its arrays; whatever does not agree is read as absent and
written again. Entries hold the user's text as tokens: ``foretune data purge`` removes them.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from foretune.data.example import Example, Turn
from foretune.data.layout import TurnLayout, render
from foretune.files import cache_folder, fingerprint, write_bytes

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from foretune.data.encode import EncodedRow

FORMAT = 4
"""Raised whenever the tokens or the file layout change for the same input."""
_DIGEST = "digest"
_KEY_LENGTH = 32
Arrays = dict[str, npt.NDArray[Any]]


def token_folder() -> Path:
    """Where encoded rows lie unless another folder is named."""
    return cache_folder() / "tokens"


def tokenizer_identity(tokenizer: PreTrainedTokenizerBase) -> str:
    """A hash of everything that decides the ids a tokenizer gives: model, template, special tokens, languages."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is not None:
        definition = json.loads(backend.to_str())
        definition.pop("truncation", None)  # left behind by the last call, decides nothing
        definition.pop("padding", None)
    else:
        definition = {
            "vocabulary": tokenizer.get_vocab(),
            "settings": repr(sorted(tokenizer.init_kwargs.items(), key=str)),
        }
    return fingerprint(
        {
            "class": type(tokenizer).__name__,
            "definition": definition,
            "template": tokenizer.chat_template,
            "special": {name: str(token) for name, token in tokenizer.special_tokens_map.items()},
            "languages": [str(getattr(tokenizer, name, None)) for name in ("src_lang", "tgt_lang")],
            "truncation_side": tokenizer.truncation_side,
        },
        length=_KEY_LENGTH,
    )


def cache_key(
    examples: Sequence[Example],
    tokenizer: PreTrainedTokenizerBase,
    layout: TurnLayout | None,
    settings: Mapping[str, Any],
) -> str:
    """The name of the entry for these rows. A template that writes the date gets another key on another day."""
    probe = ""
    if layout is not None and layout.style == "chat":
        probe = render(tokenizer, [Turn("user", "")], layout, prompt=True)
    made_of = {
        "format": FORMAT,
        "tokenizer": tokenizer_identity(tokenizer),
        "layout": None if layout is None else asdict(layout),
        "probe": probe,
        "settings": dict(settings),
        "examples": [example.id for example in examples],
    }
    return fingerprint(made_of, length=_KEY_LENGTH)


def _path(folder: Path, key: str) -> Path:
    return folder / f"{key}.safetensors"


def save_rows(folder: Path, key: str, rows: Sequence[EncodedRow]) -> None:
    """Write an entry atomically. Raises `OutputError` when the disk is full."""
    from safetensors.numpy import save

    arrays = _flatten(rows)
    write_bytes(_path(folder, key), save({**arrays, _DIGEST: _digest(arrays)}))


def load_rows(folder: Path, key: str, count: int) -> list[EncodedRow] | None:
    """The rows of an entry, or None when there is none or it is damaged."""
    from safetensors import SafetensorError
    from safetensors.numpy import load

    try:
        arrays: Arrays = load(_path(folder, key).read_bytes())
    except (OSError, SafetensorError, ValueError, KeyError):
        return None
    digest = arrays.pop(_DIGEST, None)
    if digest is None or not np.array_equal(digest, _digest(arrays)):
        return None
    rows = _unflatten(arrays)
    return rows if len(rows) == count else None


def _digest(arrays: Arrays) -> npt.NDArray[np.uint8]:
    digest = hashlib.sha256()
    for name in sorted(arrays):
        digest.update(f"{name}{arrays[name].dtype}{arrays[name].shape}".encode())
        digest.update(np.ascontiguousarray(arrays[name]).tobytes())
    return np.frombuffer(digest.digest(), dtype=np.uint8).copy()


def _flatten(rows: Sequence[EncodedRow]) -> Arrays:
    """Rows as a few long arrays: ids end to end with their lengths, and a table of the numbers."""
    no_ids = np.zeros(0, np.int32)
    decoders = [no_ids if row.decoder_ids is None else row.decoder_ids for row in rows]
    table = [
        [
            len(row.ids),
            row.prompt_length,
            row.answer_bytes,
            row.truncated,
            row.cut,
            -1 if row.decoder_ids is None else len(row.decoder_ids),
            -1 if not isinstance(row.label, int) else row.label,
            row.pair_start,
        ]
        for row in rows
    ]
    return {
        "ids": np.concatenate([no_ids, *(row.ids for row in rows)]),
        "mask": np.concatenate([np.zeros(0, np.bool_), *(row.target_mask for row in rows)]).astype(np.uint8),
        "decoder": np.concatenate([no_ids, *decoders]),
        "table": np.asarray(table, dtype=np.int64).reshape(len(rows), 8),
        "value": np.asarray([row.label if isinstance(row.label, float) else np.nan for row in rows], dtype=np.float64),
    }


def _unflatten(arrays: Arrays) -> list[EncodedRow]:
    from foretune.data.encode import EncodedRow

    rows = []
    at = decoder_at = 0
    for numbers, value in zip(arrays["table"].tolist(), arrays["value"].tolist(), strict=True):
        length, prompt_length, answer_bytes, truncated, cut, decoder, class_number, pair_start = numbers
        label = class_number if class_number >= 0 else (None if np.isnan(value) else value)
        target = None if decoder < 0 else arrays["decoder"][decoder_at : decoder_at + decoder].copy()
        rows.append(
            EncodedRow(
                ids=arrays["ids"][at : at + length].copy(),
                target_mask=arrays["mask"][at : at + length].astype(np.bool_),
                prompt_length=prompt_length,
                answer_bytes=answer_bytes,
                label=label,
                decoder_ids=target,
                truncated=truncated,
                cut=cut,
                pair_start=pair_start,
            )
        )
        at += length
        decoder_at += max(decoder, 0)
    return rows
