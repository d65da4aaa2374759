"""Duplicates: what is one, what is not, and that the fast way finds what the slow way finds."""

from __future__ import annotations

import random
import unicodedata

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from foretune.data.deduplicate import NEAR, clusters, find
from foretune.data.example import Example, Turn, conversation, normalised
from foretune.data.minhash import BINS, SHINGLE, Shingles, signatures

WORDS = [
    f"{a}{b}{c}" for a in ("ka", "lo", "mi", "su") for b in ("ren", "tol", "bax", "pim") for c in ("", "dra", "ne")
]


def sentence(draw: random.Random, words: int) -> str:
    return " ".join(draw.choices(WORDS, k=words))


def labelled(text: str, label: str | float) -> Example:
    return Example((Turn("user", text),), label=label)


def test_exact_duplicates_ignore_case_and_white_space() -> None:
    rows = [conversation("What is  it?", "A dog"), conversation("x", "y"), conversation("what is it?\n", "a DOG")]
    found = find(rows)
    assert found.cluster.tolist() == [0, 1, 0]
    assert (found.exact, found.near) == (1, 0)


def test_near_duplicates_need_prompt_and_answer_alike() -> None:
    draw = random.Random(1)
    prompt, answer, other = sentence(draw, 30), sentence(draw, 30), sentence(draw, 30)
    rows = [
        conversation(prompt, answer),
        conversation(prompt + " extra", answer),
        conversation(prompt, other),
        conversation(other, answer),
        conversation(prompt, answer + " extra"),
    ]
    assert clusters(rows).tolist() == [0, 0, 1, 2, 0]
    assert clusters(rows, near=None).tolist() == [0, 1, 2, 3, 4]


def test_one_question_template_is_not_one_cluster() -> None:
    draw = random.Random(2)
    template = "Below is an instruction that describes a task. Answer in one word. Which family has the word {}?"
    names = sorted({sentence(draw, 2) for _ in range(400)})
    rows = [conversation(template.format(name), draw.choice(["one", "two"])) for name in names]
    assert len(set(clusters(rows).tolist())) >= 0.95 * len(rows)


def test_a_frequent_word_still_makes_a_difference() -> None:
    # every slot has few values, so each value is as frequent as the template around it
    places = ["harbour", "library", "station"]
    draw = random.Random(7)
    names = sorted({sentence(draw, 4) for _ in range(60)})
    rows = [labelled(f"please say whether {name} was seen at the {p}", "yes") for name in names for p in places]
    assert len(set(clusters(rows).tolist())) == len(rows)
    again = [labelled(f"Please say whether {name} was  seen at the {places[0]}!", "yes") for name in names[:9]]
    assert find(rows + again).near == 9


def test_changed_numbers_are_another_question() -> None:
    text = "Lily has {} apples in her basket and gives two of them to her brother Tom, how many are left?"
    rows = [conversation(text.format(n), "enough to share with everybody") for n in (11, 12, 13)]
    assert len(set(clusters(rows).tolist())) == 3


def test_labelled_rows() -> None:
    draw = random.Random(3)
    text = sentence(draw, 30)
    rows = [labelled(text, "a"), labelled(text + " extra", "a"), labelled(text + " more", "b"), labelled(text, "b")]
    found = find(rows)
    assert found.cluster[0] == found.cluster[1] != found.cluster[2]
    assert found.cluster[2] == found.cluster[3]
    (conflict,) = found.conflicts
    assert conflict.rows == (0, 3) and set(conflict.labels) == {"a", "b"} and conflict.text == normalised(text)


def test_plain_text_is_compared_once() -> None:
    draw = random.Random(4)
    text = sentence(draw, 40)
    rows = [Example((Turn("text", t),), targets=(0,)) for t in (text, text + " end", sentence(draw, 40))]
    assert clusters(rows).tolist() == [0, 0, 1]


