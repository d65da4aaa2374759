"""Prompts of a file: named, found, or what stands before the answers of rows as training reads them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from foretune.data.example import Turn
from foretune.data.prompts import read_prompts
from foretune.data.read import read
from foretune.errors import DataError
from tests import tiny

U, S, A = (lambda text, role=role: Turn(role, text) for role in ("user", "system", "assistant"))
CHAT = [{"role": "system", "content": "s"}, {"role": "user", "content": "q"}, {"role": "assistant", "content": "a"},
        {"role": "user", "content": "r"}, {"role": "assistant", "content": "b"}]  # fmt: skip

CASES: dict[str, tuple[dict[str, Any], dict[str, Any], tuple[Turn, ...]]] = {
    "a prompt alone": ({"prompt": "q"}, {}, (U("q"),)),
    "a prompt, whatever else there is": ({"Prompt": "q", "text": "t", "label": 1}, {}, (U("q"),)),
    "questions with answers": ({"question": "q", "answer": "a"}, {}, (U("q"),)),
    "questions without": ({"Question": "q", "id": 3}, {}, (U("q"),)),
    "an instruction with its input": ({"instruction": "do", "input": "it", "output": "a"}, {}, (U("do\n\nit"),)),
    "conversations up to the last answer": ({"messages": CHAT}, {}, (S("s"), U("q"), A("a"), U("r"))),
    "a text": ({"text": "t"}, {}, (U("t"),)),
    "a labelled text": ({"text": "t", "label": "x"}, {}, (U("t"),)),
    "a labelled pair": ({"premise": "t", "hypothesis": "u", "label": "x"}, {}, (U("t"), U("u"))),
    "a pair without labels": ({"premise": "t", "hypothesis": "u"}, {}, (U("t"), U("u"))),
    "a named second text": ({"text": "t", "b": "u", "label": "x"}, {"pair": "b"}, (U("t"), U("u"))),
    "a named second text without labels": ({"text": "t", "b": "u"}, {"pair": "b"}, (U("t"), U("u"))),
    "a conversation that waits": ({"messages": CHAT[:4]}, {}, (S("s"), U("q"), A("a"), U("r"))),
    "a shared one that waits": ({"conversations": [{"from": "human", "value": "q"}]}, {}, (U("q"),)),
    "a labelled text without its label": ({"text": "t", "label": None}, {}, (U("t"),)),
    "several labels to come": ({"text": "t", "labels": []}, {"prompt": "text"}, (U("t"),)),
    "an instruction without its answer": ({"instruction": "do", "output": ""}, {}, (U("do"),)),
    "a question without its answer": ({"question": "q", "answer": ""}, {}, (U("q"),)),
    "named columns": ({"a": "t", "b": "u", "prompt": "no"}, {"prompt": "a", "pair": "b"}, (U("t"), U("u"))),
}


@pytest.mark.parametrize("name", CASES)
def test_prompts_are_found(tmp_path: Path, name: str) -> None:
    row, named, turns = CASES[name]
    found = read_prompts(tiny.write_rows(tmp_path / "rows.jsonl", [row, row]), **named)
    assert [example.turns for example in found] == [turns, turns]
    assert all(not example.targets and example.label is None for example in found)


def test_tasks_go_along_and_lines_of_a_text_file_are_prompts(tmp_path: Path) -> None:
    rows = [{"question": "q", "answer": "a", "kind": "one"}, {"question": "r", "answer": "b", "kind": "two"}]
    found = read_prompts(tiny.write_rows(tmp_path / "rows.jsonl", rows), task="kind")
    assert [(example.prompt, example.task) for example in found] == [("q", "one"), ("r", "two")]
    (tmp_path / "rows.txt").write_text("one\ntwo\n")
    assert [example.turns for example in read_prompts(tmp_path / "rows.txt")] == [(U("one"),), (U("two"),)]


def test_what_cannot_be_a_prompt_is_said(tmp_path: Path) -> None:
    path = tiny.write_rows(tmp_path / "rows.jsonl", [{"foo": "1", "bar": "2"}])
    with pytest.raises(DataError, match="no column of prompts is found; the columns are: foo, bar"):
        read_prompts(path)
    with pytest.raises(DataError, match="no column 'baz'"):
        read_prompts(path, prompt="baz")


def test_multiple_choice_is_asked_with_its_choices(tmp_path: Path) -> None:
    row = {"prompt": "Which?", "choices": ["red", "blue"], "kind": "art"}
    asked = "Which?\n\nA. red\nB. blue\n\nAnswer with A or B."
    for given in (row, {**row, "answer": 1}, {**row, "answer": None}):
        found = read_prompts(tiny.write_rows(tmp_path / "rows.jsonl", [given, given]), task="kind")
        assert [example.prompt for example in found] == [asked] * 2
        assert {example.task for example in found} == {"art"} and not any(example.targets for example in found)


def test_multiple_choice_with_a_passage_is_asked_as_training_asks_it(tmp_path: Path) -> None:
    row = {"Article": "The sky.", "Question": "Which?", "Options": {"a": "red", "b": "blue"}, "Answer": "b"}
    answered = read(tiny.write_rows(tmp_path / "answered.jsonl", [row, row])).examples
    bare = [{name: value for name, value in row.items() if name != "Answer"}] * 2
    unanswered = read_prompts(tiny.write_rows(tmp_path / "bare.jsonl", bare))
    assert [example.prompt for example in unanswered] == [example.prompt for example in answered]
    assert "The sky.\n\nWhich?" in unanswered[0].prompt and answered[0].answer == "b"


def test_rows_may_be_answered_in_part(tmp_path: Path) -> None:
    choices = {"question": "Which?", "choices": ["red", "blue"]}
    for rows in (
        [{"question": "q", "answer": "a"}, {"question": "q", "answer": None}],
        [{"text": "t", "label": 1}, {"text": "t", "label": None}],
        [{**choices, "answer": 1}, {**choices, "answer": None}],
        [{**choices, "answer": "B"}, {**choices, "answer": None}],
        [{"prompt": CHAT[1:2], "completion": "a"}, {"prompt": CHAT[1:2], "completion": None}],
        [{"messages": CHAT[1:3]}, {"messages": CHAT[1:2]}],
    ):
        one, other = read_prompts(tiny.write_rows(tmp_path / "rows.jsonl", rows))
        assert one.turns == other.turns and not one.targets


def test_blank_lines_of_a_text_file_separate_no_prompts(tmp_path: Path) -> None:
    (tmp_path / "rows.txt").write_text("A?\nB?\n\nC?\nD?\n\nE?\n")
    assert [row.prompt for row in read_prompts(tmp_path / "rows.txt")] == ["A?", "B?", "C?", "D?", "E?"]
    (tmp_path / "rows.txt").write_bytes(b"A?\n\xff?\n")
    with pytest.raises(DataError, match=r"rows\.txt:2: byte 0xff"):
        read_prompts(tmp_path / "rows.txt")
