"""IGF: skip rows that a step on them would not help, as a small learner predicts (Antonello et al. 2020, 2005.00175).

    IG(X) = L_O(θ) − L_O(θ − α ∇L_X(θ))        the loss on an objective set O before and after one step on row X

is measured for a few probe rows X with a fresh LoRA and undone after each; a ridge regression from the rows'
embeddings learns it and predicts it for all. In a trial the first part of training (``filtered_share``) sees only the
``keep`` share of highest prediction, the rest sees all rows, as the published schedule lets its threshold fall. As a
selection before training it ranks by prediction. The objective set is the target where there is one, else rows of the
pool that are drawn aside for it.

The published learner is a small convolution over tokens; a ridge regression needs fewer probes and no tuning.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

from foretune.catalogue.methods import resolve
from foretune.data.encode import EncodedRow
from foretune.evaluation.likelihood import score_rows
from foretune.seeding import derive, generator
from foretune.selection.base import BlockMap, Request, Selection, Workbench
from foretune.selection.declared import Declared, Floats
from foretune.selection.embeddings import embed
from foretune.selection.kept_blocks import in_blocks
from foretune.selection.likelihoods import row_key
from foretune.training.forward import Network
from foretune.training.loop import LoopSettings, Training
from foretune.training.optimizer import OptimizerSettings

BLOCK_ROWS = 8
RIDGE = 1.0
"""Penalty on the coefficients of standardised features."""
ORDER_FEATURES = 32
"""Principal components of the embeddings that the learner sees: more than a few dozen probes cannot fit."""


class Igf(Declared):
    """Highest predicted information gain first."""

    name = "igf"

    def select(self, request: Request, *, blocks: BlockMap) -> Selection:
        """The manifest holds how well the learner predicts probes that it was not fitted on."""
        settings = request.settings(self.name)
        bench = request.model
        pool = bench.encode(request.examples)
        draw = generator(request.seed, "selection", self.name).permutation(len(pool))
        objective = bench.encode(request.target) if request.target else []
        if not objective:
            aside = max(1, min(int(settings["objective"]), len(pool) // 2))
            objective = [pool[int(i)] for i in draw[:aside]]
            draw = draw[aside:] if len(draw) > aside else draw
        probes = [int(i) for i in draw[: int(settings["probes"])]]
        gains = information_gains(request, bench, pool, probes, objective, settings)
        features = embed(request, request.examples, bench=bench, unit=False).astype(np.float64)
        predicted, correlation = learnt(features, probes, gains)
        manifest = {"probes": len(probes), "predicted_correlation": correlation}
        return self.by_score(request, predicted, manifest=manifest)


def information_gains(
    request: Request,
    bench: Workbench,
    pool: Sequence[EncodedRow],
    probes: Sequence[int],
    objective: Sequence[EncodedRow],
    settings: Mapping[str, Any],
) -> Floats:
    """(probes,) the objective's mean loss before minus after one plain step on each probe row alone."""
    config = resolve({"method": "lora", "lora.rank": 8, "lora.alpha": 16.0, "lora.dropout": 0.0})
    seed = derive(request.seed, "selection", "igf")
    made_of = [bench.weights_hash, dict(settings), request.seed, [row_key(row) for row in objective]]
    with bench.attached(config, seed) as (attachment, network):
        before = _loss(bench, network, objective)

        def compute(block: Sequence[int]) -> dict[str, Floats]:
            after = [_after_step(bench, attachment, network, pool[probes[i]], objective, settings) for i in block]
            return {"gain": before - np.asarray(after)}

        keys = [row_key(pool[i]) for i in probes]
        return in_blocks(request, "information-gains", keys, made_of, compute, block_rows=BLOCK_ROWS)["gain"]


def _loss(bench: Workbench, network: Network, rows: Sequence[EncodedRow]) -> float:
    scores = score_rows(
        network, rows, range(len(rows)), micro_batch_tokens=bench.task.micro_batch_tokens, pad_id=bench.pad_id,
        decoder_start_id=bench.decoder_start_id,
    )  # fmt: skip
    return sum(score.nll for score in scores) / max(1, sum(score.tokens for score in scores))


def _after_step(
    bench: Workbench,
    attachment: Any,
    network: Network,
    row: EncodedRow,
    objective: Sequence[EncodedRow],
    settings: Mapping[str, Any],
) -> float:
    """The objective's loss after one Adam step on ``row``; the adapter is put back."""
    state = attachment.state()
    loop = LoopSettings(
        OptimizerSettings(float(settings["learning_rate"]), 1, schedule="constant", warmup_share=0.0), 0,
        bench.task.micro_batch_tokens, pad_id=bench.pad_id, decoder_start_id=bench.decoder_start_id,
    )  # fmt: skip
    training = Training(network, attachment, [row], _Same(), loop, backward=bench.accelerator.backward)
    training.run(1)
    loss = _loss(bench, network, objective)
    with torch.no_grad():
        attachment.load_state(state)
    return loss


class _Same:
    """The one row, at every step."""

    def rows(self, step: int) -> Sequence[int]:
        """See `RowSource`."""
        return (0,)


def learnt(features: Floats, probes: Sequence[int], gains: Floats) -> tuple[Floats, float | None]:
    """(prediction for every row, correlation on left-out probes) of a ridge regression on principal components.

    features: (rows, width), gains: (probes,). The correlation is over leave-one-out predictions, which a ridge
    regression gives in closed form (Golub, Heath & Wahba 1979); None where it is not defined.
    """
    centred = features - features.mean(axis=0)
    _, _, axes = np.linalg.svd(centred[list(probes)], full_matrices=False)
    components = centred @ axes[: min(ORDER_FEATURES, max(1, len(probes) // 2))].T
    spread = components[list(probes)].std(axis=0)
    components = np.divide(components, spread, out=np.zeros_like(components), where=spread > 1e-12)
    seen = components[list(probes)]
    mean = gains.mean()
    inverse = np.linalg.inv(seen.T @ seen + RIDGE * np.eye(seen.shape[1]))
    predicted: Floats = mean + components @ (inverse @ seen.T @ (gains - mean))
    leverage = np.einsum("ij,jk,ik->i", seen, inverse, seen) + 1 / len(gains)
    left_out = gains - (gains - predicted[list(probes)]) / np.maximum(1 - leverage, 1e-9)
    if len(gains) < 3 or left_out.std() < 1e-12 or gains.std() < 1e-12:
        return predicted, None
    return predicted, float(np.corrcoef(left_out, gains)[0, 1])
