"""The experience store: the only module that opens SQLite.

Every write is one transaction that has reached the disk when the call returns (WAL, ``synchronous=FULL``,
``BEGIN IMMEDIATE``), and every write may be repeated: the first valid observation of a (run, step, split, metric)
wins. Any number of processes may write at once. What cannot be read raises `StoreError` with its place and a remedy;
a damaged store is moved aside by `set_aside` alone, never on the way.

One `Store` belongs to one thread of one process.
"""

from __future__ import annotations

import contextlib
import json
import os
import sqlite3
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Any

from foretune.errors import Place, StoreError, UsageError
from foretune.experience import soundness
from foretune.experience.migrations import check_version, current_version, migrate
from foretune.experience.records import (
    ObservationRow,
    RunRecord,
    RunRow,
    Seen,
    Throughput,
    features,
    name,
    number,
    settings,
)
from foretune.experience.refusals import code, damaged, explained
from foretune.files import cache_folder, canonical_json, fingerprint

BUSY_TIMEOUT_S = 60.0
"""A write waits this long for another process's transaction, which takes milliseconds."""
_OPENING_PAUSE_S = 0.02
RUNNING = "running"
TABLES = ("task", "model", "hardware", "config", "run", "observation", "lease", "forecast")


def default_path() -> Path:
    """``$FORETUNE_STORE``, or ``experience.sqlite`` in the cache folder."""
    named = os.environ.get("FORETUNE_STORE")
    return Path(named) if named else cache_folder() / "experience.sqlite"


def set_aside(path: Path) -> Path:
    """Move a store with its log out of the way, deleting nothing; returns its new place. Raises `StoreError`."""
    if not path.exists():
        raise StoreError("there is no store here.", place=Place(path))
    taken = (path.with_name(f"{path.name}.aside-{number}") for number in range(1, 1_000_000))
    target = next(candidate for candidate in taken if not candidate.exists())
    for suffix in ("-wal", "-shm", ""):
        part = path.with_name(path.name + suffix)
        if part.exists():
            part.replace(target.with_name(target.name + suffix))
    return target


