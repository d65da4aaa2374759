"""Foreign results as runs: other methods, missing fields, failures, divergence, repeated cells. All numbers made up."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from test_past import rich
from test_store import filled
from typer.testing import CliRunner

from foretune.cli.main import app
from foretune.errors import StoreError
from foretune.experience.importers import files_of, import_into, read
from foretune.experience.importers.base import finite, slug
from foretune.experience.parquet import export
from foretune.experience.past import past_runs
from foretune.experience.store import Store


def result(**changes):
    """A result as peft's comparison writes it, in small and with numbers of our own."""
    content = {
        "run_info": {
            "created_at": "2031-01-02T03:04:05+00:00",
            "experiment_name": "lora/tiny-rank4",
            "train_config": {
                "model_id": "maker/tiny-1B", "dtype": "bfloat16", "max_seq_length": 128, "batch_size": 2,
                "max_steps": 40, "seed": 7, "grad_norm_clip": 1.0, "optimizer_type": "AdamW",
                "optimizer_kwargs": {"lr": 0.003, "weight_decay": 0.05}, "lr_scheduler": "cosine",
                "query_template": "Q {query}",
            },
            "peft_config": {
                "peft_type": "LORA", "task_type": "CAUSAL_LM", "r": 4, "lora_alpha": 8, "lora_dropout": 0.0,
                "target_modules": ["v_proj", "q_proj"], "use_rslora": True, "rank_pattern": {}, "eva_config": None,
            },
            "error_msg": "",
        },
        "train_info": {
            "status": "success", "accelerator_memory_max": 123456789, "num_trainable_params": 1000,
            "num_total_params": 1_000_001_000,
            "metrics": [
                {"step": 20, "valid accuracy": 0.25, "train loss": 0.9, "train samples": 40, "train time": 4.0,
                 "eval time": 1.0, "tokens / sec": 100.0},
                {"step": 40, "valid accuracy": 0.5, "train loss": 0.7, "train samples": 80, "train time": 5.0,
                 "eval time": 1.5, "tokens / sec": 80.0},
                {"step": 40, "test accuracy": 0.4, "train loss": 0.7, "train samples": 80, "forgetting": 0.02},
            ],
        },
        "meta_info": {
            "dataset_info": {"b": {}, "a": {}}, "package_info": {"peft-version": "0.99", "peft-commit-hash": None},
            "system_info": {"accelerator": "Imaginary X1"},
        },
    }  # fmt: skip
    for path, value in changes.items():
        *parents, key = path.split("__")
        place = content
        for part in parents:
            place = place[part]
        if value is None:
            del place[key]
        else:
            place[key] = value
    return content


def written(folder: Path, name: str = "run.json", **changes) -> Path:
    path = folder / name
    path.write_text(json.dumps(result(**changes)))
    return path


def imported(tmp_path: Path, source: Path):
    with Store(tmp_path / "imported.sqlite") as store:
        import_into(store, source)
        return past_runs(store)


def test_a_result_of_pefts_comparison(tmp_path):
    (run,) = imported(tmp_path, written(tmp_path))
    assert run.config == {
        "method": "lora", "learning_rate": 0.003, "weight_decay": 0.05, "rows_per_update": 2.0, "schedule": "cosine",
        "max_gradient_norm": 1.0, "optimizer": "AdamW", "lora.rank": 4.0, "lora.alpha": 8.0, "lora.dropout": 0.0,
        "lora.targets": "q_proj+v_proj", "lora.use_rslora": True,
    }  # fmt: skip
    assert (run.arm, run.study, run.seed, run.horizon) == ("lora/tiny-rank4", "peft-method-comparison", 7, 40)
    assert (run.status, run.peak_bytes) == ("finished", 123456789)
    assert run.model_features == {
        "name": "maker/tiny-1B", "kind": "causal", "dtype": "bfloat16", "parameters": 1e9
    }  # fmt: skip
    assert run.task_features["name"] == "a-b" and run.hardware_features == {"accelerator": "Imaginary-X1"}
    first, last = run.on("validation")
    share = 0.25 * 50 + 2
    assert first.metrics["accuracy"] == (0.25, pytest.approx((share / 54 * (1 - share / 54) / 54) ** 0.5), 50)
    assert (first.train_s, first.eval_s, first.tokens) == (4.0, 1.0, 400) and last.step == 40
    assert [point.metrics["loss"][0] for point in run.on("train")] == [0.9, 0.7]
    (test,) = run.on("test")
    assert test.metrics["accuracy"][::2] == (0.4, 1319) and test.metrics["forgetting"][0] == 0.02


