"""Graph cut, log-determinant, k-centre and herding: against definitions, submodlib, and cases done by hand."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest
import scipy.sparse

from foretune.errors import DataError, UsageError
from foretune.selection.greedy import kernel
from foretune.selection.greedy.farthest_first import farthest_first
from foretune.selection.greedy.graph_cut import rank_by_graph_cut
from foretune.selection.greedy.kernel_herding import herd
from foretune.selection.greedy.log_determinant import rank_by_log_determinant


def _embeddings(seed: int, rows: int = 30, width: int = 6) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((rows, width))


def _similar(seed: int, rows: int = 30) -> np.ndarray:
    points = _embeddings(seed, rows)
    distances = ((points[:, None] - points[None]) ** 2).sum(-1)
    return np.exp(-distances / 8)


@pytest.mark.parametrize("build", [kernel.dense, lambda s: kernel.sparse(scipy.sparse.csr_array(s))])
def test_graph_cut_is_its_definition_on_asymmetric_kernels(build):
    for seed in range(10):
        s = np.random.default_rng(seed).random((15, 15))
        s[s < 0.3] = 0
        ranking = rank_by_graph_cut(build(s), 15, trade_off=0.4)

        def f(chosen: list[int], s: np.ndarray = s) -> float:
            return float(s[:, chosen].sum() - 0.4 * s[np.ix_(chosen, chosen)].sum())

        chosen: list[int] = []
        for index, gain in zip(ranking.indices.tolist(), ranking.gains, strict=True):
            more = {j: f([*chosen, j]) - f(chosen) for j in range(15) if j not in chosen}
            assert gain == pytest.approx(more[index]) and gain == pytest.approx(max(more.values()))
            chosen.append(index)
        assert ranking.objective == pytest.approx(f(chosen))


def test_graph_cut_equals_submodlib():
    functions = pytest.importorskip("submodlib")
    for seed in range(20):
        s = _similar(seed).astype(np.float32)
        theirs = functions.GraphCutFunction(n=30, mode="dense", lambdaVal=0.4, ggsijs=s, separate_rep=False)
        greedy = theirs.maximize(budget=10, optimizer="NaiveGreedy", verbose=False)
        ours = rank_by_graph_cut(kernel.dense(s), 10, trade_off=0.4)
        assert ours.indices.tolist() == [j for j, _ in greedy]
        np.testing.assert_allclose(ours.gains, [gain for _, gain in greedy], rtol=1e-4, atol=1e-4)


def test_log_determinant_is_its_definition_and_submodlibs():
    functions = pytest.importorskip("submodlib")
    for seed in range(20):
        scale = np.random.default_rng(seed).uniform(0.5, 1.5, 30)  # without it all first gains are equal
        s = _similar(seed) * scale[:, None] * scale
        ranking = rank_by_log_determinant(s, 8, ridge=1.0)
        chosen = ranking.indices.tolist()
        for k in range(1, 9):
            part = s[np.ix_(chosen[:k], chosen[:k])] + np.eye(k)
            assert ranking.gains[:k].sum() == pytest.approx(np.linalg.slogdet(part)[1], abs=1e-9)
        theirs = functions.LogDeterminantFunction(n=30, mode="dense", lambdaVal=1, sijs=s.astype(np.float32))
        greedy = theirs.maximize(budget=8, optimizer="NaiveGreedy", verbose=False)
        np.testing.assert_allclose(ranking.gains, [gain for _, gain in greedy], atol=1e-4)


def test_log_determinant_ends_where_the_rank_does_and_refuses_what_is_not_symmetric():
    points = _embeddings(1, rows=20, width=3)
    ranking = rank_by_log_determinant(points @ points.T, 20)
    assert (ranking.rounds >= 0).sum() == 3 and sorted(ranking.indices.tolist()) == list(range(20))
    assert ranking.indices[3:].tolist() == sorted(ranking.indices[3:].tolist())
    s = _similar(0)
    s[4, 7] += 0.1
    with pytest.raises(DataError, match=r"\[4, 7\]"):
        rank_by_log_determinant(s, 3)
    s[4, 7] = np.nan
    with pytest.raises(DataError, match=r"nan at \[4, 7\]"):
        rank_by_log_determinant(s, 3)


def test_farthest_first_by_hand():
    points = [[0.0, 0.0], [1.0, 0.0], [5.0, 0.0], [5.0, 4.0], [0.0, 3.0]]
    centres = farthest_first(points, 3, first=0)
    assert centres.indices.tolist() == [0, 3, 2]  # 3 is √41 away; then 2 is 4 from 3 and 4 is 3 from 0
    np.testing.assert_allclose(centres.distances, [np.inf, np.sqrt(41), 4])
    assert centres.radius == pytest.approx(3)
    after = farthest_first(points, 2, given=[[0.0, 0.0]])
    assert after.indices.tolist() == [3, 2]
    assert farthest_first(points, 0).indices.tolist() == [] and farthest_first(points, 5).radius == 0


def test_farthest_first_is_within_twice_the_best_radius():
    for seed in range(5):
        points = _embeddings(seed, rows=12, width=2)
        distances = np.sqrt(((points[:, None] - points[None]) ** 2).sum(-1))
        best = min(distances[:, list(chosen)].min(axis=1).max() for chosen in combinations(range(12), 3))
        found = farthest_first(points, 3)
        assert found.radius == pytest.approx(distances[:, found.indices].min(axis=1).max())
        assert found.radius <= 2 * best + 1e-12
        assert len(set(farthest_first(points[[0, 0, 0, 1]], 4).indices.tolist())) == 4


def test_herding_follows_the_mean_better_than_chance():
    points = _embeddings(3, rows=400)
    chosen = herd(points, 40)
    mean = points.mean(axis=0)
    away = np.linalg.norm(points[chosen].mean(axis=0) - mean)
    random = np.random.default_rng(0)
    chance = [np.linalg.norm(points[random.choice(400, 40, replace=False)].mean(axis=0) - mean) for _ in range(50)]
    assert away < min(chance) / 2
    assert chosen[0] == (points @ mean).argmax()
    w = 2 * mean - points[chosen[0]]
    order = np.argsort(-(points @ w))
    assert chosen[1] == next(i for i in order if i != chosen[0])
    assert sorted(herd(points[:9], 9).tolist()) == list(range(9))


@pytest.mark.parametrize("order", [herd, farthest_first])
def test_bad_embeddings_are_refused_with_their_place(order):
    points = _embeddings(0)
    points[3, 2] = np.nan
    with pytest.raises(DataError, match=r"nan at \[3, 2\]"):
        order(points, 2)
    with pytest.raises(UsageError, match="axes"):
        order([1.0, 2.0], 1)
    with pytest.raises(UsageError, match="cannot be chosen"):
        order(_embeddings(0), 31)
