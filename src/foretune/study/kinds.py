"""Studies that are no grid of arms: which module runs a file, by the word after ``kind:``.

Each module has ``run(source, output, …)``, which reports lines through ``on_event`` and gives back what the command
prints last as one line of JSON, and ``about(source)``, a sentence for the list.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from importlib import import_module
from pathlib import Path
from typing import Any, Protocol

from foretune.config.load import load_tree
from foretune.errors import UsageError
from foretune.study.grid_file import find_grid

ARMS = "arms"
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
