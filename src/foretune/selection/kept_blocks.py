"""Arrays that are computed block by block and kept: a killed selection goes on with the next block.

A block is a few rows; its result is one safetensors file under a name that hashes everything that decides it (the
caller's key and the rows' own hashes), with a digest inside. Whatever does not agree is computed again. Arrays have
one entry a row along their first axis.

Several processes may carry out the same selection in the same folder: each takes blocks that nobody has claimed, and
all end with the same arrays (`foretune.fit.assistants` starts such processes).
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from foretune.files import claimed, fingerprint, write_bytes
from foretune.selection.base import Request
from foretune.selection.took import Stopwatch, Took, write_took

BLOCK_ROWS = 64
"""Rows between two files, and two looks at the clock: a few seconds for short rows of a small model."""
WAIT_S = 0.05
"""Between two looks whether others have finished their blocks."""
_DIGEST = "digest"
_KEY_LENGTH = 32
FORMAT = 2
"""Raised whenever the files change for the same input."""

Arrays = dict[str, NDArray[Any]]


def in_blocks(
    request: Request,
    what: str,
    keys: Sequence[str],
    made_of: Any,
    compute: Callable[[Sequence[int]], Mapping[str, NDArray[Any]]],
    *,
    block_rows: int = BLOCK_ROWS,
) -> Arrays:
    """The arrays of ``compute`` over ``range(len(keys))``, in blocks.

    ``keys`` hash each row, ``made_of`` (JSON) everything else that decides the values: model, template, settings.
    Raises `SelectionStopped` between two blocks where a stop was ordered.
    """
    blocks = [range(start, min(start + block_rows, len(keys))) for start in range(0, len(keys), block_rows)]
    found: dict[int, Arrays] = {}
    left = list(range(len(blocks)))
    while left:
        for number in list(left):
            request.check_stopped()
            path = None
            if request.folder is not None:
                name = fingerprint([FORMAT, what, made_of, [keys[i] for i in blocks[number]]], length=_KEY_LENGTH)
                path = request.folder / f"{what}-{name}.safetensors"
            arrays = _block(request, path, partial(compute, blocks[number]))
            if arrays is not None:
                found[number] = arrays
                left.remove(number)
                request.on_progress(what, sum(len(blocks[done]) for done in found), len(keys))
        if left:
            time.sleep(WAIT_S)
    if not found:
        return {}
    return {key: np.concatenate([found[number][key] for number in range(len(blocks))]) for key in found[0]}


def _block(request: Request, path: Path | None, compute: Callable[[], Mapping[str, NDArray[Any]]]) -> Arrays | None:
    """One block from its file, or computed into it; None where another process is at it."""
    if path is None:
        request.tally.add_computed("")
        return dict(compute())
    if (arrays := read(path)) is not None:
        request.tally.add_reused(path)
        return arrays
    with claimed(path) as mine:
        if not mine:
            return None
        if (arrays := read(path)) is not None:  # whoever had it before us has finished it
            request.tally.add_reused(path)
            return arrays
        watch = Stopwatch()
        arrays = {key: np.ascontiguousarray(value) for key, value in compute().items()}
        request.tally.add_computed(path.name)
        write(path, arrays, watch.took())
        return arrays


def write(path: Path, arrays: Mapping[str, NDArray[Any]], took: Took) -> None:
    """Write arrays atomically, with their digest, and beside them what they took. Raises `OutputError`."""
    from safetensors.numpy import save

    write_took(path, took)
    write_bytes(path, save({**arrays, _DIGEST: _digest(arrays)}))


def read(path: Path) -> Arrays | None:
    """The arrays of a file that `write` wrote; None where there is none or it is damaged."""
    from safetensors import SafetensorError
    from safetensors.numpy import load

    try:
        arrays: Arrays = load(path.read_bytes())
    except (OSError, SafetensorError, ValueError, KeyError):
        return None
    digest = arrays.pop(_DIGEST, None)
    return arrays if digest is not None and np.array_equal(digest, _digest(arrays)) else None


def _digest(arrays: Mapping[str, NDArray[Any]]) -> NDArray[np.uint8]:
    digest = hashlib.sha256()
    for name in sorted(arrays):
        digest.update(f"{name}{arrays[name].dtype}{arrays[name].shape}".encode())
        digest.update(np.ascontiguousarray(arrays[name]).tobytes())
    return np.frombuffer(digest.digest(), dtype=np.uint8).copy()
