"""The selection of a run as the record keeps it, and in words."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from foretune.units import format_duration, format_share


@dataclass(frozen=True)
class SelectionInfo:
    """Which rows the trials were trained on, and what it took to choose them."""

    method: str
    keep: float
    """Share of the training rows that was asked for"""
    kept: int
    pool: int
    """Training rows that were chosen from"""
    seconds: float
    """Of ranking, once for all trials; 0 where rows are chosen while training"""
    answer_tokens: float
    """Mean trained tokens of the kept rows"""
    target: str | None = None
    previous: str | None = None
    manifest: Mapping[str, Any] = field(default_factory=dict)
    compared: bool = False
    """Whether runs on all rows were compared with runs on these"""

    def sentence(self) -> str:
        """What was kept and what it cost."""
        share = format_share(self.kept / self.pool) if self.pool else "0 %"
        told = f"{self.method} kept {self.kept:,} of {self.pool:,} training rows ({share})"
        told += f" for {self.target}" if self.target else ""
        told += f", beyond {self.previous}" if self.previous else ""
        if not self.seconds:
            return f"{told}, chosen while training."
        return f"{told}; ranking took {format_duration(self.seconds)}, once for all trials."

    def limits(self) -> str:
        """What the run does not show."""
        if self.compared:
            return "Runs on all rows, the default LoRA's among them, were compared with runs on these, one seed each."
        return "Every trial, the default LoRA too, trained on the kept rows; whether that helped is not measured here."