class Store:
    """An open store; a context manager. ``clock`` gives seconds since 1970."""

    def __init__(self, path: Path | None = None, *, clock: Callable[[], float] = time.time) -> None:
        self.path = path or default_path()
        self._clock = clock
        with explained(self.path):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            if (lost := soundness.silent_loss(self.path)) is not None:
                raise damaged(self.path, lost)
            self._connection = sqlite3.connect(self.path, timeout=BUSY_TIMEOUT_S, isolation_level=None)
            try:
                self._prepare()
            except BaseException:
                self._connection.close()
                raise

    def __enter__(self) -> Store:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the connection; the last one to close folds the log into the file."""
        with explained(self.path):
            self._connection.close()

    # -- what runs are about

    def record_task(self, key: str, values: Mapping[str, Any]) -> str:
        """Keep a task's meta-features (later ones replace earlier) under its fingerprint, which is returned."""
        return self._record("task", key, values)

    def record_model(self, key: str, values: Mapping[str, Any]) -> str:
        """Keep a model's facts under its fingerprint, which is returned."""
        return self._record("model", key, values)

    def record_hardware(self, key: str, values: Mapping[str, Any]) -> str:
        """Keep a machine's facts under its fingerprint, which is returned."""
        return self._record("hardware", key, values)

    def record_config(self, config: Mapping[str, Any]) -> str:
        """Keep a complete flat configuration; returns its fingerprint."""
        with self._transaction() as connection:
            return self._insert_config(connection, config)

    # -- runs

    def record_run(self, record: RunRecord) -> bool:
        """Keep a run as started; False when it is there already. Raises `UsageError` if it is another one there."""
        with self._transaction() as connection:
            return self._insert_run(connection, record)

    def record_observation(
        self,
        run: str,
        step: int,
        split: str,
        scores: Mapping[str, tuple[float, float, int]],
        *,
        train_s: float = 0.0,
        eval_s: float = 0.0,
        tokens: int = 0,
        train_cpu_s: float | None = None,
        eval_cpu_s: float | None = None,
    ) -> int:
        """Keep ``metric: (value, standard error, rows)`` at a step; returns how many were new (see `Seen`).

        Raises `UsageError` for a number that is not finite or a run that was not recorded.
        """
        rows = Seen(step, split, scores, train_s, eval_s, tokens, train_cpu_s, eval_cpu_s).rows(run)
        with self._transaction() as connection:
            return self._insert_observations(connection, rows)

    def record_ended(
        self,
        record: RunRecord,
        config: Mapping[str, Any],
        seen: Sequence[Seen],
        status: str,
        *,
        peak_bytes: int = 0,
        lease: tuple[str, int] | None = None,
    ) -> bool:
        """Keep a whole run that has ended, in one transaction: all of it or nothing.

        ``record.config`` is filled in from ``config``. False, and nothing is kept, when the run has ended already or
        ``lease`` (owner, attempt) is no longer who holds it: another process works on it, or has finished it.
        """
        record = replace(record, config=fingerprint(settings(config)))
        rows = [row for part in seen for row in part.rows(record.id)]
        with self._transaction() as connection:
            if lease is not None:
                held = connection.execute("SELECT owner, attempt FROM lease WHERE run = ?", (record.id,)).fetchone()
                if held != lease:
                    return False
            self._insert_config(connection, config)
            self._insert_run(connection, record)
            self._insert_observations(connection, rows)
            return self._finish(connection, record.id, status, peak_bytes)

    def finish_run(self, run: str, status: str, *, peak_bytes: int = 0) -> bool:
        """Keep how a run ended and free its lease; False when that is known already."""
        with self._transaction() as connection:
            return self._finish(connection, run, status, peak_bytes)

    def ended(self, study: str) -> set[str]:
        """The ids of a study's runs that have ended, however they did."""
        return {row[0] for row in self._read("SELECT id FROM run WHERE study = ? AND status <> ?", (study, RUNNING))}

    def runs(
        self, *, task: str | None = None, model: str | None = None, study: str | None = None, status: str | None = None
    ) -> list[RunRow]:
        """The stored runs, oldest first, narrowed to equal values of what is given."""
        wanted = {"task": task, "model": model, "study": study, "status": status}
        given = {key: value for key, value in wanted.items() if value is not None}
        where = " AND ".join(f"run.{key} = ?" for key in given) or "1"
        columns = tuple(RunRecord.__dataclass_fields__)
        rows = self._read(
            f"SELECT {', '.join(columns)}, settings, status, started_s, finished_s, peak_bytes"
            f" FROM run JOIN config ON config.fingerprint = run.config WHERE {where} ORDER BY started_s, id",
            tuple(given.values()),
        )
        found = []
        for row in rows:
            fields = dict(zip(columns, row, strict=False))
            record = RunRecord(**{**fields, "versions": json.loads(fields["versions"])})
            found.append(RunRow(record, json.loads(row[len(columns)]), *row[len(columns) + 1 :]))
        return found

    def curve(self, run: str) -> list[ObservationRow]:
        """All observations of a run, by step."""
        query = "SELECT * FROM observation WHERE run = ? ORDER BY step, split, metric"
        return [ObservationRow(*row) for row in self._read(query, (run,))]

    # -- leases between processes that fill one store

    def claim(self, run: str, owner: str, seconds: float) -> int | None:
        """Take a run for ``seconds``; returns the attempt, or None while another holds it or when it has ended."""
        now, owner = self._clock(), name("owner", owner)
        name("run", run)
        with self._transaction() as connection:
            ended = connection.execute("SELECT 1 FROM run WHERE id = ? AND status <> ?", (run, RUNNING)).fetchone()
            held = connection.execute("SELECT owner, attempt, until_s FROM lease WHERE run = ?", (run,)).fetchone()
            if ended or (held and held[0] != owner and held[2] > now):
                return None
            attempt = 1 + (held[1] if held else 0)
            connection.execute("REPLACE INTO lease VALUES (?, ?, ?, ?)", (run, owner, attempt, now + seconds))
        return attempt

    def renew(self, run: str, owner: str, attempt: int, seconds: float) -> bool:
        """Hold a claimed run longer; False when it was lost to another."""
        query = "UPDATE lease SET until_s = ? WHERE run = ? AND owner = ? AND attempt = ?"
        return self._write(query, (self._clock() + seconds, run, owner, attempt)) == 1

    def release(self, run: str, owner: str) -> None:
        """Give a claimed run back unfinished; its attempts stay counted."""
        self._write("UPDATE lease SET until_s = 0 WHERE run = ? AND owner = ?", (run, owner))

    # -- forecasts

    def record_forecast(
        self,
        run: str,
        phase: str,
        quantity: str,
        *,
        predicted: float,
        low: float,
        high: float,
        measured: float | None = None,
    ) -> None:
        """Keep a forecast with its interval, and what was measured once it is known; the first forecast stays.

        Raises `UsageError` when the interval does not hold the forecast or a number is not finite.
        """
        for what, text in (("run", run), ("phase", phase), ("quantity", quantity)):
            name(what, text)
        if not number("low", low) <= number("predicted", predicted) <= number("high", high):
            raise UsageError(f"the forecast {predicted} of {quantity} lies outside its interval {low} to {high}.")
        seen = None if measured is None else number("measured", measured)
        self._write(
            "INSERT INTO forecast VALUES (?, ?, ?, ?, ?, ?, ?) ON CONFLICT DO UPDATE"
            " SET measured = coalesce(measured, excluded.measured)",
            (run, phase, quantity, predicted, low, high, seen),
        )

    def machine_record(self, hardware: str) -> list[Throughput]:
        """What this machine did so far, by model and method: the history a forecast starts from."""
        rows = self._read(
            "SELECT run.model, config.method, count(DISTINCT run.id), sum(tokens), sum(train_s), max(run.peak_bytes)"
            " FROM (SELECT run, step, max(tokens) AS tokens, max(train_s) AS train_s FROM observation"
            "       WHERE train_s > 0 GROUP BY run, step) AS stretch"
            " JOIN run ON run.id = stretch.run JOIN config ON config.fingerprint = run.config"
            " WHERE run.hardware = ? GROUP BY run.model, config.method ORDER BY run.model, config.method",
            (hardware,),
        )
        return [Throughput(*row) for row in rows]

    # -- the whole store

    def stats(self) -> dict[str, Any]:
        """Counts of rows, runs by outcome and method, the median relative error of forecasts, whether all is sound."""
        counts = {table: self._read(f"SELECT count(*) FROM {table}")[0][0] for table in TABLES}
        errors: dict[str, list[float]] = {}
        for phase, quantity, predicted, measured in self._read(
            "SELECT phase, quantity, predicted, measured FROM forecast WHERE measured > 0 ORDER BY phase, quantity"
        ):
            errors.setdefault(f"{phase}.{quantity}", []).append(abs(predicted - measured) / measured)
        return {
            "path": str(self.path),
            "version": current_version(),
            "bytes": self.path.stat().st_size,
            "rows": counts,
            "runs_by_status": dict(self._read("SELECT status, count(*) FROM run GROUP BY status ORDER BY status")),
            "runs_by_method": dict(
                self._read(
                    "SELECT method, count(*) FROM run JOIN config ON config.fingerprint = run.config"
                    " GROUP BY method ORDER BY method"
                )
            ),
            "forecast_error": {key: {"median": _median(values), "n": len(values)} for key, values in errors.items()},
            "sound": self._read("PRAGMA quick_check(1)") == [("ok",)],
        }

    def table(self, table: str) -> tuple[list[str], list[tuple[Any, ...]]]:
        """Column names and all rows of one of `TABLES`, in the order of its key."""
        if table not in TABLES:
            raise UsageError(f"the store has no table {table!r}.", remedy=f"It has {', '.join(TABLES)}.")
        columns = [row[1] for row in self._read(f"PRAGMA table_info({table})")]
        keys = [row[1] for row in self._read(f"PRAGMA table_info({table})") if row[5]]
        return columns, self._read(f"SELECT * FROM {table} ORDER BY {', '.join(keys)}")

    # -- inside

    def _insert_config(self, connection: sqlite3.Connection, config: Mapping[str, Any]) -> str:
        stored = settings(config)
        key = fingerprint(stored)
        values = (key, str(config.get("method", "")), canonical_json(stored))
        connection.execute("INSERT OR IGNORE INTO config VALUES (?, ?, ?)", values)
        return key

    def _insert_run(self, connection: sqlite3.Connection, record: RunRecord) -> bool:
        for what in ("id", "task", "model", "hardware", "config"):
            name(what, getattr(record, what))
        for what in ("arm", "study", "pair"):
            name(what, getattr(record, what), empty=True)
        values = {**vars(record), "versions": features("version", record.versions)}
        columns = ", ".join(values)
        row = connection.execute(f"SELECT {columns} FROM run WHERE id = ?", (record.id,)).fetchone()
        if row is not None:
            if row[:-1] != tuple(values.values())[:-1]:  # all but the versions, its last column
                raise UsageError(f"run {record.id} is in the store already with other settings.")
            return False
        marks = ", ".join("?" * len(values))
        connection.execute(
            f"INSERT INTO run ({columns}, status, started_s) VALUES ({marks}, ?, ?)",
            (*values.values(), RUNNING, int(self._clock())),
        )
        return True

    def _insert_observations(self, connection: sqlite3.Connection, rows: list[tuple[Any, ...]]) -> int:
        before = connection.total_changes
        marks = ", ".join("?" * len(ObservationRow.__dataclass_fields__))
        connection.executemany(f"INSERT INTO observation VALUES ({marks}) ON CONFLICT DO NOTHING", rows)
        return connection.total_changes - before

    def _finish(self, connection: sqlite3.Connection, run: str, status: str, peak_bytes: int) -> bool:
        changed = connection.execute(
            "UPDATE run SET status = ?, finished_s = ?, peak_bytes = ? WHERE id = ? AND status = ?",
            (name("status", status), int(self._clock()), peak_bytes, run, RUNNING),
        ).rowcount
        connection.execute("DELETE FROM lease WHERE run = ?", (run,))
        return changed == 1

    def _record(self, table: str, key: str, values: Mapping[str, Any]) -> str:
        self._write(
            f"INSERT INTO {table} VALUES (?, ?, ?) ON CONFLICT DO UPDATE SET features = excluded.features",
            (name(table, key), features(table, values), int(self._clock())),
        )
        return key

    def _read(self, query: str, values: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
        with explained(self.path):
            return self._connection.execute(query, values).fetchall()

    def _write(self, query: str, values: tuple[Any, ...]) -> int:
        with self._transaction() as connection:
            return connection.execute(query, values).rowcount

    @contextlib.contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        with explained(self.path):
            self._connection.execute("BEGIN IMMEDIATE")
            try:
                yield self._connection
                self._connection.execute("COMMIT")
            except BaseException:
                if self._connection.in_transaction:
                    self._connection.execute("ROLLBACK")
                raise

    def _prepare(self) -> None:
        """Check whose file it is and of which version, bring it up to date, set the guarantees."""
        check_version(self._connection, self.path)  # before anything is changed
        deadline = time.monotonic() + BUSY_TIMEOUT_S
        while self._connection.execute("PRAGMA journal_mode").fetchone() != ("wal",):
            try:  # the change needs the file for itself, and SQLite does not wait for that
                self._connection.execute("PRAGMA journal_mode = WAL")
            except sqlite3.OperationalError as error:
                if code(error) != sqlite3.SQLITE_BUSY or time.monotonic() > deadline:
                    raise
                time.sleep(_OPENING_PAUSE_S)
        self._connection.execute("PRAGMA synchronous = FULL")
        self._connection.execute("PRAGMA foreign_keys = ON")
        if check_version(self._connection, self.path) < current_version():
            with self._transaction() as connection:
                migrate(connection, self.path)


def _median(values: list[float]) -> float:
    ordered, middle = sorted(values), len(values) // 2
    return ordered[middle] if len(ordered) % 2 else (ordered[middle - 1] + ordered[middle]) / 2
