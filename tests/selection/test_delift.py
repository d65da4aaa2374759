"""DELIFT chooses what its definition says, in all three stages, and says what its shortcuts cost."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from foretune.data.example import conversation
from foretune.errors import UsageError
from foretune.selection.base import Request
from foretune.selection.blocks import SerialBlocks
from foretune.selection.delift import nearest_kernel
from foretune.selection.embeddings import embed
from foretune.selection.greedy import facility_location as fl
from foretune.selection.greedy import kernel
from foretune.selection.run import select
from foretune.selection.took import read_took
from foretune.selection.utility import sampling
from foretune.selection.utility.blocks import compute
from foretune.selection.utility.kernel import Utility

from .conftest import rows as some_rows
from .oracle import greedy, objective

POOL, TARGET, PREVIOUS = some_rows(9), some_rows(12)[9:], some_rows(15)[12:]
ALL = {"delift.rows": 0}


@pytest.fixture(scope="module")
def bench(make_bench: Any) -> Any:
    return make_bench(POOL)


def clipped(bench: Any, folder: Any, rows: Any, shown: Any) -> np.ndarray:
    """s[row, shown] in float64."""
    measured: Utility = compute(bench, rows, shown, folder, blocks=SerialBlocks())
    return measured.view().T.astype(np.float64)


@pytest.mark.parametrize(
    ("given", "name"),
    [
        ({}, "fl"),
        ({"target": TARGET}, "flmi"),
        ({"previous": PREVIOUS}, "flcg"),
        ({"target": TARGET, "previous": PREVIOUS}, "flcmi"),
    ],
)
def test_each_stage_maximises_its_function(bench, tmp_path, given, name):
    found = select(Request(POOL, 9, bench=bench, fields=ALL, **given), "delift")
    assert found.manifest["delift"]["objective"] == name
    f = objective(
        name,
        clipped(bench, tmp_path, POOL, POOL),
        target=clipped(bench, tmp_path, TARGET, POOL),
        target_rows=clipped(bench, tmp_path, POOL, TARGET),
        previous=clipped(bench, tmp_path, POOL, PREVIOUS),
    )
    chosen, gains = greedy(f, 9, 9)
    assert chosen and found.n_positive == len(chosen)
    assert found.gains is not None
    np.testing.assert_allclose(found.gains[: len(gains)], gains, atol=1e-7)
    assert found.indices[: len(chosen)] == tuple(chosen)
    assert sorted(found.indices) == list(range(9))


def test_another_objective_by_name_and_what_it_needs(bench):
    found = select(Request(POOL, 4, bench=bench, target=TARGET, fields={**ALL, "delift.objective": "fl1mi"}), "delift")
    assert found.manifest["delift"]["objective"] == "fl1mi"
    for name, option in (("fl1mi", "--target"), ("fl2mi", "--target"), ("flcg", "--previous")):
        for selector in ("delift", "delift-se"):
            with pytest.raises(UsageError, match="rows") as caught:
                select(Request(POOL, 4, bench=bench, fields={f"{selector}.objective": name}), selector)
            assert option in caught.value.remedy
    unanswered = [conversation("Why?", " ")]
    found = select(Request(POOL, 4, bench=bench, target=unanswered, fields=ALL), "delift")
    assert found.manifest["delift"]["objective"] == "fl"


def test_a_budget_in_answer_tokens_is_kept(bench):
    costs = [row.targets for row in bench.encode(POOL)]
    budget = sum(sorted(costs)[:4])
    found = select(Request(POOL, 9, bench=bench, fields=ALL, costs=costs, budget_tokens=budget), "delift")
    assert 0 < sum(costs[i] for i in found.indices) <= budget and not found.nested


def test_asking_some_rows_says_how_sure_it_is(bench, tmp_path):
    pool = some_rows(24)
    request = Request(pool, 5, bench=bench, fields={"delift.rows": 8}, folder=tmp_path)
    found = select(request, "delift").manifest["delift"]
    assert found["rows_asked"] == 8 and found["pairs"] == 8 * 24 and found["pairs_computed"] == 8 * 24
    assert 0 <= found["halves_agree"] <= 1 and found["objective_standard_error"] > 0
    again = select(request, "delift")
    assert again.manifest["delift"]["pairs_computed"] == 0 and again.cost.tokens == 0
    took = {path.name: read_took(path) for path in tmp_path.rglob("*.safetensors")}
    cpu_s = sum(one.cpu_seconds for one in took.values())
    assert len(took) == 25 == again.manifest["blocks_reused"] and cpu_s > 0
    assert cpu_s <= again.cost.cpu_seconds < cpu_s + 1.0  # what was computed before counts, and once
    whole = select(Request(pool, 5, bench=bench, fields=ALL, folder=tmp_path), "delift")
    assert "halves_agree" not in whole.manifest["delift"]
    assert whole.manifest["delift"]["pairs_computed"] == 16 * 24


def test_asking_neighbours_only_says_what_it_misses(bench, tmp_path):
    pool = some_rows(20)
    found = select(Request(pool, 5, bench=bench, fields={**ALL, "delift.neighbours": 3}, folder=tmp_path), "delift")
    told = found.manifest["delift"]
    assert 20 * 3 <= told["pairs_computed"] <= 20 * 3 + sampling.PROBED_PAIRS and told["others_probed"] > 0
    near, far = told["neighbours_mean_utility"], told["others_mean_utility"]
    assert np.isfinite([near, far]).all() and near != far


def test_embeddings_instead_of_utility(bench):
    vectors = embed(Request(POOL, 1, bench=bench), POOL, bench=bench).astype(np.float64)
    others = embed(Request(POOL, 1, bench=bench), PREVIOUS, bench=bench).astype(np.float64)
    f = objective("flcg", np.maximum(vectors @ vectors.T, 0), previous=np.maximum(vectors @ others.T, 0))
    found = select(Request(POOL, 9, bench=bench, previous=PREVIOUS), "delift-se")
    _, gains = greedy(f, 9, 9)
    assert found.gains is not None
    np.testing.assert_allclose(found.gains[: len(gains)], gains, atol=1e-5)
    assert found.manifest["delift-se"]["objective"] == "flcg"


def test_neighbours_alone_hold_what_matters_of_a_large_pool():
    vectors = np.random.default_rng(0).standard_normal((60, 5)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    whole = kernel.dense(np.maximum(vectors @ vectors.T, 0))
    sparse = nearest_kernel(vectors, 10)
    for candidate in range(60):
        rows, values = sparse.column(candidate)
        np.testing.assert_allclose(values, whole.column(candidate)[1][rows], atol=1e-6)
    assert sparse.values.size == 600
    complete = nearest_kernel(vectors, 60)
    found, expected = fl.rank(fl.fl(complete), 12), fl.rank(fl.fl(whole), 12)
    np.testing.assert_allclose(found.gains, expected.gains, atol=1e-5)


def test_sampled_rows_estimate_the_sum_without_bias():
    random = np.random.default_rng(0)
    sizes = random.gamma(1.0, size=40)
    sizes[3], sizes[7] = 30.0, 0.0
    values = sizes * random.uniform(0.5, 1.5, 40)
    estimates, errors, drawn = [], [], np.zeros(40)
    for seed in range(600):
        sample = sampling.sample_rows(sizes, 10, seed=seed)
        assert len(set(sample.rows.tolist())) == 10 and 3 in sample.rows and 7 not in sample.rows
        estimates.append(float((values[sample.rows] * sample.weights).sum()))
        errors.append(sampling.standard_error(values[sample.rows], sample.weights))
        drawn[sample.rows] += 1 / 600
    spread = np.std(estimates)
    assert abs(np.mean(estimates) - values.sum()) < 4 * spread / np.sqrt(600)
    assert np.mean(errors) > 0.8 * spread
    uniform = [sampling.sample_rows(np.ones(40), 10, seed=seed) for seed in range(100)]
    assert all(np.allclose(sample.weights, 4.0) for sample in uniform)
    whole = sampling.sample_rows(sizes, 40, seed=0)
    assert whole.rows.tolist() == list(range(40)) and (whole.weights == 1).all()
    few = sampling.sample_rows([0.0, 0.0, 5.0, 0.0], 3, seed=0)
    assert len(set(few.rows.tolist())) == 3


def test_neighbour_pairs_pass_over_the_row_itself():
    vectors = np.eye(4, dtype=np.float32)
    vectors[1] = [0.9, np.sqrt(1 - 0.81), 0, 0]
    pairs = sampling.neighbour_pairs(vectors, vectors, np.arange(4), 1)
    assert 0 in pairs[1] and 1 in pairs[0] and all(example not in rows for example, rows in enumerate(pairs))
    more = sampling.probes(pairs, 4, seed=0)
    assert all(not set(a) & set(b) for a, b in zip(pairs, more, strict=True)) and sum(map(len, more)) > 0
    assert sum(map(len, pairs)) == 4


@pytest.mark.model
def test_smollm2_equals_a_plain_loop_over_pairs(tmp_path):
    import torch

    from foretune.catalogue.models import ModelReference
    from foretune.execution.bench import Bench
    from foretune.execution.types import TaskSpec
    from foretune.fit.prepare import write_split
    from foretune.selection.utility.blocks import writer_of

    pool = [
        conversation("What is a stack in computing?", "A last-in, first-out list."),
        conversation("Define: cache", "A small fast memory that keeps copies of data used often."),
    ]
    for name in ("train", "validation", "test"):
        write_split(tmp_path / f"{name}.jsonl", pool)
    reference = ModelReference("SmolLM2-135M-Instruct", dtype="float32")
    bench = Bench(TaskSpec(str(tmp_path), "generation", reference, "loss", device="cpu"))
    for template in ("chat", "delift-ref"):
        measured = compute(bench, pool, pool, tmp_path, blocks=SerialBlocks(), template=template, self_pairs="keep")
        writer = writer_of(bench, template)
        for j, shown in enumerate(pool):
            for i, row in enumerate(pool):
                whole = writer.behind([(row, shown)])[0]
                with torch.no_grad():
                    logits = bench.network.model(input_ids=torch.as_tensor(whole.ids[None].astype(np.int64))).logits[0]
                at = np.flatnonzero(whole.target_mask)
                p = torch.softmax(logits[at - 1].double(), -1)[range(len(at)), whole.ids[at]].numpy()
                assert measured.column(j).d[i] == pytest.approx(np.sqrt(np.mean((1 - p) ** 2)), abs=1e-5)
                assert measured.column(j).l[i] == pytest.approx(np.log(p).mean(), abs=1e-4)
