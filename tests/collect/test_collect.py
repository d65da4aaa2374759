"""Collecting into a store: what is recorded, going on, failures, several collectors, kills."""

from __future__ import annotations

import json
import math
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from foretune.catalogue.space import Choice, Space
from foretune.collect import blocks, queue, task_list
from foretune.collect.design import RATE, Block
from foretune.collect.run import collect
from foretune.errors import Interrupted, OutputError, StoreError, UsageError
from foretune.experience.past import past_runs
from foretune.experience.store import Store
from tests import tiny
from tests.inline import InlineExecutor

pytestmark = pytest.mark.alone

SMALL = Block(
    name="small",
    about="a design of five runs",
    changes=(("lora", {}), ("full", {RATE: 1 / 3})),
    space=Space((Choice("lora.rank", (2, 4), 4), Choice("schedule", ("linear", "constant"), "linear"))),
    seeds=(1,),
)


@pytest.fixture
def listed(tmp_path, monkeypatch):
    """A task list over a tiny encoder: two tasks, five configurations."""
    monkeypatch.setitem(blocks.BLOCKS, "small", SMALL)
    monkeypatch.setattr(task_list, "BLOCKS", blocks.BLOCKS)
    return write_list(tmp_path)


def write_list(folder: Path, *, design: str = "small") -> Path:
    model = tiny.bert(folder / "bert")
    for task in ("one", "two"):
        rows = [{"text": f"{tiny.THINGS[i % 12]} {task} {i}", "label": tiny.COLOURS[(i % 12) % 2]} for i in range(80)]
        tiny.write_rows(folder / f"{task}.jsonl", rows)
    path = folder / "list.yaml"
    path.write_text(
        f"name: made\nmodel: {model}\ndesign: {{{design}: 5}}\ntokens: 2000\nrows_per_update: 4\nstretch: 2\n"
        "evaluation: {validation_rows: 10, test_rows: 12}\ntasks:\n  one: {path: one.jsonl, train_rows: 40}\n"
        "  two: two.jsonl\n"
    )
    return path


def go(listed: Path, folder: Path, store: Path, **more):
    events = []
    result = collect(
        listed, folder, store=store, executor=InlineExecutor, on_event=lambda k, p: events.append((k, dict(p))), **more
    )
    return result, events


def test_every_rung_is_recorded_with_the_base_and_a_second_session_finds_nothing_to_do(listed, tmp_path):
    store = tmp_path / "s.sqlite"
    result, events = go(listed, tmp_path / "out", store)
    assert (result.finished, result.failed, result.left) == (10, 0, 0)
    (plan,) = [payload for kind, payload in events if kind == "plan"]
    assert (plan["runs"], plan["done"]) == (10, 0) and plan["run_hours"] > 0
    runs = past_runs(store)
    assert len(runs) == 10 and {run.status for run in runs} == {"finished"}
    assert len({run.task for run in runs}) == 2 and {run.study for run in runs} == {"made"}
    for run in runs:
        points = run.on("validation")
        assert len(points) == 6 and points[-1].step == run.horizon
        for point in points:
            assert set(point.metrics) == {"loss", "accuracy", "gain"} and set(point.base) == {"loss", "accuracy"}
            loss, gain = point.metrics["loss"], point.metrics["gain"]
            assert gain[0] == pytest.approx(math.log(point.base["loss"][0] / loss[0]), abs=1e-5)
            assert gain[1] > 0 and loss[2] == gain[2] == 10
            assert point.train_cpu_s is not None and point.eval_cpu_s is not None and point.tokens > 0
        assert sum(point.tokens for point in points) <= 2000
        (test,) = run.on("test")
        best = min(points, key=lambda point: (point.metrics["loss"][0], -point.step))
        assert test.step == best.step and set(test.metrics) >= {"loss", "accuracy", "gain"}
        assert run.peak_bytes > 0 and run.hardware_features["threads"] == 1
        assert run.model_features["family"] == "bert"
        assert run.task_features["rows.train"] in (40, 60) and run.task_features["base_loss"] > 0
    by_task = {task: {run.arm for run in runs if run.task == task} for task in {run.task for run in runs}}
    assert len({frozenset(arms) for arms in by_task.values()}) == 1
    replicas = [run for run in runs if run.arm in ("lora", "lora:seed-1")]
    assert sorted(run.seed for run in replicas) == [0, 0, 1, 1]
    assert len({(run.task, str(run.config)) for run in replicas}) == 2, "only the seed differs"
    assert not list((tmp_path / "out" / "answers").glob("*"))
    again, events = go(listed, tmp_path / "elsewhere", store)
    assert (again.finished, again.left) == (0, 0)
    assert next(payload for kind, payload in events if kind == "plan")["done"] == 10


