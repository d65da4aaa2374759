"""What a reader of foreign results gives, and the small things that all readers need."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from foretune.experience.records import LONGEST_NAME, RunRecord, Seen
from foretune.files import fingerprint

UNKNOWN_ERROR = 0.0
"""The standard error of a score whose file gives none."""

ENDED: Mapping[str, str] = {
    **dict.fromkeys(("failed", "failure", "error", "crashed"), "crashed"),
    **dict.fromkeys(("stopped", "canceled", "cancelled", "running"), "stopped"),
    **dict.fromkeys(("timeout", "time-out", "timed-out"), "timeout"),
}
"""What others call the end of a run that was no success, and what the store calls it."""


@dataclass(frozen=True)
class Subject:
    """A task, model or machine: its fingerprint and what is known of it."""

    key: str
    features: Mapping[str, Any]


@dataclass(frozen=True)
class ImportedRun:
    """One run of another store or another tool."""

    record: RunRecord
    task: Subject
    model: Subject
    hardware: Subject
    config: Mapping[str, Any]
    seen: tuple[Seen, ...]
    status: str
    peak_bytes: int = 0


def subject(kind: str, features: Mapping[str, Any]) -> Subject:
    """A subject that is known by its features alone."""
    known = {key: value for key, value in features.items() if value is not None}
    return Subject(fingerprint([kind, known]), known)


def slug(text: object, *, slash: bool = False) -> str:
    """``text`` as a short name of the store; at most one slash is kept where allowed."""
    parts = str(text).split("/", 1) if slash else [str(text)]
    cleaned = ["-".join(re.findall(r"[A-Za-z0-9._:+]+", part)).strip("-.:+_") for part in parts]
    return "/".join(part for part in cleaned if part)[:LONGEST_NAME].rstrip("/") or "unknown"


def ended(said: str) -> str:
    """The store's word for how a run without success ended; a word that it has none for is kept as it is."""
    word = slug(said.lower())
    return ENDED.get(word, word)


def finite(value: object) -> float | None:
    """``value`` as a finite number, or None: numbers are often written as text, and diverged ones as NaN."""
    if isinstance(value, bool):
        return None
    try:
        number = float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        return None
    return number if math.isfinite(number) else None
