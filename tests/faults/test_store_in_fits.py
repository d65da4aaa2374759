"""The experience under whole fits: two at once on one store, a store of an older version, a full disk."""

from __future__ import annotations

import logging
import os
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import foretune
from foretune.experience import store as store_module
from foretune.experience.past import past_runs
from foretune.experience.store import Store

from ..inline import InlineExecutor
from ..whole_fits import SETTINGS, Ground

OLD = Path(__file__).parents[1] / "experience" / "fixtures" / "store-version-1.sql"
TWO = {**SETTINGS, "budget.steps": None, "budget.trials": 2, "training.epochs": 1}


@pytest.fixture
def fit_on(ground: Ground, monkeypatch: pytest.MonkeyPatch) -> Callable[[Path, Path, int], Any]:
    """A small fit in a folder, with a store and a seed."""

    def fit(output: Path, store: Path, seed: int = 0) -> Any:
        monkeypatch.setattr("foretune.fit.job.LocalExecutor", InlineExecutor)
        monkeypatch.setenv("FORETUNE_STORE", str(store))
        return foretune.fit(ground.rows, model=str(ground.llama), output=output, options={**TWO, "search.seed": seed})

    return fit


def test_two_fits_at_once_fill_one_store(finished: Any, fit_on: Any, tmp_path: Path) -> None:
    """Two processes, begun together on a store that is not there yet: each adds its runs, none is lost or doubled."""
    store, children = tmp_path / "store.sqlite", []
    for number in range(2):
        if (child := os.fork()) == 0:
            code = 1
            try:
                fit_on(tmp_path / f"fit-{number}", store, number)
                code = 0
            finally:
                os._exit(code)
        children.append(child)
    assert [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children] == [0, 0]
    runs = past_runs(store)
    fits = {run.run.rpartition(".")[0] for run in runs}
    assert len(fits) == 2 and sorted(run.run.rpartition(".")[2] for run in runs) == ["r001", "r001", "r002", "r002"]
    assert all(run.status in ("finished", "idle") and run.on("validation") for run in runs)
    with Store(store) as opened:
        assert opened.stats()["sound"]
        assert len(opened.table("task")[1]) == 2, "another seed splits the rows otherwise: another task"


def test_a_fit_brings_an_older_store_up_to_date_and_learns_from_it(fit_on: Any, tmp_path: Path) -> None:
    path = tmp_path / "old.sqlite"
    with sqlite3.connect(path) as connection:
        connection.executescript(OLD.read_text())
    connection.close()
    old = past_runs(path)
    fit_on(tmp_path / "run", path)
    runs = past_runs(path)
    assert runs[: len(old)] == old and len(runs) == len(old) + 2


def test_a_fit_whose_store_fills_the_disk_ends_well_and_leaves_a_sound_store(
    fit_on: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """SQLite is allowed a few small pages more than the store has at first: then it says that the disk is full."""
    path = tmp_path / "store.sqlite"
    connection = sqlite3.connect(path, isolation_level=None)
    connection.execute("PRAGMA page_size = 512")
    connection.execute("VACUUM")
    connection.close()
    Store(path).close()
    prepare, opened = store_module.Store._prepare, []

    def limited(self: Any) -> None:
        prepare(self)
        (pages,) = self._connection.execute("PRAGMA page_count").fetchone()
        opened.append(self._connection.execute(f"PRAGMA max_page_count = {pages + 8}").fetchone()[0] - pages)

    monkeypatch.setattr(store_module.Store, "_prepare", limited)
    with caplog.at_level(logging.WARNING, "foretune"):
        record = fit_on(tmp_path / "run", path).record
    assert opened and record.winner is not None and (tmp_path / "run" / "adapter").is_dir()
    said = [message for message in caplog.messages if "not added to the experience" in message]
    assert len(said) == 1 and "full" in said[0]
    monkeypatch.undo()
    with Store(path) as store:
        assert store.stats()["sound"]
