"""One exact greedy for six functions: against definitions, against submodlib, and the traps that peers fall into."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest
import scipy.sparse

from foretune.errors import DataError, UsageError
from foretune.selection.blocks import SerialBlocks
from foretune.selection.greedy import facility_location as fl
from foretune.selection.greedy import kernel, partition
from tests.selection.oracle import greedy, objective

FUNCTIONS = ("fl", "flcg", "flmi", "fl1mi", "fl2mi", "flcmi")


def parts_of(seed: int, rows: int = 12, candidates: int = 12, steps: int = 0) -> dict[str, np.ndarray]:
    """A random asymmetric kernel with its previous and target similarities, each in float32.

    With ``steps`` (a power of two) all values are multiples of 1/steps: their sums are exact and ties are real ones.
    """
    random = np.random.default_rng(seed)
    shapes = {"s": (rows, candidates), "previous": (rows, 3), "target_rows": (rows, 2), "target": (4, candidates)}
    made = {name: random.random(shape, dtype=np.float32) for name, shape in shapes.items()}
    made["previous"] *= 0.6
    if steps:
        made = {name: np.round(value * steps) / steps for name, value in made.items()}
    return made


def problem_of(name: str, parts: dict[str, np.ndarray], make=kernel.dense) -> fl.Problem:
    """The named function over ``parts``."""
    if name == "fl2mi":
        return fl.fl2mi(make(parts["target"]), eta=0.75)
    given = make(parts["s"])
    return {
        "fl": lambda: fl.fl(given),
        "flcg": lambda: fl.flcg(given, parts["previous"], nu=0.875),
        "flmi": lambda: fl.flmi(given, parts["target"], eta=0.75),
        "fl1mi": lambda: fl.fl1mi(given, parts["target_rows"], eta=0.75),
        "flcmi": lambda: fl.flcmi(given, parts["previous"], parts["target_rows"], nu=0.875, eta=0.9375),
    }[name]()


def defined(name: str, parts: dict[str, np.ndarray]):
    """F as `oracle` writes it down, with the same strengths as `problem_of`."""
    s = {key: value.astype(np.float64) for key, value in parts.items()}
    return objective(
        name, s["s"], previous=s["previous"], target_rows=s["target_rows"], target=s["target"],
        nu=0.875, eta=0.9375 if name == "flcmi" else 0.75,
    )  # fmt: skip


@pytest.mark.parametrize("name", FUNCTIONS)
@pytest.mark.parametrize("make", [kernel.dense, scipy.sparse.csr_array], ids=["dense", "sparse"])
def test_chosen_and_gains_are_those_of_the_definition(name, make):
    build = kernel.dense if make is kernel.dense else lambda s: kernel.sparse(make(s))
    for seed in range(10):
        parts = parts_of(seed, steps=32)
        if make is not kernel.dense:  # something to be absent
            parts["s"][parts["s"] < 0.4] = 0
            parts["target"][parts["target"] < 0.4] = 0
        f = defined(name, parts)
        chosen, gains = greedy(f, 12, 7)
        ranking = fl.rank(problem_of(name, parts, build), 7)
        assert ranking.indices[: len(chosen)].tolist() == chosen
        np.testing.assert_allclose(ranking.gains[: len(gains)], gains, atol=1e-9)
        assert ranking.n_positive == len(chosen)
        assert ranking.objective == pytest.approx(f(chosen), abs=1e-9)
        assert fl.evaluate(problem_of(name, parts, build), chosen) == pytest.approx(f(chosen), abs=1e-9)


@pytest.mark.parametrize("name", [name for name in FUNCTIONS if name != "flmi"])
def test_equal_to_submodlib_on_200_asymmetric_kernels(name, capfd):
    functions = pytest.importorskip("submodlib")
    for seed in range(200):
        parts = parts_of(seed)
        ours = fl.rank(problem_of(name, parts), 6)
        theirs = _submodlib(functions, name, parts).maximize(
            budget=6, optimizer="NaiveGreedy", stopIfZeroGain=False, stopIfNegativeGain=False, verbose=False
        )
        positive = [(j, gain) for j, gain in theirs if gain > 1e-6]
        assert ours.n_positive >= len(positive)
        np.testing.assert_allclose(ours.gains[: len(positive)], [gain for _, gain in positive], atol=2e-6)
        total = sum(gain for _, gain in positive)
        assert abs(ours.gains[: len(positive)].sum() - total) <= 1e-6 * max(1.0, total)
        # where caps make several candidates equal, rounding picks one of them there: it has to be worth the same
        assert fl.evaluate(problem_of(name, parts), [j for j, _ in positive]) == pytest.approx(total, abs=2e-6)
        if not name.endswith("1mi") and name != "flcmi":
            assert ours.indices[: len(positive)].tolist() == [j for j, _ in positive]


def _submodlib(functions, name: str, parts: dict[str, np.ndarray]):
    n = parts["s"].shape[1]
    if name == "fl":
        return functions.FacilityLocationFunction(n=n, mode="dense", sijs=parts["s"], separate_rep=False)
    if name == "flcg":
        return functions.FacilityLocationConditionalGainFunction(
            n=n, num_privates=3, data_sijs=parts["s"], private_sijs=parts["previous"], privacyHardness=0.875
        )
    if name == "fl1mi":
        return functions.FacilityLocationMutualInformationFunction(
            n=n, num_queries=2, data_sijs=parts["s"], query_sijs=parts["target_rows"], magnificationEta=0.75
        )
    if name == "fl2mi":
        transposed = np.ascontiguousarray(parts["target"].T)
        return functions.FacilityLocationVariantMutualInformationFunction(
            n=n, num_queries=4, query_sijs=transposed, queryDiversityEta=0.75
        )
    return functions.FacilityLocationConditionalMutualInformationFunction(
        n=n, num_queries=2, num_privates=3, data_sijs=parts["s"], query_sijs=parts["target_rows"],
        private_sijs=parts["previous"], magnificationEta=0.9375, privacyHardness=0.875,
    )  # fmt: skip


@pytest.mark.parametrize("name", FUNCTIONS)
def test_gains_shrink_within_a_round_and_prefixes_are_nested(name):
    for seed in range(5):
        problem = problem_of(name, parts_of(seed, rows=15, candidates=30))
        whole = fl.rank(problem, 30)
        assert sorted(whole.indices.tolist()) == list(range(30)) and whole.nested
        for number in range(whole.rounds.max() + 1):
            gains = whole.gains[whole.rounds == number]
            assert (np.diff(gains) <= 1e-12).all() and (gains > 0).all()
        for count in (0, 1, 7, 29):
            assert fl.rank(problem, count).indices.tolist() == whole.indices[:count].tolist()


def test_greedy_reaches_its_bound_and_the_best_pair_is_no_better_than_it_may_be():
    for seed in range(20):
        problem = problem_of("flcmi", parts_of(seed, rows=9, candidates=9))
        best = max(fl.evaluate(problem, chosen) for chosen in combinations(range(9), 3))
        found = fl.rank(problem, 3)
        assert (1 - 1 / np.e) * best <= fl.evaluate(problem, found.indices) <= best + 1e-12


def test_equal_columns_go_by_index_and_row_weights_count():
    s = np.array([[1.0, 1.0, 0.0], [0.0, 0.0, 0.5]])
    assert fl.rank(fl.fl(kernel.dense(s)), 3).indices.tolist() == [0, 2, 1]
    assert fl.rank(fl.fl(kernel.dense(s), weight=[1.0, 4.0]), 3).indices.tolist() == [2, 0, 1]


def test_covered_rows_are_uncovered_for_further_rounds():
    s = np.array([[0.9, 0.8, 0.1, 0.0, -1.0, 0.0], [0.2, 0.7, 0.6, 0.0, 0.0, -0.5]])
    ranking = fl.rank(fl.fl(kernel.dense(s)), 6)
    # round 0: 1 gains 1.5, then 0 gains 0.1; round 1: 2 gains 0.7; 3, 5 and 4 gain nothing, by row sum
    assert ranking.indices.tolist() == [1, 0, 2, 3, 5, 4]
    np.testing.assert_allclose(ranking.gains, [1.5, 0.1, 0.7, 0, 0, 0])
    assert ranking.rounds.tolist() == [0, 0, 1, -1, -1, -1]
    assert ranking.n_positive == 2 and ranking.objective == pytest.approx(1.6)


def test_identical_rows_each_take_a_round():
    ranking = fl.rank(fl.fl(kernel.dense(np.ones((3, 4)))), 4)
    assert ranking.indices.tolist() == [0, 1, 2, 3] and ranking.rounds.tolist() == [0, 1, 2, 3]
    assert ranking.n_positive == 1


def test_a_bonus_never_runs_out_and_never_restarts():
    ranking = fl.rank(fl.flmi(kernel.dense(np.ones((3, 4))), np.array([[0.1, 0.3, 0.0, 0.2]])), 4)
    assert ranking.indices.tolist() == [1, 3, 0, 2] and ranking.rounds.tolist() == [0, 0, 0, -1]
    np.testing.assert_allclose(ranking.gains, [3.3, 0.2, 0.1, 0.0])


def test_answer_token_budgets_are_kept_and_both_greedies_are_tried():
    parts = parts_of(3, rows=20, candidates=40)
    problem = problem_of("fl", parts)
    costs = np.random.default_rng(5).integers(5, 200, 40)
    for budget in (0, 4, 100, 1000, 10**6):
        ranking = fl.rank_by_cost(problem, costs, budget)
        assert costs[ranking.indices].sum() <= budget and not ranking.nested
        left = np.setdiff1d(np.arange(40), ranking.indices)
        assert not len(left) or costs[left].min() > budget - costs[ranking.indices].sum()
    # one dear candidate covers everything, a cheap one is better per token: plain greedy has to win
    s = np.array([[1.0, 0.1], [1.0, 0.1]])
    assert fl.rank_by_cost(fl.fl(kernel.dense(s)), [100, 1], 100).indices.tolist() == [0]
    assert fl.rank_by_cost(fl.fl(kernel.dense(s)), [100, 1], 101).indices.tolist() == [1, 0]


def test_equal_costs_give_the_plain_ranking():
    problem = problem_of("flcg", parts_of(8, rows=20, candidates=40))
    plain, priced = fl.rank(problem, 12), fl.rank_by_cost(problem, np.full(40, 7), 12 * 7)
    assert priced.indices.tolist() == plain.indices.tolist()
    np.testing.assert_array_equal(priced.gains, plain.gains)


# What peers get wrong.


def test_memory_order_does_not_transpose():
    s = parts_of(1)["s"]
    expected = fl.rank(fl.fl(kernel.dense(s)), 12).indices.tolist()
    assert fl.rank(fl.fl(kernel.dense(np.asfortranarray(s))), 12).indices.tolist() == expected
    assert fl.rank(fl.fl(kernel.dense(s[::-1][::-1])), 12).indices.tolist() == expected
    assert fl.rank(fl.fl(kernel.columns(s.T)), 12).indices.tolist() == expected
    assert fl.rank(fl.fl(kernel.dense(s.T)), 12).indices.tolist() != expected


def test_a_sparse_kernel_is_not_symmetrised():
    s = np.array([[0.0, 0.9, 0.8], [0.0, 0.0, 0.0], [0.0, 0.0, 0.0]])
    for layout in (scipy.sparse.csr_array, scipy.sparse.csc_array, scipy.sparse.coo_array, scipy.sparse.csr_matrix):
        ranking = fl.rank(fl.fl(kernel.sparse(layout(s))), 3)
        assert ranking.indices.tolist() == [1, 2, 0]
        np.testing.assert_allclose(ranking.gains, [0.9, 0.8, 0.0])


def test_repeated_sparse_entries_are_added_and_unsorted_ones_understood():
    repeated = scipy.sparse.coo_array(([0.2, 0.3, 0.4], ([1, 1, 0], [0, 0, 1])), shape=(2, 2))
    np.testing.assert_allclose(fl.rank(fl.fl(kernel.sparse(repeated)), 2).gains, [0.5, 0.4])
    unsorted = scipy.sparse.csc_array((np.array([0.1, 0.6]), np.array([1, 0]), np.array([0, 2])), shape=(2, 1))
    assert kernel.sparse(unsorted).column(0)[0].tolist() == [0, 1]


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_nan_and_infinity_are_refused_with_their_place(value):
    s = np.ones((5000, 3), np.float32)
    s[4321, 2] = value
    with pytest.raises(DataError, match=r"row 4321, candidate 2"):
        kernel.dense(s)
    with pytest.raises(DataError, match=r"row 4321, candidate 2"):
        kernel.sparse(scipy.sparse.csr_array(s))
    good = kernel.dense(np.ones((4, 3)))
    with pytest.raises(DataError, match=r"previous.*\[1, 0\]"):
        fl.flcg(good, np.array([[0.1], [value], [0.2], [0.3]]))


@pytest.mark.parametrize("name", FUNCTIONS)
def test_none_all_and_too_many(name):
    problem = problem_of(name, parts_of(2))
    assert fl.rank(problem, 0).indices.tolist() == [] and fl.rank(problem, 0).objective == 0
    assert sorted(fl.rank(problem, 12).indices.tolist()) == list(range(12))
    for count in (-1, 13):
        with pytest.raises(UsageError, match="cannot be chosen"):
            fl.rank(problem, count)


def test_small_pools_have_defined_results():
    one = fl.rank(fl.fl(kernel.dense([[0.5]])), 1)
    assert (one.indices.tolist(), one.n_positive, one.objective) == ([0], 1, 0.5)
    nothing = fl.rank(fl.fl(kernel.dense(np.zeros((3, 3)))), 3)
    assert (nothing.indices.tolist(), nothing.n_positive, nothing.objective) == ([0, 1, 2], 0, 0.0)
    assert fl.rank(fl.fl(kernel.dense(np.zeros((0, 2)))), 2).indices.tolist() == [0, 1]
    assert fl.rank(fl.fl(kernel.sparse(scipy.sparse.csc_array((2, 2)))), 2).indices.tolist() == [0, 1]
    without_previous = fl.flcg(kernel.dense([[0.5]]), np.zeros((1, 0)))
    assert fl.rank(without_previous, 1).objective == 0.5


def test_what_is_no_kernel_is_refused():
    with pytest.raises(UsageError, match="two axes"):
        kernel.dense([1.0, 2.0])
    with pytest.raises(UsageError, match="real numbers"):
        kernel.dense([["a"]])
    good = kernel.dense(np.ones((4, 3)))
    with pytest.raises(UsageError, match="rows"):
        fl.flcg(good, np.ones((3, 1)))
    with pytest.raises(UsageError, match="candidates"):
        fl.flmi(good, np.ones((1, 4)))
    with pytest.raises(UsageError, match="weight"):
        fl.fl(good, weight=[1, 1, 1, -1])
    with pytest.raises(UsageError, match="cost above zero"):
        fl.rank_by_cost(fl.fl(good), [1, 0, 1], 2)


# Large pools.


def test_a_saved_problem_is_the_same_and_parts_come_close(tmp_path):
    for name, build in (("dense", kernel.dense), ("sparse", lambda s: kernel.sparse(scipy.sparse.csr_array(s)))):
        problem = problem_of("flcg", parts_of(4, rows=60, candidates=60), build)
        partition.save(problem, tmp_path / name)
        assert fl.rank(partition.load(tmp_path / name), 10).indices.tolist() == fl.rank(problem, 10).indices.tolist()
        blocks = SerialBlocks()
        parts = partition.rank_in_parts(tmp_path / name, 10, parts=4, seed=1, blocks=blocks)
        assert len(set(parts.indices.tolist())) == 10 and not parts.nested
        exact = fl.rank(problem, 10).objective
        assert 0.9 * exact <= fl.evaluate(problem, parts.indices) <= exact * 1.05
        again = partition.rank_in_parts(tmp_path / name, 10, parts=4, seed=1, blocks=blocks)
        assert again.indices.tolist() == parts.indices.tolist()
        alone = partition.rank_in_parts(tmp_path / name, 10, parts=1, seed=1, blocks=blocks)
        assert alone.indices.tolist() == fl.rank(problem, 10).indices.tolist()


def test_sampled_candidates_come_close_and_whole_samples_are_exact():
    problem = problem_of("fl", parts_of(5, rows=100, candidates=100))
    exact = fl.rank(problem, 8)
    sampled = partition.rank_by_samples(problem, 8, seed=0)
    assert sampled.objective >= 0.9 * exact.objective and sampled.computed < 8 * 100 and not sampled.nested
    assert sampled.indices.tolist() == partition.rank_by_samples(problem, 8, seed=0).indices.tolist()
    assert sampled.objective == pytest.approx(fl.evaluate(problem, sampled.indices))
    whole = partition.rank_by_samples(problem, 8, seed=0, shortfall=1e-9)
    assert whole.indices.tolist() == exact.indices.tolist()
    assert sorted(partition.rank_by_samples(problem, 100, seed=0).indices.tolist()) == list(range(100))


def test_lazy_does_far_less_than_naive():
    embeddings = np.random.default_rng(0).standard_normal((400, 8))
    embeddings /= np.linalg.norm(embeddings, axis=1, keepdims=True)
    ranking = fl.rank(fl.fl(kernel.dense(np.maximum(embeddings @ embeddings.T, 0))), 100)
    assert ranking.computed < 0.3 * 400 * 100
