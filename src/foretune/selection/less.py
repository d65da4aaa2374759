"""LESS: rows whose training step would most lower the loss on the target rows.

(Xia et al. 2024, 2402.04333, equations 3 to 5.) A LoRA is warmed up on a small random share of the pool for N epochs.
At the end of every epoch i, with its mean learning rate η_i and Adam's moments m, v after t steps:

    Γ(z)      = m̂ / (√v̂ + ε),   m = β1 m_t + (1−β1) g_z,  v = β2 v_t + (1−β2) g_z²        the step that z would make
    influence = Σ_i η_i · ⟨ P Γ_i(z) / |·| , P g_i(z') / |·| ⟩

g are gradients of mean losses, P a random projection, vectors are normalised. The score of a row is the mean over the
target rows z' of a subtask, and the maximum over subtasks (rows that name a task of their own). Highest first.

The warm-up repeats itself exactly, so a stopped selection runs it again and goes on with the projected gradients kept.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from foretune.catalogue.methods import resolve
from foretune.data.batches import length_of
from foretune.data.encode import EncodedRow
from foretune.data.update import Epochs
from foretune.errors import UsageError
from foretune.seeding import derive, generator
from foretune.selection.base import BlockMap, Request, Selection, Workbench
from foretune.selection.declared import Declared, Floats
from foretune.selection.kept_blocks import in_blocks
from foretune.selection.likelihoods import row_key
from foretune.selection.row_gradients import ADAPTER, Projection, lora_layers, row_gradients
from foretune.training.forward import Network
from foretune.training.loop import LoopSettings, Training
from foretune.training.optimizer import ADAM_BETAS, ADAM_EPSILON, OptimizerSettings

ROWS_PER_UPDATE = 16
FEWEST_WARMUP_ROWS = 16
BATCH_TOKENS = 2048
"""Padded tokens of one backward pass."""
BLOCK_ROWS = 32
Moments = Mapping[str, tuple[torch.Tensor, torch.Tensor]]


@dataclass(frozen=True)
class Checkpoint:
    """The end of an epoch of the warm-up."""

    number: int
    rate: float
    """Mean learning rate of the epoch"""
    step: int
    moments: Moments
    """(first, second) by matrix, as peft's modules are called"""


class Less(Declared):
    """Influence on the target rows."""

    name = "less"

    def select(self, request: Request, *, blocks: BlockMap) -> Selection:
        """Highest influence first."""
        if request.model.kind == "encoder":
            raise UsageError("less reads the gradients of language models.", remedy="Choose rds-plus for encoders.")
        settings = request.settings(self.name)
        bench = request.model
        pool, target = bench.encode(request.examples), bench.encode(request.target)
        tasks = subtasks([row.task for row in request.target])
        scores = np.zeros((len(pool), len(tasks)))
        config = resolve(
            {"method": "lora", "lora.rank": int(settings["rank"]), "lora.alpha": 2.0 * int(settings["rank"]),
             "lora.targets": settings["targets"], "lora.dropout": 0.0, "learning_rate": settings["learning_rate"]}
        )  # fmt: skip
        projection = Projection(
            int(settings["width"]), kind=settings["projection"], seed=derive(request.seed, "selection", self.name)
        )
        with bench.attached(config, derive(request.seed, "selection", "less")) as (attachment, network):
            for point in warmed_up(request, bench, attachment, network, pool, config, settings):
                made_of = [bench.weights_hash, dict(config), dict(settings), request.seed, point.number,
                           [row_key(row) for row in pool]]  # fmt: skip
                own = _projected(request, bench, network, pool, projection, point, made_of, "training-gradients")
                goal = _projected(request, bench, network, target, projection, None, made_of, "target-gradients")
                scores += point.rate * influence(own, goal, tasks)
        best = scores.max(axis=1)
        return self.by_score(request, best, n_positive=int((np.sort(best)[::-1][: request.count] > 0).sum()))


def subtasks(names: Sequence[str | None]) -> list[NDArray[np.int64]]:
    """The target rows of each subtask; one subtask where rows name none."""
    known = list(dict.fromkeys(names))
    return [np.flatnonzero([other == name for other in names]) for name in known]


def influence(own: Floats, goal: Floats, tasks: Sequence[NDArray[np.int64]]) -> Floats:
    """(rows, subtasks) mean cosine of each row's vector to the target rows of each subtask."""
    own, goal = _unit(own), _unit(goal)
    return np.stack([(own @ goal[members].T).mean(axis=1) for members in tasks], axis=1)


def _unit(vectors: Floats) -> Floats:
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    scaled: Floats = np.divide(vectors, lengths, out=np.zeros_like(vectors, dtype=np.float64), where=lengths > 0)
    return scaled


