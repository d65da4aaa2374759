"""Write ``docs/settings.md``, the reference of every setting, from the specification that the code itself uses.

    python scripts/make_settings_reference.py            # writes docs/settings.md
    python scripts/make_settings_reference.py --check    # exits with 1 when the committed file differs

Types, defaults and descriptions are those of `foretune.config.spec` and, for ``training``, of the catalogue.
"""

from __future__ import annotations

import argparse
import sys
import types
import typing
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic.fields import FieldInfo

from foretune.catalogue.methods import config_space
from foretune.catalogue.space import Choice, Parameter, Text
from foretune.config import spec
from foretune.files import write_text
from foretune.report.text import markdown_table

PAGE = Path(__file__).resolve().parent.parent / "docs" / "settings.md"
TRAINING = "training"
QUANTITIES = tuple(
    (typing.get_args(quantity)[1], word)
    for quantity, word in (
        (spec.Seconds, "duration"),
        (spec.Bytes, "size"),
        (spec.Share, "share"),
        (spec.Money, "price"),
        (spec.Count, "count"),
    )
)
"""The parser that marks each kind of quantity, and the kind's name."""
HEADING = ("setting", "values", "default", "meaning")
HEAD = """# Settings

<!-- Written by scripts/make_settings_reference.py from the code; do not edit. -->

Every setting can be given in a YAML file (`--config FILE`) or with `--set key=value`, and many have an option of
their own (`foretune fit --help`). An option wins over `--set`, `--set` over the file, the file over what is
recommended, and that over the default. An unknown key is an error that names the nearest known one.

A run folder holds `resolved.yaml`: every setting of that run with who chose it. Given as `--config`, it runs again.

Quantities are written as people write them: durations `90s`, `30m`, `1h30m`; sizes `12GiB`, `500MB`; shares `0.5%` or
`0.005`; prices `$2`; counts `500`, `200k`. Where no default is shown, the value is found or recommended when it is
not given.
"""
TRAINING_HEAD = """The defaults are those of the default LoRA; the search varies what is not given. In YAML, both
`training: {lora: {rank: 32}}` and `training: {lora.rank: 32}` are understood."""


def page() -> str:
    """The whole page."""
    parts = [HEAD]
    plain = {}
    for name, field in spec.FitSpec.model_fields.items():
        if name == TRAINING:
            rows = map(_trial_row, config_space().parameters)
            parts.append(_section(name, f"{field.description}\n\n{TRAINING_HEAD}", rows))
        elif _is_section(field.annotation):
            parts.append(_section(name, str(field.annotation.__doc__), _rows(field.annotation, f"{name}.")))
        else:
            plain[name] = field
    parts.append(_section("Other", "", (_row(name, field) for name, field in plain.items())))
    return "\n".join(parts)


def _is_section(annotation: Any) -> bool:
    return isinstance(annotation, type) and issubclass(annotation, spec.Section)


def _rows(section: Any, prefix: str) -> Iterator[list[str]]:
    for name, field in section.model_fields.items():
        if _is_section(field.annotation):
            yield from _rows(field.annotation, f"{prefix}{name}.")
        else:
            yield _row(f"{prefix}{name}", field)


def _section(title: str, about: str, rows: Iterable[Sequence[str]]) -> str:
    table = markdown_table(HEADING, rows)
    return "\n".join([f"## {title}\n", *([about, ""] if about else []), table, ""])


def _row(key: str, field: FieldInfo) -> list[str]:
    default = "" if field.default is None or field.default_factory is not None else f"`{_shown(field.default)}`"
    return [f"`{key}`", _values(field), default, str(field.description)]


def _trial_row(parameter: Parameter) -> list[str]:
    if isinstance(parameter, Choice):
        values = ", ".join(f"`{_shown(value)}`" for value in parameter.options)
    elif isinstance(parameter, Text):
        values = "text"
    else:
        values = f"{'whole number' if parameter.whole else 'number'}, {parameter.low:g} to {parameter.high:g}"
    needs = ""
    if parameter.condition is not None:
        values_of = " or ".join(f"`{value}`" for value in parameter.condition.values)
        needs = f" Only with `{parameter.condition.parameter}` = {values_of}."
    return [f"`{TRAINING}.{parameter.name}`", values, f"`{_shown(parameter.default)}`", f"{parameter.about}{needs}"]


def _shown(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    return f"{value:g}" if isinstance(value, float) else str(value)


def _values(field: FieldInfo) -> str:
    """What may be written, in words."""
    if (quantity := _quantity(field.metadata)) is not None:
        return quantity
    annotation = field.annotation
    united = typing.get_origin(annotation) in (typing.Union, types.UnionType)
    kinds = typing.get_args(annotation) if united else (annotation,)
    return ", ".join(_kind(kind) for kind in kinds if kind is not type(None))


def _kind(annotation: Any) -> str:
    if typing.get_origin(annotation) is Literal:
        return ", ".join(f"`{value}`" for value in typing.get_args(annotation))
    if typing.get_origin(annotation) is typing.Annotated:
        plain, *metadata = typing.get_args(annotation)
        return _quantity(metadata) or _kind(plain)
    if typing.get_origin(annotation) is tuple:
        return f"list of {_kind(typing.get_args(annotation)[0])}"
    if typing.get_origin(annotation) is dict:
        return "list of values or range, for each setting"
    return {str: "text", bool: "`true`, `false`", int: "whole number", float: "number"}[annotation]


def _quantity(metadata: Iterable[Any]) -> str | None:
    """ "duration", "size", … for what is read by that quantity's own parser; None for anything else."""
    return next((word for item in metadata for quantity, word in QUANTITIES if item is quantity), None)


def main() -> int:
    """Write the page, or compare it."""
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("--check", action="store_true", help="compare, write nothing")
    text = page()
    if not parser.parse_args().check:
        write_text(PAGE, text)
        return 0
    if PAGE.is_file() and PAGE.read_text(encoding="utf-8") == text:
        return 0
    print(f"{PAGE.name} is not what the code says; run scripts/make_settings_reference.py", file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main())
