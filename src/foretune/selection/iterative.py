"""Choosing in rounds: train on what is chosen, look at the pool with the model as it then is, add a batch.

diverse-evol      (Wu et al. 2023, 2311.08182)  adds the rows farthest, in the current model's embeddings, from all
                  chosen: k-centre in a space that training moves
active-learning   (Bayer & Reuter 2024; PE active learning 2406.09296)  adds the rows of highest mean token entropy, of
                  smallest mean margin between the two likeliest tokens, or farthest from their nearest chosen row
                  (``score``: entropy, margin, distance)

The first rows are random. As a selection before training every round trains a fresh LoRA on the rows so far, which is
then thrown away; in a trial the same steps run inside the training itself (`row_sources.Growing`), which costs the
looking alone. A row's place in the ranking is when it was added; a larger count makes larger batches, so it is not
nested.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from foretune.catalogue.methods import resolve
from foretune.data.update import Epochs
from foretune.seeding import derive, generator
from foretune.selection.base import BlockMap, Request, Selection
from foretune.selection.declared import Declared
from foretune.selection.embeddings import embed
from foretune.selection.greedy.farthest_first import farthest_first
from foretune.selection.likelihoods import likelihoods
from foretune.training.forward import Network
from foretune.training.loop import LoopSettings, Training
from foretune.training.optimizer import OptimizerSettings

ROWS_PER_UPDATE = 16


def sizes_of_rounds(count: int, rounds: int) -> list[int]:
    """How many rows are chosen after each round, the random first ones included; equal batches, the last is whole."""
    rounds = max(1, min(rounds, count))
    return [round(count * (number + 1) / rounds) for number in range(rounds)]


def first_rows(size: int, count: int, seed: int) -> list[int]:
    """The random rows that everything begins with."""
    order = generator(seed, "selection", "first-rows").permutation(size)
    return [int(i) for i in order[:count]]


def added(request: Request, network: Network, chosen: Sequence[int], count: int, how: str) -> list[int]:
    """``count`` more rows of the pool under the network as it is, best first; none of ``chosen``.

    ``how``: k-centre, distance, entropy or margin. Ties go to the lower row.
    """
    taken = set(chosen)
    free = [i for i in range(len(request.examples)) if i not in taken]
    count = min(count, len(free))
    if count <= 0:
        return []
    bench = request.model
    if how in ("k-centre", "distance"):
        vectors = embed(request, request.examples, bench=bench, network=network, what="embeddings-of-round")
        if how == "k-centre":
            found = farthest_first(vectors[free], count, given=vectors[list(chosen)])
            return [free[int(i)] for i in found.indices]
        nearest = 1 - (vectors[free] @ vectors[list(chosen)].T).max(axis=1)
        return [free[int(i)] for i in np.argsort(-nearest, kind="stable")[:count]]
    rows = bench.encode([request.examples[i] for i in free])
    seen = likelihoods(request, rows, "uncertainty-of-round", network=network)
    mean = (seen.entropy if how == "entropy" else -seen.margin) / np.maximum(seen.tokens, 1)
    return [free[int(i)] for i in np.argsort(-mean, kind="stable")[:count]]


class _InRounds(Declared):
    """What both selectors share."""

    def how(self, settings: Mapping[str, Any]) -> str:
        """How rows are added."""
        raise NotImplementedError

    def select(self, request: Request, *, blocks: BlockMap) -> Selection:
        """The order of adding."""
        settings = request.settings(self.name)
        sizes = sizes_of_rounds(request.count, int(settings["rounds"]))
        chosen = first_rows(len(request.examples), sizes[0], request.seed)
        for number, size in enumerate(sizes[1:], 1):
            chosen += self._round(request, chosen, size - len(chosen), number, settings)
            request.on_progress("rounds", number, len(sizes) - 1)
        return Selection(tuple(chosen), self.name, nested=False, manifest={"rounds": len(sizes)})

    def _round(
        self, request: Request, chosen: Sequence[int], count: int, number: int, settings: Mapping[str, Any]
    ) -> list[int]:
        """A fresh LoRA on the rows so far, then the rows that it asks for."""
        request.check_stopped()
        bench = request.model
        config = resolve({"method": "lora", "lora.rank": 8, "lora.alpha": 16.0, "lora.dropout": 0.0})
        rows = bench.encode([request.examples[i] for i in sorted(chosen)])
        seed = derive(request.seed, "selection", self.name, number)
        with bench.attached(config, seed) as (attachment, network):
            source = Epochs(len(rows), ROWS_PER_UPDATE, seed)
            steps = max(1, round(float(settings["epochs"]) * source.updates_per_epoch))
            loop = LoopSettings(
                OptimizerSettings(float(settings["learning_rate"]), steps), seed, bench.task.micro_batch_tokens,
                pad_id=bench.pad_id, decoder_start_id=bench.decoder_start_id,
            )  # fmt: skip
            training = Training(network, attachment, rows, source, loop, backward=bench.accelerator.backward)
            training.run(steps, on_step=lambda report: not request.stopped())
            request.check_stopped()
            return added(request, network, chosen, count, self.how(settings))


class DiverseEvol(_InRounds):
    """k-centre in the embeddings of the model that learns."""

    name = "diverse-evol"

    def how(self, settings: Mapping[str, Any]) -> str:
        """By k-centre."""
        return "k-centre"


class ActiveLearning(_InRounds):
    """What the model is least sure of, or has least seen."""

    name = "active-learning"

    def how(self, settings: Mapping[str, Any]) -> str:
        """As ``score`` says."""
        return str(settings["score"])