def test_methods_models_and_fields_that_were_never_seen(tmp_path):
    changes = {
        "run_info__peft_config": {"peft_type": "SOME_NEW_THING", "width": 3, "mode": "both ways", "on": False, "m": {}},
        "run_info__train_config__dtype": None,
        "run_info__train_config__seed": None,
        "run_info__train_config__optimizer_kwargs": {"lr": "1e-2"},
        "run_info__experiment_name": None,
        "train_info__num_total_params": None,
        "train_info__accelerator_memory_max": None,
        "meta_info": None,
    }
    (run,) = imported(tmp_path, written(tmp_path, "odd name.json", **changes))
    assert run.config["method"] == "some_new_thing" and run.config["learning_rate"] == 0.01
    assert run.config["some_new_thing.width"] == 3.0 and run.config["some_new_thing.on"] is False
    assert run.config["some_new_thing.mode"] == "bothways"
    assert (run.arm, run.seed, run.peak_bytes, run.model_features["name"]) == ("odd-name", 0, 0, "maker/tiny-1B")
    full = written(tmp_path, "full.json", run_info__peft_config=None)
    assert next(iter(read(full))).config["method"] == "full"


@pytest.mark.parametrize(
    ("status", "said", "expected"),
    [
        ("failed", "CUDA out of memory. Tried to allocate", "oom"),
        ("failed", "KeyError: 'x'", "crashed"),
        ("canceled", "", "stopped"),
        ("strange thing", "", "strange-thing"),
    ],
)
def test_failed_runs_keep_their_status_and_their_curve(tmp_path, status, said, expected):
    changes = {"train_info__status": status, "run_info__error_msg": said}
    (run,) = imported(tmp_path, written(tmp_path, **changes))
    assert run.status == expected and len(run.on("validation")) == 2
    (empty,) = read(written(tmp_path, train_info__metrics=[], **changes))
    assert empty.seen == ()


def test_a_loss_that_is_no_number_ends_the_curve(tmp_path):
    metrics = result()["train_info"]["metrics"]
    metrics[1]["train loss"] = float("nan")
    (run,) = imported(tmp_path, written(tmp_path, train_info__metrics=metrics))
    assert run.status == "diverged" and [point.step for point in run.on("validation")] == [20]
    assert run.on("test") == ()


def test_the_same_file_again_adds_nothing_and_two_runs_of_one_model_share_it(tmp_path):
    written(tmp_path, "one.json")
    written(tmp_path, "two.json", run_info__train_config__seed=8, train_info__num_trainable_params=77_000_000)
    with Store(tmp_path / "s.sqlite") as store:
        assert (import_into(store, tmp_path).new, import_into(store, tmp_path).new) == (2, 0)
        assert len({run.model for run in past_runs(store)}) == 1


SWEEP = """model,learning_rate,rank,test_nll,train_nll,wall_min
maker/a-1B,1e-04,1,0.61,0.62,10
maker/a-1B,3e-04,1,0.58,0.60,11
maker/a-1B,3e-04,1,0.59,0.60,12
maker/a-1B,3e-04,1,0.58,0.60,11
maker/a-1B,3e-02,1,7.31,0.90,9
maker/b-2B,3e-02,4,nan,,
maker/b-2B,1e-03,4,,0.7,
maker/b-2B,1e-03,16,0.5,,
"""


def test_a_sweep_with_repeats_gaps_and_divergence(tmp_path):
    path = tmp_path / "sweep_x.csv"
    path.write_text(SWEEP)
    runs = imported(tmp_path, path)
    found = sorted((r.model_features["name"], r.config["learning_rate"], r.seed, r.status, len(r.points)) for r in runs)
    assert found == [
        ("maker/a-1B", 1e-4, 0, "finished", 2),
        ("maker/a-1B", 3e-4, 0, "finished", 2),
        ("maker/a-1B", 3e-4, 1, "finished", 2),
        ("maker/a-1B", 3e-2, 0, "diverged", 0),
        ("maker/b-2B", 1e-3, 0, "finished", 1),
        ("maker/b-2B", 1e-3, 0, "unknown", 0),
        ("maker/b-2B", 3e-2, 0, "diverged", 0),
    ]
    first = next(run for run in runs if run.config["learning_rate"] == 1e-4)
    (test,) = first.on("test")
    assert (test.step, test.metrics, test.train_s) == (780, {"loss": (0.61, 0.0, 0)}, 600.0)
    assert first.config == {"method": "lora", "learning_rate": 1e-4, "rows_per_update": 128, "lora.rank": 1.0}


