from __future__ import annotations

import math
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import store_worker

from foretune.errors import OutputError, StoreError, UsageError
from foretune.experience import migrations, soundness
from foretune.experience.parquet import EXPORTED, export
from foretune.experience.records import RunRecord
from foretune.experience.store import Store, default_path, set_aside

pytestmark = pytest.mark.alone


class Clock:
    now = 1_000_000.0

    def __call__(self) -> float:
        return self.now


def filled(path: Path, clock=None, runs: int = 2) -> Store:
    store = Store(path, clock=clock or Clock())
    task = store.record_task("t1", {"rows": 100, "language": "en", "code": None, "duplicates": 0.5})
    model, machine = store.record_model("m1", {"family": "HuggingFaceTB/SmolLM2"}), store.record_hardware("h1", {})
    for number in range(runs):
        config = store.record_config({"method": "lora", "learning_rate": 1e-4 * (number + 1)})
        store.record_run(RunRecord(f"r{number}", task, model, machine, config, number, 100, versions={"torch": "2.9"}))
        for step in (50, 100):
            scores = {"loss": (2.0 - step / 100, 0.1, 64), "accuracy": (0.5, 0.05, 64)}
            store.record_observation(f"r{number}", step, "validation", scores, train_s=10.0, eval_s=1.0, tokens=4000)
        store.finish_run(f"r{number}", "finished", peak_bytes=123)
    return store


def test_what_is_written_is_read_back(tmp_path):
    with filled(tmp_path / "s.sqlite") as store:
        rows = store.runs()
        assert [row.record.id for row in rows] == ["r0", "r1"]
        assert rows[1].settings == {"method": "lora", "learning_rate": 2e-4}
        assert rows[0].record.versions == {"torch": "2.9"}
        assert (rows[0].status, rows[0].peak_bytes, rows[0].finished_s) == ("finished", 123, 1_000_000)
        curve = store.curve("r0")
        assert [(o.step, o.metric, o.value) for o in curve] == [
            (50, "accuracy", 0.5),
            (50, "loss", 1.5),
            (100, "accuracy", 0.5),
            (100, "loss", 1.0),
        ]
        assert store.runs(task="t1", status="finished") == rows and store.runs(task="other") == []
    with Store(tmp_path / "s.sqlite") as again:
        assert again.runs() == rows


def test_writing_again_changes_nothing_and_the_first_observation_wins(tmp_path):
    with filled(tmp_path / "s.sqlite") as store:
        before = {table: store.table(table) for table in ("run", "observation", "config")}
        assert store.record_observation("r0", 50, "validation", {"loss": (9.0, 0.0, 1)}) == 0
        assert store.record_observation("r0", 50, "validation", {"loss": (9.0, 0.0, 1), "f1": (1.0, 0.0, 1)}) == 1
        assert not store.record_run(store.runs()[0].record)
        assert not store.finish_run("r0", "crashed")
        assert store.table("run") == before["run"]
        assert [o.value for o in store.curve("r0") if o.metric == "loss"] == [1.5, 1.0]
        with pytest.raises(UsageError, match="other settings"):
            store.record_run(RunRecord("r0", "t1", "m1", "h1", store.runs()[1].record.config, 0, 100))


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf, None, "1.0", True])
def test_only_finite_numbers_are_results(tmp_path, bad):
    with filled(tmp_path / "s.sqlite") as store:
        before = store.table("observation")
        for scores in ({"f1": (1.0, 0.1, 3), "em": (bad, 0.1, 3)}, {"em": (1.0, bad, 3)}):
            with pytest.raises(UsageError):
                store.record_observation("r0", 70, "validation", scores)
        with pytest.raises(UsageError):
            store.record_observation("r0", 70, "validation", {"em": (1.0, 0.1, 3)}, train_s=bad)
        with pytest.raises(UsageError):
            store.record_forecast("r0", "plan", "seconds", predicted=bad, low=0.0, high=9.0)
        assert store.table("observation") == before


