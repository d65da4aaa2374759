"""The fact set that ships: regenerated from its sources, balanced, and tested in words it was not taught in."""

from __future__ import annotations

import importlib.util
import json
import sys
from collections import Counter, defaultdict
from pathlib import Path
from types import ModuleType

import pytest

SCRIPT = Path(__file__).resolve().parents[2] / "scripts" / "make_facts.py"


@pytest.fixture(scope="module")
def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("make_facts", SCRIPT)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["make_facts"] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def rows(script: ModuleType) -> list[dict[str, str]]:
    return [json.loads(line) for line in script.FACTS.read_text(encoding="utf-8").splitlines()]


def test_the_committed_file_is_what_the_script_writes(script: ModuleType) -> None:
    assert script.FACTS.read_text(encoding="utf-8") == script.facts_text()
    assert script.MORE_FACTS.read_text(encoding="utf-8") == script.facts_text(script.MORE_RELATIONS)


def test_every_fact_has_ten_training_phrasings_and_one_each_for_validation_and_test(rows: list[dict[str, str]]) -> None:
    splits: dict[str, Counter[str]] = defaultdict(Counter)
    answers: dict[str, set[str]] = defaultdict(set)
    for row in rows:
        splits[row["group"]][row["split"]] += 1
        answers[row["group"]].add(row["answer"])
    assert len(rows) >= 1500
    assert 130 <= len(splits) <= 160
    assert all(count == {"train": 10, "validation": 1, "test": 1} for count in splits.values())
    assert all(len(given) == 1 for given in answers.values())


def test_questions_are_unique_and_answers_short(rows: list[dict[str, str]]) -> None:
    assert len({row["question"] for row in rows}) == len(rows)
    assert max(len(row["answer"]) for row in rows) <= 4
    assert all(row["question"] == row["question"].strip() and row["question"][-1] in "?." for row in rows)


def test_a_test_question_shares_few_word_triples_with_the_training_questions_of_its_fact(
    rows: list[dict[str, str]],
) -> None:
    def triples(text: str) -> set[tuple[str, ...]]:
        words = text.lower().split()
        return {tuple(words[i : i + 3]) for i in range(len(words) - 2)}

    by_fact: dict[str, list[dict[str, str]]] = defaultdict(list)
    for row in rows:
        by_fact[row["group"]].append(row)
    for fact in by_fact.values():
        taught = [triples(row["question"]) for row in fact if row["split"] == "train"]
        for row in fact:
            if row["split"] != "train":
                asked = triples(row["question"])
                assert all(len(asked & other) <= 0.25 * len(asked | other) for other in taught)


@pytest.mark.parametrize(
    ("group", "answer"),
    [
        ("element-discovery-year:Ga", "1875"),  # Lecoq de Boisbaudran
        ("element-atomic-number:W", "74"),
        ("country-numeric-code:BT", "064"),  # leading zeros are part of the code
        ("country-alpha-3:CH", "CHE"),
        ("currency-code:MNT", "MNT"),
    ],
)
def test_known_facts(rows: list[dict[str, str]], group: str, answer: str) -> None:
    assert {row["answer"] for row in rows if row["group"] == group} == {answer}


def test_a_phrasing_used_twice_is_refused(script: ModuleType) -> None:
    from dataclasses import replace

    doubled = replace(script.ALPHA_CODE, test=script.ALPHA_CODE.training[0])
    with pytest.raises(ValueError, match="twelve different phrasings"):
        script.facts_text((doubled,))


def test_every_kind_of_fact_is_a_task_of_its_own(script: ModuleType, tmp_path: Path) -> None:
    from foretune.catalogue.datasets import FACT_FAMILIES
    from foretune.data.corpora import facts

    built = facts.build(tmp_path, print)
    assert set(built) == {f"facts-{family}" for family in FACT_FAMILIES}
    assert {relation.name for relation in (*script.RELATIONS, *script.MORE_RELATIONS)} == set(FACT_FAMILIES)
    for rows in built.values():
        by_split = Counter(row["split"] for row in rows)
        assert by_split["train"] == 10 * by_split["validation"] == 10 * by_split["test"] >= 300
        assert len({row["question"] for row in rows}) == len(rows)
        assert len({row["answer"] for row in rows}) >= 25, "a task of few answers tests no recall"
        assert max(len(row["answer"]) for row in rows) <= 5
