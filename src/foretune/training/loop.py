"""The training loop: one update after another, pausable and resumable at any step.

Per update: rows from the row source → micro-batches → for each: noise, forward, loss terms, backward → gradients
gathered in float32 → guard → gradient masks, optimiser, pulls → published weights. All randomness of update k
derives from (seed, k), so a run resumed at step k repeats exactly what an uninterrupted run does there.

It does not evaluate, choose steps or write files: `execution.trial` does.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from foretune.data.batches import lay_out
from foretune.data.encode import EncodedRow
from foretune.data.update import MicroBatch, RowSource, Update
from foretune.errors import UsageError
from foretune.methods.base import Attachment
from foretune.regularization.base import Context, Regularizer, Term
from foretune.search.types import Status
from foretune.seeding import derive, torch_generator
from foretune.training.forward import Network, Scored
from foretune.training.guard import Guard
from foretune.training.optimizer import MasterWeights, OptimizerSettings

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class LoopSettings:
    """Everything the loop needs to know beside its weights and rows."""

    optimizer: OptimizerSettings
    seed: int
    micro_batch_tokens: int = 512
    packing: bool = True
    pad_id: int = 0
    decoder_start_id: int = 0


@dataclass(frozen=True)
class StepReport:
    """What one update did."""

    step: int
    """Updates done, this one included."""
    loss: float
    gradient_norm: float
    learning_rate: float
    tokens: int
    targets: int
    seconds: float
    skipped: bool


class OutOfMemory(RuntimeError):
    """A single row does not fit the device's memory."""


def _is_out_of_memory(error: BaseException) -> bool:
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or (
        isinstance(error, RuntimeError) and "can't allocate memory" in str(error)
    )


