"""Calls of tools: how data sets write them, and how a conversation with calls reads as text.

An assistant's turn may call functions that the row offers (``tools``, JSON schemas); their results are turns of the
role ``tool``. In a turn's content a call is written as the chat templates of Hermes and Qwen write it,

    <tool_call>
    {"name": "get_weather", "arguments": {"city": "Bern"}}
    </tool_call>

so that whatever compares, measures or shows answers reads text. A chat template that knows tools is handed the calls
themselves and writes them its own way (`foretune.data.layout`). For all others `as_text` puts the tools into the system
turn and results into the user's turns, and training and inference see that text.

Arguments may be an object or its JSON text; keys without a value in an object (which tables of nested columns add) are
dropped, in JSON text they stay.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from foretune.data.example import Call, Example, Turn
from foretune.data.problems import Refused
from foretune.data.strict_json import Reader, described

TOOL_COLUMNS = ("tools", "functions")
"""Columns that hold the tools of a row."""
_OPEN, _CLOSE = "<tool_call>", "</tool_call>"
_BEFORE = "You can call these functions, each described by a JSON schema:"
_AFTER = f'To call one, write\n{_OPEN}\n{{"name": …, "arguments": {{…}}}}\n{_CLOSE}\nIts result follows.'


def offered(value: Any, column: str) -> str:
    """The tools in a cell, as JSON text of a list of ``{"type": "function", "function": {…}}``; empty where none.

    Raises `Refused` for anything but a list of named functions, or its JSON text.
    """
    found = _unpacked(value)
    if found in (None, "", []):
        return ""
    if not isinstance(found, list):
        raise Refused(f"{column!r} holds {described(found)}, not a list of functions")
    tools = []
    for number, item in enumerate(found, 1):
        inner = item.get("function", item) if isinstance(item, Mapping) else None
        if not isinstance(inner, Mapping) or not isinstance(inner.get("name"), str):
            raise Refused(f"{column!r}: entry {number} is no function with a name")
        tools.append({"type": "function", "function": _without_nulls(inner)})
    return _json(tools)


def tool_column(rows: Sequence[Mapping[str, Any]]) -> str | None:
    """The first usual column in which more rows offer functions than hold something else; None without one."""
    for name in TOOL_COLUMNS:
        offering = others = 0
        for row in rows:
            try:
                offering += bool(offered(row.get(name), name))
            except Refused:
                others += 1
        if offering > others:
            return name
    return None


def calls_of(value: Any) -> tuple[Call, ...]:
    """Calls as a turn holds them: one or a list of ``{"name": …, "arguments": …}``, plain or under ``function``.

    Raises `Refused` naming the call (from 1) that cannot be read.
    """
    found = _unpacked(value)
    items = found if isinstance(found, list) else [found]
    calls = []
    for number, item in enumerate(items, 1):
        inner = item.get("function", item) if isinstance(item, Mapping) else None
        name = inner.get("name") if isinstance(inner, Mapping) else None
        if not isinstance(inner, Mapping) or not isinstance(name, str) or not name.strip():
            raise Refused(f"call {number} has no function with a name")
        calls.append(Call(name, _arguments(inner.get("arguments", inner.get("parameters")), number)))
    return tuple(calls)


def looks_like_calls(value: Any) -> bool:
    """Whether a cell holds nothing but calls: objects with a name and arguments, or their JSON text."""
    found = _unpacked(value)
    items = found if isinstance(found, list) else [found]
    return bool(items) and all(isinstance(item, Mapping) and {"name", "arguments"} <= set(item) for item in items)


def calling_turn(said: str, calls: Sequence[Call]) -> Turn:
    """The assistant's turn that says ``said`` and then calls."""
    return Turn("assistant", f"{said}\n{_block(calls)}" if said else _block(calls), tuple(calls))


def said_before(turn: Turn) -> str:
    """What a turn says before its calls."""
    return turn.content.removesuffix(_block(turn.calls)).removesuffix("\n") if turn.calls else turn.content


