"""What every selector promises, on pools of all shapes; a new line in the registry is covered without new test code."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from foretune.catalogue.selection import Keep, kept_rows
from foretune.catalogue.selectors import SELECTORS as DECLARED
from foretune.data.example import conversation
from foretune.errors import DataError, UsageError
from foretune.selection.base import Request, SelectionStopped
from foretune.selection.registry import SELECTORS
from foretune.selection.run import select

from .conftest import rows

SMALL = {
    "less.warmup_epochs": 2, "less.width": 64, "less.rank": 2, "less.warmup_share": 0.5, "igf.probes": 4,
    "igf.objective": 3, "diverse-evol.rounds": 2, "active-learning.rounds": 2, "deft-ucs.clusters": 3,
}  # fmt: skip
"""Settings that keep the heavy ones light."""
RANKING = [name for name, declared in DECLARED.items() if declared.moment != "during"]
TARGET = [conversation("What colour is the boat?", "green like coin"), conversation("What is red?", "the lamp")]
POOL = rows(24)


@pytest.fixture(scope="module")
def bench(make_bench):
    return make_bench(POOL)


def ask(bench, examples, count, **more):
    fields = {key: value for key, value in SMALL.items()}
    return Request(examples, count, bench=bench, target=TARGET, fields=fields, **more)


@pytest.mark.parametrize("name", RANKING)
def test_unique_rows_in_range_and_as_many_as_wanted(bench, name):
    found = select(ask(bench, POOL, 7), name)
    assert len(found.indices) == 7
    assert len(set(found.indices)) == 7 and all(0 <= i < len(POOL) for i in found.indices)
    assert found.scores is None or (len(found.scores) == 7 and not np.isnan(found.scores).any())
    assert found.method == name and found.manifest["rows"] == len(POOL)


@pytest.mark.parametrize("name", RANKING)
def test_the_same_seed_gives_the_same_rows(bench, name):
    assert select(ask(bench, POOL, 6, seed=3), name).indices == select(ask(bench, POOL, 6, seed=3), name).indices


@pytest.mark.parametrize("name", RANKING)
def test_another_seed_takes_other_rows_only_where_that_is_said(bench, name):
    found = {select(ask(bench, POOL, 6, seed=seed), name).indices for seed in (3, 4, 5)}
    assert len(found) == 1 or DECLARED[name].follows_seed


@pytest.mark.parametrize("name", RANKING)
def test_nested_rankings_begin_alike(bench, name):
    if not DECLARED[name].nested:
        pytest.skip("says that it is not nested")
    large = select(ask(bench, POOL, 24), name)
    assert large.prefix(6).indices == select(ask(bench, POOL, 6), name).indices


@pytest.mark.parametrize("name", RANKING)
@pytest.mark.parametrize("pool", ["one row", "duplicates", "empty answers"])
def test_degenerate_pools(bench, name, pool):
    same = conversation("What colour is the stone?", "blue")
    examples = {
        "one row": [same],
        "duplicates": [same] * 5,
        "empty answers": [same, conversation("Why?", ""), conversation("Who?", "  "), POOL[1], POOL[2]],
    }[pool]
    found = select(ask(bench, examples, 3), name)
    usable = 1 if pool == "one row" else 5 if pool == "duplicates" else 3
    assert len(found.indices) == min(3, usable)
    assert found.manifest["without_answer"] == len(examples) - usable
    assert all(examples[i].answer.strip() for i in found.indices)


@pytest.mark.parametrize("name", RANKING)
@pytest.mark.parametrize(("keep", "kept"), [(Keep("rows", 0), 0), (Keep("rows", 5), 5), (Keep("rows", 50), 5)])
def test_budgets_of_none_all_and_more(bench, name, keep, kept):
    assert len(select(ask(bench, POOL[:5], 0), name, keep).indices) == kept


@pytest.mark.parametrize("name", list(SELECTORS))
def test_an_estimate_comes_before_work(bench, name):
    selector = SELECTORS[name]
    calls = []
    request = ask(bench, POOL, 8, on_progress=lambda *told: calls.append(told))
    cost, more = selector.estimate(request), selector.estimate(ask(bench, POOL * 4, 32))
    assert not calls
    assert cost.seconds >= 0 and more.seconds >= cost.seconds and more.tokens >= cost.tokens
    if DECLARED[name].needs_model and DECLARED[name].moment == "before":
        assert cost.tokens > 0


@pytest.mark.parametrize("name", list(SELECTORS))
def test_declared_as_registered(name):
    selector, declared = SELECTORS[name], DECLARED[name]
    assert selector.name == name == declared.name
    assert selector.space().names() == declared.space.names()
    assert all(parameter.startswith(f"{name}.") for parameter in declared.space.names())
    assert all(parameter.about for parameter in declared.space.parameters)
    assert declared.about and declared.cost and declared.source


def test_every_declaration_is_registered():
    assert set(SELECTORS) == set(DECLARED)


@pytest.mark.parametrize("name", [name for name in RANKING if DECLARED[name].needs_model])
def test_a_selector_that_scores_says_what_it_misses(bench, name):
    with pytest.raises(UsageError, match="model"):
        select(dataclasses.replace(ask(bench, POOL, 3), bench=None), name)


@pytest.mark.parametrize("name", [name for name in RANKING if DECLARED[name].needs_target])
def test_a_selector_for_a_target_asks_for_one(bench, name):
    with pytest.raises(UsageError, match="--target"):
        select(dataclasses.replace(ask(bench, POOL, 3), target=()), name)


@pytest.mark.parametrize("name", [name for name in RANKING if DECLARED[name].needs_model])
def test_a_stop_is_obeyed(bench, name):
    with pytest.raises(SelectionStopped):
        select(ask(bench, POOL, 3, stopped=lambda: True), name)


def test_no_rows_are_refused(bench):
    with pytest.raises(DataError, match="no rows"):
        select(ask(bench, [], 3), "random")


def test_kept_rows_are_at_least_one():
    assert kept_rows({"selection": "random", "keep": 0.01}, 3) == 1
