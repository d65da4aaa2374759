"""Fixtures of whole fits on tiny models."""

from __future__ import annotations

from ..whole_fits import *  # noqa: F403
