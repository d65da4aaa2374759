"""Every setting with its value, who chose it and on what evidence: default < recommended < file < ``--set`` < option.

The result is written as ``resolved.yaml``: plain values in their groups, and a block ``origins`` that says of which
values nobody chose them. The file can be given as ``--config``: recommended values are then recommended again, with
the same value, and do not leave the search; a value changed by hand is the user's.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import yaml

from foretune.config.load import ORIGINS_KEY, Given, load_file, parse_set, tree, validated
from foretune.config.spec import FitSpec, Section, known_keys
from foretune.errors import Place
from foretune.files import write_text

Origin = Literal["default", "recommended", "file", "set", "option"]
CHOSEN: frozenset[Origin] = frozenset({"file", "set", "option"})
"""Origins that mean a person chose the value; such a value of ``training`` leaves the search."""


@dataclass(frozen=True)
class Recommended:
    """A value that is advised, with the evidence in words."""

    value: Any
    evidence: str


@dataclass(frozen=True)
class Resolved:
    """A setting's final value."""

    value: Any
    origin: Origin
    evidence: str = ""


@dataclass(frozen=True)
class Resolution:
    """A checked specification and the origin of each of its values, by dotted key."""

    spec: FitSpec
    values: Mapping[str, Resolved]

    def __getitem__(self, key: str) -> Any:
        return self.values[key].value

    def chosen(self, key: str) -> bool:
        """Whether a person chose the value of ``key``."""
        return key in self.values and self.values[key].origin in CHOSEN

    def fixed_training(self) -> dict[str, Any]:
        """The flat trial settings that a person fixed, without the prefix: these leave the search."""
        prefix = "training."
        return {
            key.removeprefix(prefix): item.value
            for key, item in self.values.items()
            if key.startswith(prefix) and item.origin in CHOSEN
        }

    def recommend(self, advice: Mapping[str, Recommended]) -> Resolution:
        """The same with advice put in wherever nobody chose; earlier advice of a file read back is kept."""
        known = known_keys()
        values = dict(self.values)
        for key, item in advice.items():
            if key not in known:
                raise KeyError(key)
            if key not in values or values[key].origin == "default":
                values[key] = Resolved(item.value, "recommended", item.evidence)
        return Resolution(_spec(values), values)

    def kept(self, settled: Mapping[str, Resolved]) -> Resolution:
        """The same with values that were settled before."""
        values = {**self.values, **settled}
        return Resolution(_spec(values), values)


def _spec(values: Mapping[str, Resolved]) -> FitSpec:
    return validated({key: Given(item.value, Place("recommended")) for key, item in values.items()})


def resolve(
    *, file: Path | None = None, sets: list[str] | tuple[str, ...] = (), options: Mapping[str, Any] | None = None
) -> Resolution:
    """Merge a file, ``--set`` assignments and options (dotted key → value, None for not given).

    Raises `UsageError` for unknown keys (naming the nearest), bad values and combinations.
    """
    given, origins = load_file(file) if file is not None else ({}, None)
    given, advised = _unchosen(given, origins)
    layers: list[tuple[Origin, dict[str, Given]]] = [
        ("file", {key: item for key, item in given.items() if key not in advised}),
        ("set", parse_set(sets)),
        ("option", _options(options or {})),
    ]
    chosen: dict[str, tuple[Given, Origin]] = {}
    for origin, layer in layers:
        chosen.update({key: (item, origin) for key, item in layer.items() if item.value is not None})
    _drop_replaced_budget(chosen)
    kept_advice = {key: item for key, item in advised.items() if key not in chosen}
    places = {key: item for key, (item, _) in chosen.items()}
    spec = validated({**{key: given[key] for key in kept_advice}, **places})
    values: dict[str, Resolved] = {key: Resolved(value, "default") for key, value in _flat_values(spec).items()}
    for key, advice in kept_advice.items():
        values[key] = Resolved(values[key].value, "recommended", advice.evidence)
    for key, (item, origin) in chosen.items():
        values[key] = Resolved(values[key].value, origin, str(item.place) if origin != "option" else "")
    return Resolution(spec, values)


def _options(options: Mapping[str, Any]) -> dict[str, Given]:
    known = known_keys()
    for key in options:
        if key not in known:
            raise KeyError(key)
    return {
        key: Given(value, Place("--" + key.rpartition(".")[2].replace("_", "-")))
        for key, value in options.items()
        if value is not None
    }


def _drop_replaced_budget(chosen: dict[str, tuple[Given, Origin]]) -> None:
    """A budget given later replaces one of another kind given earlier (``--time`` over the file's ``trials``)."""
    ranks: dict[Origin, int] = {"default": 0, "recommended": 0, "file": 1, "set": 2, "option": 3}
    kinds = [key for key in ("budget.time", "budget.trials", "budget.steps", "budget.cost") if key in chosen]
    latest = max((ranks[chosen[key][1]] for key in kinds), default=0)
    for key in kinds:
        if ranks[chosen[key][1]] < latest:
            del chosen[key]


def _unchosen(
    given: Mapping[str, Given], origins: Mapping[str, Any] | None
) -> tuple[dict[str, Given], dict[str, Recommended]]:
    """A resolved file's values without its defaults, and those that nobody chose and nobody has changed since."""
    if origins is None:
        return dict(given), {}
    defaults = _flat_values(FitSpec())
    kept, advised = {}, {}
    for key, item in given.items():
        note = origins.get(key, {})
        if note.get("origin") == "recommended" and note.get("value") == item.value:
            advised[key] = Recommended(item.value, str(note.get("evidence", "")))
        if key in origins or defaults.get(key) != item.value:
            kept[key] = item
    return kept, advised


def _flat_values(section: Section, prefix: str = "") -> dict[str, Any]:
    """Every set value by dotted key; None (not given) is left out."""
    flat: dict[str, Any] = {}
    for name in type(section).model_fields:
        value = getattr(section, name)
        if isinstance(value, Section):
            flat.update(_flat_values(value, f"{prefix}{name}."))
        elif isinstance(value, dict):
            flat.update({f"{prefix}{name}.{key}": item for key, item in value.items()})
        elif value is not None:
            flat[f"{prefix}{name}"] = list(value) if isinstance(value, tuple) else value
    return flat


class _Dumper(yaml.SafeDumper):
    """Writes floats so that they are read back exactly and as numbers."""


_Dumper.add_representer(float, lambda dumper, value: dumper.represent_scalar("tag:yaml.org,2002:float", repr(value)))


def resolved_text(resolution: Resolution) -> str:
    """``resolved.yaml``: chosen and recommended values by group, the defaults too, and the origins at the end."""
    values = {key: item.value for key, item in resolution.values.items()}
    notes = {key: _note(item) for key, item in resolution.values.items() if item.origin != "default"}
    head = "# Every setting of this run. Give this file as --config to run it again.\n"
    middle = "# Who chose the values above; those not named here are defaults. A value changed above counts as yours.\n"
    return head + _dump(tree(values)) + middle + _dump({ORIGINS_KEY: notes})


def _note(item: Resolved) -> dict[str, Any]:
    note: dict[str, Any] = {"origin": item.origin}
    if item.origin == "recommended":
        note["value"] = item.value
    return {**note, "evidence": item.evidence} if item.evidence else note


def _dump(value: Any) -> str:
    return yaml.dump(value, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=110, default_flow_style=False)


def write_resolved(path: Path, resolution: Resolution) -> None:
    """Write `resolved_text` atomically. Raises `OutputError`."""
    write_text(path, resolved_text(resolution))
