"""DELIFT: rows that, as examples in the prompt, help the model most with all others; and the same by embeddings.

Agarwal et al. 2024 (arXiv 2411.04425, ICLR 2025). How much row j helps with row i, s_ij, comes from the model itself
(`selection.utility`) or, in DELIFT (SE), is the cosine of their embeddings. What is maximised follows from what is
known (`selection.stages`): instruction tuning, a target, previous data. ``delift.objective`` names another function;
``fl1mi`` is what the paper's code runs for a target.

All n² pairs cost far more than a training saves, so 64 rows are asked by default, drawn by how much they have to gain;
the manifest says how sure the objective then is and how far two halves of those rows agree. ``delift.rows=0`` asks all.

What this does not do: decide how many rows to keep, or pay for itself: the report of a selection shows its cost.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import numpy.typing as npt

from foretune.data.example import Example
from foretune.selection.base import BlockMap, Request, Selection
from foretune.selection.declared import Declared
from foretune.selection.embeddings import Vectors, embed, embedding_bench
from foretune.selection.greedy import facility_location as functions
from foretune.selection.greedy import kernel as kernels
from foretune.selection.greedy.facility_location import Problem, Ranking
from foretune.selection.greedy.kernel import Kernel
from foretune.selection.stages import (
    Floats,
    Settings,
    Similar,
    answered,
    objective_of,
    problem_of,
    ranked,
    selection_of,
)
from foretune.selection.utility import sampling
from foretune.selection.utility.blocks import compute
from foretune.selection.utility.kernel import Utility

IN_MEMORY_BYTES = 256 * 2**20
"""A larger kernel is a memory map of a scratch file."""
LARGEST_DENSE = 20_000
"""Rows of a pool whose kernel is held whole (1.6 GB of scratch file); beyond it only neighbours are."""
NEIGHBOURS_BEYOND = 64
ASKED_SEED = 0
"""Which rows are asked follows from the pool alone: runs of other seeds find its kernel, and differ in training."""


@contextmanager
def kept_in(request: Request) -> Iterator[Path]:
    """The request's folder, or one that is gone afterwards."""
    if request.folder is not None:
        yield request.folder
        return
    with tempfile.TemporaryDirectory(prefix="foretune-utility-") as scratch:
        yield Path(scratch)


class Delift(Declared):
    """Facility location on the utility kernel."""

    name = "delift"

    def select(self, request: Request, *, blocks: BlockMap) -> Selection:
        """Gains are those of the objective; the manifest says what was asked, left out, and how sure it is."""
        settings = request.settings(self.name)
        request = replace(request, target=answered(request.target), previous=answered(request.previous))
        objective = objective_of(settings, request)
        with kept_in(request) as folder:
            measure = partial(
                compute, request.model, folder=folder, blocks=blocks, template=settings["template"],
                self_pairs=settings["self_pairs"], model=None if settings["proxy"] == "self" else settings["proxy"],
                on_progress=request.on_progress, check_stopped=request.check_stopped, tally=request.tally,
            )  # fmt: skip
            asked = _asked(request, measure, settings)
            similar, done = _similar(request, asked, measure, settings)
            problem = problem_of(objective, similar, settings)
            ranking = ranked(problem, request)
            manifest = {
                "objective": objective,
                "kernel": f"{settings['kernel']}, {settings['shape']}",
                "self_pairs": settings["self_pairs"],
                "rows_asked": len(asked.rows),
                **done[0].counted(),
                **_certainty(objective, problem, ranking, request),
                **_missed(done[0], asked, settings),
            }
        return selection_of(self.name, ranking, manifest, sum(one.computed_tokens for one in done))


@dataclass(frozen=True)
class Asked:
    """Which rows of the pool are asked behind which examples of it."""

    rows: npt.NDArray[np.int64]
    weights: Floats | None = None
    pairs: list[list[int]] | None = None
    """For every example the asked rows (numbered as in ``rows``) it is near to; None for all"""
    probes: list[list[int]] | None = None
    """The same for pairs that are asked only to see what is missed"""


def _asked(request: Request, measure: Callable[..., Utility], settings: Settings) -> Asked:
    pool, wanted = request.examples, int(settings["rows"])
    rows, weights = np.arange(len(pool)), None
    if 0 < wanted < len(pool):
        alone = measure(rows=pool, examples=()).alone
        sample = sampling.sample_rows(alone.d, wanted, seed=ASKED_SEED)
        rows, weights = sample.rows, sample.weights
    count = int(settings["neighbours"])
    if not 0 < count < len(pool) - 1:
        return Asked(rows, weights)
    vectors = embed(request, pool, bench=embedding_bench(request, settings["proxy"]))
    pairs = sampling.neighbour_pairs(vectors[rows], vectors, rows, count)
    return Asked(rows, weights, pairs, sampling.probes(pairs, len(rows), seed=ASKED_SEED))


