"""Named random streams: every use of randomness has a name, and the name with the seed fixes it.

``derive(seed, "dropout", run, step)`` is a hash, so no stream depends on how often another was used. That is
what makes a run resumed at step k equal to one that was never interrupted: there is no generator state to save.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import torch

_SEED_BITS = 63  # torch seeds are signed 64-bit integers


def derive(seed: int, *names: str | int) -> int:
    """A seed in [0, 2**63) for the stream called ``names`` under ``seed``."""
    text = "\x1f".join([str(seed), *map(str, names)])
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> (64 - _SEED_BITS)


def generator(seed: int, *names: str | int) -> np.random.Generator:
    """A NumPy generator for the named stream."""
    return np.random.Generator(np.random.PCG64(derive(seed, *names)))


def torch_generator(seed: int, *names: str | int) -> torch.Generator:
    """A CPU torch generator for the named stream."""
    import torch

    return torch.Generator().manual_seed(derive(seed, *names))