def trainable(model) -> dict[str, object]:
    return {name: weight.detach().clone() for name, weight in model.named_parameters() if weight.requires_grad}


def test_test_rows_are_answered_with_the_weights_of_the_best_rung(listed, tmp_path, monkeypatch):
    """A run that gets worse after its best rung is tested as it was there, though no checkpoint was written."""
    import torch

    from foretune.execution import trial

    saved: dict[str, dict[str, object]] = {}
    tested = []
    save, answer = trial.Trial._save, trial.answer_test

    def note(self, training):
        save(self, training)
        saved.setdefault(self.order.lease.run, trainable(training.network.model))
        saved["last"] = trainable(training.network.model)

    def spy(bench, attachment, network, test, **more):
        done = answer(bench, attachment, network, test, **more)
        run = Path(test.output).stem
        same = {
            which: all(torch.equal(weight, saved[which][name]) for name, weight in trainable(network.model).items())
            for which in (run, "last")
        }
        tested.append((same[run], same["last"]))
        return done

    monkeypatch.setattr(trial, "best_of", lambda rungs: min(observation.step for observation in rungs))
    monkeypatch.setattr(trial.Trial, "_save", note)
    monkeypatch.setattr(trial, "answer_test", spy)
    go(listed, tmp_path / "out", tmp_path / "s.sqlite")
    assert tested == [(True, False)] * 10
    for run in past_runs(tmp_path / "s.sqlite"):
        assert run.on("test")[0].step == run.on("validation")[0].step < run.horizon


def test_failures_are_kept_with_their_status(listed, tmp_path, monkeypatch):
    """A method may refuse a model: that is the run's status, and the others go on."""
    from foretune.execution import trial

    build = trial.build_regularizers

    def refuse(config, *more, **named):
        if config["lora.rank"] == 3:
            raise UsageError("this does not go together.")
        return build(config, *more, **named)

    monkeypatch.setattr(trial, "build_regularizers", refuse)
    odd = Block("odd", "", (("lora", {"lora.rank": 3}),), SMALL.space)
    monkeypatch.setitem(blocks.BLOCKS, "small", odd)
    result, events = go(listed, tmp_path / "out", tmp_path / "s.sqlite")
    assert (result.finished, result.failed) == (2, 2)
    refused = [run for run in past_runs(tmp_path / "s.sqlite") if run.status == "refused"]
    assert len(refused) == 2 and all(run.points == () for run in refused)
    assert any("go together" in payload["detail"] for kind, payload in events if kind == "ended")


def test_only_announced(listed, tmp_path):
    result, _ = go(listed, tmp_path / "out", tmp_path / "s.sqlite", dry=True)
    assert (result.finished, result.left) == (0, 10)
    assert past_runs(tmp_path / "s.sqlite") == []


def test_what_another_collector_holds_is_left_to_it_until_its_claim_runs_out(listed, tmp_path, monkeypatch):
    monkeypatch.setattr(queue, "RENEW_S", 0.05)
    store = tmp_path / "s.sqlite"
    held: list[str] = []
    waited = []
    claim = Store.claim

    def refuse_one(self, run, owner, seconds):
        if not held:
            held.append(run)
            assert claim(self, run, "elsewhere-1", 1e9) == 1
        return claim(self, run, owner, seconds)

    def see(kind, payload):
        if kind == "waiting":
            waited.append((payload["runs"], held[0] in {run.run for run in past_runs(store)}))
            with Store(store) as other:
                other.release(held[0], "elsewhere-1")

    monkeypatch.setattr(Store, "claim", refuse_one)
    result = collect(listed, tmp_path / "out", store=store, executor=InlineExecutor, on_event=see)
    assert waited == [(1, False)]
    assert (result.finished, result.left) == (10, 0)
    assert held[0] in {run.run for run in past_runs(store)}


def test_a_late_result_of_a_lost_claim_is_not_written(listed, tmp_path):
    from foretune.experience.records import RunRecord, Seen

    with Store(tmp_path / "s.sqlite") as store:
        for record in (store.record_task, store.record_model, store.record_hardware):
            record("x", {})
        record = RunRecord("r", "x", "x", "x", "", 0, 10)
        seen = [Seen(10, "validation", {"loss": (1.0, 0.1, 8)})]
        assert store.claim("r", "a-1", -1.0) == 1 and store.claim("r", "b-2", 100.0) == 2
        assert not store.record_ended(record, {"method": "lora"}, seen, "finished", lease=("a-1", 1))
        assert store.runs() == []
        assert store.record_ended(record, {"method": "lora"}, seen, "finished", lease=("b-2", 2))
        assert not store.record_ended(record, {"method": "lora"}, seen, "finished")
        with pytest.raises(UsageError):
            store.record_ended(
                RunRecord("q", "x", "x", "x", "", 0, 10), {"method": "lora"},
                [Seen(1, "validation", {"loss": (math.nan, 0.0, 1)})], "finished",
            )  # fmt: skip
        assert [row.record.id for row in store.runs()] == ["r"]


