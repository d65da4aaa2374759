"""T-Few's losses against the paper's sums, written out over whole logits, packed and padded."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from foretune.data.encode import EncodedRow
from foretune.data.update import Epochs
from foretune.errors import UsageError
from foretune.methods.contract.models import specimen
from foretune.methods.full import FullAttachment
from foretune.regularization.tfew import Tfew, with_answer
from foretune.training.forward import Network
from foretune.training.loop import LoopSettings, Training
from foretune.training.optimizer import OptimizerSettings

ANSWERS = ([7, 2], [8, 9, 2], [10, 11, 12, 2])
END = 5
"""An end of turn that is fed and not trained"""


def rows(count: int = 6) -> list[EncodedRow]:
    """Rows with a prompt of their own and the answer of class i mod 3."""
    draw = np.random.default_rng(0)
    made = []
    for i in range(count):
        prompt = draw.integers(13, 90, int(draw.integers(3, 8)))
        ids = np.concatenate([prompt, ANSWERS[i % 3], [END]]).astype(np.int32)
        mask = np.zeros(len(ids), dtype=bool)
        mask[len(prompt) : -1] = True
        made.append(EncodedRow(ids, mask, len(prompt), 0, label=i % 3))
    return made


def log_probs(model: Any, row: EncodedRow) -> np.ndarray:
    """Log-probabilities of a row's trained tokens, by the plain model."""
    with torch.no_grad():
        logits = model(input_ids=torch.tensor(row.ids, dtype=torch.long)[None]).logits[0].double().log_softmax(-1)
    at = np.flatnonzero(row.target_mask)
    return np.array([float(logits[position - 1, row.ids[position]]) for position in at])


def expected(model: Any, data: list[EncodedRow]) -> float:
    """Mean over rows of L_UL + L_LN with all wrong choices."""
    total = 0.0
    for row in data:
        wrong = []
        for label in {0, 1, 2} - {row.label}:
            answer = np.array([*ANSWERS[label], END], dtype=np.int32)
            mask = np.zeros(row.prompt_length + len(answer), dtype=bool)
            mask[row.prompt_length : -1] = True
            ids = np.concatenate([row.ids[: row.prompt_length], answer])
            wrong.append(log_probs(model, replace(row, ids=ids, target_mask=mask)))
        unlikelihood = -sum(np.log1p(-np.exp(p)).sum() for p in wrong) / sum(map(len, wrong))
        betas = np.array([log_probs(model, row).mean(), *(p.mean() for p in wrong)])
        total += unlikelihood - betas[0] + np.log(np.exp(betas).sum())
    return total / len(data)


@pytest.mark.parametrize(("packing", "limit"), [(True, 1000), (True, 30), (False, 40)])
def test_the_losses_are_the_papers(packing: bool, limit: int) -> None:
    data = rows()
    model = specimen("llama").twin()
    wanted = expected(model, data)
    totals, gradients = [], []
    for weight in (0.0, 1.5):
        attachment = FullAttachment(model)
        terms: list[float] = []

        def backward(loss: torch.Tensor, terms: list[float] = terms) -> None:
            terms.append(float(loss.detach()))
            loss.backward()  # type: ignore[no-untyped-call]

        training = Training(
            Network(model, "causal"), attachment, data, Epochs(6, 6, 0),
            LoopSettings(OptimizerSettings(1e-3, 4), seed=0, packing=packing, micro_batch_tokens=limit),
            [Tfew(weight=weight, choices=5)], backward,
        )  # fmt: skip
        training._gradients(range(6))
        totals.append(sum(terms))
        gradients.append(training.masters.gradient_norm())
        training.masters.clear()
        training.close()
        attachment.detach()
    assert totals[1] - totals[0] == pytest.approx(1.5 * wanted, rel=1e-4)
    assert gradients[0] != pytest.approx(gradients[1], rel=0.01)


def test_wrong_answers_are_trained_where_the_rows_own_is() -> None:
    row = rows()[0]
    other = with_answer(row, np.array([*ANSWERS[2], END], dtype=np.int32))
    assert other.ids[other.target_mask].tolist() == ANSWERS[2] and other.prompt_length == row.prompt_length
    seq2seq = replace(row, decoder_ids=np.array([7, 2], dtype=np.int32))
    assert with_answer(seq2seq, np.array([8, 9, 2])).targets == 3


def test_training_with_it_moves_the_right_label_up_and_the_wrong_ones_down() -> None:
    data, model = rows(), specimen("llama").twin()
    before = expected(model, data)
    attachment = FullAttachment(model)
    training = Training(
        Network(model, "causal"), attachment, data, Epochs(6, 6, 0),
        LoopSettings(OptimizerSettings(3e-3, 12, warmup_share=0.0), seed=0), [Tfew(choices=1)],
    )  # fmt: skip
    assert training.run(12) == "ok"
    assert training.regularizers.report()["tfew"]["wrong_choices"] == 6
    training.close()
    assert expected(model, data) < before - 0.5


def test_rows_without_classes_are_refused() -> None:
    model = specimen("llama").twin()
    data = [replace(row, label=None) for row in rows()]
    with pytest.raises(UsageError, match="labels of at least two classes"):
        Training(
            Network(model, "causal"), FullAttachment(model), data, Epochs(6, 6, 0),
            LoopSettings(OptimizerSettings(1e-3, 4), seed=0), [Tfew()],
        )  # fmt: skip
