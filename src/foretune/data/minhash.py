"""Candidates for near-duplicates: character shingles, one-permutation MinHash and banding over two fields at once.

A text is the set of its hashed character 5-grams (language-independent, no tokenizer). One hash per shingle fills
all bins of a signature (one-permutation hashing, Li, Owen and Zhang 2012, arXiv 1208.1259); empty bins borrow from
the next filled one (Shrivastava and Li 2014, arXiv 1406.4784), so that the share of equal bins estimates the Jaccard
similarity. A band joins a few bins of the prompt with a few bins of the answer: two rows become candidates only when
both look alike, so a question template alone makes none. Shingles that most rows share (the template itself) are left
out where something else remains. This module proposes; `deduplicate` verifies every pair by its true similarity.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from foretune.seeding import generator

SHINGLE = 5
"""Characters in a shingle: about one word, the usual choice for short documents."""
MOST_CHARACTERS = 20_000
"""Only the beginning of longer texts is compared."""
TEMPLATE_SHARE = 0.2
"""A shingle in more than this share of all texts belongs to a template."""
FEWEST_FOR_TEMPLATES = 50
"""Below this many texts a frequent shingle proves nothing."""
BINS = 128
"""Bins of a signature; a power of two."""
BANDS = 64
PROMPT_BINS = 3
ANSWER_BINS = 5
"""With similarity 0.8 in both fields one band agrees with probability 0.8^8 = 0.17, and one of 64 bands with
1 - 0.83^64 > 0.9999; with prompts alike and answers at 0.2 a pair is proposed with probability 0.02."""
_TABLE_BITS = 22
_ROWS_AT_ONCE = 4096

Hashes = NDArray[np.uint64]
_EMPTY = np.uint64(2**64 - 1)


class Shingles:
    """The hashed shingle sets of many texts, computed in blocks; the template's shingles are left out."""

    def __init__(self, texts: Sequence[str], seed: int) -> None:
        self._texts = texts
        draw = generator(seed, "shingles")
        self._weights = draw.integers(1, 2**63, SHINGLE, dtype=np.uint64) | np.uint64(1)
        self._template = self._frequent() if len(texts) >= FEWEST_FOR_TEMPLATES else None

    def blocks(self) -> Iterator[tuple[int, Hashes, NDArray[np.int64]]]:
        """(first text, hashes, text of each hash counted from the first), `_ROWS_AT_ONCE` texts at a time."""
        for first in range(0, len(self._texts), _ROWS_AT_ONCE):
            hashes, owner = self._hashed(self._texts[first : first + _ROWS_AT_ONCE])
            yield first, *self._specific(hashes, owner)

    def of(self, index: int) -> Hashes:
        """The sorted set of shingle hashes of one text."""
        hashes, owner = self._hashed(self._texts[index : index + 1])
        return _distinct(self._specific(hashes, owner)[0])

    def _hashed(self, texts: Sequence[str]) -> tuple[Hashes, NDArray[np.int64]]:
        # shorter texts are one shingle, padded with NUL, which normalised text does not hold
        cut = [text[:MOST_CHARACTERS].ljust(SHINGLE, "\0") for text in texts]
        codes = np.frombuffer("".join(cut).encode("utf-32-le", "surrogatepass"), dtype=np.uint32).astype(np.uint64)
        lengths = np.array([len(text) for text in cut], dtype=np.int64)
        owner = np.repeat(np.arange(len(cut)), lengths)
        width = len(codes) - SHINGLE + 1
        hashes = np.zeros(width, dtype=np.uint64)
        for offset in range(SHINGLE):
            hashes += (codes[offset : offset + width] + np.uint64(1)) * self._weights[offset]
        whole = owner[:width] == owner[SHINGLE - 1 :]
        return _mixed(hashes[whole]), owner[:width][whole]

    def _specific(self, hashes: Hashes, owner: NDArray[np.int64]) -> tuple[Hashes, NDArray[np.int64]]:
        """Without the template's shingles, except in texts that have no others."""
        if self._template is None or not len(hashes):
            return hashes, owner
        own = ~self._template[_slot(hashes)]
        has_own = np.zeros(int(owner[-1]) + 1, dtype=bool)
        has_own[owner[own]] = True
        keep = own | ~has_own[owner]
        return hashes[keep], owner[keep]

    def _frequent(self) -> NDArray[np.bool_]:
        counts = np.zeros(2**_TABLE_BITS, dtype=np.int32)
        for first in range(0, len(self._texts), _ROWS_AT_ONCE):
            hashes, owner = self._hashed(self._texts[first : first + _ROWS_AT_ONCE])
            pairs = _distinct(_slot(hashes) * np.int64(_ROWS_AT_ONCE) + owner) // _ROWS_AT_ONCE
            counts += np.bincount(pairs, minlength=2**_TABLE_BITS).astype(np.int32)
        return counts > TEMPLATE_SHARE * len(self._texts)


