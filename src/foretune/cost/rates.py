"""How fast a machine trains and scores, in operations per second: measured before, calibrated now, or from a table.

Four sources, best first: a probe with the weights loaded, this machine's own earlier runs, a third of a second of
float32 matrix products (processors), the maker's figure (accelerators). Each comes with the interval it earns.
The share of the matrix-product rate that work reaches was measured on two cores (AVX-512 BF16, 126 thousand million
float32 operations/s a core) with SmolLM2-135M, LoRA r=16 on all linear layers, bfloat16. Real tokens per second of
processor time: rows of 53 tokens packed, trained 297, with their head of 33 tokens shared 617; the fact set (45 tokens,
head 24) 593 trained and 1,800 to 2,120 scored; FOLDOC (88 tokens, 51 of them scored) 278 and 1,110; two quiet threads
reach twice that (590 and 1,200 trained, 3,600 scored). In float32 scoring ran at 0.30 of that.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from foretune.cost.interval import Interval

Work = Literal["train", "score"]

# Share of the measured float32 matrix-product rate that real work reaches, by work and type. Above one, because
# the processor multiplies bfloat16 faster. On the anchors above: 0.97 to 1.26 trained, 1.6 to 1.9 scored.
_CPU_SHARE: dict[tuple[Work, str], float] = {
    ("train", "bfloat16"): 1.15,
    ("score", "bfloat16"): 1.75,
    ("train", "float32"): 0.38,
    ("score", "float32"): 0.53,
}
# Dense bfloat16 (float16 on the T4 and V100) figures of the makers in 10**12 operations/s, by a word of the name.
_PEAK_TERA = {
    "B200": 2250, "H200": 989, "H100": 989, "GH200": 989, "A100": 312, "A800": 312, "H800": 989, "L40S": 362,
    "L40": 181, "L4": 121, "A10G": 70, "A10": 125, "A30": 165, "A40": 150, "A6000": 155, "A5000": 111, "A4000": 77,
    "T4": 65, "V100": 125, "4090": 165, "4080": 97, "4070": 58, "4060": 30, "3090": 71, "3080": 60, "3070": 41,
    "3060": 26, "5090": 210, "5080": 113, "MI300X": 1307, "MI250X": 191,
}  # fmt: skip
_GPU_SHARE: dict[Work, float] = {"train": 0.25, "score": 0.35}
_FLOAT32_ON_GPU = 0.15  # tensor cores idle
_UNKNOWN_GPU_TERA = 40.0
_CALIBRATED_FACTOR = 1.8
_TABLE_FACTOR = 2.2
_UNKNOWN_FACTOR = 4.0
_HISTORY_FLOOR = 1.15  # runs differ this much though nothing changed
_SIMILAR = 2.5  # models whose parameters differ by less run at about the same rate
_NEWEST = 20  # runs that count: a machine changes
_EIGHTY_PERCENT = 1.2816  # standard deviations on either side that hold 80 % of a normal distribution
PROBE_FACTOR = 1.15


@dataclass(frozen=True)
class Throughput:
    """A rate that was measured in an earlier run."""

    machine: str
    """`Machine.fingerprint`"""
    device: str
    dtype: str
    work: Work
    operations_per_s: float
    parameters: int = 0
    """Of the model; 0 where it is not known"""


@dataclass(frozen=True)
class Rates:
    """Operations per second for both kinds of work, and where the figures come from."""

    train: Interval
    score: Interval
    source: str


def from_matmul(float32_rate: float, dtype: str) -> Rates:
    """Rates of a processor whose float32 matrix products run at ``float32_rate`` operations/s."""
    train, score = (
        Interval.around(float32_rate * _CPU_SHARE[work, dtype], _CALIBRATED_FACTOR) for work in ("train", "score")
    )
    return Rates(train, score, f"matrix products here: {float32_rate / 1e9:.0f} thousand million operations/s")


def from_accelerator(name: str, dtype: str) -> Rates:
    """Rates of a GPU by its name; a name that is not known gets a wide interval around a small card."""
    words = name.upper().replace("-", " ").split()
    key = next((model for model in _PEAK_TERA if model in words), None)
    tera, factor = (_PEAK_TERA[key], _TABLE_FACTOR) if key else (_UNKNOWN_GPU_TERA, _UNKNOWN_FACTOR)
    scale = 1e12 * tera * (_FLOAT32_ON_GPU if dtype == "float32" else 1.0)
    train, score = (Interval.around(scale * _GPU_SHARE[work], factor) for work in ("train", "score"))
    return Rates(train, score, f"the maker's figure for {name}" if key else f"a guess: {name} is not in the table")


def from_history(
    records: Sequence[Throughput], machine: str, device: str, dtype: str, parameters: int = 0
) -> Rates | None:
    """Rates from earlier runs on this machine in this type; None when either kind of work was never measured.

    Runs of models of about this size (within `_SIMILAR`) count alone where there are any: small matrices are
    multiplied more slowly. Otherwise all do, with a wider interval.
    """
    found = {}
    for work in ("train", "score"):
        here = [
            record
            for record in records
            if (record.machine, record.device, record.dtype, record.work) == (machine, device, dtype, work)
            and record.operations_per_s > 0
        ]
        if not here:
            return None
        similar = [record for record in here if _similar(record.parameters, parameters)]
        logs = [math.log(record.operations_per_s) for record in similar or here][-_NEWEST:]
        # one run tells nothing about the spread: as much as two that differ by the calibrated factor
        spread = statistics.stdev(logs) if len(logs) > 1 else math.log(_CALIBRATED_FACTOR) / _EIGHTY_PERCENT / 2
        factor = max(_HISTORY_FLOOR, math.exp(_EIGHTY_PERCENT * spread * math.sqrt(1 + 1 / len(logs))))
        if not similar:
            factor = max(factor, _CALIBRATED_FACTOR)
        found[work] = (Interval.around(math.exp(statistics.median(logs)), factor), len(logs))
    count = min(found["train"][1], found["score"][1])
    return Rates(found["train"][0], found["score"][0], f"{count} earlier run{'s' if count > 1 else ''} on this machine")


def _similar(one: int, other: int) -> bool:
    """Whether two models are of about the same size; not known counts as similar."""
    return one <= 0 or other <= 0 or max(one, other) <= _SIMILAR * min(one, other)


def seconds(operations: float, rate: Interval) -> Interval:
    """The time for ``operations`` at ``rate``."""
    return Interval(operations / rate.high, operations / rate.value, operations / rate.low)
