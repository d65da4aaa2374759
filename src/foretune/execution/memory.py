"""Memory of this process and its accelerator: the peak so far, counting it anew, giving back what is free."""

from __future__ import annotations

import contextlib
import ctypes
import sys
from pathlib import Path

import torch


def give_back_memory() -> None:
    """Return what the C library keeps of freed memory to the system, where it is glibc.

    After three updates of SmolLM2-135M that is 0.7 GB, which the next job (a second model loaded to check an export)
    would otherwise need on top.
    """
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    if sys.platform == "linux":
        with contextlib.suppress(AttributeError, OSError):
            ctypes.CDLL(None).malloc_trim(0)


def forget_peak() -> None:
    """Count the process's peak from here on, where the system can: pages of the weight file mapped while loading are
    not memory that a run needs."""
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()


def peak_memory_bytes(device: torch.device) -> int:
    """The highest memory use so far: of the accelerator, or of this process."""
    if device.type == "cuda":
        return int(torch.cuda.max_memory_allocated(device))
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    return 0
