"""SelectIT's equations, IGF's gains and its learner, beside cases worked out by hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from foretune.catalogue.methods import resolve
from foretune.data.template import prompt_with_examples
from foretune.selection.base import Request
from foretune.selection.embeddings import embed
from foretune.selection.gain_filter import information_gains, learnt
from foretune.selection.in_context import nearest_others
from foretune.selection.run import select
from foretune.selection.select_it import PROMPTS, probabilities, rating_row, rating_tokens, sentence_level, token_level

from .conftest import rows


@pytest.fixture(scope="module")
def bench(make_bench):
    return make_bench(rows(9))


def test_ratings_are_weighted_by_certainty():
    found = token_level(np.array([[0.1, 0.1, 0.1, 0.1, 0.6], [0.2] * 5, [1.0, 0, 0, 0, 0]]))
    assert found == pytest.approx([5 * (4 * 0.5) / 4, 0.0, 1.0])


def test_disagreement_between_prompts_is_discounted():
    assert sentence_level(np.array([[2.0, 1.0], [2.0, 3.0]]), 0.2) == pytest.approx([2.0, 2.0 / 1.2])


def test_probabilities_are_read_where_the_answer_begins(bench):
    asked = [rating_row(PROMPTS[0], row) for row in bench.split("train").examples[:1]]
    encoded = bench.encode(asked)
    tokens = rating_tokens(bench)
    found = probabilities(bench, encoded, tokens)
    with torch.no_grad():
        ids = torch.tensor(encoded[0].ids[None, : encoded[0].prompt_length].astype(int))
        plain = bench.network.model(ids).logits[0, -1, list(tokens)].softmax(-1).numpy()
    assert np.abs(found[0] - plain).max() < 1e-5
    assert found.sum() == pytest.approx(1.0)


def _loss(model, row):
    labels = np.where(row.target_mask, row.ids, -100).astype(np.int64)
    with torch.no_grad():
        return float(model(input_ids=torch.tensor(row.ids[None].astype(int)), labels=torch.tensor(labels[None])).loss)


def test_miwv_is_the_loss_behind_the_nearest_row_minus_the_loss_alone(bench):
    examples = bench.split("train").examples
    request = Request(examples, 9, bench=bench)
    found = dict(zip(*(lambda s: (s.indices, s.scores))(select(request, "miwv")), strict=True))
    nearest = nearest_others(embed(request, examples, bench=bench))
    model = bench.network.model
    for number, row in enumerate(examples):
        shown, alone = bench.encode([prompt_with_examples(row, (examples[nearest[number]],)), row])
        assert found[number] == pytest.approx(_loss(model, shown) - _loss(model, alone), abs=1e-5)


def test_a_gain_is_the_fall_of_the_objective_by_one_step(bench):
    """The plain way: attach, one Adam step on the row (its first step is lr · sign), the objective again."""
    encoded = bench.encode(bench.split("train").examples)
    settings = {"learning_rate": 1e-2}
    request = Request(bench.split("train").examples, 1, bench=bench, seed=4)
    found = information_gains(request, bench, encoded, [2], [encoded[7]], settings)
    from foretune.seeding import derive

    config = resolve({"method": "lora", "lora.rank": 8, "lora.alpha": 16.0, "lora.dropout": 0.0})
    with bench.attached(config, derive(4, "selection", "igf")) as (attachment, network):
        before = _loss(network.model, encoded[7])
        weights = [w for group in attachment.parameter_groups(1.0) for w in group["params"]]
        optimizer = torch.optim.Adam(weights, lr=1e-2)
        row = encoded[2]
        labels = np.where(row.target_mask, row.ids, -100).astype(np.int64)
        loss = network.model(input_ids=torch.tensor(row.ids[None].astype(int)), labels=torch.tensor(labels[None])).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(weights, 1.0)
        optimizer.step()
        after = _loss(network.model, encoded[7])
    assert found[0] == pytest.approx(before - after, abs=1e-4)
    assert abs(found[0]) > 1e-3


def test_the_learner_predicts_what_is_linear_in_the_features():
    draw = np.random.default_rng(0)
    features = draw.normal(size=(200, 5))
    gains = features @ np.array([1.0, -2.0, 0.0, 0.5, 0.0]) + 0.01 * draw.normal(size=200)
    predicted, correlation = learnt(features, list(range(60)), gains[:60])
    assert np.corrcoef(predicted[60:], gains[60:])[0, 1] > 0.99
    assert correlation > 0.98
    noise = learnt(features, list(range(60)), draw.normal(size=60))[1]
    assert abs(noise) < 0.5
    assert learnt(features, [0, 1], gains[:2])[1] is None
