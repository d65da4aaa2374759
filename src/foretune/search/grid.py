"""A fixed list of cells, each trained over its whole horizon: the searcher of studies, which compare and do not choose.

Resumable like every search: the journal says which cells were started, and what was under way is handed out again.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from foretune.errors import UsageError
from foretune.files import fingerprint
from foretune.search.runs import Proposal, Start, View
from foretune.search.types import Done, Wait


@dataclass(frozen=True)
class Cell:
    """One configuration with one seed on one task."""

    task: str
    config: Mapping[str, Any]
    seed: int
    horizon: int
    """Steps of the whole run."""

    @property
    def key(self) -> str:
        """What a run of this cell carries as its ``arm``: a hash of all that defines the cell."""
        return fingerprint([self.task, dict(self.config), self.seed, self.horizon])


class Grid:
    """Hands out the cells in their order, each once."""

    name = "grid"

    def __init__(self, cells: tuple[Cell, ...], again: Mapping[str, int] | None = None) -> None:
        """``again``: keys of cells that are handed out once more, with the number of runs that each has had."""
        self.cells = {cell.key: cell for cell in cells}
        self.again = dict(again or {})
        if not cells:
            raise UsageError("the grid has no cell.")
        if len(self.cells) != len(cells):
            raise UsageError("two cells of the grid are the same task, configuration, seed and horizon.")

    def settings(self) -> dict[str, Any]:
        """See `Strategy.settings`."""
        return {"cells": list(self.cells)}

    def propose(self, view: View) -> Proposal:
        """The next cell that has no run yet."""
        started = Counter(run.arm for run in view.runs)
        for key, cell in self.cells.items():
            if key in started and started[key] != self.again.get(key):
                continue
            if not view.affords(cell.config, 0, cell.horizon, new=True):
                return Done(f"the budget ends after {len(started)} of {len(self.cells)} cells")
            why = f"cell {len(started) + 1} of {len(self.cells)}"
            return Start(cell.config, cell.horizon, cell.horizon, key, why, cell.seed)
        if any(run.status == "running" for run in view.runs):
            return Wait("the last cells are under way")
        return Done("every cell was handed out")
