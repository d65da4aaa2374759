"""Checked access to the fields of a ``config.json``: a missing or senseless size is an error, never a guess."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from foretune.errors import ModelError, Place

_LARGEST_SIZE = 2**31  # no width, count or vocabulary of a real model reaches this


@dataclass(frozen=True)
class Fields:
    """A configuration with its architecture's name and where it was read."""

    config: Mapping[str, Any]
    architecture: str
    place: Place | None = None

    def size(self, name: str, default: int | None = None, *, smallest: int = 1) -> int:
        """A whole number of at least ``smallest``; ``default`` when absent or null. Raises `ModelError`."""
        value = self.config.get(name)
        if value is None:
            value = default
        if value is None:
            raise self.refuse(f"{name} is missing")
        if isinstance(value, bool) or not isinstance(value, int) or not smallest <= value < _LARGEST_SIZE:
            raise self.refuse(f"{name} = {value!r} is not a size")
        return value

    def flag(self, name: str, default: bool) -> bool:
        """A truth value; ``default`` when absent or null. Raises `ModelError`."""
        value = self.config.get(name)
        if value is None:
            return default
        if not isinstance(value, bool):
            raise self.refuse(f"{name} = {value!r} is not true or false")
        return value

    def share(self, name: str, whole: str, parts: str, default: int | None = None) -> int:
        """``name``, or ``whole`` / ``parts`` when it is absent; a remainder raises `ModelError`."""
        if self.config.get(name) is not None:
            return self.size(name)
        total, count = self.size(whole, default), self.size(parts)
        if total % count:
            raise self.refuse(f"{whole} = {total} is not a multiple of {parts} = {count}")
        return total // count

    def noise(self, name: str, default: float) -> bool:
        """Whether the probability ``name`` is above zero. Raises `ModelError` when it is none."""
        value = self.config.get(name)
        value = default if value is None else value
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0.0 <= value <= 1.0:
            raise self.refuse(f"{name} = {value!r} is not a probability")
        return value > 0.0

    def word(self, name: str, default: str) -> str:
        """A word; ``default`` when absent or null."""
        value = self.config.get(name)
        return value if isinstance(value, str) else default

    def refuse(self, what: str) -> ModelError:
        """The error to raise for this configuration."""
        return ModelError(
            f"the configuration of this {self.architecture} model cannot be used: {what}.",
            place=self.place,
            remedy="Fetch the model again, or point to another one.",
        )
