"""Reasoning before an answer, as data sets hold it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from foretune.data.deduplicate import clusters
from foretune.data.example import Example, Turn, conversation
from foretune.data.read import ReadResult, read
from foretune.data.reasoning import AS_TEXT, Reasoning, apart, reasoned_answer, reasoning_as_text, without_reasoning
from foretune.data.write import as_row
from foretune.errors import DataError
from tests.tiny import write_rows

QUESTION = {"role": "user", "content": "How many legs have two cats?"}
THOUGHT = "A cat has four."
ROW = Example((Turn("user", QUESTION["content"]), Turn("assistant", "Eight.", reasoning=THOUGHT)), targets=(1,))
TEXT = f"<think>\n{THOUGHT}\n</think>\n\nEight."


def reading(folder: Path, *rows: Any) -> ReadResult:
    return read(write_rows(folder / "rows.jsonl", rows))


@pytest.mark.parametrize(
    "row",
    [
        {"messages": [QUESTION, {"role": "assistant", "content": "Eight.", "reasoning_content": f" {THOUGHT}\n"}]},
        {"messages": [QUESTION, {"role": "assistant", "content": "Eight.", "reasoning": THOUGHT, "thinking": None}]},
        {"messages": [QUESTION, {"role": "assistant", "content": "Eight.", "thinking": THOUGHT}]},
        {"messages": [QUESTION, {"role": "assistant", "content": TEXT}]},
        {"messages": [QUESTION, {"role": "assistant", "content": f"<think>{THOUGHT}</think>Eight."}]},
        {"conversations": [{"from": "human", "value": QUESTION["content"]}, {"from": "gpt", "value": TEXT}]},
        {"prompt": QUESTION["content"], "completion": TEXT},
        {"prompt": [QUESTION], "completion": [{"role": "assistant", "content": TEXT}]},
    ],
)
def test_every_usual_way_of_writing_it_gives_the_same_row(tmp_path: Path, row: Any) -> None:
    result = reading(tmp_path, row)
    assert result.examples == (ROW,) and result.examples[0].answer == "Eight."
    assert not any("keys of turns" in note for note in result.notes)


def test_it_is_part_of_the_row_and_survives_its_files(tmp_path: Path) -> None:
    assert Example.from_json(json.loads(json.dumps(ROW.to_json()))) == ROW
    assert reading(tmp_path, as_row(ROW)).examples == (ROW,)
    bare = without_reasoning(ROW)
    assert bare == conversation(QUESTION["content"], "Eight.") and bare.id != ROW.id
    assert ROW.reasons and not bare.reasons and not Example(ROW.turns).reasons
    assert reasoned_answer(ROW) == TEXT == reasoning_as_text(ROW).answer and reasoned_answer(bare) == "Eight."
    assert without_reasoning(bare) is bare and reasoning_as_text(bare) is bare


def test_two_ways_to_one_answer_are_no_duplicates() -> None:
    other = Example((ROW.turns[0], Turn("assistant", "Eight.", reasoning="Two, four, six, eight.")), targets=(1,))
    assert clusters([ROW, other, ROW], near=None).tolist() == [0, 1, 0]


@pytest.mark.parametrize(
    "content",
    ["Eight.", "<think>four each", "<think></think>Eight.", "<think>four each</think>", "So <think>four</think> eight"],
)
def test_a_content_that_does_not_begin_with_marked_reasoning_stays_as_it_is(tmp_path: Path, content: str) -> None:
    assert apart(content) == ("", content)
    (row,) = reading(tmp_path, {"messages": [QUESTION, {"role": "assistant", "content": content}]}).examples
    assert row.answer == content and not row.reasons


def test_marks_in_a_question_are_text(tmp_path: Path) -> None:
    asked = {"role": "user", "content": "<think>hard</think> How many?", "reasoning_content": "not the user's"}
    (row,) = reading(tmp_path, {"messages": [asked, {"role": "assistant", "content": "Eight."}]}).examples
    assert row.turns[0] == Turn("user", asked["content"])


def test_reasoning_without_an_answer_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="turn 2: the assistant's turn is empty"):
        reading(tmp_path, {"messages": [QUESTION, {"role": "assistant", "content": "", "reasoning": "hm"}]})


def test_a_mark_under_its_key_is_no_reasoning(tmp_path: Path) -> None:
    result = reading(tmp_path, {"messages": [QUESTION, {"role": "assistant", "content": "Eight.", "thinking": True}]})
    assert not result.examples[0].reasons and "keys of turns that are not used: thinking." in result.notes


def test_what_a_model_writes_is_cut_behind_its_reasoning() -> None:
    assert AS_TEXT.answer_in(TEXT).strip() == "Eight." and AS_TEXT.answer_in("Eight.") == "Eight."
    assert AS_TEXT.answer_in("<think>\nfour and") == "", "reasoning without an end is no answer"
    opened = Reasoning("reasoning_content", {}, "", "\n</think>\n\n")
    assert (
        opened.answer_in(f"{THOUGHT}\n</think>\n\nEight.").strip() == "Eight."
        and opened.answer_in("Eight.") == "Eight."
    )


def test_calls_may_be_reasoned_about(tmp_path: Path) -> None:
    call = {"function": {"name": "count", "arguments": {"of": "legs"}}}
    said = {"role": "assistant", "content": None, "reasoning_content": THOUGHT, "tool_calls": [call]}
    (row,) = reading(tmp_path, {"messages": [QUESTION, said]}).examples
    assert row.turns[1].calls and row.turns[1].reasoning == THOUGHT and row.answer.startswith("<tool_call>")
    assert Example.from_json(row.to_json()) == row


def test_as_text_only_what_is_said_since_the_last_question_keeps_its_reasoning() -> None:
    call = Turn("assistant", "calling", reasoning="I need a tool.")
    turns = (*ROW.turns, Turn("user", "And three?"), call, Turn("tool", "12"), Turn("assistant", "Twelve."))
    told = reasoning_as_text(Example(turns, targets=(1, 3, 5)))
    assert told.turns[1] == Turn("assistant", "Eight.") and told.targets == (3, 5), "an earlier answer is not trained"
    assert told.turns[3].content == "<think>\nI need a tool.\n</think>\n\ncalling" and told.turns[5] == turns[5]
    assert reasoning_as_text(told) is told
