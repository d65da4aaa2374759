"""Retrieved shots: nearest by content, never the row itself, deterministic, within their room."""

import pytest

from foretune.data.example import Example, Turn, conversation
from foretune.errors import UsageError
from foretune.evaluation.retrieval import retrieve

TRAIN = [
    conversation("What is the capital of France?", "Paris"),
    conversation("How do I boil an egg?", "Eight minutes"),
    conversation("What is the capital of Spain?", "Madrid"),
    conversation("Which river flows through Vienna?", "The Danube"),
    conversation("What is the capital of Spain?", "madrid "),
]


def answers(shots: tuple[Example, ...]) -> list[str]:
    return [shot.answer for shot in shots]


def test_the_nearest_row_stands_last() -> None:
    (shots,) = retrieve(TRAIN, [conversation("What is the capital city of Spain?", "?")], 2)
    assert answers(shots) == ["Paris", "Madrid"]  # and the repetition of Madrid is no second shot


def test_a_row_is_never_its_own_shot_nor_its_repetition() -> None:
    for query in (TRAIN[2], conversation("what is the  CAPITAL of spain?", "Madrid")):
        (shots,) = retrieve(TRAIN, [query], 5)
        assert "Madrid" not in answers(shots) and "madrid " not in answers(shots)
        assert len(shots) == 3


def test_shots_keep_within_their_room() -> None:
    query = conversation("What is the capital of Portugal?", "?")
    sizes = {"Paris": 50, "Madrid": 10, "madrid ": 10, "Eight minutes": 5, "The Danube": 5}
    (shots,) = retrieve(TRAIN, [query], 3, tokens=lambda row: sizes[row.answer], room=[21])
    assert sorted(answers(shots)) == ["Eight minutes", "Madrid", "The Danube"]
    assert retrieve(TRAIN, [query], 3, tokens=lambda row: 9, room=[8]) == [()]
    with pytest.raises(UsageError):
        retrieve(TRAIN, [query], 3, tokens=lambda row: 9)


def test_ties_go_to_the_earlier_row_whatever_the_block() -> None:
    train = [conversation(f"alpha beta {'x' * 3}", str(i)) for i in range(50)]
    queries = [conversation("alpha beta", "?") for _ in range(7)]
    shots = retrieve(train, queries, 3)
    assert all(answers(each) == ["2", "1", "0"] for each in shots)


def test_scripts_without_spaces_and_misspellings_find_their_row() -> None:
    train = [conversation("東京の天気はどうですか", "晴れ"), conversation("大阪への行き方を教えて", "電車")]
    assert answers(retrieve(train, [conversation("大阪までの行き方", "?")], 1)[0]) == ["電車"]
    assert answers(retrieve(TRAIN, [conversation("captial of Frnace", "?")], 1)[0]) == ["Paris"]


def test_empty_cases() -> None:
    query = conversation("q", "a")
    assert retrieve([], [query], 2) == [()]
    assert retrieve(TRAIN, [], 2) == []
    assert retrieve(TRAIN, [query], 0) == [()]
    marks = [Example((Turn("user", "?!"), Turn("assistant", str(i))), targets=(1,)) for i in range(3)]
    assert answers(retrieve(marks, [conversation("!!", "z")], 2)[0]) == ["1", "0"]
    with pytest.raises(UsageError):
        retrieve(TRAIN, [query], -1)
