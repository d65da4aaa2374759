"""Questions with exact answers from any generator of ``reasoning-gym`` (Apache-2.0), seeded.

What it does not do: score answers with the package's own graders; a row's answer is a text like any other.
"""

from __future__ import annotations

import difflib
from importlib import metadata
from typing import Any

from foretune.catalogue.datasets import REASONING_PREFIX
from foretune.errors import DataError, UsageError

ROWS = 2000
"""Rows when no number is said: enough to learn from, and a few seconds to generate."""


def folder_name(name: str, rows: int, seed: int) -> str:
    """The cache folder of one generator with its settings."""
    return f"reasoning-gym-{name.removeprefix(REASONING_PREFIX)}-{rows}-{seed}"


def origin() -> dict[str, str]:
    """The version that generates, for ``source.json``: another version may ask other questions."""
    try:
        return {"reasoning_gym": metadata.version("reasoning-gym")}
    except metadata.PackageNotFoundError:
        return {}


def build(name: str, rows: int, seed: int) -> list[dict[str, Any]]:
    """At most ``rows`` rows of a generator, equal questions once; raises `DataError` and `UsageError`."""
    generator = name.removeprefix(REASONING_PREFIX)
    if rows < 1:
        raise UsageError(f"{rows} rows cannot be generated.", remedy="Ask for at least one.")
    try:
        import reasoning_gym
        from reasoning_gym.factory import DATASETS
    except ImportError as error:
        raise DataError(
            f"{name} needs the package reasoning-gym, which is not installed.",
            remedy="Run `pip install foretune[corpora]`.",
        ) from error
    if generator not in DATASETS:
        near = difflib.get_close_matches(generator, DATASETS, n=3) or sorted(DATASETS)[:3]
        raise DataError(
            f"reasoning-gym has no generator {generator!r}.",
            remedy=f"Near ones: {', '.join(near)}; it has {len(DATASETS)} in all.",
        )
    found = []
    seen: set[str] = set()
    for item in reasoning_gym.create_dataset(generator, size=rows, seed=seed):
        question, answer = str(item["question"]).strip(), item.get("answer")
        if isinstance(answer, str) and answer.strip() and question not in seen:
            seen.add(question)
            found.append({"question": question, "answer": answer.strip()})
    if not found:
        raise DataError(f"the generator {generator} gives no written answers.", remedy="Choose another generator.")
    return found
