"""Train a base on several tasks so that an adapter on a further task does well: PEFT-aware meta-learning.

Source: Block, Srinivasan, Collins, Mokhtari & Shakkottai (2410.22264). Plain training on a mixture of tasks finds the
weights that are best without adapters; where tasks differ, these are none from which a small change leads to any one
task. Here each task t keeps a low-rank pair of its own while the shared weights are trained:

    min over W of  Σ_t  min over A_t, B_t of  L_t(W + s·B_t A_t)

All are stepped together, from one loss. The pairs are thrown away at the end; what is left is a base to fine-tune.

What it does not do: hold checkpoints, choose the number of steps, or judge the result. Memory is that of full
fine-tuning and the pairs.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from foretune.catalogue.methods import resolve
from foretune.catalogue.models import ModelKind
from foretune.data.encode import EncodedRow
from foretune.data.update import Epochs
from foretune.errors import TrainingError, UsageError
from foretune.methods.registry import get as get_method
from foretune.seeding import torch_generator
from foretune.training.forward import Network
from foretune.training.loop import LoopSettings, StepReport, Training
from foretune.training.optimizer import OptimizerSettings

FEWEST_TASKS = 2
"""The source's proof that the shared weights are found needs three; with one task there is nothing to share."""


@dataclass(frozen=True)
class AdaptableSettings:
    """How a base is made adaptable."""

    steps: int
    base_rate: float
    """Peak learning rate of the shared weights"""
    adapter_rate: float
    """Peak learning rate of the tasks' pairs"""
    rank: int = 16
    """Rank of each pair: that of the adapters which are to come"""
    rows_per_update: int = 16
    seed: int = 0
    micro_batch_tokens: int = 512
    pad_id: int = 0
    decoder_start_id: int = 0


def make_adaptable(
    model: Any,
    rows: Sequence[EncodedRow],
    kind: ModelKind,
    settings: AdaptableSettings,
    on_step: Callable[[StepReport], bool] = lambda report: True,
) -> Any:
    """``model`` itself, its weights trained on ``rows``, whose ``task`` numbers count from 0; no adapter stays in it.

    Raises `UsageError` for rows of fewer than two tasks, `TrainingError` where training diverges, runs out of memory
    or is stopped by ``on_step``.
    """
    tasks = sorted({-1 if row.task is None else row.task for row in rows})
    if len(tasks) < FEWEST_TASKS or tasks != list(range(len(tasks))):
        raise UsageError(
            f"rows of {len(tasks)} tasks cannot make a base adaptable.",
            remedy=f"Give rows of {FEWEST_TASKS} tasks or more, numbered from 0.",
        )
    own = {"rank": settings.rank, "alpha": 2.0 * settings.rank, "tasks": len(tasks)}
    config = resolve({"method": "contextpeft", **{f"contextpeft.{key}": value for key, value in own.items()}})
    pairs: Any = get_method("contextpeft").attach(model, config, generator=torch_generator(settings.seed, "init"))
    of_pairs = {name for name, _ in pairs.trainable()}
    ratio = settings.base_rate / settings.adapter_rate
    pairs.rate_factor = lambda name: 1.0 if name in of_pairs else ratio
    for weight in pairs.model.parameters():
        weight.requires_grad_(True)
    try:
        optimizer = OptimizerSettings(settings.adapter_rate, settings.steps)
        loop = LoopSettings(
            optimizer, settings.seed, settings.micro_batch_tokens, pad_id=settings.pad_id,
            decoder_start_id=settings.decoder_start_id,
        )  # fmt: skip
        source = Epochs(len(rows), settings.rows_per_update, settings.seed)
        training = Training(Network(pairs.model, kind), pairs, rows, source, loop)
        status = training.run(settings.steps, on_step=on_step)
    finally:
        pairs.detach()
    if status != "ok":
        raise TrainingError(f"making the base adaptable ended: {status}.", remedy="Lower base_rate, or use fewer rows.")
    return model
