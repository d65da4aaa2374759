"""A worker's bench between jobs: what a job that failed must not leave to the next."""

from __future__ import annotations

import queue
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from foretune.catalogue.methods import resolve
from foretune.errors import UsageError
from foretune.execution.bench import Bench
from foretune.execution.memory import peak_memory_bytes
from foretune.execution.orders import FinalTest, TrialOrder
from foretune.execution.trial import Trial
from foretune.execution.types import TaskSpec
from foretune.execution.worker import Worker
from foretune.search.types import Lease


def test_after_a_failed_attach_the_worker_loads_the_model_anew(task: TaskSpec) -> None:
    worker: Any = Worker(queue.Queue().put)
    bench = worker._bench_for(task)
    before = {name: tensor.clone() for name, tensor in bench.model.state_dict().items()}
    width = 16  # of keys and values: KaSA wants less, and peft says so when the first layers are in
    with (
        pytest.raises(UsageError, match="cannot be attached"),
        bench.attached(resolve({"method": "kasa", "kasa.rank": width}), 0),
    ):
        pass
    fresh = worker._bench_for(task)
    after = fresh.model.state_dict()
    assert list(after) == list(before) and all(torch.equal(after[name], before[name]) for name in before)
    with fresh.attached(resolve({"method": "lora"}), 0) as (attachment, _):
        assert attachment.adapter_parameters > 0


def trial(bench: Bench, folder: Path, **more: Any) -> Trial:
    config = {
        "method": "lora", "learning_rate": 0.01, "rows_per_update": 4, "schedule": "constant", "weight_decay": 0.0,
        "warmup_share": 0.0,
    }  # fmt: skip
    lease = Lease("l", 1, "r", resolve(config), 0, 2, 1.0, seed=3, rungs=(1, 2), horizon=2)
    order = TrialOrder(lease=lease, folder=folder, evaluation_rows=dict.fromkeys((1, 2), (0, 1)), metric_rows={})
    test = more.pop("test", None)
    return Trial(bench, replace(order, test=test), **{"report": lambda k, p: None, "stopped": lambda: False, **more})


def test_scoring_the_base_asks_no_other_process(task: TaskSpec, tmp_path: Path) -> None:
    class Lonely:
        rank, count = 0, 2

        def any(self, flag: bool) -> bool:
            raise AssertionError("the others may know these scores and would not answer")

    one = trial(Bench(task), tmp_path / "r")
    one.ranks = Lonely()  # type: ignore[assignment]
    one._score_base()
    assert set(one.base) == {0, 1}


def test_a_run_is_told_its_own_peak_of_memory(task: TaskSpec, tmp_path: Path) -> None:
    bench = Bench(task)
    large = torch.ones(2**27)  # half a gibibyte
    before = peak_memory_bytes(torch.device("cpu"))
    del large
    assert 0 < trial(bench, tmp_path / "r").run().peak_bytes < before - 2**28


def test_stopping_while_test_rows_are_answered_leaves_the_last_checkpoint(
    task: TaskSpec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("foretune.execution.trial.best_of", lambda seen: min(one.step for one in seen))
    written: list[bytes] = []
    newest = tmp_path / "r" / "step-00000002" / "state.safetensors"

    def report(kind: str, payload: Any) -> None:
        if "tested" in payload:
            written.append(newest.read_bytes())

    test = FinalTest(str(tmp_path / "answers.json"), 8, True, "best")
    one = trial(Bench(task), tmp_path / "r", test=test, report=report, stopped=lambda: bool(written))
    stopped = one.run()
    assert (stopped.status, stopped.step) == ("paused", 1)
    assert newest.read_bytes() == written[0]
