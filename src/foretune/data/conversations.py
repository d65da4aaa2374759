"""Conversations as lists of turns: OpenAI's and TRL's ``role``/``content``, ShareGPT's ``from``/``value``.

Every assistant turn is trained on, except those with ``"weight": 0`` (OpenAI's mark). The last turn must be the
assistant's: a conversation that ends with a question has no answer to learn. Calls of tools (``tool_calls``, the older
``function_call``, ShareGPT's turns of that name) and their results are turns of their own kind (`foretune.data.tools`);
what an assistant reasons before it answers is kept apart from its answer (`foretune.data.reasoning`).
Parts that are not text are refused, because leaving them out would train on another conversation than the file's.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from foretune.data.columns import columns_of
from foretune.data.example import Role, Turn
from foretune.data.problems import Refused
from foretune.data.reasoning import REASONING_KEYS, reasoned
from foretune.data.strict_json import described
from foretune.data.tools import calling_turn, calls_of

ROLES: dict[str, Role] = {
    "system": "system",
    "developer": "system",
    "user": "user",
    "human": "user",
    "assistant": "assistant",
    "gpt": "assistant",
    "model": "assistant",
    "bot": "assistant",
    "chatgpt": "assistant",
    "tool": "tool",
    "function": "tool",
    "observation": "tool",
    "ipython": "tool",
}
"""Roles as data sets name them, and ours."""
CALLING = ("function_call", "tool_call")
"""Roles of ShareGPT's turns that hold nothing but calls."""

READ = {"role", "from", "content", "value", "weight", "tool_calls", "function_call"}
"""Keys of a turn that are read."""
NAMING = {"id", "name", "tool_call_id"}
"""Keys that say what the order of turns says too."""


@dataclass(frozen=True)
class Draft:
    """A converted row before the task is decided; ``label`` is still as it was in the file."""

    turns: tuple[Turn, ...]
    targets: tuple[int, ...] = ()
    label: Any = None
    tools: str = ""


def turns_of(row: Mapping[str, Any], name: str) -> list[Any]:
    """The list of turns in column ``name``. Raises `Refused` when it is missing, empty or not a list."""
    if name not in row:
        raise Refused(f"there is no {name!r}; this row has {', '.join(map(repr, columns_of([row])))}")
    value = row[name]
    if not isinstance(value, list):
        raise Refused(f"{name!r} holds {described(value)}, not a list of turns")
    if not value:
        raise Refused(f"{name!r} is an empty list")
    return value


def is_asking(turn: Any) -> bool:
    """Whether a raw turn is the user's."""
    return isinstance(turn, Mapping) and ROLES.get(str(turn.get("role", turn.get("from")))) == "user"


def unread(turns: Iterable[Any]) -> list[str]:
    """Keys with a value that turns have and nothing reads, such as a refusal, in order of appearance."""
    keys = (
        key
        for turn in turns
        if isinstance(turn, Mapping)
        for key, value in turn.items()
        if value and not (key in REASONING_KEYS and isinstance(value, str | list))
    )
    return [key for key in dict.fromkeys(keys) if key not in READ | NAMING]


def from_messages(messages: Sequence[Any], *, trained_from: int = 0) -> Draft:
    """Turns and targets of a conversation; assistant turns before ``trained_from`` belong to the prompt.

    Raises `Refused` naming the turn (from 1) that cannot be used.
    """
    turns: list[Turn] = []
    targets: list[int] = []
    for number, message in enumerate(messages, 1):
        try:
            turn = _turn(message)
        except Refused as refused:
            raise Refused(f"turn {number}: {refused.what}") from None
        if turn.role == "assistant":
            if not any(earlier.role == "user" for earlier in turns):
                raise Refused(f"turn {number}: the assistant speaks before any user turn")
            if number > trained_from and message.get("weight") != 0:
                targets.append(number - 1)
        if turn.role == "tool" and (not turns or turns[-1].role not in ("assistant", "tool")):
            raise Refused(f"turn {number}: the result of a call that nobody made")
        turns.append(turn)
    if not turns:
        raise Refused("the conversation is empty")
    if turns[-1].role != "assistant":
        raise Refused(f"the last turn is the {turns[-1].role}'s: there is no answer to it")
    if not targets:
        raise Refused("no assistant turn is to be trained on (all have weight 0)")
    return Draft(tuple(turns), tuple(targets))


def _turn(message: Any) -> Turn:
    if not isinstance(message, Mapping):
        raise Refused(f"is {described(message)}, not an object with role and content")
    turn = _said(message)
    given = (message.get(key) for key in REASONING_KEYS)
    thought = next((value for value in given if value and isinstance(value, str | list)), None)
    if thought is None or turn.role != "assistant":
        return reasoned(turn)
    return replace(turn, reasoning=_content(thought).strip())


def role_of(message: Any) -> Role | None:
    """Whose turn it is; None for what is no turn, and for roles that are none of ours."""
    name = message.get("role", message.get("from")) if isinstance(message, Mapping) else None
    return ROLES.get(name.strip().lower()) if isinstance(name, str) else None


def _said(message: Mapping[str, Any]) -> Turn:
    name = message.get("role", message.get("from"))
    if name is None:
        raise Refused("has no role")
    said = message["content"] if "content" in message else message.get("value")
    if isinstance(name, str) and name.strip().lower() in CALLING:
        return calling_turn("", calls_of(said))
    role = role_of(message)
    if role is None:
        raise Refused(f"role {name!r} is not supported (system, user, assistant and tool are)")
    calls = message.get("tool_calls") or message.get("function_call")
    if calls:
        if role != "assistant":
            raise Refused(f"the {role} calls a tool")
        return calling_turn(_content(said), calls_of(calls))
    if role == "tool":
        return Turn(role, _result(said))
    content = _content(said)
    if role != "system" and not content.strip():
        raise Refused(f"the {role}'s turn is empty")
    return Turn(role, content)


def _result(value: Any) -> str:
    """What a tool gave back: text, or the JSON text of what is none."""
    parts = isinstance(value, list) and all(isinstance(part, Mapping) and "type" in part for part in value)
    return (
        _content(value) if value is None or isinstance(value, str) or parts else json.dumps(value, ensure_ascii=False)
    )


def _content(value: Any) -> str:
    """Text, or the text parts of OpenAI's list of parts."""
    if isinstance(value, str):
        return value
    if isinstance(value, list):
        parts = []
        for part in value:
            if not isinstance(part, Mapping) or part.get("type") != "text" or not isinstance(part.get("text"), str):
                kind = part.get("type") if isinstance(part, Mapping) else described(part)
                raise Refused(f"a part of type {kind!r} is not supported (text is)")
            parts.append(part["text"])
        return "".join(parts)
    if value is None:
        return ""
    raise Refused(f"the content is {described(value)}, not text")
