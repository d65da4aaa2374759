"""A task of questions with a tiny language model."""

from __future__ import annotations

from pathlib import Path

import pytest

from foretune.catalogue.models import ModelReference
from foretune.data.columns import Columns
from foretune.data.read import read
from foretune.execution.types import TaskSpec
from foretune.fit.prepare import write_split
from tests import tiny


@pytest.fixture
def task(tmp_path: Path) -> TaskSpec:
    reference = ModelReference(str(tiny.llama(tmp_path / "model")), "causal", dtype="float32")
    examples = read(tiny.write_rows(tmp_path / "rows.jsonl", tiny.questions(24)), columns=Columns()).examples
    for split, rows in (("train", examples[:16]), ("validation", examples[16:]), ("test", examples[16:])):
        write_split(tmp_path / f"{split}.jsonl", rows)
    return TaskSpec(str(tmp_path), "generation", reference, "exact_match", context_tokens=96, device="cpu")
