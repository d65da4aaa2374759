"""What a method makes of training rows and does not train goes on with its run, whatever rows are there later."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from foretune.catalogue.methods import METHODS, resolve
from foretune.execution.bench import Bench
from foretune.execution.final import restored
from foretune.execution.orders import InitialWeights, TrialOrder
from foretune.execution.trial import Trial
from foretune.execution.types import TaskSpec
from foretune.search.types import Lease
from foretune.training import checkpoint

STEPS = 4
STARTS: dict[str, dict[str, Any]] = {
    "loraga": {},
    "lofit": {},
    "cpt": {"cpt.prompt": 32},
    "cartridge": {"cartridge.start": "rows", "cartridge.prefix": 32},
    "loratrf": {"loratrf.trf_task_init": "mean_hidden"},
}
"""Settings whose start looks at training rows; contexts longer than the words all rows begin with."""

pytestmark = pytest.mark.parametrize("method", STARTS)


def config(method: str) -> dict[str, Any]:
    fields = {
        "method": method, "learning_rate": 0.05, "rows_per_update": 4, "schedule": "constant", "weight_decay": 0.0,
        "warmup_share": 0.0,
    }  # fmt: skip
    example = {f"{method}.{name}": value for name, value in METHODS[method].example.items()}
    return resolve({**fields, **example, **STARTS[method]})


def run(bench: Bench, folder: Path, method: str, first: int, last: int, **order: Any) -> None:
    rungs = tuple(range(first + 1, last + 1))
    lease = Lease("l", 1, "r", config(method), first, last, 1.0, seed=3, rungs=rungs, horizon=STEPS)
    asked = TrialOrder(
        lease=lease, folder=folder, evaluation_rows=dict.fromkeys(rungs, (0, 1)), metric_rows={}, **order
    )
    observation = Trial(bench, asked, report=lambda kind, payload: None, stopped=lambda: False).run()
    assert (observation.status, observation.step) == ("ok", last)


def tensors(folder: Path, step: int) -> dict[str, torch.Tensor]:
    saved = checkpoint.read(folder, step)
    assert saved is not None
    return dict(saved.tensors())


def other_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    """From now on methods would look at other training rows, as an adapter taken to other data would."""
    monkeypatch.setattr("foretune.execution.bench.subset", lambda count, total, seed: (total - 1,))


def test_a_run_goes_on_with_what_it_took_and_looks_no_more(
    method: str,
    task: TaskSpec,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    run(Bench(task), tmp_path / "whole", method, 0, STEPS)
    run(Bench(task), tmp_path / "halves", method, 0, 2)
    other_rows(monkeypatch)
    run(Bench(task), tmp_path / "halves", method, 2, STEPS)
    whole, halves = tensors(tmp_path / "whole", STEPS), tensors(tmp_path / "halves", STEPS)
    assert set(whole) == set(halves) and any(name.startswith(checkpoint.TAKEN) for name in whole)
    assert all(torch.equal(whole[name], halves[name]) for name in whole)

    run(Bench(task), tmp_path / "control", method, 0, STEPS)  # those rows do make another adapter
    control = tensors(tmp_path / "control", STEPS)
    assert any(not torch.equal(whole[name], control[name]) for name in whole)


def test_a_system_answers_the_same_beside_other_rows_or_none(
    method: str,
    task: TaskSpec,
    tmp_path: Path,
) -> None:
    bench = Bench(task)
    folder = tmp_path / "r"
    run(bench, folder, method, 0, 2)
    rows = range(len(bench.split("validation").rows))
    with restored(bench, config(method), 3, folder, 2) as (_, network):
        expected = [score.nll for score in bench.score(network, "validation", rows)]
    (Path(task.folder) / "train.jsonl").unlink()
    alone = Bench(task)
    with restored(alone, config(method), 3, folder, 2) as (_, network):
        assert [score.nll for score in alone.score(network, "validation", rows)] == expected


def test_a_run_that_begins_at_an_earlier_one_has_what_that_took(
    method: str,
    task: TaskSpec,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    run(Bench(task), tmp_path / "earlier", method, 0, 2)
    other_rows(monkeypatch)
    start = InitialWeights(str(tmp_path / "earlier"), 2)
    run(Bench(task), tmp_path / "later", method, 0, 1, initial_weights=start)
    earlier, later = tensors(tmp_path / "earlier", 2), tensors(tmp_path / "later", 1)
    taken = [name for name in earlier if name.startswith(checkpoint.TAKEN)]
    assert taken and all(torch.equal(earlier[name], later[name]) for name in taken)
