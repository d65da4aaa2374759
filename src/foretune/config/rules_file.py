"""``priors.yaml``: measured rules written by a study and read by plan and search.

The file is YAML for people: they may delete a rule, or narrow its scope. A rule whose interval includes zero is read
and then ignored (`catalogue.rules.advise`); a key that does not exist is refused with its line.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

import yaml

from foretune.catalogue.rules import Measured, Rule, When
from foretune.config.load import load_tree, nearest
from foretune.errors import Place, UsageError
from foretune.files import write_text

FORMAT = 1
PRIORS = "priors.yaml"
HEAD = """# Rules measured by a study. `foretune plan` and `fit` read them from beside the experience store, or from the
# file named by search.priors. Inside its scope (`when`) a rule counts when its interval excludes zero; delete what
# you do not believe.
"""


def rules_text(rules: Sequence[Rule], about: Mapping[str, Any]) -> str:
    """The file's text; ``about`` says which study made it, of what."""
    content = {"format": FORMAT, **about, "rules": [_plain(rule) for rule in rules]}
    return HEAD + yaml.safe_dump(content, sort_keys=False, allow_unicode=True, width=110)


def write_rules(path: Path, rules: Sequence[Rule], about: Mapping[str, Any]) -> None:
    """Write `rules_text` atomically. Raises `OutputError`."""
    write_text(path, rules_text(rules, about))


def read_rules(path: Path) -> tuple[Rule, ...]:
    """The rules of a file. Raises `UsageError` with file and line for one that is not understood."""
    values, _ = load_tree(path)
    if values.get("format") != FORMAT or not isinstance(values.get("rules"), list):
        raise UsageError(
            f"this is no file of rules (format {FORMAT}).",
            place=Place(path),
            remedy="`foretune study rules DIR` writes one.",
        )
    return tuple(_rule(item, path, f"rules[{number}]") for number, item in enumerate(values["rules"]))


def _plain(rule: Rule) -> dict[str, Any]:
    m = rule.measured
    return {
        "id": rule.id,
        "statement": rule.statement,
        "when": {name: list(value) for name, value in vars(rule.when).items() if _said(value)},
        "advice": dict(rule.advice),
        **({"avoid": list(rule.avoid)} if rule.avoid else {}),
        "source": rule.source,
        "quantity": rule.quantity,
        **({} if m is None else {"measured": vars(m).copy()}),
    }


def _said(value: Any) -> bool:
    return bool(value) and any(item is not None for item in value)


def _rule(item: Any, path: Path, key: str) -> Rule:
    if not isinstance(item, Mapping):
        raise _refused(f"{key} is no group of key: value lines.", path)
    known = {"id", "statement", "when", "advice", "avoid", "source", "quantity", "measured"}
    for name in item:
        if name not in known:
            raise _refused(f"{key}.{name} is not part of a rule. {nearest(str(name), tuple(known))}", path)
    try:
        when = item.get("when") or {}
        unknown = set(when) - {field.name for field in fields(When)}
        if unknown:
            raise ValueError(f"{min(unknown)} is no condition")
        made = When(**{name: tuple(value) for name, value in when.items()})
        for name in ("rows", "parameters", "distance"):
            low, high = getattr(made, name)
            if any(end is not None and not isinstance(end, int | float) for end in (low, high)):
                raise ValueError(f"{name} is a range of two numbers")
        measured = None if item.get("measured") is None else Measured(**item["measured"])
        if measured is not None and not measured.low <= measured.value <= measured.high:
            raise ValueError("the value lies outside its interval")
        return Rule(
            id=str(item["id"]), statement=str(item["statement"]), when=made, advice=dict(item.get("advice") or {}),
            avoid=tuple(item.get("avoid") or ()), strength="measured", source=str(item.get("source", "")),
            quantity=str(item.get("quantity", "")), measured=measured,
        )  # fmt: skip
    except KeyError as error:
        raise _refused(f"{key} lacks {error.args[0]}.", path) from error
    except (TypeError, ValueError) as error:
        raise _refused(f"{key}: {error}.", path) from error


def _refused(what: str, path: Path) -> UsageError:
    return UsageError(what, place=Place(path), remedy="`foretune study rules DIR` writes such a file; compare with it.")
