"""Settings from a YAML file, from ``--set key=value`` and from options, each value with the place it came from.

YAML is read with the safe constructor and the scalar rules of YAML 1.2's core schema: ``1e-4`` is a number, ``no``
and ``on`` are words, ``1:30`` is text. A key given twice, an unknown key and a value of the wrong kind are
`UsageError` s that name the file and line, and the nearest known key.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from foretune.config.spec import FitSpec, known_keys
from foretune.errors import Place, UsageError

ORIGINS_KEY = "origins"
"""The block that `resolve.write_resolved` adds: which values of the file nobody chose."""
_LARGEST_FILE_BYTES = 1 << 20  # a specification is short; anything else is the wrong file


@dataclass(frozen=True)
class Given:
    """A value and where it was given."""

    value: Any
    place: Place


class _Loader(yaml.SafeLoader):
    """The safe loader with YAML 1.2 scalars and without aliases, which can make a short file endless."""

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        """One node; raises `yaml.composer.ComposerError` for an alias."""
        if self.check_event(yaml.events.AliasEvent):
            mark = self.peek_event().start_mark  # type: ignore[no-untyped-call]
            raise yaml.composer.ComposerError(None, None, "aliases (*name) are not read here", mark)
        return super().compose_node(parent, index)


_Loader.yaml_implicit_resolvers = {}
for _tag, _pattern, _first in (
    ("tag:yaml.org,2002:bool", r"^(?:true|True|TRUE|false|False|FALSE)$", "tTfF"),
    ("tag:yaml.org,2002:null", r"^(?:~|null|Null|NULL|)$", ["~", "n", "N", ""]),
    ("tag:yaml.org,2002:int", r"^[-+]?[0-9]+$", "-+0123456789"),
    ("tag:yaml.org,2002:float",
     r"^(?:[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN))$",
     "-+.0123456789"),
):  # fmt: skip
    _Loader.add_implicit_resolver(_tag, re.compile(_pattern), list(_first))
# an int that matched the float pattern as well is found first, because its resolver was added first
_Loader.add_constructor("tag:yaml.org,2002:int", lambda loader, node: int(node.value))
_Loader.add_constructor("tag:yaml.org,2002:float", lambda loader, node: _number(node.value))


def _number(text: str) -> float:
    return float(text.lower().replace(".inf", "inf").replace(".nan", "nan"))


def scalar(text: str) -> Any:
    """One value by the same rules: ``"1e-4"`` → 0.0001, ``"[8, 16]"`` → a list, ``"no"`` → ``"no"``."""
    try:
        return yaml.load(text, Loader=_Loader)
    except yaml.YAMLError:
        return text


def load_file(path: Path) -> tuple[dict[str, Given], dict[str, Any] | None]:
    """The file's values by dotted key, and its ``origins`` block (None in a file written by hand).

    Raises `UsageError` with file and line for what cannot be read, keys given twice and unknown keys.
    """
    text = _text(path)
    node = _compose(text, path)
    if node is None:
        return {}, None
    given: dict[str, Given] = {}
    origins: dict[str, Any] | None = None
    for key, child in _pairs(node, path, ""):
        if key == ORIGINS_KEY:
            origins = _origins(child, path)
        else:
            given.update(_walk(child, path, key))
    _refuse_unknown(given)
    return given, origins


def load_tree(path: Path) -> tuple[dict[str, Any], dict[tuple[str, ...], Place]]:
    """The values of any of our YAML files as they are nested, and the place of every key by its path.

    The same rules as `load_file`, but which keys there may be is the caller's to check. Raises `UsageError`.
    """
    node = _compose(_text(path), path)
    places: dict[tuple[str, ...], Place] = {}

    def read(part: yaml.Node, at: tuple[str, ...]) -> Any:
        if not isinstance(part, yaml.MappingNode):
            return _plain(part)
        values = {}
        for key, child in _pairs(part, path, ""):
            places[(*at, key)] = _place(child, path)
            values[key] = read(child, (*at, key))
        return values

    return ({} if node is None else read(node, ())), places


def _text(path: Path) -> str:
    try:
        if path.stat().st_size > _LARGEST_FILE_BYTES:
            raise UsageError("this is too large for a specification.", place=Place(path), remedy="Is it your data?")
        text = path.read_text(encoding="utf-8-sig")
    except OSError as error:
        reason = error.strerror or "unreadable"
        raise UsageError(f"cannot be read: {reason}.", place=Place(path), remedy="Check the path.") from error
    except UnicodeDecodeError as error:
        raise UsageError("is not UTF-8 text.", place=Place(path), remedy="Save it as UTF-8.") from error
    return text


def _origins(node: yaml.Node, path: Path) -> dict[str, Any]:
    """The block that was written by `resolve.write_resolved`: notes by key."""
    block = _plain(node)
    if not isinstance(block, dict) or not all(isinstance(note, dict) for note in block.values()):
        raise UsageError(
            "the origins block is damaged.",
            place=_place(node, path),
            remedy="Remove it: its values then count as yours.",
        )
    return block


def _compose(text: str, path: Path) -> yaml.MappingNode | None:
    try:
        node: yaml.Node | None = yaml.compose(text, Loader=_Loader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        place = Place(path, mark.line + 1, mark.column + 1) if mark else Place(path)
        raise UsageError(f"this is not YAML: {error.problem}.", place=place, remedy="Correct this line.") from error
    except yaml.YAMLError as error:
        raise UsageError("this is not YAML text.", place=Place(path), remedy="Correct the file.") from error
    except RecursionError as error:
        raise UsageError("this is nested too deeply.", place=Place(path), remedy="Correct the file.") from error
    if node is not None and not isinstance(node, yaml.MappingNode):
        raise UsageError(
            "a specification is a list of key: value lines.", place=Place(path), remedy="See foretune fit --help."
        )
    return node


def _place(node: yaml.Node, path: Path) -> Place:
    return Place(path, node.start_mark.line + 1, node.start_mark.column + 1)


def _pairs(node: yaml.MappingNode, path: Path, prefix: str) -> Iterable[tuple[str, yaml.Node]]:
    seen: dict[str, int] = {}
    for key_node, value_node in node.value:
        name = f"{prefix}{key_node.value}"
        if not isinstance(key_node, yaml.ScalarNode):
            raise UsageError("a key must be a plain word.", place=_place(key_node, path), remedy="Correct this line.")
        if name in seen:
            raise UsageError(
                f"{name} is given twice (first on line {seen[name]}).",
                place=_place(key_node, path),
                remedy="Keep one of them.",
            )
        seen[name] = key_node.start_mark.line + 1
        yield name, value_node


def _walk(node: yaml.Node, path: Path, key: str) -> dict[str, Given]:
    if isinstance(node, yaml.MappingNode):
        result: dict[str, Given] = {}
        for name, child in _pairs(node, path, f"{key}."):
            result.update(_walk(child, path, name))
        return result
    return {key: Given(_plain(node), _place(node, path))}


def _plain(node: yaml.Node) -> Any:
    loader = _Loader("")
    try:
        return loader.construct_document(node)
    except yaml.YAMLError as error:
        raise UsageError(
            "this value is of a kind that is not read here.", remedy="Write plain text or a number."
        ) from error
    finally:
        loader.dispose()


def parse_set(assignments: Sequence[str]) -> dict[str, Given]:
    """Values of ``--set a.b=c``. Raises `UsageError` for a missing ``=``, an unknown key or one given twice."""
    given: dict[str, Given] = {}
    for assignment in assignments:
        key, equals, text = assignment.partition("=")
        key = key.strip()
        place = Place(f"--set {assignment}")
        if not equals or not key:
            raise UsageError("this is not key=value.", place=place, remedy="Write --set training.lora.rank=32.")
        if key in given:
            raise UsageError(f"{key} is set twice.", place=place, remedy="Keep one of them.")
        value = scalar(text)
        if isinstance(value, Mapping):
            raise UsageError(f"{key} = {text} is a mapping.", place=place, remedy="Set one key at a time.")
        given[key] = Given(value, place)
    _refuse_unknown(given)
    return given


def _refuse_unknown(given: Mapping[str, Given]) -> None:
    known = known_keys()
    for key, item in given.items():
        if key in known or (item.value is None and any(name.startswith(f"{key}.") for name in known)):
            continue
        raise UsageError(f"{key} is not a setting.", place=item.place, remedy=nearest(key, known))


def nearest(key: str, known: Iterable[str]) -> str:
    """ "Did you mean …?" for an unknown key: by its whole name, or by its last part wherever that occurs."""
    names = list(known)
    tail = key.rpartition(".")[2]
    same_tail = [name for name in names if name.rpartition(".")[2] == tail or name.endswith(f".{key}")]
    inside = [name for name in names if name.startswith(f"{key}.")]
    close = difflib.get_close_matches(key, names, n=1, cutoff=0.6)
    tails = {name.rpartition(".")[2]: name for name in reversed(names)}
    close_tail = difflib.get_close_matches(tail, tails, n=1, cutoff=0.7)
    if same_tail or close or close_tail:
        return f"Did you mean {(same_tail or close or [tails[close_tail[0]]])[0]}?"
    if inside:
        return f"It is a group: {', '.join(inside[:8])}."
    return f"The groups are {', '.join(dict.fromkeys(name.partition('.')[0] for name in names))}."


def tree(flat: Mapping[str, Any]) -> dict[str, Any]:
    """Dotted keys as nested mappings; everything below ``training`` stays flat there."""
    result: dict[str, Any] = {}
    for key, value in flat.items():
        head, _, rest = key.partition(".")
        if head == "training" and rest:
            result.setdefault("training", {})[rest] = value
            continue
        at = result
        *parents, last = key.split(".")
        for parent in parents:
            at = at.setdefault(parent, {})
        at[last] = value
    return result


def validated(given: Mapping[str, Given]) -> FitSpec:
    """The specification from values by dotted key. Raises `UsageError` naming the place of the first bad value."""
    present = {key: item.value for key, item in given.items() if item.value is not None}
    try:
        return FitSpec.model_validate(tree(present))
    except ValidationError as error:
        raise _explained(error, given) from error


def _explained(error: ValidationError, given: Mapping[str, Given]) -> UsageError:
    first = error.errors(include_url=False)[0]
    key = ".".join(str(part) for part in first["loc"])
    message = str(first["msg"]).removeprefix("Value error, ")
    if not key and message.startswith("training."):
        key = next((name for name in sorted(given, key=len, reverse=True) if message.startswith(name)), "training")
        message = message.removeprefix("training.")
    item = given.get(key) or next((given[name] for name in given if key and name.startswith(f"{key}.")), None)
    place = None if item is None else item.place
    if first["type"] == "extra_forbidden":
        return UsageError(f"{key} is not a setting.", place=place, remedy=nearest(key, known_keys()))
    shown = f" = {item.value!r}" if item is not None and key in given else ""
    said = message if message.endswith((".", "?")) else f"{message}."
    help_text = known_keys().get(key, "")
    return UsageError(f"{key}{shown}: {said}" if key else said, place=place, remedy=help_text)
