"""Selectors over embeddings, beside cases worked out by hand."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from foretune.catalogue.selection import Keep
from foretune.selection.base import Request, Selection
from foretune.selection.embedding_based import filtered, near_and_far, round_robin
from foretune.selection.embeddings import embed
from foretune.selection.in_context import nearest_others
from foretune.selection.run import answer_tokens, fused, select

from .conftest import rows


@pytest.fixture(scope="module")
def bench(make_bench):
    return make_bench(rows(10))


@pytest.mark.parametrize("pooling", ["mean", "weighted", "last"])
def test_vectors_are_weighted_means_of_the_last_hidden_states(bench, pooling):
    examples = bench.split("train").examples
    found = embed(Request(examples, 1, bench=bench), examples, bench=bench, pooling=pooling, unit=False)
    for vector, row in zip(found, bench.encode(examples), strict=True):
        ids = torch.tensor(row.ids[None].astype(int))
        with torch.no_grad():
            states = bench.network.model(ids, output_hidden_states=True).hidden_states[-1][0].double()
        position = torch.arange(1, len(states) + 1, dtype=torch.float64)
        weights = {"mean": torch.ones_like(position), "weighted": position, "last": (position == len(states)).double()}
        mean = (states * weights[pooling][:, None]).sum(0) / weights[pooling].sum()
        assert np.abs(vector - mean.numpy()).max() < 1e-5


def test_an_encoder_reads_question_and_answer_as_one_text(bench, ground, tmp_path):
    from .. import tiny

    other = bench.with_model(str(tiny.bert(tmp_path / "bert")))
    examples = rows(3)
    found = embed(Request(examples, 1, bench=bench), examples, bench=other, unit=False)
    ids = torch.tensor([other.tokenizer(f"{examples[1].prompt}\n{examples[1].answer}")["input_ids"]])
    with torch.no_grad():
        states = other.network.model(input_ids=ids).last_hidden_state[0]
    assert np.abs(found[1] - states.mean(0).numpy()).max() < 1e-5


def test_targets_take_turns():
    similar = np.array([[0.9, 0.8, 0.1, 0.0], [0.95, 0.2, 0.3, 0.1]])
    chosen, values = round_robin(similar, 4)
    assert chosen == [0, 2, 1, 3]  # the second target's best is taken, so it takes its next best
    assert values == [0.9, 0.3, 0.8, 0.1]
    assert round_robin(similar, 1) == ([0], [0.9])


def test_clusters_give_typical_and_odd_rows():
    labels = np.array([0, 0, 0, 0, 1, 1])
    distances = np.array([0.1, 0.4, 0.2, 0.3, 0.5, 0.6])
    # three rows: two of the large cluster (nearest and farthest), one of the small one (its nearest, 0.5 rounds to 0)
    assert near_and_far(labels, distances, 3, 0.5) == [0, 1, 5]
    assert near_and_far(labels, distances, 3, 1.0) == [0, 2, 4]
    assert sorted(near_and_far(labels, distances, 6, 0.5)) == [0, 1, 2, 3, 4, 5]


def test_rows_like_a_chosen_one_are_passed_over():
    pool = np.array([[1.0, 0.0], [0.99, np.sqrt(1 - 0.99**2)], [0.0, 1.0], [0.6, 0.8]], np.float32)
    assert filtered(pool, [1, 0, 2, 3], 3, 0.9) == ([1, 2, 3], [0])
    assert filtered(pool, [1, 0, 2, 3], 3, 0.7) == ([1, 2], [0, 3])


def test_the_nearest_other_row_is_never_the_row_itself():
    pool = np.array([[1.0, 0.0], [0.8, 0.6], [0.0, 1.0]], np.float32)
    assert nearest_others(pool) == [1, 0, 1]


def test_rankings_are_fused_by_mean_rank():
    one, other = Selection((0, 1, 2, 3), "a"), Selection((2, 1), "b")
    # mean ranks: 0 → (0+3)/2, 1 → (1+1)/2, 2 → (2+0)/2, 3 → (3+3)/2
    found = fused([one, other], 4, 3, "a&b")
    assert found.indices == (1, 2, 0) and found.scores == (-1.0, -1.0, -1.5)


def test_a_chain_chooses_among_what_its_first_stage_leaves(bench):
    examples = bench.split("train").examples
    request = Request(examples, 3, bench=bench)
    longest = set(select(Request(examples, 6, bench=bench), "longest").indices)
    found = select(request, "longest:60%+k-centre")
    assert set(found.indices) <= longest and len(found.indices) == 3 and not found.nested
    everything = select(Request(examples, 10, bench=bench), "longest&ifd")
    ranks = [list(select(Request(examples, 10, bench=bench), name).indices) for name in ("longest", "ifd")]
    mean = {i: sum(rank.index(i) for rank in ranks) / 2 for i in range(10)}
    assert list(everything.indices) == sorted(range(10), key=lambda i: (mean[i], i))


def test_a_budget_of_tokens_asks_a_selector_without_a_ranking_for_what_it_holds(bench):
    """The order of `deft-ucs` goes cluster after cluster, so the beginning of all rows is no selection."""
    examples = bench.split("train").examples
    request = Request(examples, 10, bench=bench, fields={"deft-ucs.clusters": 3})
    costs = answer_tokens(request)
    budget = 4 * sum(costs) / len(costs)
    found = select(request, "deft-ucs", Keep("tokens", budget))
    four = select(replace(request, count=4), "deft-ucs")
    assert set(found.indices) <= set(four.indices) and found.manifest["answer_tokens"] <= budget
    assert four.indices != select(request, "deft-ucs").indices[:4]
