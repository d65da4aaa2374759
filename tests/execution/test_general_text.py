"""The loss on general text is whole or missing: parts of two systems could not be compared."""

from __future__ import annotations

from pathlib import Path

import pytest

from foretune.evaluation.forgetting import general_text
from tests.tiny import llama


def test_general_text_that_time_cut_short_counts_as_not_scored(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from foretune.catalogue.models import ModelReference
    from foretune.execution.bench import Bench
    from foretune.execution.jobs import _general_losses
    from foretune.execution.types import TaskSpec

    monkeypatch.setenv("FORETUNE_CACHE", str(tmp_path / "cache"))
    reference = ModelReference(str(llama(tmp_path / "model")), kind="causal")
    bench = Bench(TaskSpec(str(tmp_path), "generation", reference, "loss", device="cpu"))
    whole = _general_losses(bench, bench.network, lambda done: True)
    assert len(whole) == len(general_text()) and all(nll > 0 and tokens > 0 for nll, tokens in whole)
    assert _general_losses(bench, bench.network, lambda done: done < 20) == []
