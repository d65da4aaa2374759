"""Selectors that score one row at a time, beside plain transformers."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from foretune.data.example import conversation
from foretune.selection.base import Request
from foretune.selection.ifd import difficult_first, difficulty
from foretune.selection.likelihoods import likelihoods, start_token
from foretune.selection.run import select

from .conftest import rows


@pytest.fixture(scope="module")
def bench(make_bench):
    return make_bench(rows(12))


def _plain_loss(model, ids, mask):
    """Transformers' own loss of the masked tokens of one row."""
    labels = np.where(mask, ids, -100).astype(np.int64)
    with torch.no_grad():
        return float(model(input_ids=torch.tensor(ids[None].astype(int)), labels=torch.tensor(labels[None])).loss)


def test_ifd_is_the_ratio_of_perplexities_from_the_plain_loss(bench):
    examples = bench.split("train").examples
    request = Request(examples, 12, bench=bench)
    found = difficulty(request, bench)
    model = bench.network.model
    for value, row in zip(found, bench.encode(examples), strict=True):
        answer = row.ids[row.target_mask]
        alone = np.concatenate([[start_token(bench)], answer])
        asked = _plain_loss(model, row.ids, row.target_mask)
        unasked = _plain_loss(model, alone, np.arange(len(alone)) > 0)
        assert value == pytest.approx(np.exp(asked) / np.exp(unasked), rel=1e-4)
    ratios = difficulty(request, bench, ratio="loss")
    assert ratios[-1] == pytest.approx(asked / unasked, rel=1e-4)


def test_the_distance_is_delifts(bench):
    """D = √(mean (1 − p)²) of the true tokens, from the model's own logits."""
    row = bench.encode(bench.split("train").examples)[3]
    found = likelihoods(Request(bench.split("train").examples[3:4], 1, bench=bench), [row], "x")
    with torch.no_grad():
        logits = bench.network.model(input_ids=torch.tensor(row.ids[None].astype(int))).logits[0].double()
    probs = logits.softmax(-1)
    at = np.flatnonzero(row.target_mask)
    true = np.array([float(probs[t - 1, row.ids[t]]) for t in at])
    assert found.distance[0] == pytest.approx(np.sqrt(((1 - true) ** 2).mean()), abs=1e-6)
    assert found.tokens[0] == len(at)
    entropies = [-float((probs[t - 1] * probs[t - 1].log()).sum()) for t in at]
    assert found.entropy[0] == pytest.approx(sum(entropies), rel=1e-5)
    margins = [float(probs[t - 1].topk(2).values.diff().abs()) for t in at]
    assert found.margin[0] == pytest.approx(sum(margins), abs=1e-5)


def test_rows_that_the_question_does_not_help_come_last():
    scores = difficult_first(np.array([0.5, 1.2, 0.9, 3.0, 1.0]))
    assert list(np.argsort(-scores, kind="stable")) == [2, 0, 4, 1, 3]


def test_longest_counts_trained_tokens(bench):
    examples = [conversation("q", answer) for answer in ("red", "red like a river", "", "blue lamp")]
    chosen = select(Request(examples, 3, bench=bench), "longest")
    assert chosen.indices == (1, 3, 0)
    assert chosen.manifest["without_answer"] == 1
