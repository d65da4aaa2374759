"""Rows back into a file: the user's own lines where they came from JSON lines, else a form that `read` reads back.

A selected file should look like the file it was selected from. Where a row has no line of its own to copy (a table,
a folder of another format), it is written as ``messages``, ``text`` and ``label`` (with ``text_pair`` for a pair), or
``text``; tools, split, task and group go along as columns of these names.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from foretune.data.example import Example, Turn
from foretune.data.tools import said_before
from foretune.files import write_text

LINES = (".jsonl", ".ndjson")
_GZIP = b"\x1f\x8b"


def write_rows(path: Path, examples: Sequence[Example]) -> None:
    """Write ``examples`` in their order, one JSON object a line. Raises `OutputError`."""
    own = _own_lines(examples)
    lines = own if own is not None else [json.dumps(as_row(row), ensure_ascii=False) for row in examples]
    write_text(path, "".join(f"{line}\n" for line in lines))


def _own_lines(examples: Sequence[Example]) -> list[str] | None:
    """The lines the rows were read from; None where some row has none."""
    files: dict[Path, list[bytes]] = {}
    lines = []
    for row in examples:
        if row.place is None or row.place.line is None or Path(row.place.path).suffix not in LINES:
            return None
        path = Path(row.place.path)
        if path not in files:
            if not path.is_file() or (held := path.read_bytes()).startswith(_GZIP):
                return None
            files[path] = held.split(b"\n")
        if not 0 < row.place.line <= len(files[path]):
            return None
        lines.append(files[path][row.place.line - 1].decode("utf-8-sig").rstrip("\r"))
    return lines


def as_row(row: Example) -> dict[str, Any]:
    """A row as a JSON object that `read` takes for the same row."""
    more = {name: value for name in ("split", "task", "group") if (value := getattr(row, name)) is not None}
    if row.label is not None:
        names = iter(("text", "text_pair"))
        said = {"system" if turn.role == "system" else next(names): turn.content for turn in row.turns}
        return {**said, "label": row.label, **more}
    if row.turns and row.turns[0].role == "text":
        return {"text": row.turns[0].content, **more}
    tools = {"tools": json.loads(row.tools)} if row.tools else {}
    messages = [_message(turn, number in row.targets) for number, turn in enumerate(row.turns)]
    return {"messages": messages, **tools, **more}


def _message(turn: Turn, trained: bool) -> dict[str, Any]:
    reasoning = {"reasoning_content": turn.reasoning} if turn.reasoning else {}
    untrained = {"weight": 0} if turn.role == "assistant" and not trained else {}
    calls = [{"type": "function", "function": vars(call)} for call in turn.calls]
    called = {"tool_calls": calls} if calls else {}
    return {"role": turn.role, "content": said_before(turn), **called, **reasoning, **untrained}
