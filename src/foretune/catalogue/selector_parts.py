"""What the declarations of several selectors share: the work and the settings of embedding rows."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from foretune.catalogue.selection import Pool, Work
from foretune.catalogue.space import Space, Text

Fields = Mapping[str, Any]
MODEL_WORD = r"self|[A-Za-z0-9._/-]+"
"""The pattern of a setting that names a model: the one that is trained, or another by name or folder."""


def embeddings(pool: Pool, fields: Fields) -> Work:
    """A forward pass a row, and its vector."""
    vectors = 4.0 * max(pool.width, 512) * pool.rows
    return Work(scored_tokens=pool.rows * pool.row_tokens, memory_bytes=2 * vectors, disk_bytes=vectors)


def embedder(name: str) -> Space:
    """The setting that says which model embeds."""
    about = "Model that embeds: self, or another by name or folder."
    return Space((Text(f"{name}.embedder", "self", MODEL_WORD, about=about),))
