"""Stored adapters and the rows they were trained on: writing down what the rows look like, weighting by likeness.

``foretune adapters describe`` leaves a representation of some rows (as the adapter's base model sees them) in the
adapter's folder; `weights_like` compares it with that of new rows. See `foretune.evaluation.representation`.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from foretune import files
from foretune.data import corpora
from foretune.data.read import read
from foretune.errors import Place, UsageError
from foretune.evaluation.representation import Vector, likeness, representation, weights_for
from foretune.execution.orders import subset
from foretune.fit.systems import SPLIT, Settings, opened

REPRESENTATION = "foretune_representation.json"
"""In an adapter's folder: the representation of its rows, and the model that saw them."""
MOST_ROWS = 256
"""Rows that a representation is taken of: its mean moves little after that."""


def seen_rows(adapter: Path, data: str, *, base: str | None = None, seed: int = 0) -> dict[str, Any]:
    """The representation of the rows in ``data`` by the adapter's base model, with what is needed to compare it."""
    found = read(corpora.locate(data))
    chosen = [found.examples[i] for i in subset(min(MOST_ROWS, len(found.examples)), len(found.examples), seed)]
    with opened(str(adapter), chosen, found.task, base=base, settings=Settings()) as (bench, adapted):
        if adapted is None:
            raise UsageError(f"{adapter} is no adapter.", remedy="Name the folder of an adapter.")
        with adapted.disable_adapter():
            rows = bench.split(SPLIT).rows
            vector = representation(
                bench.network, rows, micro_batch_tokens=bench.task.micro_batch_tokens, pad_id=bench.pad_id
            )
        return {"base": bench.weights_hash, "rows": len(chosen), "data": found.sha256, "vector": vector.tolist()}


def describe(adapter: Path, data: str, *, base: str | None = None) -> Path:
    """Write the representation of ``data`` into the adapter's folder; returns the file."""
    path = adapter / REPRESENTATION
    files.write_json(path, seen_rows(adapter, data, base=base))
    return path


def weights_like(
    adapters: Sequence[Path],
    data: str,
    *,
    base: str | None = None,
    weighting: str = "softmax",
    temperature: float = 0.2,
    nearest: int = 0,
) -> tuple[list[float], list[float]]:
    """(weights, likeness) of stored adapters for the rows in ``data``; `UsageError` where one is not described."""
    stored = [_stored(adapter) for adapter in adapters]
    wanted = seen_rows(adapters[0], data, base=base)
    for adapter, one in zip(adapters, stored, strict=True):
        if one["base"] != wanted["base"]:
            raise UsageError(
                "the representation was made with another base model.",
                place=Place(adapter / REPRESENTATION),
                remedy="Describe the adapter again.",
            )
    vectors = [np.asarray(one["vector"]) for one in stored]
    target: Vector = np.asarray(wanted["vector"])
    weights = weights_for(target, vectors, weighting=weighting, temperature=temperature, nearest=nearest)
    return weights.tolist(), likeness(target, vectors).tolist()


def _stored(adapter: Path) -> dict[str, Any]:
    try:
        value: dict[str, Any] = files.read_json(adapter / REPRESENTATION)
    except FileNotFoundError:
        raise UsageError(
            f"{adapter} has no representation of its rows.",
            remedy=f"Make one first: foretune adapters describe {adapter} DATA.",
        ) from None
    return value