def brute_force(rows: list[Example], near: float) -> list[int]:
    """Pair by pair, with Python sets of character 5-grams (no templates among these rows)."""

    def grams(text: str) -> set[str]:
        padded = normalised(text).ljust(SHINGLE, "\0")
        return {padded[i : i + SHINGLE] for i in range(len(padded) - SHINGLE + 1)}

    def similarity(a: str, b: str) -> float:
        first, second = grams(a), grams(b)
        return len(first & second) / len(first | second)

    cluster = list(range(len(rows)))
    for i in range(len(rows)):
        for j in range(i):
            if (
                similarity(rows[i].prompt, rows[j].prompt) >= near
                and similarity(rows[i].answer, rows[j].answer) >= near
            ):
                old, new = cluster[i], cluster[j]
                cluster = [new if c == old else c for c in cluster]
    numbers: dict[int, int] = {}
    return [numbers.setdefault(c, len(numbers)) for c in cluster]


def mixed_rows(seed: int, count: int) -> list[Example]:
    """Rows of which many are small edits of earlier ones, on one side or both."""
    draw = random.Random(seed)
    rows = [conversation(sentence(draw, 25), sentence(draw, 12))]
    while len(rows) < count:
        base = draw.choice(rows)
        prompt, answer = (
            text if draw.random() < 0.3 else _edited(draw, text) if draw.random() < 0.7 else sentence(draw, 20)
            for text in (base.prompt, base.answer)
        )
        rows.append(conversation(prompt, answer))
    return rows


def _edited(draw: random.Random, text: str) -> str:
    words = text.split()
    words[draw.randrange(len(words))] = draw.choice(WORDS)
    return " ".join(words)


@pytest.mark.parametrize("seed", range(4))
def test_the_fast_way_finds_what_every_pair_finds(seed: int) -> None:
    rows = mixed_rows(seed, 49)  # below the number from which templates are looked for
    assert clusters(rows).tolist() == brute_force(rows, NEAR)


@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(seed=st.integers(0, 10**6), order=st.randoms(use_true_random=False))
def test_clusters_do_not_depend_on_the_order(seed: int, order: random.Random) -> None:
    rows = mixed_rows(seed, 30)
    places = list(range(len(rows)))
    order.shuffle(places)
    straight, shuffled = clusters(rows), clusters([rows[i] for i in places])
    together = {(i, j) for i in places for j in places if straight[i] == straight[j]}
    assert together == {
        (places[i], places[j]) for i in range(len(rows)) for j in range(len(rows)) if shuffled[i] == shuffled[j]
    }


def test_signatures_estimate_the_similarity() -> None:
    draw = random.Random(5)
    texts = []
    for share in (0.1, 0.3, 0.6):
        common, words = sentence(draw, 60), 60
        texts += [common, " ".join([*common.split()[: int(share * words)], sentence(draw, words)])]
    shingles = Shingles(texts, seed=0)
    signature = signatures(shingles, len(texts))
    for i in range(0, len(texts), 2):
        true = shingles.likeness(shingles.of(i), shingles.of(i + 1))
        estimate = float((signature[i] == signature[i + 1]).mean())
        assert abs(estimate - true) < 4 * np.sqrt(0.25 / BINS)


@pytest.mark.parametrize("texts", [["", ""], ["a", "b"], ["", "x" * 30_000], ["\u4f60\u597d", "\U0001f600"]])
def test_short_empty_and_long_texts(texts: list[str]) -> None:
    rows = [conversation("same question for all of them", text) for text in texts]
    assert len(set(clusters(rows).tolist())) == len(set(texts))
    assert clusters([]).tolist() == []
    assert clusters(rows[:1]).tolist() == [0]


def test_accents_in_one_piece_or_two_are_the_same() -> None:
    text = "Vi\u1ec7t Nam l\u00e0 m\u1ed9t n\u01b0\u1edbc \u1edf \u0110\u00f4ng Nam \u00c1"
    found = find([conversation(unicodedata.normalize(form, text), "a") for form in ("NFC", "NFD")])
    assert found.exact == 1
