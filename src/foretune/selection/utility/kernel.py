"""A computed utility kernel and its views: how much every example helps every row.

    UF_ij = d(i) − d(i | j)        i: the row (asked), j: the example in context; positive: j helps i

(Agarwal et al. 2024, arXiv 2411.04425; the logarithmic form is conditional pointwise mutual information). Distances
lie on disk, one file or a few for each example (`foretune.selection.utility.blocks` computes them); every kernel is a
view made when it is read, so none has to be computed twice.

Pairs too long for the context are left out and counted: they neither help nor harm. A row as its own example tells
what copying does (it averages 0.48 where other examples average 0.003), so by default a pair of equal rows does not
count; ``self_pairs="keep"`` keeps it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from foretune.errors import UsageError
from foretune.selection import kept_blocks

NONE = -1
"""The column without an example."""
NONE_KEY = "none"
Distance = Literal["euclid", "log", "exponential"]
Shape = Literal["clipped", "minmax", "raw"]
SelfPairs = Literal["drop", "keep"]
Floats = npt.NDArray[np.float32]
Flags = npt.NDArray[np.bool_]
Keys = npt.NDArray[np.uint64]


def keys_of(ids: Sequence[str]) -> Keys:
    """(n,) the hashes of examples (16 hexadecimal digits each) as numbers."""
    return np.asarray([int(one, 16) for one in ids], dtype=np.uint64)


@dataclass(frozen=True)
class Column:
    """One example's numbers for all rows; zero where ``there`` is false."""

    d: Floats
    l: Floats  # noqa: E741
    there: Flags
    """(rows,) asked behind this example, and short enough"""
    too_long: Flags
    """(rows,) left out because they do not fit the context behind it"""
    tokens: npt.NDArray[np.int64]
    """(rows,) answer tokens; zero where not there"""


@dataclass(frozen=True)
class Utility:
    """A computed kernel on disk; `column` reads one example, `view` all of them."""

    rows: tuple[str, ...]
    """Hashes of the rows that were asked"""
    examples: tuple[str, ...]
    """Hashes of the examples"""
    files: Mapping[str, tuple[Path, ...]] = field(repr=False)
    """Files of every example"""
    self_pairs: SelfPairs = "drop"
    computed_pairs: int = 0
    """Pairs that the call which gave this kernel had to compute"""
    computed_tokens: int = 0
    """Tokens that went through the model for them"""

    @cached_property
    def _keys(self) -> Keys:
        return keys_of(self.rows)

    def column(self, example: int) -> Column:
        """The numbers behind an example, or with `NONE` those without any."""
        size = len(self.rows)
        d, mean_log = np.zeros(size, np.float32), np.zeros(size, np.float32)
        there, too_long, tokens = np.zeros(size, np.bool_), np.zeros(size, np.bool_), np.zeros(size, np.int64)
        for path in self.files.get(NONE_KEY if example == NONE else self.examples[example], ()):
            block = read(path)
            order = np.argsort(block["rows"])
            at = np.searchsorted(block["rows"], self._keys, sorter=order).clip(max=len(order) - 1)
            source = order[at]
            mine = block["rows"][source] == self._keys
            source = source[mine]
            d[mine], mean_log[mine], tokens[mine] = (block[name][source] for name in ("d", "l", "tokens"))
            too_long[mine] = block["too_long"][source] > 0
            there[mine] = ~too_long[mine]
        return Column(d, mean_log, there, too_long, tokens)

    @cached_property
    def alone(self) -> Column:
        """Without an example."""
        return self.column(NONE)

    def utility(self, example: int, distance: Distance = "euclid") -> tuple[Floats, Flags]:
        """((rows,) UF behind an example, (rows,) where it counts): zero where it does not.

        ``euclid``: d(i) − d(i | j) in [−1, 1]. ``log``: mean log-probability with minus without, in nats per token;
        times ``alone.tokens`` it is the conditional pointwise mutual information. ``exponential``: the geometric mean
        probability of a token, exp(l), with minus without, in [−1, 1].
        """
        behind, alone = self.column(example), self.alone
        counts = behind.there & alone.there
        if self.self_pairs == "drop":
            counts &= self._keys != np.uint64(int(self.examples[example], 16))
        if distance == "euclid":
            values = alone.d - behind.d
        elif distance == "log":
            values = behind.l - alone.l
        else:
            values = np.exp(behind.l) - np.exp(alone.l)
        return np.where(counts, values, np.float32(0)), counts

    def view(
        self, distance: Distance = "euclid", shape: Shape = "clipped", *, out: npt.NDArray[Any] | None = None
    ) -> Floats:
        """(examples, rows) float32, one example's column contiguous: what `greedy.kernel.columns` takes.

        ``clipped``: max(UF, 0). ``minmax``: (UF − least) / (most − least) over all pairs that count, not block by
        block. ``raw``: UF. Pairs that do not count are 0 in each. ``out`` may be a memory map.
        """
        shown: Floats = np.empty((len(self.examples), len(self.rows)), np.float32) if out is None else out
        least, most = np.inf, -np.inf
        for example in range(len(self.examples)):
            values, counts = self.utility(example, distance)
            shown[example] = np.maximum(values, 0) if shape == "clipped" else values
            least = min(least, float(values.min(where=counts, initial=np.inf)))
            most = max(most, float(values.max(where=counts, initial=-np.inf)))
        if shape == "minmax":
            width = most - least if most > least else 1.0
            for example in range(len(self.examples)):
                values, counts = self.utility(example, distance)
                shown[example] = np.where(counts, (values - least) / width, 0)
        return shown

    def counted(self) -> dict[str, int]:
        """What a reader should know: pairs wanted, computed now, too long; and rows too long even alone."""
        return {
            "pairs": len(self.rows) * len(self.examples),
            "pairs_computed": self.computed_pairs,
            "pairs_too_long": sum(int(self.column(j).too_long.sum()) for j in range(len(self.examples))),
            "rows_too_long": int(self.alone.too_long.sum()),
        }


@lru_cache(maxsize=8)
def read(path: Path) -> kept_blocks.Arrays:
    """The arrays of a block's file. Raises `UsageError` where it was damaged or removed since it was found."""
    arrays = kept_blocks.read(path)
    if arrays is None:
        raise UsageError(f"{path} was damaged or removed while it was in use.", remedy="Run the same command again.")
    return arrays