@pytest.mark.parametrize(
    "text", ["What is the capital?", "/home/ann/letters.jsonl", "a" * 97, "", "x\ny", "a/b/c", "ß"]
)
def test_no_text_of_the_user_gets_in(tmp_path, text):
    with filled(tmp_path / "s.sqlite") as store:
        for write in (
            lambda: store.record_task("t2", {"note": text}),
            lambda: store.record_task("t2", {text: 1}),
            lambda: store.record_task(text, {}),
            lambda: store.record_config({"method": text}),
            lambda: store.record_observation("r0", 1, text, {}),
            lambda: store.record_observation("r0", 1, "test", {text: (1.0, 0.1, 1)}),
            lambda: store.finish_run("r0", text),
        ):
            with pytest.raises(UsageError):
                write()


def test_rows_must_refer_to_what_is_known(tmp_path):
    with filled(tmp_path / "s.sqlite") as store:
        with pytest.raises(UsageError, match="names first"):
            store.record_observation("r9", 1, "validation", {"loss": (1.0, 0.1, 1)})
        with pytest.raises(UsageError, match="names first"):
            store.record_run(RunRecord("r9", "nowhere", "m1", "h1", store.runs()[0].record.config, 0, 1))
        with pytest.raises(UsageError, match="CHECK"):
            store.record_observation("r0", -1, "validation", {"loss": (1.0, 0.1, 1)})
        assert store.stats()["sound"]


def test_forecasts_keep_the_first_and_learn_the_truth(tmp_path):
    with filled(tmp_path / "s.sqlite") as store:
        store.record_forecast("fit-1", "plan", "seconds", predicted=100, low=80, high=150)
        store.record_forecast("fit-1", "plan", "seconds", predicted=7, low=7, high=7, measured=125)
        store.record_forecast("fit-2", "plan", "seconds", predicted=100, low=80, high=150, measured=100)
        _, rows = store.table("forecast")
        assert rows[0] == ("fit-1", "plan", "seconds", 100.0, 80.0, 150.0, 125.0)
        assert store.stats()["forecast_error"] == {"plan.seconds": {"median": pytest.approx(0.1), "n": 2}}
        with pytest.raises(UsageError, match="outside its interval"):
            store.record_forecast("fit-3", "plan", "seconds", predicted=5, low=6, high=7)


def test_the_machine_record_counts_each_stretch_once(tmp_path):
    with filled(tmp_path / "s.sqlite") as store:
        (entry,) = store.machine_record("h1")
        assert (entry.model, entry.method, entry.runs) == ("m1", "lora", 2)
        assert (entry.tokens, entry.train_s, entry.tokens_per_s) == (16_000, 40.0, 400.0)
        assert store.machine_record("h2") == []


def test_a_claim_excludes_others_until_it_runs_out(tmp_path):
    clock = Clock()
    with filled(tmp_path / "s.sqlite", clock) as store:
        assert store.claim("new", "a", 10) == 1
        assert store.claim("new", "b", 10) is None
        assert store.renew("new", "a", 1, 20)
        clock.now += 15
        assert store.claim("new", "b", 10) is None
        clock.now += 10
        assert store.claim("new", "b", 10) == 2
        assert not store.renew("new", "a", 1, 20)
        assert store.claim("r0", "a", 10) is None  # it has ended


# -- what a store may look like


def test_a_file_that_is_no_database_is_refused_and_left_alone(tmp_path):
    path = tmp_path / "s.sqlite"
    path.write_text(
        "these are my holiday notes, at least a hundred bytes of them, so that a header would fit in here\n"
    )
    before = path.read_bytes()
    with pytest.raises(StoreError, match=r"s\.sqlite: .*damaged.*set-aside") as caught:
        Store(path)
    assert caught.value.exit_code == 7
    assert path.read_bytes() == before
    moved = set_aside(path)
    assert moved.read_bytes() == before and not path.exists()
    Store(path).close()
    assert set_aside(path).name.endswith("aside-2")
    with pytest.raises(StoreError):
        set_aside(path)


