"""JSON as its standard (RFC 8259) has it, for rows: what Python's reader lets through is refused with its column.

Refused beside syntax errors: a key given twice (the first value would vanish), NaN and Infinity, numbers beyond a
double, lone surrogates (they cannot be written back as UTF-8) and nesting deeper than the interpreter follows.
"""

from __future__ import annotations

import json
import math
import re
from typing import Any

from foretune.data.problems import Refused

_LONE_SURROGATE = re.compile("[\ud800-\udfff]")


class Reader:
    """Decodes JSON values out of a text and notes what the standard forbids."""

    def __init__(self) -> None:
        self._flaws: list[tuple[str, str | None]] = []
        self._decoder = json.JSONDecoder(
            object_pairs_hook=self._object, parse_constant=self._constant, parse_float=self._number
        )

    def value_at(self, text: str, start: int) -> tuple[Any, int, Refused | None]:
        """The value that begins at ``start``, its end, and the flaw that makes it unusable (None when it is fine).

        Raises `Refused` with a column counted over the whole ``text`` where no value can be decoded at all.
        """
        self._flaws.clear()
        try:
            value, end = self._decoder.raw_decode(text, start)
        except json.JSONDecodeError as error:
            raise Refused(f"not JSON: {_plain(error.msg)}", error.pos + 1) from None
        except RecursionError:
            raise Refused("nested too deeply to be a row") from None
        except ValueError:  # the interpreter's limit on digits of a whole number
            raise Refused("a number has too many digits") from None
        return value, end, self._flaw(text, start, end)

    def row(self, text: str) -> dict[str, Any]:
        """The one object that ``text`` is. Raises `Refused`."""
        start = len(text) - len(text.lstrip(" \t\r\n"))
        value, end, flaw = self.value_at(text, start)
        rest = text[end:].lstrip(" \t\r\n")
        if rest:
            hint = " (do lines end with CR alone?)" if "\r" in text[end:] else ""
            raise Refused(f"not JSON: something follows the value{hint}", len(text) - len(rest) + 1)
        if flaw is not None:
            raise flaw
        return as_object(value)

    def _flaw(self, text: str, start: int, end: int) -> Refused | None:
        if self._flaws:
            what, needle = self._flaws[0]
            return Refused(what, _only_place(needle, text, start, end))
        if "\\u" in text or not text.isascii():
            match = _escaped_lone_surrogate(text, start, end)
            if match is not None:
                return Refused("a lone surrogate or a byte that is not UTF-8", match + 1)
        return None

    def _object(self, pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        value = dict(pairs)
        if len(value) != len(pairs):
            names = [name for name, _ in pairs]
            twice = next(name for position, name in enumerate(names) if name in names[:position])
            self._flaws.append((f"the key {twice!r} is given twice", rf"(?<!\\){re.escape(json.dumps(twice))}\s*:"))
        return value

    def _constant(self, name: str) -> float:
        self._flaws.append((f"{name} is not a JSON number", rf"{re.escape(name)}\b"))
        return math.nan

    def _number(self, text: str) -> float:
        value = float(text)
        if not math.isfinite(value):
            self._flaws.append((f"the number {text[:20]} is too large", re.escape(text)))
        return value


def as_object(value: Any) -> dict[str, Any]:
    """``value`` if it is an object with fields; raises `Refused`."""
    if not isinstance(value, dict):
        raise Refused(f"a row must be an object with named fields, not {described(value)}")
    if not value:
        raise Refused("the row is empty")
    return value


def described(value: Any) -> str:
    """The kind of a JSON value in words: "a list", "text", "nothing"."""
    if value is None:
        return "nothing (null)"
    if isinstance(value, bool):
        return "true or false"
    kinds = {str: "text", int: "a number", float: "a number", list: "a list", dict: "an object", bytes: "bytes"}
    return kinds.get(type(value), type(value).__name__)


def _plain(message: str) -> str:
    return message[:1].lower() + message[1:]


def _only_place(pattern: str | None, text: str, start: int, end: int) -> int | None:
    """The column of the last match, unless a match inside a string could be meant as well (then None)."""
    if pattern is None:
        return None
    places = [match.start() for match in re.finditer(pattern, text[start:end])]
    twice = pattern.endswith(":")  # a repeated key is there twice, everything else once
    return start + places[-1] + 1 if len(places) == (2 if twice else 1) else None


_ESCAPE = re.compile(r"\\(?:u([0-9a-fA-F]{4})|.)", re.DOTALL)


def _escaped_lone_surrogate(text: str, start: int, end: int) -> int | None:
    """Where a surrogate stands without its partner, raw or escaped, or None."""
    raw = _LONE_SURROGATE.search(text, start, end)
    if raw is not None:
        return raw.start()
    high: re.Match[str] | None = None
    for match in _ESCAPE.finditer(text, start, end):
        code = int(match.group(1), 16) if match.group(1) else 0
        if high is not None:
            if 0xDC00 <= code <= 0xDFFF and match.start() == high.end():
                high = None
                continue
            return high.start()
        if 0xD800 <= code <= 0xDBFF:
            high = match
        elif 0xDC00 <= code <= 0xDFFF:
            return match.start()
    return None if high is None else high.start()
