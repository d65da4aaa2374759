"""Fixtures of whole fits on tiny models: models and data made once, a fit in this process in a second or two."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from . import tiny
from .inline import InlineExecutor

__all__ = ["Ground", "fast_fit", "finished", "ground", "own_store"]

SETTINGS: Mapping[str, Any] = {
    "budget.steps": 36,
    "device": "cpu",
    "model.dtype": "float32",
    "evaluation.max_answer_tokens": 8,
    "data.context_tokens": 96,
}


@dataclass(frozen=True)
class Ground:
    """Where the tiny models and rows lie."""

    root: Path
    llama: Path
    rows: Path


@pytest.fixture(scope="session")
def ground(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ground]:
    """A tiny Llama, sixty rows, and a cache and a store of the session's own."""
    root = tmp_path_factory.mktemp("ground")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FORETUNE_CACHE", str(root / "cache"))
        patch.setenv("FORETUNE_STORE", str(root / "store.sqlite"))
        patch.setenv("OMP_NUM_THREADS", "1")
        import torch

        torch.set_num_threads(1)
        yield Ground(root, tiny.llama(root / "llama"), tiny.write_rows(root / "rows.jsonl", tiny.questions()))


@pytest.fixture(scope="session")
def fast_fit(ground: Ground) -> Callable[..., Any]:
    """``foretune.fit`` with tiny settings, the worker in a thread of this process, and a store of its own.

    What earlier fits left in a store decides what a fit tries; the same request is the same run only with equal stores.
    """
    import foretune
    import foretune.fit.job

    def run(data: Path | None = None, *, model: Path | None = None, output: Path, **extra: Any) -> Any:
        options = {**SETTINGS, **extra.pop("options", {})}
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(foretune.fit.job, "LocalExecutor", extra.pop("executor", InlineExecutor))
            patch.setenv("FORETUNE_STORE", str(output.parent / f"{output.name}.store.sqlite"))
            return foretune.fit(data or ground.rows, model=str(model or ground.llama), output=output,
                                options={k: v for k, v in options.items() if v is not None}, **extra)  # fmt: skip

    return run


@pytest.fixture(autouse=True)
def own_store(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """A store for each test that calls the product itself."""
    monkeypatch.setenv("FORETUNE_STORE", str(tmp_path_factory.mktemp("store") / "store.sqlite"))


@pytest.fixture(scope="session")
def finished(fast_fit: Callable[..., Any], tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The result of a fit that nothing disturbed; it also loads what forked processes then need not load."""
    return fast_fit(output=tmp_path_factory.mktemp("finished") / "run")
