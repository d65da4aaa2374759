"""A third of a second of matrix products, once per machine: how fast this processor multiplies, without torch.

The result is kept in the cache folder under the machine's fingerprint, so later plans do not measure again; it is
the best of several rounds, because what disturbs a measurement only ever slows it.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path

from foretune.cost.machine import Machine
from foretune.errors import OutputError
from foretune.files import cache_folder, read_json, write_json

_SECONDS = 0.3
_SIZE = 1024  # large enough to be bound by arithmetic, small enough for a few milliseconds


def matmul_rate(machine: Machine, *, clock: Callable[[], float] = time.perf_counter) -> float:
    """Float32 operations per second of NumPy's matrix product here; read from the cache when measured before."""
    path = cache_folder() / "machine" / f"{machine.fingerprint}.json"
    known = _stored(path)
    if known is not None:
        return known
    rate = measure(clock)
    try:
        write_json(path, {"matmul_operations_per_s": rate, "processor": machine.processor, "threads": machine.threads})
    except OutputError:  # a read-only cache only means measuring again
        return rate
    return rate


def _stored(path: Path) -> float | None:
    try:
        rate = read_json(path)["matmul_operations_per_s"]
    except (OSError, json.JSONDecodeError, UnicodeDecodeError, KeyError, TypeError):
        return None
    return float(rate) if isinstance(rate, int | float) and rate > 0 else None


def measure(clock: Callable[[], float]) -> float:
    """The best rate of one product over about `_SECONDS` on ``clock``."""
    import numpy as np

    left = np.full((_SIZE, _SIZE), 0.5, dtype=np.float32)
    right = np.full((_SIZE, _SIZE), 0.25, dtype=np.float32)
    left @ right  # the first product starts the threads
    began = clock()
    best = float("inf")
    while True:
        start = clock()
        left @ right
        end = clock()
        best = min(best, max(end - start, 1e-9))
        if end - began >= _SECONDS:
            return 2.0 * _SIZE**3 / best
