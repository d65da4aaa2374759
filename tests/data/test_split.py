"""Splits: nothing crosses, nothing is lost, what was given wins, and what the sizes can show."""

from __future__ import annotations

import json
import random
from collections import Counter
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from foretune.data.deduplicate import clusters
from foretune.data.example import Example, Turn, conversation
from foretune.data.power import Z_POWER_80, detectable_difference, detectable_effect, in_words, rows_needed
from foretune.data.split import SPLITS, folds, split
from foretune.errors import DataError, UsageError

WORDS = ["amber", "birch", "cedar", "delta", "ember", "fjord", "grove", "heath", "inlet", "jetty", "knoll", "ledge"]


def rows_of(count: int, *, seed: int = 0, labels: list[str] | None = None) -> list[Example]:
    draw = random.Random(seed)
    texts = [f"{n:04d} " + " ".join(draw.choices(WORDS, k=12)) for n in range(count)]
    if labels:
        return [Example((Turn("user", text),), label=labels[n % len(labels)]) for n, text in enumerate(texts)]
    return [conversation(text, " ".join(draw.choices(WORDS, k=8))) for text in texts]


def ids(rows: Any) -> list[str]:
    return sorted(row.id for row in rows)


@st.composite
def data(draw: st.DrawFn) -> list[Example]:
    """Rows with repetitions, groups and given splits."""
    base = rows_of(draw(st.integers(10, 40)), seed=draw(st.integers(0, 5)))
    extra = draw(st.lists(st.sampled_from(base), max_size=20))
    groups = draw(st.sampled_from([None, 4, 12]))
    given_splits = draw(st.sampled_from([(None,), ("train", "test"), ("train", "validation", "test"), (None, "test")]))
    rows = []
    for row in base + extra:
        group = None if groups is None else f"g{draw(st.integers(0, groups))}"
        rows.append(replace(row, group=group, split=draw(st.sampled_from(given_splits))))
    return rows