def test_a_table_with_columns_of_its_own(tmp_path):
    path = tmp_path / "own.csv"
    path.write_text(
        "Model , learning_rate,method,validation_loss,steps,seed,status,colour,task,wall_s\n"
        "m,0.1,IA3,0.5,30,4,ok,red,mine,5\nm,0.1,IA3,,30,5,CUDA out of memory,red,mine,\nm,0.1,IA3,0.4,30,6,failed,,,\n"
    )
    good, oom, failed = sorted(imported(tmp_path, path), key=lambda run: run.seed)
    assert (good.config["method"], good.horizon, good.seed, good.task_features["name"]) == ("ia3", 30, 4, "mine")
    assert good.on("validation")[0].metrics == {"loss": (0.5, 0.0, 0)} and good.on("validation")[0].train_s == 5.0
    assert (oom.status, failed.status, failed.points) == ("oom", "crashed", ())


def test_a_seed_of_zero_is_a_seed_and_the_words_of_others_are_understood(tmp_path):
    path = tmp_path / "seeds.csv"
    lines = [f"m,1e-4,0.{9 - seed},{seed},ok" for seed in (1, 0)]
    lines += [f"m,{rate},,3,{said}" for rate, said in ((2e-4, "timed out"), (3e-4, "Error"), (4e-4, "cancelled"))]
    path.write_text("\n".join(["model,learning_rate,test_nll,seed,status", *lines]))
    runs = imported(tmp_path, path)
    assert {run.seed: run.on("test")[0].metrics["loss"][0] for run in runs if run.status == "finished"} == {
        1: 0.8,
        0: 0.9,
    }
    ended = {run.config["learning_rate"]: run.status for run in runs if run.seed == 3}
    assert ended == {2e-4: "timeout", 3e-4: "crashed", 4e-4: "stopped"}


def test_an_exported_store_is_imported_as_it_was(tmp_path):
    with rich(tmp_path / "s.sqlite") as store:
        export(store, tmp_path / "out")
        runs = past_runs(store)
    assert imported(tmp_path, tmp_path / "out") == runs


def test_a_study_is_exported_alone_with_where_it_comes_from(tmp_path):
    with rich(tmp_path / "s.sqlite") as store:
        store.record_model("m1", {"name": "tiny", "license": "MIT"})
        provenance = export(store, tmp_path / "out", study="made")
    assert [run.run for run in past_runs(tmp_path / "out")] == ["x"]
    assert provenance["rows"]["run"] == 1 and provenance["rows"]["config"] == 1
    assert provenance["models"] == [{"name": "tiny", "license": "MIT"}] and provenance["studies"] == {"made": 1}


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("a.json", "[1, 2]", "no result of peft"),
        ("a.json", "{not json", "no result of peft"),
        ("a.csv", "x,y\n1,2\n", r"a\.csv:1: .*no sweep.*model"),
        ("a.csv", "model,learning_rate,test_nll\nm,1e-4\n", r"a\.csv:2: 2 cells"),
        ("a.csv", "model,learning_rate,test_nll\nm,fast,1\n", r"a\.csv:2: .*no learning rate"),
        ("a.txt", "", "cannot be imported"),
    ],
)
def test_what_cannot_be_read_is_refused_with_its_place_and_nothing_is_stored(tmp_path, name, content, said):
    (tmp_path / name).write_text(content)
    with Store(tmp_path / "s.sqlite") as store:
        with pytest.raises(StoreError, match=said):
            import_into(store, tmp_path / name)
        assert store.runs() == []
    with pytest.raises(StoreError, match="nothing to import"):
        files_of(tmp_path / "missing")
    (tmp_path / "empty").mkdir()
    with pytest.raises(StoreError, match="holds no results"):
        files_of(tmp_path / "empty")


def test_the_command(tmp_path, monkeypatch):
    monkeypatch.setenv("FORETUNE_STORE", str(tmp_path / "s.sqlite"))
    filled(tmp_path / "s.sqlite").close()
    written(tmp_path)
    done = CliRunner().invoke(app, ["experience", "import", str(tmp_path / "run.json"), "--json"])
    assert json.loads(done.output) == {"files": 1, "runs": 1, "new": 1, "by_status": {"finished": 1}}
    assert (
        "1 runs in 1 files (1 finished); 0 new."
        in CliRunner().invoke(app, ["experience", "import", str(tmp_path / "run.json")]).output
    )


def test_names_and_numbers_of_others():
    assert slug("NVIDIA L40S (48 GB)") == "NVIDIA-L40S-48-GB" and slug("a/b/c", slash=True) == "a/b-c"
    assert slug("") == "unknown" and len(slug("x" * 300)) == 96
    assert (finite("1e-3"), finite("nan"), finite(None), finite(True), finite("")) == (1e-3, None, None, None, None)