class Training:
    """One run's state: weights, moments, step, guard."""

    def __init__(
        self,
        network: Network,
        attachment: Attachment,
        rows: Sequence[EncodedRow],
        source: RowSource,
        settings: LoopSettings,
        regularizers: Sequence[Regularizer] = (),
        backward: Callable[[torch.Tensor], None] = lambda loss: loss.backward(),  # type: ignore[no-untyped-call]
    ) -> None:
        """``backward`` runs the backward pass (accelerate's, where a device or several need it)."""
        self.network = network
        self.attachment = attachment
        self.rows = rows
        self.source = source
        self.settings = settings
        self.regularizers = list(regularizers)
        self.backward = backward
        self.packing = settings.packing and network.packs
        self.share_head = not network.noisy and not regularizers
        self.micro_batch_tokens = settings.micro_batch_tokens
        self.padded_rows: int | None = None
        self.masters = MasterWeights(attachment.parameter_groups(settings.optimizer.learning_rate), settings.optimizer)
        context = Context(network.model, attachment, settings.seed, settings.optimizer.total_steps)
        for regularizer in self.regularizers:
            if (plan := regularizer.check(context)).refusal:
                raise UsageError(f"{regularizer.name} cannot be used here: {plan.refusal}")
            self.packing = self.packing and plan.packable
            regularizer.setup(context)
            self.masters.optimizer = regularizer.wrap_optimizer(self.masters.optimizer)
        self.guard = Guard()
        self.step = 0

    def close(self) -> None:
        """Remove what the regularizers placed; trained weights stay."""
        for regularizer in reversed(self.regularizers):
            regularizer.teardown()

    def run(
        self,
        to_step: int,
        *,
        on_step: Callable[[StepReport], bool] = lambda report: True,
    ) -> Status:
        """Train until ``to_step`` updates are done.

        ``on_step`` sees every update and returns False to pause after it. Returns ``ok``, ``paused``, ``diverged``
        or ``oom``.
        """
        with self.network.mode(packing=self.packing, training=True):
            while self.step < to_step:
                try:
                    report = self._update()
                except OutOfMemory:
                    return "oom"
                if self.guard.diverged:
                    return "diverged"
                if not on_step(report):
                    return "ok" if self.step >= to_step else "paused"
        return "ok"

    def _update(self) -> StepReport:
        started = time.perf_counter()
        update, loss = self._gradients(self.source.rows(self.step))
        norm = self.masters.gradient_norm()
        accepted = self.guard.accepts(loss, norm)
        rate = self.masters.rate(self.step)
        if accepted:
            for regularizer in self.regularizers:
                regularizer.pre_step(self.masters.masters, rate)
            self.masters.step(self.step, norm)
            for regularizer in self.regularizers:
                regularizer.post_step(self.masters.masters, rate)
            self.masters.publish()
        else:
            logger.warning("update %d skipped: loss %s, gradient norm %s", self.step + 1, loss, norm)
        self.masters.clear()
        self.step += 1
        return StepReport(
            self.step, loss, norm, rate, update.tokens, update.targets, time.perf_counter() - started, not accepted
        )

    def _gradients(self, chosen: Sequence[int]) -> tuple[Update, float]:
        """All gradients of one update on the masters, and its loss; smaller micro-batches when memory runs out."""
        while True:
            update = lay_out(
                self.rows,
                chosen,
                kind=self.network.kind,
                limit_tokens=self.micro_batch_tokens,
                packing=self.packing,
                share_head=self.share_head,
                pad_id=self.settings.pad_id,
                decoder_start_id=self.settings.decoder_start_id,
                padded_rows=self.padded_rows,
                tasks=self.network.reads_tasks,
            )
            try:
                return update, sum(self._micro_batch(batch, update.targets) for batch in update.micro_batches)
            except (RuntimeError, MemoryError) as error:
                if not _is_out_of_memory(error):
                    raise
                self.masters.clear()
                if len(update.micro_batches) == len(chosen):
                    raise OutOfMemory(f"one row of {update.tokens // len(chosen)} tokens does not fit") from error
            self._halve(update)

    def _halve(self, update: Update) -> None:
        """Half the tokens a micro-batch; the update's rows, and so its gradient, stay the same."""
        largest = max(batch.ids.numel() for batch in update.micro_batches)
        self.micro_batch_tokens = max(1, min(self.micro_batch_tokens, largest) // 2)
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        logger.warning("out of memory: micro-batches of at most %d tokens from here on", self.micro_batch_tokens)

    def _micro_batch(self, batch: MicroBatch, targets: int) -> float:
        batch = batch.to(self.network.model.device)
        noise_seed = derive(self.settings.seed, "dropout", self.step)

        def forward() -> Scored:
            torch.manual_seed(noise_seed)
            for regularizer in self.regularizers:
                generator = torch_generator(self.settings.seed, "noise", regularizer.name, self.step)
                regularizer.pre_forward(self.step, batch, generator)
            return self.network.run(batch)

        scored = forward()
        losses = scored.nll()
        for regularizer in self.regularizers:
            if (weights := regularizer.token_weights(batch)) is not None:
                losses = losses * weights
        task = Term(losses.sum(), targets)
        terms = [regularizer.loss(scored, forward, targets) for regularizer in self.regularizers]
        total = task.value() + sum(term.value() for term in terms if term is not None)
        self.backward(total)
        self.masters.collect()
        return float(task.value().detach())

    def state(self) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
        """Tensors and JSON facts that `load_state` takes back: the whole state between two updates."""
        tensors = self.masters.state()
        for regularizer in self.regularizers:
            tensors |= {f"regularizer/{regularizer.name}/{k}": v for k, v in regularizer.state_dict().items()}
        return tensors, {"guard": self.guard.state(), "micro_batch_tokens": self.micro_batch_tokens}

    def load_state(self, step: int, tensors: Mapping[str, torch.Tensor], facts: Mapping[str, Any]) -> None:
        """Continue as the run that was saved after ``step`` updates."""
        self.masters.load_state(tensors)
        for regularizer in self.regularizers:
            prefix = f"regularizer/{regularizer.name}/"
            regularizer.load_state_dict(
                {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}
            )
        self.guard = Guard.from_state(dict(facts["guard"]))
        self.micro_batch_tokens = int(facts["micro_batch_tokens"])
        self.step = step
