"""Kernels of facility location: s[row, candidate] with every candidate's column contiguous, checked when made.

Dense up to some 2·10⁴ rows (a memory map will do), sparse beyond, where an absent entry counts as the floor: it
gains nothing. Values are taken by index, never by memory order, and never symmetrised: s[i, j] is how well
candidate j represents row i, and that has a direction. NaN and infinity are refused with their position.

`save` and `load` keep a kernel in a folder of raw arrays that other processes map into memory instead of copying.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from foretune.errors import DataError, UsageError
from foretune.files import read_json, write_json

if TYPE_CHECKING:
    from foretune.selection.greedy.compiled import Integers, Values

CHECKED_AT_ONCE = 4096
"""Values looked at together for NaN: long enough for vector arithmetic, short enough to name the place quickly."""


@dataclass(frozen=True)
class Kernel:
    """A checked kernel in the form that the compiled loops take. Make it with `dense`, `columns` or `sparse`."""

    rows: int
    """How many rows are represented."""
    candidates: int
    """How many candidates there are to choose from."""
    values: Values
    """Dense: (candidates, rows), C order. Sparse: (1, entries), candidate by candidate."""
    starts: Integers = field(default_factory=lambda: np.empty(0, np.int64))
    """Sparse: (candidates + 1,) where each candidate's entries begin. Empty when dense."""
    row_of: npt.NDArray[np.int32] = field(default_factory=lambda: np.empty(0, np.int32))
    """Sparse: (entries,) the row of each entry, ascending within a candidate. Empty when dense."""

    @property
    def arrays(self) -> tuple[Values, Integers, npt.NDArray[np.int32]]:
        """What the compiled loops take."""
        return self.values, self.starts, self.row_of

    @property
    def is_dense(self) -> bool:
        """Whether every entry is stored."""
        return not len(self.starts)

    @property
    def bytes(self) -> int:
        """Memory (or file) that the entries take."""
        return sum(array.nbytes for array in self.arrays)

    def column(self, candidate: int) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float64]]:
        """The rows of a candidate's entries and the entries."""
        if self.is_dense:
            return np.arange(self.rows), self.values[candidate].astype(np.float64)
        span = slice(int(self.starts[candidate]), int(self.starts[candidate + 1]))
        return self.row_of[span].astype(np.int64), self.values[0, span].astype(np.float64)

    def maxima(self) -> npt.NDArray[np.float64]:
        """(candidates,) the largest value of each column; of a sparse one at least 0, which absent entries are."""
        from foretune.selection.greedy.compiled import column_maxima

        if not self.is_dense:
            return column_maxima(self.values, self.starts)
        largest: npt.NDArray[np.float64] = self.values.max(axis=1, initial=-np.inf if self.rows else 0).astype(
            np.float64
        )
        return largest


def dense(similarity: npt.ArrayLike) -> Kernel:
    """A kernel from ``similarity``: (rows, candidates) in any memory order; Fortran order is taken without a copy."""
    return columns(np.asarray(similarity).T)


def columns(by_candidate: npt.ArrayLike) -> Kernel:
    """A kernel from its transpose: (candidates, rows), such as a memory map of that shape in C order (not copied)."""
    array = np.asarray(by_candidate)
    if array.ndim != 2:
        raise UsageError(f"a kernel has two axes, rows and candidates; this has {array.ndim}.")
    values = np.ascontiguousarray(array, dtype=_float_type(array.dtype))
    position = _first_broken(values.reshape(-1))
    if position >= 0:
        candidate, row = divmod(position, values.shape[1])
        raise _broken(values[candidate, row], row, candidate)
    return Kernel(rows=values.shape[1], candidates=values.shape[0], values=values)


def sparse(similarity: Any) -> Kernel:
    """A kernel from a SciPy sparse array of shape (rows, candidates); duplicate entries are added up, as SciPy does."""
    from scipy.sparse import csc_array

    by_column = csc_array(similarity)  # shares the arrays of one that is already by column
    if not by_column.has_canonical_format:
        by_column = by_column.copy()
        by_column.sum_duplicates()
    values = np.ascontiguousarray(by_column.data, dtype=_float_type(by_column.dtype))
    starts = by_column.indptr.astype(np.int64)
    position = _first_broken(values)
    if position >= 0:
        candidate = int(np.searchsorted(starts, position, side="right")) - 1
        raise _broken(values[position], int(by_column.indices[position]), candidate)
    row_of = by_column.indices.astype(np.int32, copy=False)
    return Kernel(by_column.shape[0], by_column.shape[1], values[None], starts, row_of)


def _float_type(given: Any) -> type[np.float32] | type[np.float64]:
    if not (np.issubdtype(given, np.number) or np.issubdtype(given, np.bool_)) or np.issubdtype(
        given, np.complexfloating
    ):
        raise UsageError(f"a kernel holds real numbers, not {given}.")
    return np.float32 if given in (np.float16, np.float32) else np.float64


def _first_broken(values: Values) -> int:
    from foretune.selection.greedy.compiled import first_broken

    return int(first_broken(values, CHECKED_AT_ONCE))


def _broken(value: float, row: int, candidate: int) -> DataError:
    return DataError(
        f"the kernel has {value} at row {row}, candidate {candidate}.",
        remedy="NaN and infinity cannot be ranked: find out how this pair came by it, or leave the row out.",
    )


_PARTS = ("values", "starts", "row_of")


def save(kernel: Kernel, folder: Path) -> None:
    """Write the kernel's arrays as raw files with their shapes; `load` maps them. ``folder`` is not the final one
    (see `foretune.files.atomic_folder`)."""
    shapes: dict[str, Any] = {}
    for name in _PARTS:
        array = getattr(kernel, name)
        shapes[name] = {"shape": list(array.shape), "dtype": array.dtype.str}
        array.tofile(folder / f"{name}.bin")
    write_json(folder / "kernel.json", {"rows": kernel.rows, "candidates": kernel.candidates, "arrays": shapes})


def load(folder: Path) -> Kernel:
    """The kernel in ``folder``, mapped into memory read-only: its values are read when they are used."""
    head = read_json(folder / "kernel.json")
    arrays = {name: _mapped(folder / f"{name}.bin", **part) for name, part in head["arrays"].items()}
    return Kernel(head["rows"], head["candidates"], **arrays)


def _mapped(path: Path, shape: list[int], dtype: str) -> npt.NDArray[Any]:
    if 0 in shape:  # an empty file cannot be mapped
        return np.empty(shape, np.dtype(dtype))
    return np.asarray(np.memmap(path, mode="r", dtype=np.dtype(dtype), shape=tuple(shape)))
