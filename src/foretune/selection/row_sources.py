"""Which rows make an update when the choice is made while training: row sources beside plain epochs.

rs2               every epoch is a fresh random ``keep`` share of the rows (Okanovic et al. 2024, 2305.18424)
igf               the first part of training sees only the rows of highest predicted gain (`gain_filter`)
diverse-evol,     in rounds: at the start of a round the rows that the model as it then is asks for join the chosen
active-learning   (`iterative`); the last round has ``keep`` of all

RS2 and IGF are functions of the step alone. A growing source also knows what was chosen in earlier rounds: its state
goes into the checkpoint, so that a resumed run asks the same model for the same rows.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch

from foretune.data.update import Epochs
from foretune.errors import UsageError
from foretune.seeding import generator
from foretune.selection.base import BlockMap, Request, Selection
from foretune.selection.declared import Declared
from foretune.selection.iterative import first_rows, sizes_of_rounds

Add = Callable[[Sequence[int], int], list[int]]
"""(rows chosen so far, how many more) → the rows that the model asks for"""


class Rs2(Declared):
    """RS2 as an entry of the registry: it has nothing to rank."""

    name = "rs2"

    def select(self, request: Request, *, blocks: BlockMap) -> Selection:
        """Refused: a fixed set of random rows is the selector random."""
        raise UsageError(
            "rs2 draws fresh rows every epoch, so there is no file of kept rows.",
            remedy="Use it in a fit (--select rs2 --keep 30%), or select with random.",
        )


@dataclass(frozen=True)
class FreshSubsets:
    """RS2: epoch e is a random subset of ``count`` of ``size`` rows."""

    size: int
    count: int
    rows_per_update: int
    seed: int

    def rows(self, step: int) -> Sequence[int]:
        """See `RowSource`."""
        epoch, update = divmod(step, -(-self.count // self.rows_per_update))
        order = generator(self.seed, "data", "rs2", epoch).permutation(self.size)[: self.count]
        return [int(i) for i in order[update * self.rows_per_update : (update + 1) * self.rows_per_update]]


@dataclass(frozen=True)
class FilteredFirst:
    """IGF: epochs over ``first`` until step ``until``, then over all ``size`` rows."""

    first: tuple[int, ...]
    size: int
    until: int
    rows_per_update: int
    seed: int

    def rows(self, step: int) -> Sequence[int]:
        """See `RowSource`."""
        if step < self.until:
            epochs = Epochs(len(self.first), self.rows_per_update, self.seed)
            return [self.first[i] for i in epochs.rows(step)]
        return Epochs(self.size, self.rows_per_update, self.seed).rows(step - self.until)


@dataclass
class Growing:
    """Rounds of equal numbers of steps; each begins by adding the rows that ``add`` names."""

    size: int
    count: int
    rounds: int
    total_steps: int
    rows_per_update: int
    seed: int
    add: Add
    chosen: list[int] = field(default_factory=list)

    def rows(self, step: int) -> Sequence[int]:
        """See `RowSource`; asks ``add`` at the first step of a round, unless the state holds the answer."""
        sizes = sizes_of_rounds(self.count, self.rounds)
        a_round = max(1, self.total_steps // len(sizes))
        number = min(step // a_round, len(sizes) - 1)
        if not self.chosen:
            self.chosen = first_rows(self.size, sizes[0], self.seed)
        while len(self.chosen) < sizes[number]:
            wanted = next(size for size in sizes if size > len(self.chosen))
            self.chosen += self.add(self.chosen, wanted - len(self.chosen))
        epochs = Epochs(sizes[number], self.rows_per_update, self.seed)
        return [self.chosen[i] for i in epochs.rows(step - number * a_round)]

    def state(self) -> dict[str, torch.Tensor]:
        """The rows chosen so far, in their order."""
        return {"chosen": torch.tensor(self.chosen, dtype=torch.int64)}

    def load_state(self, state: Mapping[str, torch.Tensor]) -> None:
        """The inverse of `state`."""
        self.chosen = [int(i) for i in np.asarray(state["chosen"])]
