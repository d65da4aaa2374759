"""What every selector is measured against: rows drawn uniformly, and the rows with the longest answers.

    random     a uniform permutation from the named stream ("selection", "random")
    longest    answers by length, the longest first (Zhao et al. 2024, 2402.04833: hard to beat)

RS2 (`row_sources`), a fresh random subset each epoch, is chosen while training and has nothing to rank.
"""

from __future__ import annotations

import numpy as np

from foretune.data.reasoning import reasoned_answer
from foretune.seeding import generator
from foretune.selection.base import BlockMap, Request, Selection
from foretune.selection.declared import Declared


class Random(Declared):
    """Uniform."""

    name = "random"

    def select(self, request: Request, *, blocks: BlockMap) -> Selection:
        """A permutation that depends on the seed and the number of rows alone."""
        order = generator(request.seed, "selection", self.name).permutation(len(request.examples))
        return Selection(tuple(int(i) for i in order[: request.count]), self.name)


class Longest(Declared):
    """By the length of the answer, in tokens where a tokenizer is loaded, else in characters."""

    name = "longest"

    def select(self, request: Request, *, blocks: BlockMap) -> Selection:
        """Ties go to the lower index."""
        if request.settings(self.name)["unit"] == "tokens" and request.bench is not None:
            lengths = [row.targets for row in request.bench.encode(request.examples)]
        else:
            lengths = [len(reasoned_answer(row)) for row in request.examples]
        return self.by_score(request, np.asarray(lengths, dtype=np.float64))
