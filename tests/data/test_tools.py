"""Tool calls as data sets write them, and how they read as text."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from foretune.data.example import Call, Example, Turn
from foretune.data.prompts import read_prompts
from foretune.data.read import ReadResult, read
from foretune.data.tools import as_text, calling_turn, found_in, messages, said_before
from foretune.errors import DataError
from foretune.evaluation.base import Answer
from foretune.evaluation.metrics import default_metric, metric
from tests.tiny import write_rows

WEATHER = {"name": "get_weather", "description": "Weather of a place.",
           "parameters": {"type": "object", "properties": {"city": {"type": "string"}}}}  # fmt: skip
BERN = '<tool_call>\n{"name": "get_weather", "arguments": {"city": "Bern"}}\n</tool_call>'


def called(city: str, **more: Any) -> dict[str, Any]:
    return {"role": "assistant", "content": None, "tool_calls": [
        {"id": "1", "type": "function", "function": {"name": "get_weather", "arguments": json.dumps({"city": city})}}
    ], **more}  # fmt: skip


CHAT = [
    {"role": "user", "content": "Is it warm in Bern?"},
    called("Bern"),
    {"role": "tool", "tool_call_id": "1", "content": '{"celsius": 21}'},
    {"role": "assistant", "content": "Yes, 21 degrees."},
]


def reading(folder: Path, *rows: Any) -> ReadResult:
    return read(write_rows(folder / "rows.jsonl", rows))


def test_openais_calls_results_and_tools_become_turns_of_their_own(tmp_path: Path) -> None:
    result = reading(tmp_path, {"messages": CHAT, "tools": [{"type": "function", "function": WEATHER}]})
    (row,) = result.examples
    assert [turn.role for turn in row.turns] == ["user", "assistant", "tool", "assistant"]
    assert row.targets == (1, 3) and row.turns[1] == Turn("assistant", BERN, (Call("get_weather", '{"city": "Bern"}'),))
    assert json.loads(row.tools) == [{"type": "function", "function": WEATHER}]
    assert any("tools = 'tools'" in note for note in result.notes)
    assert Example.from_json(json.loads(json.dumps(row.to_json()))) == row
    assert row.id != Example(row.turns, row.targets).id, "other tools are another row"


def test_every_usual_way_of_writing_them_gives_the_same_row(tmp_path: Path) -> None:
    arguments = {"city": "Bern"}
    openai = {"messages": CHAT, "tools": [WEATHER]}
    objects = [*CHAT]
    function = {"name": "get_weather", "arguments": {**arguments, "unit": None}}
    objects[1] = {"role": "assistant", "content": "", "tool_calls": [{"type": "function", "function": function}]}
    legacy = [*CHAT]
    legacy[1] = {"role": "assistant", "function_call": {"name": "get_weather", "arguments": json.dumps(arguments)}}
    legacy[2] = {"role": "function", "name": "get_weather", "content": {"celsius": 21}}
    shared = [
        {"from": "human", "value": "Is it warm in Bern?"},
        {"from": "function_call", "value": json.dumps({"name": "get_weather", "arguments": arguments})},
        {"from": "observation", "value": '{"celsius": 21}'},
        {"from": "gpt", "value": "Yes, 21 degrees."},
    ]
    rows = [openai, {"messages": objects, "tools": json.dumps([WEATHER])}, {"messages": legacy, "functions": [WEATHER]},
            {"conversations": shared, "tools": json.dumps([WEATHER])}]  # fmt: skip
    found = [reading(tmp_path, row).examples[0] for row in rows]
    assert all(row == found[0] for row in found)


def test_what_turns_hold_beside_what_is_read_is_said(tmp_path: Path) -> None:
    refused = [CHAT[0], {**CHAT[3], "refusal": "It may be cold.", "name": "bot", "audio": None}]
    notes = reading(tmp_path, {"messages": refused}).notes
    assert "keys of turns that are not used: refusal." in notes
    assert not any("not used" in note for note in reading(tmp_path, {"messages": CHAT, "tools": [WEATHER]}).notes)


def test_a_question_with_calls_as_its_answer(tmp_path: Path) -> None:
    answers = json.dumps([{"name": "get_weather", "arguments": {"city": "Bern"}}])
    (row,) = reading(tmp_path, {"query": "Is it warm?", "tools": json.dumps([WEATHER]), "answers": answers}).examples
    assert row.answer == BERN and row.turns[1].calls and row.tools
    (text,) = reading(tmp_path, {"query": "Is it warm?", "answers": answers}).examples
    assert text.answer == answers and not text.turns[1].calls, "without tools it is an answer in JSON"


def test_a_column_of_tools_that_are_no_functions_is_no_tool_column(tmp_path: Path) -> None:
    result = reading(tmp_path, {"prompt": "What hits a nail?", "completion": "This.", "tools": "hammer"})
    assert result.examples[0].tools == "" and any("not used: tools" in note for note in result.notes)


@pytest.mark.parametrize(
    ("turns", "tools", "what"),
    [
        ([CHAT[0], {"role": "assistant", "tool_calls": [{"function": {}}]}], [], "turn 2: call 1 has no function"),
        ([CHAT[0], {"role": "assistant", "tool_calls": [{"name": "f", "arguments": "[1]"}]}], [], "not an object"),
        ([CHAT[0], {"role": "tool", "content": "x"}, CHAT[3]], [], "turn 2: the result of a call that nobody made"),
        (CHAT[:3], [], "last turn is the tool's"),
        ([{"role": "user", "content": "q", "tool_calls": [{"name": "f"}]}, CHAT[3]], [], "the user calls a tool"),
        (CHAT, [{"description": "no name"}], "entry 1 is no function with a name"),
        (
            [CHAT[0], {"role": "assistant", "tool_calls": [{"name": "f", "arguments": '{"a": 1, "a": 2}'}]}],
            [],
            "call 1: its arguments are text",
        ),
    ],
)
def test_what_cannot_be_read_is_refused_with_its_turn(tmp_path: Path, turns: Any, tools: Any, what: str) -> None:
    good = {"messages": CHAT, "tools": [WEATHER]}
    with pytest.raises(DataError, match=what):
        reading(tmp_path, *[good] * 3, {"messages": turns, "tools": tools or [WEATHER]})


def test_as_text_offers_tools_in_the_system_turn_and_results_to_the_user() -> None:
    calls = (Call("get_weather", '{"city": "Bern"}'), Call("get_weather", '{"city": "Basel"}'))
    said = calling_turn("Let me look.", calls)
    assert said_before(said) == "Let me look." and found_in(said.content) == list(calls)
    turns = (Turn("user", "q"), said, Turn("tool", "21"), Turn("tool", "23"), Turn("assistant", "Both."),
             Turn("user", "more"), Turn("assistant", "No."))  # fmt: skip
    row = Example(turns, targets=(1, 4, 6), tools=json.dumps([{"type": "function", "function": WEATHER}]))
    text = as_text(row)
    assert [turn.role for turn in text.turns] == ["system", *["user", "assistant"] * 3]
    assert json.dumps(WEATHER) in text.turns[0].content and text.targets == (2, 4, 6)
    assert text.turns[3].content == ("<tool_response>\n21\n</tool_response>\n<tool_response>\n23\n</tool_response>")
    assert text.turns[2].content == said.content and not text.turns[2].calls and not text.tools
    assert as_text(text) is text and text.answer == row.answer
    own = as_text(Example((Turn("system", "Be good."), *turns), targets=(2, 5, 7), tools=row.tools))
    assert own.turns[0].content.startswith("Be good.\n\n") and own.targets == (2, 4, 6)


def test_messages_give_calls_and_results_the_same_ids() -> None:
    calls = (Call("f", "{}"), Call("g", '{"x": 1}'))
    turns = (Turn("user", "q"), calling_turn("", calls), Turn("tool", "1"), Turn("tool", "2"),
             calling_turn("and", calls[:1]), Turn("tool", "3"), Turn("assistant", "a"))  # fmt: skip
    found = messages(turns)
    ids = [call["id"] for message in found for call in message.get("tool_calls", ())]
    assert len(set(ids)) == 3 and all(len(one) == 9 and one.isalnum() for one in ids)
    assert [message["tool_call_id"] for message in found if message["role"] == "tool"] == ids
    assert [message["name"] for message in found if message["role"] == "tool"] == ["f", "g", "f"]
    assert found[1]["tool_calls"][1]["function"] == {"name": "g", "arguments": {"x": 1}}
    assert found[4]["content"] == "and" and messages(turns[:3]) == found[:3], "what comes later changes nothing before"


@pytest.mark.parametrize(
    ("prediction", "score"),
    [
        (BERN, 1.0),
        ('{"name": "get_weather", "parameters": {"city": "Bern"}}', 1.0),
        ('[TOOL_CALLS] [{"arguments": {"city": "Bern"}, "name": "get_weather"}]', 1.0),
        (f"Let me look.\n{BERN}", 1.0),
        (BERN.replace("Bern", "Basel"), 0.0),
        (f"{BERN}\n{BERN}", 0.0),
        ("It is warm in Bern {I think}.", 0.0),
    ],
)
def test_calls_are_compared_as_values_in_whatever_marks_they_stand(prediction: str, score: float) -> None:
    rows = [Answer(0, "", BERN, prediction), Answer(1, "", "Yes.", prediction)]
    assert metric("tool_calls").score(rows).per_row == (score, float(not found_in(prediction)))


def test_calls_decide_the_metric_and_prompts_keep_their_tools(tmp_path: Path) -> None:
    path = write_rows(tmp_path / "rows.jsonl", [{"messages": [CHAT[0], called("Bern")], "tools": [WEATHER]}] * 3)
    assert default_metric("generation", read(path).examples) == "tool_calls"
    words = Example((Turn("user", "q"), Turn("assistant", "a b c d e f g")), (1,))
    assert default_metric("generation", [words]) == "rouge_l"
    asked = read_prompts(path)
    assert asked[0].tools and asked[0].turns == (Turn("user", "Is it warm in Bern?"),)
