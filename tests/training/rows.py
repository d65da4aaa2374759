"""Rows of random tokens for loop tests."""

from __future__ import annotations

import numpy as np

from foretune.data.encode import EncodedRow


def random_rows(count: int, *, seed: int = 0, vocabulary: int = 97, head: int = 4) -> list[EncodedRow]:
    """Rows of 8 to 20 tokens with a common head and targets in the second half."""
    draw = np.random.default_rng(seed)
    common = draw.integers(0, vocabulary, head)
    rows = []
    for _ in range(count):
        length = int(draw.integers(8, 21))
        ids = np.concatenate([common, draw.integers(0, vocabulary, length - head)]).astype(np.int32)
        mask = np.zeros(length, dtype=bool)
        start = int(draw.integers(head + 1, length - 1))
        mask[start:] = True
        rows.append(EncodedRow(ids=ids, target_mask=mask, prompt_length=start, answer_bytes=length - start))
    return rows
