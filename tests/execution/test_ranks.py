"""A trial in two processes (gloo) is the trial in one: same losses, same weights, same meaning of an update."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from foretune.catalogue.methods import resolve
from foretune.catalogue.models import ModelReference
from foretune.data.columns import Columns
from foretune.execution.orders import FinalTest, TrialOrder
from foretune.execution.types import TaskSpec
from foretune.search.fidelity import rungs
from foretune.search.types import Lease
from tests import tiny

STEPS = 6
REPOSITORY = Path(__file__).resolve().parents[2]


def ordered(folder: Path, task: TaskSpec, method: str, stop_after: int | None = None) -> Path:
    config = {
        "method": method, "learning_rate": 0.01, "rows_per_update": 7, "schedule": "constant", "weight_decay": 0.1,
        "warmup_share": 0.0,
    }  # fmt: skip
    lease = Lease("l", 1, "r", resolve(config), 0, STEPS, 1.0, seed=3, rungs=rungs(STEPS), horizon=STEPS)
    order = TrialOrder(
        lease=lease,
        folder=folder / "trial",
        evaluation_rows=dict.fromkeys(rungs(STEPS), tuple(range(8))),
        metric_rows={},
        test=FinalTest(str(folder / "answers.json"), 6, False, "best"),
    )
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "order.json"
    path.write_text(json.dumps({"task": task.to_json(), "order": order.to_json(), "stop_after": stop_after}))
    return path


def run(order: Path, count: int) -> list[dict]:
    """What each of ``count`` processes says of the trial."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    processes = []
    for rank in range(count):
        group = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": count, "MASTER_PORT": port, "ACCELERATE_USE_CPU": 1}
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "MASTER_ADDR": "127.0.0.1"}
        if count > 1:
            environment |= {name: str(value) for name, value in group.items()}
        command = [sys.executable, "-m", "tests.execution.rank", str(order), str(order.parent / f"rank-{rank}.json")]
        processes.append(subprocess.Popen(command, env=environment, cwd=REPOSITORY))
    assert [process.wait(120) for process in processes] == [0] * count
    return [json.loads((order.parent / f"rank-{rank}.json").read_text()) for rank in range(count)]


@pytest.fixture(scope="module")
def task(tmp_path_factory) -> TaskSpec:
    folder = tmp_path_factory.mktemp("task")
    model = tiny.llama(folder / "llama")
    from foretune.data.read import read
    from foretune.fit.prepare import write_split

    examples = read(tiny.write_rows(folder / "rows.jsonl", tiny.questions(48)), columns=Columns()).examples
    for split, rows in (("train", examples[:32]), ("validation", examples[32:40]), ("test", examples[40:])):
        write_split(folder / f"{split}.jsonl", rows)
    reference = ModelReference(str(model), "causal", dtype="float32")
    return TaskSpec(
        str(folder), "generation", reference, "exact_match", context_tokens=96, device="cpu", micro_batch_tokens=64
    )


def weights(order: Path) -> dict[str, torch.Tensor]:
    (newest,) = sorted((order.parent / "trial").rglob(f"*{STEPS}*/*.safetensors"))[-1:]
    return load_file(newest)


@pytest.mark.parametrize("method", ["lora", "full"])
def test_two_processes_train_what_one_trains(tmp_path, task, method):
    alone, together = (ordered(tmp_path / name, task, method) for name in ("alone", "together"))
    (single,) = run(alone, 1)
    leader, follower = run(together, 2)
    assert (leader["count"], leader["rank"], follower["rank"], single["count"]) == (2, 0, 1, 1)
    assert follower["said"] == 0, "one of them reports"
    for ours, theirs in zip([*leader["rungs"], leader["final"]], [*single["rungs"], single["final"]], strict=True):
        assert (ours["step"], ours["tokens"]) == (theirs["step"], theirs["tokens"])
        for name, (value, error, rows) in theirs["metrics"].items():
            assert ours["metrics"][name] == [pytest.approx(value, abs=2e-5), pytest.approx(error, abs=2e-5), rows]
    assert leader["final"]["metrics"] == follower["final"]["metrics"], "all of them hold the same weights"
    assert single["final"]["metrics"]["loss"][0] < single["rungs"][0]["metrics"]["loss"][0] - 0.05
    ours, theirs = weights(together), weights(alone)
    assert set(ours) == set(theirs)
    for name, tensor in theirs.items():
        if name.startswith("master/"):
            torch.testing.assert_close(ours[name], tensor, atol=1e-4, rtol=1e-3)
    assert json.loads((together.parent / "answers.json").read_text())["wanted"] == 6


def test_all_processes_stop_where_the_first_is_told_to_and_go_on_together(tmp_path, task):
    order = ordered(tmp_path / "run", task, "lora", stop_after=1)
    leader, follower = run(order, 2)
    assert leader["final"]["status"] == follower["final"]["status"] == "paused"
    assert leader["final"]["step"] == follower["final"]["step"] < STEPS
    again = ordered(tmp_path / "run", task, "lora")
    leader, follower = run(again, 2)
    assert leader["final"]["status"] == "ok" and leader["final"]["step"] == STEPS
    (whole,) = run(ordered(tmp_path / "whole", task, "lora"), 1)
    assert leader["final"]["metrics"]["loss"][0] == pytest.approx(whole["final"]["metrics"]["loss"][0], abs=2e-5)