def _similar(
    request: Request, asked: Asked, measure: Callable[..., Utility], settings: Settings
) -> tuple[Similar, list[Utility]]:
    """The parts of the objective, and the kernels they were computed in: the pool's own first."""
    pool = request.examples
    rows = [pool[i] for i in asked.rows]
    together = None
    if asked.pairs is not None and asked.probes is not None:
        together = [near + other for near, other in zip(asked.pairs, asked.probes, strict=True)]
    own = measure(rows=rows, examples=pool, pairs=together)
    done = [own]

    def other(rows: Sequence[Example], examples: Sequence[Example]) -> Floats:
        measured = measure(rows=rows, examples=examples)
        done.append(measured)
        by_row: Floats = _view(measured, settings).T
        return by_row

    kernel = kernels.columns(_view(own, settings))
    if asked.pairs is not None:
        from scipy.sparse import csc_array

        kernel = kernels.sparse(csc_array(kernel.values.T))
    similar = Similar(
        kernel,
        asked.weights,
        target=lambda: other(request.target, pool),
        from_target=lambda: other(rows, request.target),
        from_previous=lambda: other(rows, request.previous),
    )
    return similar, done


def _view(measured: Utility, settings: Settings) -> Floats:
    """(examples, rows) in memory, or in a scratch file where it is large."""
    shape = (len(measured.examples), len(measured.rows))
    out = None
    if 4 * shape[0] * shape[1] > IN_MEMORY_BYTES:
        out = np.memmap(tempfile.TemporaryFile(), np.float32, "w+", shape=shape)  # noqa: SIM115  # lives with the map
    return measured.view(settings["kernel"], settings["shape"], out=out)


def _certainty(objective: str, problem: Problem, ranking: Ranking, request: Request) -> dict[str, float]:
    """How sure the objective of the chosen rows is, where only some rows were asked; empty where all were.

    ``halves_agree``: the share of the chosen that every second asked row alone would have chosen as well, mean of both.
    """
    if (problem.weight == 1).all() or len(problem.weight) < 4 or objective == "fl2mi":
        return {}
    chosen = ranking.indices[: ranking.n_positive]
    covered = functions.covered(problem, chosen)
    agree = []
    for half in (0, 1):
        weight = np.where(np.arange(len(problem.weight)) % 2 == half, problem.weight, 0.0)
        other = ranked(replace(problem, weight=weight), request)
        agree.append(len(np.intersect1d(other.indices, ranking.indices)) / max(1, len(ranking.indices)))
    return {
        "objective_standard_error": sampling.standard_error(covered, problem.weight),
        "halves_agree": float(np.mean(agree)),
    }


def _missed(measured: Utility, asked: Asked, settings: Settings) -> dict[str, float]:
    """What leaving out all but the nearest examples misses, seen on random other pairs; empty where nothing was."""
    if asked.pairs is None or asked.probes is None:
        return {}
    near, far = [], []
    for example, (pairs, probes) in enumerate(zip(asked.pairs, asked.probes, strict=True)):
        if pairs or probes:
            values, counts = measured.utility(example, settings["kernel"])
            near += [float(values[i]) for i in pairs if counts[i]]
            far += [float(values[i]) for i in probes if counts[i]]
    return {
        "neighbours_mean_utility": float(np.mean(near)) if near else 0.0,
        "others_mean_utility": float(np.mean(far)) if far else 0.0,
        "others_probed": len(far),
    }


class DeliftSe(Declared):
    """Facility location on cosines of embeddings, cut at 0: DELIFT (SE)."""

    name = "delift-se"

    def select(self, request: Request, *, blocks: BlockMap) -> Selection:
        """The same objectives; beyond `LARGEST_DENSE` rows only each row's nearest candidates are represented by."""
        settings = request.settings(self.name)
        request = replace(request, target=answered(request.target), previous=answered(request.previous))
        objective = objective_of(settings, request)
        bench = embedding_bench(request, settings["embedder"])
        pool = embed(request, request.examples, bench=bench)

        def vectors(rows: Sequence[Example], what: str) -> Vectors:
            return embed(request, rows, bench=bench, what=what)

        def cosines(rows: Vectors, candidates: Vectors) -> Floats:
            clipped: Floats = np.maximum(rows @ candidates.T, 0)
            return clipped

        large = len(pool) > LARGEST_DENSE
        similar = Similar(
            nearest_kernel(pool, NEIGHBOURS_BEYOND) if large else kernels.columns(cosines(pool, pool)),
            target=lambda: cosines(vectors(request.target, "target-embeddings"), pool),
            from_target=lambda: cosines(pool, vectors(request.target, "target-embeddings")),
            from_previous=lambda: cosines(pool, vectors(request.previous, "previous-embeddings")),
        )
        ranking = ranked(problem_of(objective, similar, settings), request)
        return selection_of(self.name, ranking, {"objective": objective})


def nearest_kernel(vectors: Vectors, neighbours: int) -> Kernel:
    """The cosines of every row with its ``neighbours`` nearest candidates, itself among them; all else is absent."""
    from scipy.sparse import csc_array

    nearest = sampling.neighbour_pairs(vectors, vectors, None, neighbours)
    values = [np.maximum(vectors[rows] @ vectors[example], 0) for example, rows in enumerate(nearest)]
    starts = np.cumsum([0, *map(len, nearest)])
    rows = np.concatenate([np.asarray(part, np.int32) for part in nearest])
    shape = (len(vectors), len(vectors))
    return kernels.sparse(csc_array((np.concatenate(values).astype(np.float32), rows, starts), shape=shape))