def _distinct(values: NDArray[Any]) -> NDArray[Any]:
    """The sorted set of ``values`` (np.unique hashes first, which is several times slower here)."""
    ordered = np.sort(values)
    return ordered[np.r_[True, ordered[1:] != ordered[:-1]]] if len(ordered) else ordered


def _mixed(hashes: Hashes) -> Hashes:
    """The finaliser of SplitMix64 (Steele, Lea and Flood 2014): every input bit reaches every output bit."""
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        hashes = (hashes ^ (hashes >> np.uint64(shift))) * np.uint64(factor)
    return hashes ^ (hashes >> np.uint64(31))


def _slot(hashes: Hashes) -> NDArray[np.int64]:
    return (hashes >> np.uint64(64 - _TABLE_BITS)).astype(np.int64)


def signatures(shingles: Shingles, count: int) -> Hashes:
    """(count, BINS) uint64: the smallest hash of each text in each bin, empty bins filled."""
    result = np.full((count, BINS), _EMPTY, dtype=np.uint64)
    flat = result.reshape(-1)
    for first, hashes, owner in shingles.blocks():
        bins = (hashes & np.uint64(BINS - 1)).astype(np.int64)
        np.minimum.at(flat, (owner + first) * BINS + bins, hashes >> np.uint64(1))
    return _filled(result)


def _filled(signature: Hashes) -> Hashes:
    """Empty bins take the value of the next filled bin to the right, marked with the distance (rotation)."""
    distance = np.zeros(signature.shape, dtype=np.uint64)
    result = signature.copy()
    step = 1
    while step < BINS:  # doubling: after k rounds every gap shorter than 2^k is closed
        empty = result == _EMPTY
        if not empty.any():
            break
        result = np.where(empty, np.roll(result, -step, axis=1), result)
        distance = np.where(empty, np.roll(distance, -step, axis=1) + np.uint64(step), distance)
        step *= 2
    return _mixed(result + distance * np.uint64(0x9E3779B97F4A7C15))


def buckets(prompts: Hashes, answers: Hashes, seed: int) -> Iterator[NDArray[np.int64]]:
    """Groups of rows that agree in a whole band; each group is sorted, groups of one are left out."""
    draw = generator(seed, "bands")
    for _ in range(BANDS):
        key = np.zeros(len(prompts), dtype=np.uint64)
        for signature, width in ((prompts, PROMPT_BINS), (answers, ANSWER_BINS)):
            for column in draw.choice(BINS, width, replace=False):
                key = _mixed(key + signature[:, column])
        order = np.argsort(key, kind="stable")
        starts = np.flatnonzero(np.r_[True, key[order][1:] != key[order][:-1]])
        ends = np.r_[starts[1:], len(order)]
        for start, end in zip(starts[ends - starts > 1], ends[ends - starts > 1], strict=True):
            yield order[start:end]


def jaccard(first: Hashes, second: Hashes) -> float:
    """The similarity of two sorted sets: shared / all; two empty sets are equal."""
    if not len(first) and not len(second):
        return 1.0
    shared = len(np.intersect1d(first, second, assume_unique=True))
    return shared / (len(first) + len(second) - shared)
