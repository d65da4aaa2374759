"""The exact lazy greedy of facility location, compiled: one loop for dense and sparse kernels.

Greedy takes, again and again, the candidate of largest gain. Gains only shrink as rows are covered (the function is
submodular), so a gain computed earlier is an upper bound: candidates stand in a heap by their last known gain, and
only the one at the top is computed anew (Minoux 1978). What comes out is bit for bit what computing every gain in
every step would give, because float64 sums of terms that shrink, added in one fixed order, shrink as well; that is
why `gain` has a single call site per loop. Among equal gains the lowest index wins.

Here everything is arrays; what they mean, and the checks, are in `foretune.selection.greedy.facility_location`. The
order in which a sum is added depends on the processor's vector width, so two processors may part at gains that
agree to the last bits.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar, cast

import numba
import numpy as np
import numpy.typing as npt

Function = TypeVar("Function", bound=Callable[..., Any])
Floats = npt.NDArray[np.float64]
Integers = npt.NDArray[np.int64]
Values = npt.NDArray[Any]
"""Dense: (candidates, rows), C order. Sparse: (1, entries), candidate by candidate."""
Rows = npt.NDArray[np.int32]
"""Sparse: (entries,) the row of every entry. Empty when dense, and so are the ``starts``: one type, compiled once."""


def compiled(function: Function) -> Function:
    """``function`` as machine code, kept on disk; sums may be vectorised, NaN and infinity keep their meaning."""
    return cast(Function, numba.njit(cache=True, nogil=True, fastmath={"reassoc", "nsz"})(function))


@compiled
def first_broken(values: Values, width: int) -> int:
    """The first position in ``values`` (flat) that is NaN or infinite, or -1; looked at ``width`` at a time."""
    for start in range(0, len(values), width):
        zero = 0.0
        for i in range(start, min(start + width, len(values))):
            zero += values[i] * 0.0
        if zero != 0.0:  # a sum of zeros, unless one was NaN or infinite
            for i in range(start, min(start + width, len(values))):
                if not np.isfinite(values[i]):
                    return i
    return -1


@compiled
def gain(
    values: Values,
    starts: Integers,
    rows: Rows,
    candidate: int,
    current: Floats,
    cap: Floats,
    weight: Floats,
) -> float:
    """Σ_i weight_i · max(min(s_i, cap_i) − current_i, 0) over a candidate's column.

    An empty ``cap`` (then ``weight`` is empty, too) stands for no caps and weights of one: half the memory to read.
    """
    total = 0.0
    if len(starts):
        for entry in range(starts[candidate], starts[candidate + 1]):
            i = rows[entry]
            value = np.float64(values[0, entry])
            if len(cap):
                more = min(value, cap[i]) - current[i]
                total += weight[i] * (more if more > 0.0 else 0.0)
            else:
                more = value - current[i]
                total += more if more > 0.0 else 0.0
    elif len(cap):
        for i in range(values.shape[1]):
            value = np.float64(values[candidate, i])
            value = value if value < cap[i] else cap[i]
            more = value - current[i]
            total += weight[i] * (more if more > 0.0 else 0.0)
    else:
        for i in range(values.shape[1]):
            more = np.float64(values[candidate, i]) - current[i]
            total += more if more > 0.0 else 0.0
    return total


@compiled
def cover(
    values: Values,
    starts: Integers,
    rows: Rows,
    candidate: int,
    current: Floats,
    cap: Floats,
) -> None:
    """Raise ``current`` to what the candidate covers."""
    sparse = len(starts) > 0
    first, last = (starts[candidate], starts[candidate + 1]) if sparse else (0, values.shape[1])
    for entry in range(first, last):
        i = rows[entry] if sparse else entry
        value = np.float64(values[0 if sparse else candidate, entry])
        if len(cap):
            value = min(value, cap[i])
        current[i] = max(current[i], value)


@compiled
def column_sums(values: Values, starts: Integers, rows: Rows, candidates: Integers, weight: Floats) -> Floats:
    """(candidates,) Σ_i weight_i · s_i of each of ``candidates``."""
    sums = np.zeros(len(candidates))
    for position in range(len(candidates)):
        candidate = candidates[position]
        total = 0.0
        sparse = len(starts) > 0
        first, last = (starts[candidate], starts[candidate + 1]) if sparse else (0, values.shape[1])
        for entry in range(first, last):
            i = rows[entry] if sparse else entry
            total += weight[i] * np.float64(values[0 if sparse else candidate, entry])
        sums[position] = total
    return sums


@compiled
def column_maxima(values: Values, starts: Integers) -> Floats:
    """(candidates,) the largest stored value of each sparse column; 0, the floor, where that is larger."""
    largest = np.zeros(len(starts) - 1)
    for candidate in range(len(largest)):
        for entry in range(starts[candidate], starts[candidate + 1]):
            largest[candidate] = max(largest[candidate], np.float64(values[0, entry]))
    return largest


@compiled
def _sink(heap: Integers, size: int, position: int, key: Floats) -> None:
    """Move the candidate at ``position`` down to its place: larger keys above, then lower indices."""
    moving = heap[position]
    while True:
        child = 2 * position + 1
        if child >= size:
            break
        other = child + 1
        if other < size and _before(heap[other], heap[child], key):
            child = other
        if not _before(heap[child], moving, key):
            break
        heap[position] = heap[child]
        position = child
    heap[position] = moving


@compiled
def _before(one: int, other: int, key: Floats) -> bool:
    return key[one] > key[other] or (key[one] == key[other] and one < other)


@compiled
def lazy_greedy(
    values: Values,
    starts: Integers,
    rows: Rows,
    floor: Floats,
    cap: Floats,
    weight: Floats,
    bonus: Floats,
    candidates: Integers,
    count: int,
    cost: Floats,
    budget: float,
    scale: Floats,
    restart: bool,
) -> tuple[Integers, Floats, Integers, int]:
    """Choose up to ``count`` of ``candidates`` (ascending) whose costs sum to at most ``budget``.

    Order is by gain over ``scale``; a candidate that no longer fits is passed over. It ends when nothing gains any
    more; with ``restart`` the rows are then uncovered and the next round begins among those not chosen. Returns what
    was chosen, its gains, its rounds (from 0), and how many gains were computed.
    """
    chosen = np.empty(count, np.int64)
    gains = np.empty(count, np.float64)
    rounds = np.empty(count, np.int64)
    key = np.full(len(bonus), np.inf)  # never computed: before everything that was
    last = np.zeros(len(bonus))  # the gain that the key was made of
    alone = np.zeros(len(bonus))  # the gain over the bare floor: what a restart begins with
    stamp = np.full(len(bonus), -1, np.int64)  # how many were chosen when the key was computed
    heap = candidates.copy()
    size, done, round_number, computed = len(heap), 0, 0, 0
    current = floor.copy()
    while done < count and size > 0:
        top = heap[0]
        if cost[top] > budget:
            size -= 1
            heap[0] = heap[size]
            _sink(heap, size, 0, key)
            continue
        if stamp[top] != done:
            found = bonus[top] + gain(values, starts, rows, top, current, cap, weight)
            computed += 1
            if stamp[top] < 0:
                alone[top] = found
            last[top], key[top] = found, found / scale[top]
            stamp[top] = done
            _sink(heap, size, 0, key)
            continue
        if key[top] <= 0.0:
            if not restart or done == 0 or rounds[done - 1] < round_number:
                break  # nothing gains even over the bare floor
            round_number += 1
            current[:] = floor
            for position in range(size):
                candidate = heap[position]
                last[candidate], key[candidate] = alone[candidate], alone[candidate] / scale[candidate]
                stamp[candidate] = done
            for position in range(size // 2 - 1, -1, -1):
                _sink(heap, size, position, key)
            continue
        chosen[done], gains[done], rounds[done] = top, last[top], round_number
        budget -= cost[top]
        cover(values, starts, rows, top, current, cap)
        done += 1
        size -= 1
        heap[0] = heap[size]
        _sink(heap, size, 0, key)
    return chosen[:done], gains[:done], rounds[:done], computed


@compiled
def best_of(
    values: Values,
    starts: Integers,
    rows: Rows,
    current: Floats,
    cap: Floats,
    weight: Floats,
    bonus: Floats,
    sample: Integers,
) -> tuple[int, float]:
    """The candidate of ``sample`` with the largest gain (lowest index among equals), and that gain."""
    best, most = -1, -np.inf
    for candidate in sample:
        found = bonus[candidate] + gain(values, starts, rows, candidate, current, cap, weight)
        if found > most or (found == most and candidate < best):
            best, most = candidate, found
    return best, most
