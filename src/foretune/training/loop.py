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
from foretune.data.update import MicroBatch, RowSource, StatefulRowSource, Update
from foretune.methods.base import Attachment
from foretune.regularization.base import Context, Regularizer, Term
from foretune.regularization.compose import Composition
from foretune.search.types import Status
from foretune.seeding import derive
from foretune.training.forward import Network, Scored
from foretune.training.guard import Guard
from foretune.training.optimizer import MasterWeights, OptimizerSettings
from foretune.training.ranks import Alone, Ranks
from foretune.training.recorded import LARGEST_TOKENS, Recorded, recordable, width_of

logger = logging.getLogger(__name__)
SOURCE = "source/"
"""Before the names of a row source's tensors in a checkpoint."""


@dataclass(frozen=True)
class LoopSettings:
    """Everything the loop needs to know beside its weights and rows."""

    optimizer: OptimizerSettings
    seed: int
    micro_batch_tokens: int = 512
    packing: bool = True
    pad_id: int = 0
    decoder_start_id: int = 0
    base_hash: str = ""
    """The hash of the base's weights"""
    base_source: str = ""
    """The base's folder or hub id"""


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
        ranks: Ranks | None = None,
    ) -> None:
        """``backward`` runs the backward pass (accelerate's, where a device or several need it); ``ranks`` are the
        processes that share the work."""
        self.ranks = ranks or Alone()
        self.network = network
        self.attachment = attachment
        self.rows = rows
        self.source = source
        self.settings = settings
        self.regularizers = Composition(regularizers)
        self.backward = backward
        self.packing = settings.packing and network.packs
        self.share_head = not network.noisy
        self.micro_batch_tokens = settings.micro_batch_tokens
        self.padded_rows: int | None = None
        self.masters = MasterWeights(attachment.parameter_groups(settings.optimizer.learning_rate), settings.optimizer)
        self.guard = Guard()
        self.step = 0
        self._set_up_regularizers()
        self.recorded = self._recorded()
        self.packing = self.packing and not (self.recorded and network.kind == "encoder")  # recorded on padded rows

    def _set_up_regularizers(self) -> None:
        """Check all of them, then edit the model; what was placed is removed again where one cannot be set up."""
        context = Context(
            model=self.network.model,
            attachment=self.attachment,
            seed=self.settings.seed,
            total_steps=self.settings.optimizer.total_steps,
            kind=self.network.kind,
            base_hash=self.settings.base_hash,
            base_source=self.settings.base_source,
            names=tuple(self.masters.names),
            masters=tuple(self.masters.masters),
            weights=tuple(self.masters.weights),
            rows=self.rows,
            runner=self.network,
            lay_out=self._lay_out,
            others=tuple(part.name for part in self.regularizers.parts),
        )
        self.regularizers.check(context)
        self.packing = self.packing and self.regularizers.packable
        self.share_head = self.share_head and self.regularizers.shares_head
        self.masters.optimizer = self.regularizers.setup(context, self.masters.optimizer)

    def _recorded(self) -> Recorded | None:
        """The recorded pass that updates are played on, where they can be."""
        if not isinstance(self.ranks, Alone) or self.regularizers or not self.rows or not recordable(self.network):
            return None
        most = len(self.source.rows(0))
        if width_of(self.rows) * most > min(LARGEST_TOKENS, self.micro_batch_tokens):
            return None
        return Recorded(self.network, self.masters.weights, self.backward, self.rows, most, self.settings.pad_id)

    def close(self) -> None:
        """Remove what the regularizers placed; trained weights stay."""
        self.recorded = None
        self.regularizers.teardown()

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
                if self.ranks.any(not on_step(report)):
                    return "ok" if self.step >= to_step else "paused"
        return "ok"

    def _update(self) -> StepReport:
        started = time.perf_counter()
        update, loss = self._gradients(self.source.rows(self.step))
        self.masters.hold(self.step)
        norm = self.masters.gradient_norm()
        accepted = self.guard.accepts(loss, norm)
        rate = self.masters.rate(self.step)
        if accepted:
            self.regularizers.pre_step(self.masters.masters, rate)
            clipped = self.masters.gradient_norm() if self.regularizers else norm  # masks change it
            self.masters.step(self.step, clipped)
            self.regularizers.post_step(self.masters.masters, rate)
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
        if self.recorded is not None and not self.recorded.refused:
            update = self._lay_out(chosen, packing=False)
            self._seed_dropout(0, update.micro_batches[0])
            if (played := self.recorded.run(update, update.targets)) is not None:
                self.masters.collect()
                return update, played
        while True:
            update = self._lay_out(chosen)
            out_of_memory, loss = False, 0.0
            try:
                weights, denominator = self.regularizers.prepare(update, self.network.model.device)
                mine = list(zip(update.micro_batches, weights, strict=True))[self.ranks.rank :: self.ranks.count]
                loss = sum(self._micro_batch(batch, weight, denominator, update.targets) for batch, weight in mine)
            except (RuntimeError, MemoryError) as error:
                if not _is_out_of_memory(error):
                    raise
                out_of_memory = True
            finally:
                self.regularizers.end_forward()
            if not self.ranks.any(out_of_memory):
                return update, self.ranks.add(self.masters.masters, loss)
            self.masters.clear()
            if len(update.micro_batches) == len(chosen):
                raise OutOfMemory(f"one row of {update.tokens // len(chosen)} tokens does not fit")
            self._halve(update)

    def _lay_out(self, chosen: Sequence[int], *, packing: bool | None = None) -> Update:
        most = max(1, sum(len(self.rows[row].ids) for row in chosen) // self.ranks.count)
        return lay_out(
            self.rows,
            chosen,
            kind=self.network.kind,
            limit_tokens=min(self.micro_batch_tokens, most) if self.ranks.count > 1 else self.micro_batch_tokens,
            packing=self.packing if packing is None else packing,
            share_head=self.share_head,
            pad_id=self.settings.pad_id,
            decoder_start_id=self.settings.decoder_start_id,
            padded_rows=self.padded_rows,
            tasks=self.network.reads_tasks,
        )

    def _halve(self, update: Update) -> None:
        """Half the tokens a micro-batch; the update's rows, and so its gradient, stay the same."""
        largest = max(batch.ids.numel() for batch in update.micro_batches)
        self.micro_batch_tokens = max(1, min(self.micro_batch_tokens, largest) // 2)
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        logger.warning("out of memory: micro-batches of at most %d tokens from here on", self.micro_batch_tokens)

    def _micro_batch(self, batch: MicroBatch, weights: torch.Tensor | None, denominator: float, targets: int) -> float:
        """Forward and backward pass; ``denominator`` is the sum of all weights of the update's task loss."""
        batch = batch.to(self.network.model.device)
        passes = 0

        def forward(*, fresh: bool = True) -> Scored:
            nonlocal passes
            number = passes if fresh else 0
            passes += 1
            self._seed_dropout(number, batch)
            self.regularizers.pre_forward(self.step, batch, self.settings.seed, number)
            return self.network.run(batch)

        scored = forward()
        losses = scored.nll()
        task = Term((losses if weights is None else losses * weights).sum(), denominator)
        total = task.value() + sum(term.value() for term in self.regularizers.terms(scored, forward, targets))
        self.backward(total)
        self.masters.collect()
        return float(task.value().detach())

    def _seed_dropout(self, number: int, batch: MicroBatch) -> None:
        """The model's own dropout in pass ``number`` of a micro-batch follows from the run's seed and the step."""
        torch.manual_seed(derive(self.settings.seed, "dropout", self.step, number, *batch.rows[:1]))

    def state(self) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
        """Tensors and JSON facts that `load_state` takes back: the whole state between two updates."""
        tensors = self.masters.state() | self.regularizers.state_dict()
        if isinstance(self.source, StatefulRowSource):
            tensors |= {f"{SOURCE}{key}": value for key, value in self.source.state().items()}
        return tensors, {"guard": self.guard.state(), "micro_batch_tokens": self.micro_batch_tokens}

    def load_state(self, step: int, tensors: Mapping[str, torch.Tensor], facts: Mapping[str, Any]) -> None:
        """Continue as the run that was saved after ``step`` updates."""
        self.masters.load_state(tensors)
        self.regularizers.load_state_dict(tensors)
        if isinstance(self.source, StatefulRowSource):
            state = {name.removeprefix(SOURCE): value for name, value in tensors.items() if name.startswith(SOURCE)}
            self.source.load_state(state)
        self.guard = Guard.from_state(dict(facts["guard"]))
        self.micro_batch_tokens = int(facts["micro_batch_tokens"])
        self.step = step
