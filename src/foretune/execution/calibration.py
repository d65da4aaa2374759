"""A third of a second of matrix products, once per machine: how fast this processor multiplies, without torch.

The result is kept in the cache folder under the machine's fingerprint, so later plans do not measure again. It is
the best of many short products on one thread in processor time, so that a busy machine is measured as if it were
quiet (what disturbs a measurement only ever slows it), times the threads to some power below one.
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
_SCALING = 0.97  # n threads multiply as fast as n to this power: 1.96 on two cores, 14.7 on sixteen


def matmul_rate(machine: Machine) -> float:
    """Float32 operations per second of NumPy's matrix product here; read from the cache when measured before."""
    path = cache_folder() / "machine" / f"{machine.fingerprint}.json"
    known = _stored(path)
    if known is not None:
        return known
    rate: float = measure() * machine.threads**_SCALING
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
    """The best rate of one product on one thread: timed on ``busy``, repeated for `_SECONDS` on ``wall``."""
    import numpy as np
    from threadpoolctl import threadpool_limits

    left = np.full((_SIZE, _SIZE), 0.5, dtype=np.float32)
    right = np.full((_SIZE, _SIZE), 0.25, dtype=np.float32)
    with threadpool_limits(1):
        left @ right  # the first product allocates
        began = wall()
        best = float("inf")
        while True:
            start = busy()
            left @ right
            best = min(best, max(busy() - start, _SHORTEST_S))
            if wall() - began >= _SECONDS:
                return 2.0 * _SIZE**3 / best
