"""Studies that are no grid of arms: which module runs a file, by the word after ``kind:``.

Each module has ``run(source, output, …)``, which reports lines through ``on_event`` and gives back what the command
prints last as one line of JSON, and ``about(source)``, a sentence for the list.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any, Protocol

from foretune.config.load import load_tree
from foretune.config.spec import Section
from foretune.errors import Place, UsageError
from foretune.files import read_json, write_json
from foretune.study.grid_file import find_grid

ARMS = "arms"
SPEC = "spec.json"
"""The specification in the folder of such a study."""
MODULES = {
    "live": "foretune.study.live",
    "replay": "foretune.study.replay",
}


class Kind(Protocol):
    """What such a module offers."""

    def run(
        self,
        source: str | Path,
        output: Path,
        *,
        time_s: float | None = None,
        on_event: Callable[[str, Mapping[str, Any]], None],
    ) -> dict[str, Any]:
        """Run or resume the study in ``output``; its summary."""
        ...

    def about(self, source: str | Path) -> str:
        """What is asked, in a sentence."""
        ...


def kind_of(source: str | Path) -> str:
    """The kind that a study's file names. Raises `UsageError`."""
    path = find_grid(source)
    kind = str(load_tree(path)[0].get("kind", ARMS))
    if kind != ARMS and kind not in MODULES:
        raise UsageError(
            f"{path}: there is no kind of study {kind!r}.", remedy=f"Known: {', '.join((ARMS, *MODULES))}."
        )
    return kind


def module_of(kind: str) -> Kind:
    """The module of a kind other than `ARMS`."""
    module: Any = import_module(MODULES[kind])
    return module  # type: ignore[no-any-return]


def begin(folder: Path, spec: Section, deciding: Sequence[str] = ()) -> None:
    """Write ``spec`` into the folder of a study, begun now or before.

    ``deciding`` are the settings that decide what a line in its results holds. Raises `UsageError` where lines of
    another kind, or of other such settings, are there.
    """
    path, value = folder / SPEC, spec.model_dump(mode="json")
    earlier = read_json(path) if path.exists() else value
    for key in ("kind", *deciding):
        before = earlier.get(key, type(spec).model_fields[key].default)
        if before != value[key]:
            raise UsageError(
                f"the folder holds results of {key}: {before}, and now {key} is {value[key]}.",
                place=Place(folder),
                remedy="Name another folder with --output.",
            )
    write_json(path, value)
