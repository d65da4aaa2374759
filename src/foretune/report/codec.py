"""Frozen dataclasses to JSON and back, driven by their type hints alone (nothing is pickled).

Supported field types are the ones a record needs: str, int, float, bool, None, dataclasses, ``tuple[X, ...]``,
``Mapping[str, X]``, ``Any`` (plain JSON) and unions with None. Keys that a newer version wrote and this one does not
know are ignored; a missing or mistyped one raises `StoreError` with the path of the field. NaN and infinity are refused
on both ways.
"""

from __future__ import annotations

import dataclasses
import math
import types
from collections.abc import Mapping
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from foretune.errors import StoreError

T = TypeVar("T")


def to_json(value: Any) -> Any:
    """The plain JSON form of a dataclass, a mapping, a sequence or a scalar. Raises `ValueError` for NaN."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: to_json(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {str(key): to_json(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [to_json(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError("a record holds finite numbers only; what was not measured is None")
    if value is None or isinstance(value, str | int | float):
        return value
    raise TypeError(f"a record holds plain JSON, not {type(value).__name__}")


def from_json(kind: type[T], value: Any, path: str = "") -> T:
    """``value`` read as the dataclass ``kind``; ``path`` names the place in messages. Raises `StoreError`."""
    if not isinstance(value, Mapping):
        raise _wrong(path, "an object", value)
    hints = get_type_hints(kind)
    given: dict[str, Any] = {}
    for field in dataclasses.fields(kind):  # type: ignore[arg-type]
        place = f"{path}.{field.name}" if path else field.name
        if field.name in value:
            given[field.name] = _read(hints[field.name], value[field.name], place)
        elif field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING:
            raise StoreError(f"the field {place} is missing.")
    try:
        return kind(**given)
    except ValueError as error:
        raise StoreError(f"the field {path or kind.__name__} is damaged: {error}.") from error


def _read(hint: Any, value: Any, path: str) -> Any:
    origin = get_origin(hint)
    if hint is Any:
        return to_json(value)
    if origin in (Union, types.UnionType):
        options = get_args(hint)
        if value is None and type(None) in options:
            return None
        return _read(next(option for option in options if option is not type(None)), value, path)
    if origin is Literal:
        if value not in get_args(hint):
            raise _wrong(path, " or ".join(map(repr, get_args(hint))), value)
        return value
    if origin is tuple:
        if not isinstance(value, list | tuple):
            raise _wrong(path, "a list", value)
        return tuple(_read(get_args(hint)[0], item, f"{path}[{i}]") for i, item in enumerate(value))
    if origin is not None and issubclass(origin, Mapping):
        if not isinstance(value, Mapping):
            raise _wrong(path, "an object", value)
        return {str(key): _read(get_args(hint)[1], item, f"{path}.{key}") for key, item in value.items()}
    if dataclasses.is_dataclass(hint):
        return from_json(hint, value, path)  # type: ignore[arg-type]
    return _scalar(hint, value, path)


def _scalar(hint: Any, value: Any, path: str) -> Any:
    if hint is float and isinstance(value, int | float) and not isinstance(value, bool):
        if not math.isfinite(value):
            raise _wrong(path, "a finite number", value)
        return float(value)
    if type(value) is not hint:
        raise _wrong(path, {str: "text", int: "a whole number", bool: "true or false"}.get(hint, "a number"), value)
    return value


def _wrong(path: str, wanted: str, value: Any) -> StoreError:
    return StoreError(f"the field {path or 'at the top'} must be {wanted}, not {str(value)[:40]!r}.")
