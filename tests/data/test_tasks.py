"""Task columns: from names to numbers on every token, with no head shared between tasks."""

from __future__ import annotations

from dataclasses import replace

import pytest

from foretune.data.batches import lay_out
from foretune.data.example import conversation
from foretune.data.tasks import task_names, task_number, with_tasks
from foretune.errors import DataError
from tests.training.rows import random_rows


def test_names_are_numbered_in_order_and_unknown_ones_refused() -> None:
    rows = [conversation("a", "b", task=task) for task in ("sum", "colour", None, "sum")]
    names = task_names(rows)
    assert names == ("", "colour", "sum")
    assert [task_number(row, names) for row in rows] == [2, 1, 0, 2]
    assert task_names(rows[2:3]) == ()
    encoded = random_rows(4)
    assert [row.task for row in with_tasks(encoded, rows, names)] == [2, 1, 0, 2]
    assert with_tasks(encoded, rows, ()) == encoded
    with pytest.raises(DataError, match="'other' is in no training row"):
        task_number(conversation("a", "b", task="other"), names)


def test_every_token_of_a_stream_has_its_rows_task() -> None:
    rows = [replace(row, task=i % 2) for i, row in enumerate(random_rows(6))]
    (batch,) = lay_out(rows, range(6), kind="causal", limit_tokens=1000, packing=True, tasks=True).micro_batches
    assert batch.layout is not None and batch.layout.head == 0 and batch.tasks is not None
    for row, (start, end) in zip(batch.rows, batch.layout.bounds, strict=True):
        assert set(batch.tasks[0, start:end].tolist()) == {row % 2}
    same = [replace(row, task=1) for row in rows]
    (batch,) = lay_out(same, range(6), kind="causal", limit_tokens=1000, packing=True, tasks=True).micro_batches
    assert batch.layout is not None and batch.layout.head == 4 and batch.tasks is not None
    assert batch.tasks.shape == batch.ids.shape and set(batch.tasks.flatten().tolist()) == {1}


def test_a_padded_batch_has_a_task_a_line_and_others_have_none() -> None:
    rows = [replace(row, task=i % 3) for i, row in enumerate(random_rows(6))]
    (batch,) = lay_out(rows, range(6), kind="causal", limit_tokens=1000, packing=False, tasks=True).micro_batches
    assert batch.tasks is not None and batch.tasks.tolist() == [i % 3 for i in batch.rows]
    (plain,) = lay_out(rows, range(6), kind="causal", limit_tokens=1000, packing=True).micro_batches
    assert plain.tasks is None and plain.layout is not None and plain.layout.head == 4
