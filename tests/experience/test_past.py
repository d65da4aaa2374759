from __future__ import annotations

import json
import math
import sqlite3
from pathlib import Path

import pytest
from test_store import filled

from foretune.errors import StoreError, UsageError
from foretune.experience.parquet import export
from foretune.experience.past import bundled, independent_gain, known_runs, past_runs
from foretune.experience.records import RunRecord
from foretune.experience.store import Store

OLD = Path(__file__).parent / "fixtures" / "store-version-1.sql"


def rich(path: Path) -> Store:
    store = filled(path)
    config = store.record_config({"method": "lora", "layers": "last:2 & (attention | mlp)", "regularizer": "neftune:5"})
    store.record_run(RunRecord("x", "t1", "m1", "h1", config, 3, 50, arm="core-1", study="made", pair="p",
                               versions={"torch": "2.13.0"}))  # fmt: skip
    for step in (25, 50):
        scores = {"loss": (1.0, 0.1, 64), "base.loss": (2.0, 0.2, 64)}
        store.record_observation(
            "x", step, "validation", scores, train_s=9.0, tokens=7, train_cpu_s=8.5, eval_cpu_s=0.5
        )
    store.record_observation("x", 50, "test", {"loss": (1.1, 0.1, 99), "gain": (0.7, 0.05, 99)})
    store.record_run(RunRecord("open", "t1", "m1", "h1", config, 4, 50))
    store.finish_run("x", "diverged", peak_bytes=5)
    return store


def test_runs_with_their_points_features_and_base(tmp_path):
    with rich(tmp_path / "s.sqlite") as store:
        found = past_runs(store)
    assert [run.run for run in found] == ["r0", "r1", "x"]  # the open one is left out
    run = found[2]
    assert (run.task_features["rows"], run.model_features["family"]) == (100, "HuggingFaceTB/SmolLM2")
    assert (run.arm, run.study, run.pair, run.seed, run.horizon) == ("core-1", "made", "p", 3, 50)
    assert (run.status, run.finished, run.peak_bytes, run.versions) == ("diverged", False, 5, {"torch": "2.13.0"})
    assert run.config["layers"] == "last:2&(attention|mlp)" and run.config["regularizer"] == "neftune:5"
    first, last = run.on("validation")
    assert (first.metrics, first.base) == ({"loss": (1.0, 0.1, 64)}, {"loss": (2.0, 0.2, 64)})
    assert (first.train_s, first.train_cpu_s, first.eval_cpu_s, first.tokens) == (9.0, 8.5, 0.5, 7)
    assert last.gain == pytest.approx((math.log(2.0), math.hypot(0.1, 0.1), 64))
    (test,) = run.on("test")
    assert test.gain == (0.7, 0.05, 99) and test.train_cpu_s is None
    assert found[0].points[0].gain is None


def test_gain_needs_two_positive_losses():
    assert independent_gain(None, (1.0, 0.1, 5)) is None
    assert independent_gain((0.0, 0.0, 5), (1.0, 0.1, 5)) is None
    assert independent_gain((2.0, 0.1, 9), (4.0, 0.48, 5)) == pytest.approx((-math.log(2.0), 0.13, 5))


def test_a_gain_has_no_error_where_one_of_the_two_losses_came_without():
    assert independent_gain((2.0, 0.0, 0), (4.0, 0.4, 5)) == pytest.approx((-math.log(2.0), 0.0, 0))
    assert independent_gain((2.0, 0.1, 9), (4.0, 0.0, 5)) == pytest.approx((-math.log(2.0), 0.0, 5))


def test_an_export_reads_back_as_the_store_does(tmp_path):
    with rich(tmp_path / "s.sqlite") as store:
        export(store, tmp_path / "out")
        assert past_runs(tmp_path / "out") == past_runs(store)
    assert past_runs(tmp_path / "s.sqlite") == past_runs(tmp_path / "out")


def test_what_cannot_be_read_is_refused_with_its_place(tmp_path):
    with pytest.raises(StoreError, match="no store here"):
        past_runs(tmp_path / "missing.sqlite")
    with pytest.raises(StoreError, match="no export"):
        past_runs(tmp_path)
    with rich(tmp_path / "s.sqlite") as store:
        export(store, tmp_path / "out")
    provenance = tmp_path / "out" / "provenance.json"
    table = tmp_path / "out" / "run.parquet"
    table.write_bytes(table.read_bytes()[:100])
    with pytest.raises(StoreError, match=r"run\.parquet"):
        past_runs(tmp_path / "out")
    provenance.write_text(json.dumps({"store_version": 99}))
    with pytest.raises(StoreError, match=r"version 99.*Upgrade"):
        past_runs(tmp_path / "out")


def test_the_users_own_runs_come_after_what_is_shipped(tmp_path):
    shipped = bundled()
    assert known_runs(tmp_path / "none.sqlite") == shipped
    filled(tmp_path / "s.sqlite").close()
    assert [run.run for run in known_runs(tmp_path / "s.sqlite")] == [*(run.run for run in shipped), "r0", "r1"]


def test_a_store_of_version_1_is_brought_up_to_date_and_reads_the_same(tmp_path):
    path = tmp_path / "old.sqlite"
    with sqlite3.connect(path) as connection:
        connection.executescript(OLD.read_text())
    connection.close()
    runs = past_runs(path)
    assert [(run.run, run.status, len(run.points)) for run in runs] == [
        ("old.r001", "finished", 7),
        ("old.r002", "finished", 7),
        ("old.r003", "diverged", 3),
    ]
    point = runs[0].points[0]
    assert point.metrics == {"loss": (pytest.approx(0.694), 0.01, 64), "accuracy": (pytest.approx(0.509), 0.05, 64)}
    assert (point.train_s, point.train_cpu_s) == (1.5, None)
    with Store(path) as store:
        assert store.record_observation("old.r001", 60, "validation", {"loss": (0.5, 0.0, 1)}, train_cpu_s=2.0) == 1
        assert store.stats()["sound"] and store.stats()["forecast_error"]["fit.seconds"]["n"] == 1


@pytest.mark.parametrize("word", ["/decoder\\..*secret/", "what is this? a sentence", "x" * 200])
def test_free_text_in_a_setting_is_stored_as_its_hash(tmp_path, word):
    with filled(tmp_path / "s.sqlite") as store:
        key = store.record_config({"method": "lora", "layers": word})
        stored = {row[0]: row[2] for row in store.table("config")[1]}[key]
        assert word not in stored and '"layers":"text:' in stored
        assert key != store.record_config({"method": "lora", "layers": word + "2"})
        with pytest.raises(UsageError):
            store.record_config({"method": "lora", "lora.rank": math.nan})


def test_what_ships_is_whole_and_says_where_it_comes_from():
    """Real runs, small enough for a package, of known licenses, with curve, base and processor seconds."""
    import foretune.experience

    folders = sorted((Path(foretune.experience.__file__).parent / "bundled").glob("*/provenance.json"))
    assert folders and sum(path.stat().st_size for folder in folders for path in folder.parent.iterdir()) < 4_000_000
    for path in folders:
        said = json.loads(path.read_text())
        assert all(item["license"] for item in (*said["models"], *said["data"])) and all(said["versions"])
        assert said["rows"]["run"] == len(past_runs(path.parent))
    runs = bundled()
    assert len({run.run for run in runs}) == len(runs)
    for run in (run for run in runs if run.finished):
        (test,) = run.on("test")
        assert test.gain is not None and run.arm and run.task_features["base_loss"] > 0
        assert all(point.gain is not None and point.train_cpu_s is not None for point in run.on("validation"))