@settings(max_examples=120, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(rows=data(), seed=st.integers(0, 1000))
def test_nothing_crosses_nothing_is_lost(rows: list[Example], seed: int) -> None:
    try:
        splits = split(rows, seed=seed)
    except DataError:
        assume(False)
    kept = [row for name in SPLITS for row in splits.of(name)]
    removed = [row for row, _ in splits.report.removed]
    assert ids(kept + removed) == ids(rows)
    assert len(splits.validation) > 0 and len(splits.train) > 0
    cluster = clusters(kept)
    homes: dict[tuple[str, Any], set[str]] = {}
    for row, number in zip(kept, cluster, strict=True):
        homes.setdefault(("cluster", int(number)), set()).add(str(row.split))
        if row.group is not None:
            homes.setdefault(("group", row.group), set()).add(str(row.split))
    assert all(len(names) == 1 for names in homes.values())
    for row in rows:  # test rows are never removed
        if row.split == "test":
            assert row.id in ids(splits.test)
    again = split(rows, seed=seed)
    assert all(splits.of(name) == again.of(name) for name in SPLITS)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(rows=data(), order=st.randoms(use_true_random=False))
def test_the_order_of_the_rows_does_not_matter(rows: list[Example], order: random.Random) -> None:
    rows = [replace(row, split=None) for row in rows]
    shuffled = list(rows)
    order.shuffle(shuffled)
    try:
        first = split(rows, seed=3)
    except DataError:  # groups may join everything into one
        with pytest.raises(DataError):
            split(shuffled, seed=3)
        return
    second = split(shuffled, seed=3)
    assert all(ids(first.of(name)) == ids(second.of(name)) for name in SPLITS)


def test_seeds_differ_and_order_is_kept() -> None:
    rows = rows_of(100)
    first, second = split(rows, seed=1), split(rows, seed=2)
    assert ids(first.test) != ids(second.test)
    positions = [rows.index(replace(row, split=None)) for row in first.train]
    assert positions == sorted(positions)


@pytest.mark.parametrize(("count", "validation", "test"), [(10, 2, 2), (50, 10, 10), (100, 10, 10), (400, 40, 40)])
def test_sizes(count: int, validation: int, test: int) -> None:
    splits = split(rows_of(count))
    assert (len(splits.validation), len(splits.test)) == (validation, test)


def test_caps_and_shares() -> None:
    rows = rows_of(300)
    splits = split(rows, validation_share=0.3, test_share=0.0, most_rows=50)
    assert (len(splits.train), len(splits.validation), splits.test) == (250, 50, ())
    assert any("at most 50" in note for note in splits.report.notes)
    for shares in ({"validation_share": 0.0}, {"test_share": -0.1}, {"validation_share": 0.7}):
        with pytest.raises(UsageError, match="cannot be"):
            split(rows, **shares)


def test_too_few_rows_and_rows_that_cannot_be_separated() -> None:
    with pytest.raises(DataError, match="only 9 rows; at least 10"):
        split(rows_of(9))
    with pytest.raises(DataError, match="cannot be split"):
        split(rows_of(1) * 20)
    with pytest.raises(DataError, match="cannot be split"):
        split([replace(row, group="one") for row in rows_of(20)])
    with pytest.raises(DataError, match="no rows are left to train on"):
        split([replace(row, split="test") for row in rows_of(20)])


def test_given_splits_win_and_leaks_are_removed() -> None:
    rows = rows_of(60)
    test = [replace(row, split="test") for row in rows[:10]]
    validation = [replace(row, split="validation") for row in rows[10:20]]
    leaked_validation = replace(rows[0], split="validation")
    leaked_train = [replace(rows[1], split="train"), replace(rows[12], split="train")]
    train = [replace(row, split="train") for row in rows[20:]]
    splits = split([*train, *leaked_train, *validation, leaked_validation, *test])
    assert ids(splits.test) == ids(test) and ids(splits.validation) == ids(validation)
    assert ids(splits.train) == ids(train)
    assert dict(splits.report.leaks) == {"train in test": 1, "train in validation": 1, "validation in test": 1}
    assert ids(row for row, _ in splits.report.removed) == ids([*leaked_train, leaked_validation])
    assert splits.report.origin == {"train": "given", "validation": "given", "test": "given"}
    kept = split([*train, *leaked_train, *validation, leaked_validation, *test], remove_leaks=False)
    assert len(kept.train) == 42 and any("too good" in note for note in kept.report.notes)


def test_validation_is_taken_from_training_when_only_test_is_given() -> None:
    rows = rows_of(110)
    splits = split(rows[:100], given={"test": rows[98:]})
    assert ids(splits.test) == ids(rows[98:])
    assert (len(splits.train), len(splits.validation)) == (88, 10)
    assert splits.report.leaks == {"train in test": 2}
    assert splits.report.origin["validation"] == "taken from training"
    with pytest.raises(UsageError, match="'train'"):
        split(rows, given={"train": rows})


def test_groups_leak_too() -> None:
    rows = [replace(row, group=f"g{n % 10}") for n, row in enumerate(rows_of(40))]
    rows = [replace(row, split="test" if n < 3 else "train") for n, row in enumerate(rows)]
    splits = split(rows)
    assert {row.group for row in splits.test} == {"g0", "g1", "g2"}
    assert not {row.group for row in splits.train} & {"g0", "g1", "g2"}
    assert all(leak.because == "the same group" for _, leak in splits.report.removed)


def test_labels_are_balanced_and_rare_ones_stay_in_training() -> None:
    rows = rows_of(400, labels=["a"] * 15 + ["b"] * 5) + rows_of(1, seed=9, labels=["once"])
    splits = split(rows)
    for name in ("validation", "test"):
        assert Counter(row.label for row in splits.of(name)) == {"a": 30, "b": 10}
    assert Counter(row.label for row in splits.train)["once"] == 1
    assert splits.report.unseen == {}
    assert splits.report.imbalance == 240


@pytest.mark.parametrize("seed", range(8))
def test_a_rare_label_in_a_group_of_others_stays_in_training(seed: int) -> None:
    """It would be measured and never learnt: a head for labels could not even name it."""
    rows = [replace(row, group=f"g{n // 4}") for n, row in enumerate(rows_of(200, labels=["yes", "no"]))]
    rows[76] = replace(rows[76], label="never")
    splits = split(rows, seed=seed)
    assert min(len(splits.test), len(splits.validation)) >= 16, "a group of four may have gone back"
    assert "never" in {row.label for row in splits.train}


def test_regression_is_balanced_over_the_range() -> None:
    rows = [Example(row.turns, label=float(n)) for n, row in enumerate(rows_of(200))]
    numbers = [row.label for row in split(rows).validation]
    assert [sum(low <= float(str(v)) < low + 40 for v in numbers) for low in range(0, 200, 40)] == [4, 4, 4, 4, 4]


def test_unseen_labels_imbalance_and_conflicts_are_said() -> None:
    rows = [replace(row, split="train") for row in rows_of(44, labels=["a"] * 10 + ["b"])]
    rows += [replace(row, split="test") for row in rows_of(5, seed=7, labels=["c"])]
    rows.append(replace(rows[0], label="b"))
    splits = split(rows)
    notes = " ".join(splits.report.notes)
    assert splits.report.unseen == {"test": ("c",)} and "'c'" in notes
    assert "contradicting labels" in notes and len(splits.report.conflicts) == 1
    single = split(rows_of(30, labels=["a"]))
    assert any("nothing to learn" in note for note in single.report.notes)
    json.dumps(splits.report.to_json(), allow_nan=False)


@pytest.mark.parametrize("k", [2, 5])
def test_folds(k: int) -> None:
    rows = rows_of(60, labels=["a", "a", "b"])
    rows = [replace(row, group=f"g{n % 20}") for n, row in enumerate(rows)] + rows[:5]
    held_out = folds(rows, k, seed=1)
    assert sorted(row for fold in held_out for row in fold) == list(range(65))
    assert max(map(len, held_out)) - min(map(len, held_out)) <= 4
    cluster = clusters(rows)
    for key in (lambda row: rows[row].group, lambda row: int(cluster[row])):
        homes: dict[Any, set[int]] = {}
        for number, fold in enumerate(held_out):
            for row in fold:
                if key(row) is not None:
                    homes.setdefault(key(row), set()).add(number)
        assert all(len(numbers) == 1 for numbers in homes.values())
    assert folds(rows, k, seed=1) == held_out
    with pytest.raises(DataError, match="fewer than the"):
        folds(rows_of(3), 5)
    with pytest.raises(UsageError):
        folds(rows, 1)


# ---------------------------------------------------------------- what a number of rows can show


def test_rows_needed_equals_the_published_formula() -> None:
    # Connor's formula by hand: discordance 0.1, difference 0.05:
    # (1.959964 * 0.316228 + 0.841621 * sqrt(0.1 - 0.0025))^2 / 0.0025 = (0.619795 + 0.262796)^2 / 0.0025 = 311.6
    assert rows_needed(0.05, 0.1) == 312
    # all disagreement one way: (0.619795 + 0.841621 * 0.3)^2 / 0.01 = 76.09
    assert rows_needed(0.1, 0.1) == 77


@pytest.mark.parametrize("rows", [20, 80, 240, 1000])
def test_detectable_difference_inverts_rows_needed(rows: int) -> None:
    difference = detectable_difference(rows)
    assert difference is not None
    assert rows_needed(difference) <= rows < rows_needed(difference * 0.99)


def test_the_power_is_what_is_promised() -> None:
    difference, discordance = 0.03, 0.3  # enough disagreeing rows for the normal approximation
    rows = rows_needed(difference, discordance)
    draw = np.random.default_rng(0)
    wins, losses = (discordance + difference) / 2, (discordance - difference) / 2
    counts = draw.multinomial(rows, [wins, losses, 1 - discordance], size=20_000)
    z = (counts[:, 0] - counts[:, 1]) / np.sqrt(counts[:, 0] + counts[:, 1])  # McNemar
    assert abs(float((np.abs(z) > 1.959964).mean()) - 0.8) < 0.02


def test_in_words() -> None:
    assert in_words(80, "validation", counted=True) == (
        "80 validation rows detect a difference of 9.8 points; 248 more would detect 4.9."
    )
    assert "0.28 standard deviations" in in_words(100, "test", counted=False)
    assert "no difference" in in_words(1, "test", counted=True)
    assert detectable_effect(1) is None and detectable_difference(3) is None
    assert pytest.approx(0.8416, abs=1e-4) == Z_POWER_80


def test_answers_to_one_question_stay_together_and_an_instruction_does_not() -> None:
    questions = [conversation(row.prompt, f"{row.answer} {n}") for row in rows_of(40) for n in range(4)]
    parts = split(questions)
    asked = {name: {row.prompt for row in parts.of(name)} for name in SPLITS}
    assert not asked["test"] & asked["train"] and not asked["validation"] & asked["train"]
    assert not any("ask what a training row asks" in note for note in parts.report.notes)
    poems = [conversation("Write a poem.", row.answer) for row in rows_of(60)]
    parts = split(poems)
    assert len(parts.test) == 10 and any("10 of 10 test rows ask what" in note for note in parts.report.notes)
    few = split([conversation(f"Write about {n % 2}.", row.answer) for n, row in enumerate(rows_of(20))])
    assert [len(few.of(name)) for name in SPLITS] == [12, 4, 4], "two prompts are no reason to refuse twenty rows"
