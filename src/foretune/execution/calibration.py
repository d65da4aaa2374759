"""A third of a second of matrix products, once per machine: how fast this processor multiplies, without torch.

The result is kept in the cache folder under the machine's fingerprint, so later plans do not measure again. It is
the best of many short products in processor time of this thread, so that a busy machine is measured as if it were
quiet: what disturbs a measurement only ever slows it.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable
from pathlib import Path

from foretune.cost.machine import Machine
from foretune.errors import OutputError
from foretune.files import cache_folder, read_json, write_json

_SECONDS = 0.3
_SIZE = 512  # bound by arithmetic, yet over within one time slice of the scheduler
_SHORTEST_S = 1e-9


def matmul_rate(machine: Machine) -> float:
    """Float32 operations per second of NumPy's matrix product here; read from the cache when measured before."""
    path = cache_folder() / "machine" / f"{machine.fingerprint}.json"
    known = _stored(path)
    if known is not None:
        return known
    rate = measure()
    with contextlib.suppress(OutputError):  # a cache that cannot be written only means measuring again
        write_json(path, {"matmul_operations_per_s": rate, "processor": machine.processor, "threads": machine.threads})
    return rate


def _stored(path: Path) -> float | None:
    try:
        rate = read_json(path)["matmul_operations_per_s"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return float(rate) if isinstance(rate, int | float) and rate > 0 else None


def measure(*, busy: Callable[[], float] = time.thread_time, wall: Callable[[], float] = time.perf_counter) -> float:
    """The best rate of one product: timed on ``busy``, repeated for `_SECONDS` on ``wall``."""
    import numpy as np

    left = np.full((_SIZE, _SIZE), 0.5, dtype=np.float32)
    right = np.full((_SIZE, _SIZE), 0.25, dtype=np.float32)
    left @ right  # the first product starts the threads
    began = wall()
    best = float("inf")
    while True:
        start = busy()
        left @ right
        best = min(best, max(busy() - start, _SHORTEST_S))
        if wall() - began >= _SECONDS:
            return 2.0 * _SIZE**3 / best
