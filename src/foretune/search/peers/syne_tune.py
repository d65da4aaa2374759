"""Syne Tune's transfer searchers (Salinas et al. 2022), through ``syne-tune``: they learn from the same earlier tasks.

- copula: Thompson sampling from trees on quantiles of earlier scores (Salinas et al. 2020)
- box: random search in the box around the best earlier configurations (Perrone et al. 2019)

Its zero-shot searcher (Wistuba et al. 2015) is left out: it fails in syne-tune 0.16 where tasks were not all run on the
same configurations. They know no rungs: every proposal is trained in whole.
"""

from __future__ import annotations

import contextlib
import io
import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from foretune.search.fidelity import LAST_LEVEL
from foretune.search.past_tasks import PastTask
from foretune.search.peers.columns import Columns, needed
from foretune.search.peers.conversation import Job

LOSS = "loss"
Making = Callable[[dict[str, Any], dict[str, Any], int], Any]


class SyneTune:
    """See `conversation.Peer`."""

    def __init__(self, columns: Columns, seed: int, searcher: str, tasks: Sequence[PastTask]) -> None:
        try:
            from syne_tune import config_space
        except ImportError:
            raise needed("syne-tune") from None
        space = {name: config_space.uniform(*span) for name, span in columns.numbers.items()}
        space |= {name: config_space.choice(list(words)) for name, words in columns.categories.items()}
        earlier = {task.key: found for task in tasks if (found := _evaluations(columns, space, task)) is not None}
        with contextlib.redirect_stdout(io.StringIO()):
            self._searcher = SEARCHERS[searcher](space, earlier, seed)
        self._count = itertools.count()

    def ask(self) -> Job | None:
        """See `conversation.Peer.ask`."""
        found = self._searcher.suggest()
        if found is None:
            return None
        config = getattr(found, "config", found)
        return Job(next(self._count), dict(config), LAST_LEVEL, found)

    def tell(self, job: Job, loss: float, seconds: float) -> None:
        """None of the searchers learns on the task."""


def _evaluations(columns: Columns, space: dict[str, Any], task: PastTask) -> Any:
    """The whole runs of an earlier task as Syne Tune keeps them; None where there are none."""
    import pandas
    from syne_tune.optimizer.schedulers.transfer_learning.transfer_learning_task_evaluation import (
        TransferLearningTaskEvaluations,
    )

    whole = [curve for curve in task.curves if math.isfinite(curve.final)]
    if not whole:
        return None
    table = pandas.DataFrame([columns.values_of(curve.row) for curve in whole])
    losses = -np.asarray([curve.final for curve in whole]).reshape(-1, 1, 1, 1)
    return TransferLearningTaskEvaluations(space, table, [LOSS], losses)


def _copula(space: dict[str, Any], earlier: dict[str, Any], seed: int) -> Any:
    from syne_tune.optimizer.schedulers.transfer_learning.quantile_based.quantile_based_searcher import (
        QuantileBasedSurrogateSearcher,
    )

    return QuantileBasedSurrogateSearcher(space, earlier, random_seed=seed)


def _box(space: dict[str, Any], earlier: dict[str, Any], seed: int) -> Any:
    from syne_tune.optimizer.baselines import RandomSearch
    from syne_tune.optimizer.schedulers.transfer_learning.bounding_box import BoundingBox

    def within(box: dict[str, Any], metric: str, do_minimize: bool, random_seed: int) -> Any:
        return RandomSearch(box, metrics=[metric], do_minimize=do_minimize, random_seed=random_seed)

    return BoundingBox(within, space, LOSS, earlier, random_seed=seed)


SEARCHERS: dict[str, Making] = {"copula": _copula, "box": _box}