def warmed_up(
    request: Request,
    bench: Workbench,
    attachment: Any,
    network: Network,
    pool: Sequence[EncodedRow],
    config: Mapping[str, Any],
    settings: Mapping[str, Any],
) -> Iterator[Checkpoint]:
    """Train on a share of the pool; yields at the end of every epoch, while the network stands there."""
    wanted = max(min(FEWEST_WARMUP_ROWS, len(pool)), round(float(settings["warmup_share"]) * len(pool)))
    drawn = generator(request.seed, "selection", "less-warmup").permutation(len(pool))[:wanted]
    rows = [pool[int(i)] for i in np.sort(drawn)]
    epochs = int(settings["warmup_epochs"])
    source = Epochs(len(rows), ROWS_PER_UPDATE, request.seed)
    a_epoch = source.updates_per_epoch
    optimizer = OptimizerSettings(float(config["learning_rate"]), epochs * a_epoch, warmup_share=0.03)
    loop = LoopSettings(
        optimizer, request.seed, bench.task.micro_batch_tokens, pad_id=bench.pad_id,
        decoder_start_id=bench.decoder_start_id,
    )  # fmt: skip
    training = Training(network, attachment, rows, source, loop, backward=bench.accelerator.backward)
    for number in range(epochs):

        def on_step(report: Any, number: int = number) -> bool:
            request.on_progress("warm-up", report.step, epochs * a_epoch)
            return not request.stopped()

        status = training.run((number + 1) * a_epoch, on_step=on_step)
        request.check_stopped()
        if status != "ok":
            raise UsageError(
                f"the warm-up of less ended as {status}.", remedy="Set less.learning_rate lower, or shorten the rows."
            )
        rate = float(np.mean([training.masters.rate(step) for step in range(number * a_epoch, (number + 1) * a_epoch)]))
        yield Checkpoint(number, rate, training.step, _moments(training, network))


def _moments(training: Training, network: Network) -> Moments:
    """Adam's moments by the names that `row_gradients` gives."""
    states = {
        id(weight): training.masters.optimizer.state[master]
        for weight, master in zip(training.masters.weights, training.masters.masters, strict=True)
    }
    found = {}
    for name, layer in lora_layers(network.model).items():
        for part in ("lora_A", "lora_B"):
            state = states[id(getattr(layer, part)[ADAPTER].weight)]
            found[f"{name}.{part}"] = (state["exp_avg"], state["exp_avg_sq"])
    return found


def adam_step(gradient: torch.Tensor, first: torch.Tensor, second: torch.Tensor, step: int) -> torch.Tensor:
    """The direction of Adam's update number ``step`` + 1 with this gradient: (rows, …) from (rows, …) and moments."""
    beta1, beta2 = ADAM_BETAS
    mean = (beta1 * first + (1 - beta1) * gradient) / (1 - beta1 ** (step + 1))
    square = (beta2 * second + (1 - beta2) * gradient**2) / (1 - beta2 ** (step + 1))
    return mean / (square.sqrt() + ADAM_EPSILON)


def _projected(
    request: Request,
    bench: Workbench,
    network: Network,
    rows: Sequence[EncodedRow],
    projection: Projection,
    adam: Checkpoint | None,
    made_of: Any,
    what: str,
) -> Floats:
    """(rows, width) projected gradients, in Adam's direction where a checkpoint is given; kept in float16."""

    def compute(block: Sequence[int]) -> dict[str, NDArray[np.float16]]:
        total = torch.zeros(len(block), projection.width, device=network.model.device)
        for part in _batches([length_of(rows[i], network.kind) for i in block]):
            places = torch.tensor(part, device=total.device)
            here = torch.zeros(len(part), projection.width, device=total.device)

            def take(name: str, gradient: torch.Tensor, here: torch.Tensor = here) -> None:
                if adam is not None:
                    gradient = adam_step(gradient, *adam.moments[name], adam.step)
                projection.add(here, name, gradient.flatten(1))

            row_gradients(bench, network, [rows[block[i]] for i in part], take)
            total[places] = here / here.norm(dim=1, keepdim=True).clamp_min(1e-12)
        return {"gradient": total.cpu().numpy().astype(np.float16)}

    keys = [row_key(row) for row in rows]
    arrays = in_blocks(request, what, keys, made_of, compute, block_rows=BLOCK_ROWS)
    return arrays["gradient"].astype(np.float64)


def _batches(lengths: Sequence[int]) -> list[list[int]]:
    """Rows of like length together, `BATCH_TOKENS` padded tokens at most."""
    order = sorted(range(len(lengths)), key=lambda i: (lengths[i], i))
    groups: list[list[int]] = []
    for i in order:
        if groups and lengths[i] * (len(groups[-1]) + 1) <= BATCH_TOKENS:
            groups[-1].append(i)
        else:
            groups.append([i])
    return groups
