"""A base made for adapters: its gradients by hand, what is left of it, and that adapters on a new task do better."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from foretune.catalogue.methods import resolve
from foretune.cli.main import app
from foretune.data.encode import EncodedRow
from foretune.data.update import Epochs
from foretune.errors import TrainingError, UsageError
from foretune.methods.contract.models import specimen
from foretune.methods.registry import get
from foretune.seeding import torch_generator
from foretune.training.adaptable import AdaptableSettings, make_adaptable
from foretune.training.forward import Network
from foretune.training.loop import LoopSettings, Training
from foretune.training.optimizer import OptimizerSettings
from tests import tiny

THINGS = 8


def shifted(shift: int, task: int) -> list[EncodedRow]:
    """The task "the neighbour ``shift`` further": a question of two tokens, an answer of one."""
    order = np.random.default_rng(0).permutation(THINGS)
    target = np.array([False, False, True])
    return [
        EncodedRow(np.array([2 * THINGS, x, THINGS + (order[x] + shift) % THINGS], np.int32), target, 2, 1, task=task)
        for x in range(THINGS)
    ]


def trained(model: Any, method: str, rows: list[EncodedRow], steps: int, rate: float, **own: Any) -> float:
    """The last loss of a plain run."""
    config = resolve({"method": method, **{f"{method}.{key}": value for key, value in own.items()}})
    attachment = get(method).attach(model, config, generator=torch_generator(0, "init"))
    losses: list[float] = []
    source = Epochs(len(rows), THINGS, 0)
    training = Training(
        Network(attachment.model, "causal"), attachment, rows, source, LoopSettings(OptimizerSettings(rate, steps), 0)
    )
    training.run(steps, on_step=lambda report: losses.append(report.loss) or True)
    return losses[-1]


def test_an_adapter_on_a_new_task_does_better_than_on_a_base_of_plain_training() -> None:
    """The source's claim in miniature: four tasks that differ, a fifth of their kind, LoRA of rank 2 on both bases."""
    rows = [row for task, shift in enumerate((0, 2, 3, 6)) for row in shifted(shift, task)]
    settings = AdaptableSettings(60, base_rate=5e-3, adapter_rate=1e-2, rank=2, rows_per_update=THINGS)
    adaptable = make_adaptable(specimen("llama").twin(), rows, "causal", settings)
    plain = specimen("llama").twin()
    trained(plain, "full", rows, 60, 5e-3)
    new, plainly = (trained(base, "lora", shifted(5, 0), 30, 1e-2, rank=2, alpha=4) for base in (adaptable, plain))
    assert new < 0.6 * plainly


def test_the_shared_weights_follow_the_gradient_of_all_tasks_and_no_adapter_stays() -> None:
    rows = shifted(0, 0) + shifted(3, 1)
    base = specimen("llama").twin()
    before = {name: weight.detach().clone() for name, weight in base.named_parameters()}
    base.requires_grad_(True)
    batch = torch.tensor(np.stack([row.ids for row in rows]), dtype=torch.long)
    labels = torch.where(torch.arange(3) == 2, batch, -100)
    gradients = torch.autograd.grad(base(input_ids=batch, labels=labels).loss, list(base.parameters()))
    base.requires_grad_(False)
    settings = AdaptableSettings(2, base_rate=1e-4, adapter_rate=1e-3, rank=2, rows_per_update=2 * THINGS)
    result = make_adaptable(base, rows, "causal", settings)
    assert result is base
    assert list(before) == [name for name, _ in base.named_parameters()]
    assert not any(weight.requires_grad for weight in base.parameters())
    for (name, weight), gradient in zip(base.named_parameters(), gradients, strict=True):
        clear = gradient.abs() > 1e-4  # Adam's first step goes by the sign of the gradient, at the shared rate
        moved = (before[name] - weight.detach())[clear]
        torch.testing.assert_close(moved, 1e-4 * gradient[clear].sign(), rtol=0, atol=1.5e-6)


@pytest.mark.parametrize("tasks", [(0, 0), (None, None), (1, 2)])
def test_one_task_is_refused(tasks: tuple[int | None, int | None]) -> None:
    rows = [replace(row, task=task) for task in tasks for row in shifted(0, 0)]
    with pytest.raises(UsageError, match="cannot make a base adaptable"):
        make_adaptable(specimen("llama").twin(), rows, "causal", AdaptableSettings(1, 1e-3, 1e-2))


def test_a_stop_is_an_error_and_leaves_no_adapter() -> None:
    base = specimen("llama").twin()
    names = [name for name, _ in base.named_parameters()]
    with pytest.raises(TrainingError, match="paused"):
        make_adaptable(
            base,
            shifted(0, 0) + shifted(3, 1),
            "causal",
            AdaptableSettings(4, 1e-3, 1e-2, rank=2),
            lambda report: False,
        )
    assert names == [name for name, _ in base.named_parameters()]


def test_the_command_leaves_a_base_that_loads(tmp_path: Path) -> None:
    model = tiny.llama(tmp_path / "model")
    lines = [
        {"question": f"What colour is the {thing}?", "answer": tiny.COLOURS[(i + shift) % 5], "kind": kind}
        for kind, shift in (("near", 0), ("far", 2))
        for i, thing in enumerate(tiny.THINGS)
    ]
    data = tmp_path / "rows.jsonl"
    data.write_text("\n".join(map(json.dumps, lines)), encoding="utf-8")
    arguments = ["models", "retrain", str(data), "--task-column", "kind", "--model", str(model), "--steps", "6",
                 "--rank", "2", "--output", str(tmp_path / "base"), "--json"]  # fmt: skip
    done = CliRunner().invoke(app, arguments, catch_exceptions=False)
    assert done.exit_code == 0, done.output
    said = json.loads(done.stdout)
    assert said["tasks"] == ["far", "near"] and said["loss"] < said["first_loss"]
    from safetensors.torch import load_file

    old, new = (load_file(folder / "model.safetensors") for folder in (model, tmp_path / "base"))
    assert set(old) == set(new) and all(not torch.equal(old[name], new[name]) for name in old)
    again = CliRunner().invoke(app, arguments)
    assert again.exit_code == 2 or "exists" in str(again.exception)