def test_a_truncated_store_is_refused(tmp_path):
    path = tmp_path / "s.sqlite"
    filled(path).close()
    content = path.read_bytes()
    for size in (20, 100, 4095, 4096, len(content) // 2, len(content) - 1):
        path.write_bytes(content[:size])
        with pytest.raises(StoreError, match="damaged"), Store(path) as store:
            store.runs()
        assert path.stat().st_size == size


def test_a_page_overwritten_in_the_middle_is_noticed(tmp_path):
    path = tmp_path / "s.sqlite"
    filled(path, runs=40).close()
    content = bytearray(path.read_bytes())
    content[4096 * 2 : 4096 * 6] = os.urandom(4096 * 4)
    path.write_bytes(content)
    with pytest.raises(StoreError, match="damaged"):
        store = Store(path)
        for table in EXPORTED:
            store.table(table)


def test_another_programs_database_and_a_newer_store_are_refused(tmp_path):
    other = tmp_path / "other.sqlite"
    connection = sqlite3.connect(other)
    connection.execute("CREATE TABLE photo (name)")
    connection.close()
    before = other.read_bytes()
    with pytest.raises(StoreError, match="another program"):
        Store(other)
    assert other.read_bytes() == before
    newer = tmp_path / "newer.sqlite"
    filled(newer).close()
    connection = sqlite3.connect(newer)
    connection.execute("PRAGMA user_version = 99")
    connection.close()
    with pytest.raises(StoreError, match=r"version 99; .*Upgrade"):
        Store(newer)


def test_an_older_store_is_migrated_once_and_keeps_its_rows(tmp_path, monkeypatch):
    path = tmp_path / "s.sqlite"
    filled(path).close()
    calls = []

    def second(connection):
        calls.append(1)
        connection.execute("ALTER TABLE run ADD COLUMN note TEXT NOT NULL DEFAULT 'none'")

    monkeypatch.setattr(migrations, "MIGRATIONS", (*migrations.MIGRATIONS, second))
    with Store(path) as store:
        assert len(store.runs()) == 2
        assert "note" in store.table("run")[0]
    Store(path).close()
    assert calls == [1]


def test_a_failing_migration_leaves_the_old_store(tmp_path, monkeypatch):
    path = tmp_path / "s.sqlite"
    filled(path).close()

    def broken(connection):
        connection.execute("DROP TABLE observation")
        connection.execute("THIS IS NOT SQL")

    with monkeypatch.context() as patch:
        patch.setattr(migrations, "MIGRATIONS", (*migrations.MIGRATIONS, broken))
        with pytest.raises(StoreError):
            Store(path)
    with Store(path) as store:
        assert len(store.curve("r0")) == 4


def test_a_place_that_cannot_be_written_is_named(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match=r"s\.sqlite: .*FORETUNE_STORE"):
        Store(tmp_path / "file" / "s.sqlite")
    (tmp_path / "folder").mkdir()
    with pytest.raises(StoreError, match=r"folder: .*FORETUNE_STORE"):
        Store(tmp_path / "folder")

    def refuse(*_, **__):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "mkdir", refuse)
    with pytest.raises(StoreError, match="Permission denied"):
        Store(tmp_path / "deep" / "s.sqlite")


def test_a_readonly_database_is_named_when_written(tmp_path):
    with filled(tmp_path / "s.sqlite") as store:
        store._connection.execute("PRAGMA query_only = ON")
        with pytest.raises(StoreError, match="writ"):
            store.record_task("t2", {})


def test_the_default_place_and_its_override(monkeypatch, tmp_path):
    monkeypatch.setenv("FORETUNE_CACHE", str(tmp_path))
    monkeypatch.delenv("FORETUNE_STORE", raising=False)
    assert default_path() == tmp_path / "experience.sqlite"
    monkeypatch.setenv("FORETUNE_STORE", str(tmp_path / "mine.db"))
    with Store() as store:
        assert store.path == tmp_path / "mine.db" and store.path.exists()


# -- the write-ahead log


@pytest.fixture
def crashed(tmp_path):
    """A store as a killed process leaves it: everything still in the log; with the number of its rows."""
    source = tmp_path / "live.sqlite"
    store = filled(source, runs=3)
    target = tmp_path / "crashed.sqlite"
    shutil.copy(source, target)
    shutil.copy(f"{source}-wal", f"{target}-wal")
    rows = len(store.table("observation")[1])
    store.close()
    return target, rows


def test_a_complete_log_is_replayed(crashed):
    path, rows = crashed
    assert soundness.lost_commits(Path(f"{path}-wal")) is None
    with Store(path) as store:
        assert len(store.table("observation")[1]) == rows and store.stats()["sound"]