def test_a_full_disk_ends_the_session_and_the_next_one_goes_on(listed, tmp_path, monkeypatch):
    store = tmp_path / "s.sqlite"
    go(listed, tmp_path / "out", store, dry=True)
    write = Store.record_ended
    calls = []

    def full(self, *args, **more):
        calls.append(1)
        if len(calls) == 3:
            (pages,) = self._connection.execute("PRAGMA page_count").fetchone()
            self._connection.execute(f"PRAGMA max_page_count = {pages}")
            more["peak_bytes"] = 1
            args[2].extend(  # enough rows to need another page
                type(args[2][0])(step, "more", {f"m{step}": (1.0, 0.0, 1)}) for step in range(3000)
            )
        return write(self, *args, **more)

    with monkeypatch.context() as patch:
        patch.setattr(Store, "record_ended", full)
        with pytest.raises(StoreError, match="disk is full"):
            go(listed, tmp_path / "out", store)
    assert len(past_runs(store)) == 2
    result, _ = go(listed, tmp_path / "out", store)
    assert (result.finished, result.left) == (8, 0)


def test_a_folder_of_something_else_and_a_wrong_list_are_refused(listed, tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "letters.txt").write_text("dear")
    with pytest.raises(OutputError, match="not filled by collecting made"):
        go(listed, tmp_path / "mine", tmp_path / "s.sqlite")
    with pytest.raises(UsageError, match=r"no task list 'encodr'.*encoder"):
        task_list.load_list("encodr")
    listed.write_text(listed.read_text().replace("{small:", "{smal:"))
    with pytest.raises(UsageError, match=r"no block 'smal'.*small"):
        task_list.load_list(listed)
    listed.write_text(listed.read_text().replace("{smal:", "{small:").replace("stretch", "strech"))
    with pytest.raises(UsageError, match=r"\.yaml:[0-9:]+ strech is not a setting of a task list\. .*stretch"):
        task_list.load_list(listed)


@pytest.mark.parametrize("name", list(task_list.presets()))
def test_the_shipped_lists_name_known_data_and_enough_of_it(name):
    from foretune.catalogue.datasets import known_dataset
    from foretune.catalogue.models import known_model

    found = task_list.load_list(name)
    assert known_model(found.model) is not None
    assert all(known_dataset(task.path) is not None for task in found.tasks.values())
    assert found.tokens <= 20_000 and len(found.draws()) >= 30
    assert found.grid().control == "lora"


def command(listed: Path, folder: Path, store: Path) -> list[str]:
    return [
        sys.executable, "-m", "foretune", "experience", "collect", str(listed), "--output", str(folder), "--store",
        str(store), "--json",
    ]  # fmt: skip


def test_killed_and_terminated_collectors_lose_only_what_was_under_way(tmp_path):
    """The command itself, with its worker process: kill -9, then SIGTERM, then to the end."""
    listed, store = write_list(tmp_path, design="core"), tmp_path / "s.sqlite"
    start = command(listed, tmp_path / "out", store)
    ended: list[str] = []
    for number in (signal.SIGKILL, signal.SIGTERM):
        with subprocess.Popen(start, stdout=subprocess.PIPE, text=True) as process:
            for line in process.stdout or ():
                event = json.loads(line)
                if event["event"] == "ended":
                    ended.append(event["run"])
                if event["event"] == "started" and len(ended) % 2:
                    time.sleep(0.1)
                    process.send_signal(number)
                    break
            rest = [json.loads(line) for line in process.stdout or ()]
            ended += [event["run"] for event in rest if event["event"] == "ended"]
            code = process.wait(60)
        assert code in (-signal.SIGKILL, Interrupted.exit_code)
        ended += [""] * (len(ended) % 2)
    done = subprocess.run(start, capture_output=True, text=True, check=True)
    last = json.loads(done.stdout.splitlines()[-1])
    ended += [json.loads(line)["run"] for line in done.stdout.splitlines() if '"ended"' in line]
    runs = past_runs(store)
    assert last["left"] == 0 and len(runs) == 10
    assert sorted(run for run in ended if run) == sorted(run.run for run in runs), "a run was trained twice or lost"
    with Store(store) as opened:
        assert opened.table("lease")[1] == [] and opened.stats()["sound"]
