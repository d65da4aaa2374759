"""Whole fits on tiny models."""

from __future__ import annotations

from tests.whole_fits import fast_fit, ground

__all__ = ["fast_fit", "ground"]