def test_a_torn_last_transaction_costs_only_itself(crashed):
    path, rows = crashed
    log = Path(f"{path}-wal")
    content = log.read_bytes()
    log.write_bytes(content[:-1000])
    with Store(path) as store:
        assert len(store.table("observation")[1]) == rows  # the last transaction ended a run
        assert [row.status for row in store.runs()] == ["finished", "finished", "running"]
        assert store.stats()["sound"]


@pytest.mark.parametrize("place", [5, 20, 60, 2000, 40_000])
def test_damage_in_front_of_later_results_is_refused_not_swallowed(crashed, place):
    path, _ = crashed
    log = Path(f"{path}-wal")
    content = bytearray(log.read_bytes())
    content[place] ^= 0x10
    log.write_bytes(content)
    with pytest.raises(StoreError, match="write-ahead log"):
        Store(path)
    assert log.read_bytes() == content
    moved = set_aside(path)
    assert Path(f"{moved}-wal").read_bytes() == content


def test_eight_processes_three_of_them_killed_lose_and_double_nothing(tmp_path):
    path = tmp_path / "s.sqlite"
    command = [sys.executable, str(Path(store_worker.__file__)), str(path)]
    workers = [subprocess.Popen([*command, str(tmp_path / f"log{n}")]) for n in range(8)]
    killed, deadline = 0, time.monotonic() + 60
    for victim in (0, 3, 6):  # each once it has written something
        log = tmp_path / f"log{victim}"
        while not (log.exists() and log.stat().st_size) and workers[victim].poll() is None:
            assert time.monotonic() < deadline
            time.sleep(0.005)
        killed += workers[victim].poll() is None
        workers[victim].send_signal(signal.SIGKILL)
    codes = [worker.wait(60) for worker in workers]
    assert killed >= 1 and all(code == 0 for n, code in enumerate(codes) if n not in (0, 3, 6))
    with Store(path) as store:
        assert [row.status for row in store.runs()] == ["finished"] * store_worker.RUNS
        for run in range(store_worker.RUNS):
            seen = [(o.step, o.value) for o in store.curve(f"run-{run}") if o.metric == "loss"]
            assert seen == [(step, store_worker.value(run, step)) for step in store_worker.STEPS]
            assert len(store.curve(f"run-{run}")) == 2 * len(store_worker.STEPS)
        assert store.stats()["sound"] and store.stats()["rows"]["lease"] == 0
        for log in tmp_path.glob("log*"):
            for line in log.read_text().splitlines():
                name, step = line.split()
                assert int(step) in {o.step for o in store.curve(name)}


# -- exchange


def test_an_export_holds_every_row_and_replaces_only_itself(tmp_path):
    with filled(tmp_path / "s.sqlite") as store:
        target = tmp_path / "out"
        assert export(store, target)["rows"]["observation"] == 8
        for table in EXPORTED:
            columns, rows = store.table(table)
            read = pq.read_table(target / f"{table}.parquet")
            assert read.column_names == columns
            assert [tuple(row.values()) for row in read.to_pylist()] == rows
        assert str(pq.read_table(target / "forecast.parquet").schema.field("measured").type) == "double"
        export(store, target)
        (target / "notes.txt").write_text("mine")
        with pytest.raises(OutputError, match="left as it is"):
            export(store, target)
        assert (target / "notes.txt").read_text() == "mine"


def test_every_write_is_an_immediate_transaction_that_reaches_the_disk(tmp_path):
    with filled(tmp_path / "s.sqlite") as store:
        seen: list[str] = []
        assert store._connection.execute("PRAGMA synchronous").fetchone() == (2,)  # FULL
        assert store._connection.execute("PRAGMA journal_mode").fetchone() == ("wal",)
        store._connection.set_trace_callback(seen.append)
        store.record_task("t2", {})
        store.claim("new", "a", 10)
        store.record_observation("r0", 70, "validation", {"f1": (1.0, 0.1, 3)})
        assert sum(line.startswith("BEGIN IMMEDIATE") for line in seen) == 3
        assert sum(line.startswith("COMMIT") for line in seen) == 3
