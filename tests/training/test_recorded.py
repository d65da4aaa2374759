"""The fixed shape of recorded updates gives the losses and gradients of the ordinary way.

A graph needs a GPU (tests/gpu plays one); here the pass over the recorded inputs is run again instead of played.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from foretune.data.update import Epochs
from foretune.methods.full import FullAttachment
from foretune.training import loop, recorded
from foretune.training.forward import Network
from foretune.training.loop import LoopSettings, Training
from foretune.training.optimizer import OptimizerSettings
from foretune.training.recorded import Recorded
from tests.regularization.models import tiny
from tests.training.rows import random_rows

from .test_loop import lora, losses

ROWS = random_rows(11)  # the last update of an epoch of 4 is short


class Again:
    """Stands for a graph: runs the pass once more."""

    def __init__(self, owner: Recorded) -> None:
        self.owner = owner

    def replay(self) -> None:
        self.owner._forget()
        self.owner._loss = self.owner._pass()
        self.owner._gradients = [weight.grad for weight in self.owner._weights]


@pytest.fixture
def played(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Recording on a processor, and the number of rows of every update played."""
    seen: list[int] = []

    def record(self: Recorded) -> bool:
        self._graph = Again(self)  # type: ignore[assignment]
        return True

    def fill(self: Recorded, batch: Any, denominator: float) -> None:
        seen.append(len(batch.rows))
        original(self, batch, denominator)

    original = Recorded._fill
    monkeypatch.setattr(Recorded, "_record", record)
    monkeypatch.setattr(Recorded, "_fill", fill)
    monkeypatch.setattr(loop, "recordable", lambda network: True)
    return seen


def run(family: str, kind: Any, rows: Any, full: bool, dtype: str) -> Training:
    model = tiny(family).to(getattr(torch, dtype))
    attachment = FullAttachment(model) if full else lora(model)
    settings = LoopSettings(OptimizerSettings(1e-2, 12, warmup_share=0.1), seed=3, pad_id=5)
    return Training(Network(attachment.model, kind), attachment, rows, Epochs(len(rows), 4, 3), settings)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("full", [False, True])
def test_a_causal_update_in_its_fixed_shape(played: list[int], full: bool, dtype: str) -> None:
    found = losses(run("llama", "causal", ROWS, full, dtype), 6)
    assert sorted(played) == [3, 3, 4, 4, 4, 4]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "recordable", lambda network: False)
        expected = losses(run("llama", "causal", ROWS, full, dtype), 6)
    assert found == pytest.approx(expected, rel=1e-5 if dtype == "float32" else 0.03)


@pytest.mark.parametrize(("regression", "pairs"), [(False, False), (True, False), (False, True)])
def test_an_encoder_s_update_in_its_fixed_shape(played: list[int], regression: bool, pairs: bool) -> None:
    rows = [
        replace(row, label=i / 7 if regression else i % 3, pair_start=5 if pairs and i % 4 else 0)
        for i, row in enumerate(ROWS)
    ]
    fields = {"num_labels": 1 if regression else 3, "hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}

    def trained() -> list[float]:
        model = tiny("bert", **fields)
        with torch.no_grad():
            model.bert.embeddings.token_type_embeddings.weight[1] += 0.5  # the second text is plainly another
        attachment = FullAttachment(model)
        settings = LoopSettings(OptimizerSettings(1e-2, 12, warmup_share=0.1), seed=3)
        return losses(
            Training(Network(attachment.model, "encoder"), attachment, rows, Epochs(len(rows), 4, 3), settings), 6
        )

    found = trained()
    assert sorted(played) == [3, 3, 4, 4, 4, 4]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "recordable", lambda network: False)
        expected = trained()
    assert found == pytest.approx(expected, rel=1e-5)


def test_what_cannot_be_recorded_goes_the_ordinary_way(monkeypatch: pytest.MonkeyPatch) -> None:
    def record(self: Recorded) -> bool:
        self.refused = "RuntimeError: no"
        return False

    monkeypatch.setattr(Recorded, "_record", record)
    monkeypatch.setattr(loop, "recordable", lambda network: True)
    one = run("llama", "causal", ROWS, False, "float32")
    found = losses(one, 3)
    assert one.recorded is not None and one.recorded.refused
    monkeypatch.setattr(loop, "recordable", lambda network: False)
    assert found == losses(run("llama", "causal", ROWS, False, "float32"), 3)


def test_a_processor_records_nothing() -> None:
    assert run("llama", "causal", ROWS, False, "float32").recorded is None
    assert recorded.width_of(ROWS) == 24
