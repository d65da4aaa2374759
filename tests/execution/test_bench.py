"""A worker's bench between jobs: what a job that failed must not leave to the next."""

from __future__ import annotations

import queue
from pathlib import Path
from typing import Any

import pytest
import torch

from foretune.catalogue.methods import resolve
from foretune.catalogue.models import ModelReference
from foretune.data.columns import Columns
from foretune.data.read import read
from foretune.errors import UsageError
from foretune.execution.types import TaskSpec
from foretune.execution.worker import Worker
from foretune.fit.prepare import write_split
from tests import tiny


@pytest.fixture
def task(tmp_path: Path) -> TaskSpec:
    reference = ModelReference(str(tiny.llama(tmp_path / "model")), "causal", dtype="float32")
    examples = read(tiny.write_rows(tmp_path / "rows.jsonl", tiny.questions(24)), columns=Columns()).examples
    for split, rows in (("train", examples[:16]), ("validation", examples[16:])):
        write_split(tmp_path / f"{split}.jsonl", rows)
    return TaskSpec(str(tmp_path), "generation", reference, "exact_match", context_tokens=96, device="cpu")


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
