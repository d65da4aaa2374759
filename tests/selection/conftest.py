"""A tiny Llama on a bench over a few rows, for everything that selects with a model."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from foretune.data.example import Example, conversation

from .. import tiny
from ..whole_fits import *  # noqa: F403


def rows(count: int) -> list[Example]:
    """Question-answer rows, all different."""
    return [conversation(row["question"], row["answer"]) for row in tiny.questions(count)]


@pytest.fixture(scope="session")
def make_bench(ground: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., Any]]:
    """A function that puts examples (and target, previous) into a task folder and loads the tiny model on it."""
    from foretune.catalogue.models import ModelReference
    from foretune.execution.bench import Bench
    from foretune.execution.types import TaskSpec
    from foretune.fit.prepare import write_split

    loaded: dict[str, Any] = {}

    def make(examples: Sequence[Example], folder: Path | None = None, **others: Sequence[Example]) -> Any:
        folder = folder or tmp_path_factory.mktemp("task")
        for name, part in {"train": examples, "validation": [], "test": [], **others}.items():
            write_split(folder / f"{name}.jsonl", part)
        reference = ModelReference(str(ground.llama), kind="causal", dtype="float32")
        task = TaskSpec(str(folder), "generation", reference, "loss", context_tokens=96, device="cpu")
        bench = loaded["bench"].for_task(task) if loaded else Bench(task)
        loaded.setdefault("bench", bench)
        return bench

    yield make