def messages(turns: Sequence[Turn]) -> list[dict[str, Any]]:
    """Turns as a chat template that knows tools takes them: calls apart from what is said, results with their call."""
    found: list[dict[str, Any]] = []
    waiting: list[dict[str, Any]] = []
    made = 0
    for turn in turns:
        message: dict[str, Any] = {"role": turn.role, "content": said_before(turn)}
        if turn.calls:
            waiting = [
                {"id": f"call{made + n:05d}", "type": "function",  # nine characters, as Mistral's template wants them
                 "function": {"name": call.name, "arguments": json.loads(call.arguments)}}
                for n, call in enumerate(turn.calls)
            ]  # fmt: skip
            made += len(turn.calls)
            message["tool_calls"] = list(waiting)
        elif turn.role == "tool" and waiting:
            call = waiting.pop(0)
            message |= {"name": call["function"]["name"], "tool_call_id": call["id"]}
        found.append(message)
    return found


def parts_of_calls(turn: Turn) -> list[str]:
    """What any way of writing a turn with calls has to hold: what it says, names, and keys and values of arguments."""

    def leaves(value: Any) -> list[str]:
        if isinstance(value, dict):
            return [part for key, inner in value.items() for part in (key, *leaves(inner))]
        if isinstance(value, list):
            return [part for inner in value for part in leaves(inner)]
        return [_json(value).strip('"')]

    parts = [said_before(turn)]
    for call in turn.calls:
        parts += [call.name, *leaves(json.loads(call.arguments))]
    return parts


def uses_tools(example: Example) -> bool:
    """Whether a row offers tools, calls them or holds their results."""
    return bool(example.tools) or any(turn.calls or turn.role == "tool" for turn in example.turns)


def as_text(example: Example) -> Example:
    """The row without tools, calls and results as such: all of them as text. Other rows unchanged."""
    if not uses_tools(example):
        return example
    turns: list[Turn] = []
    places: list[int] = []
    results = False
    if example.tools and example.turns[0].role != "system":
        turns.append(Turn("system", _offer(example.tools)))
    for turn in example.turns:
        content = turn.content
        if turn.role == "system" and example.tools and not turns:
            content = f"{content}\n\n{_offer(example.tools)}".strip()
        if turn.role == "tool":
            content = f"<tool_response>\n{content}\n</tool_response>"
        role = "user" if turn.role == "tool" else turn.role
        if results and role == "user":  # results of one turn's calls, and what the user adds, are one turn
            turns[-1] = Turn("user", f"{turns[-1].content}\n{content}")
        else:
            turns.append(Turn(role, content, reasoning=turn.reasoning))
        results = role == "user" and (results or turn.role == "tool")
        places.append(len(turns) - 1)
    return replace(example, turns=tuple(turns), targets=tuple(places[target] for target in example.targets), tools="")


def found_in(text: str) -> list[Call]:
    """The calls in a text, whatever marks a model's template puts around them: JSON objects with a name and arguments.

    Llama's ``parameters`` count as arguments; lists of calls are taken apart.
    """
    decoder = json.JSONDecoder()
    calls: list[Call] = []
    at = text.find("{")
    while at >= 0:
        try:
            value, end = decoder.raw_decode(text, at)
        except (ValueError, RecursionError):
            end = at + 1
        else:
            arguments = value.get("arguments", value.get("parameters"))
            if isinstance(value.get("name"), str) and isinstance(arguments, Mapping):
                calls.append(Call(value["name"], _json(arguments)))
        at = text.find("{", end)
    return calls


def _without_nulls(value: Any) -> Any:
    """A value without the keys that have none."""
    if isinstance(value, Mapping):
        return {key: _without_nulls(inner) for key, inner in value.items() if inner is not None}
    return [_without_nulls(inner) for inner in value] if isinstance(value, list) else value


def _arguments(value: Any, number: int) -> str:
    given = _unpacked(value)
    if given in (None, ""):
        return "{}"
    if not isinstance(given, Mapping):
        raise Refused(f"call {number}: its arguments are {described(given)}, not an object")
    return _json(given if isinstance(value, str) else _without_nulls(given))


def _unpacked(value: Any) -> Any:
    """The value that JSON text stands for; anything else, and JSON that a row may not be, as it is."""
    if not isinstance(value, str) or value.strip()[:1] not in ("{", "["):
        return value
    text = value.strip()
    try:
        found, end, flaw = Reader().value_at(text, 0)
    except Refused:
        return value
    return value if flaw is not None or end < len(text) else found


def _block(calls: Sequence[Call]) -> str:
    return "\n".join(
        f'{_OPEN}\n{{"name": {_json(call.name)}, "arguments": {call.arguments}}}\n{_CLOSE}' for call in calls
    )


def _offer(tools: str) -> str:
    return "\n\n".join([_BEFORE, "\n".join(_json(tool["function"]) for tool in json.loads(tools)), _AFTER])


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)
