"""One lease, carried out: attach, resume, train to each rung, evaluate there, write a checkpoint, detach.

A rung is always evaluated on the same leading rows of the validation split (nested sets), and its checkpoint is
written before its observation is reported, so whatever was told can be continued from. Every checkpoint carries all
observations of its run so far: one that was lost on the way, because somebody was killed between writing and hearing
it, is reported again by the next attempt. A stop, by order or by the clock, ends at the next step with a checkpoint;
nothing trained is lost. Where all checkpoints are gone the run starts again, and repeats itself exactly.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

from foretune.evaluation.base import Answer
from foretune.evaluation.gain import GAIN, gain
from foretune.evaluation.likelihood import RowScore
from foretune.evaluation.metrics import METRICS
from foretune.execution.base_rates import ensure_rates
from foretune.execution.bench import Bench
from foretune.execution.final import answer_test, load_checkpoint, saved_at
from foretune.execution.kept import Kept, kept
from foretune.execution.memory import forget_peak, peak_memory_bytes
from foretune.execution.orders import TrialOrder
from foretune.execution.row_source import row_source
from foretune.files import FolderLock
from foretune.regularization.registry import build as build_regularizers
from foretune.search.types import Lease, Observation, Score, Status
from foretune.selection.base import SelectionStopped
from foretune.training import checkpoint
from foretune.training.checkpoint import Checkpoint
from foretune.training.forward import Network
from foretune.training.loop import LoopSettings, StepReport, Training
from foretune.training.optimizer import OptimizerSettings, without_moments
from foretune.training.ranks import ranks_of

logger = logging.getLogger(__name__)
SAFETY_CHECKPOINT_S = 120.0
"""Between rungs, a checkpoint at least this often bounds what a kill can cost."""


class Trial:
    """Carries out one order on a bench."""

    def __init__(
        self,
        bench: Bench,
        order: TrialOrder,
        *,
        report: Callable[[str, Mapping[str, Any]], None],
        stopped: Callable[[], bool],
    ) -> None:
        """``report(kind, payload)`` sends events; ``stopped()`` says whether to stop at the next step."""
        self.bench = bench
        self.order = order
        self.ranks = ranks_of(bench.accelerator)
        self.leads = self.ranks.rank == 0
        """Of several processes that train one run, the first writes its files and reports; all of them evaluate"""
        self.report = report if self.leads else lambda kind, payload: None
        self.stopped = stopped
        self.train_s = self.eval_s = 0.0
        self.train_cpu_s = self.eval_cpu_s = 0.0
        self.tokens = 0
        self.base: Mapping[int, RowScore] = {}
        """The untouched base model's scores of the validation rows"""
        self.best_weights: dict[str, Any] = {}
        """The weights of the lowest validation loss, where no checkpoints are written"""
        self.seen: dict[int, Observation] = {}
        """Observations at rungs, of earlier leases and attempts too."""
        self.last_saved = time.perf_counter()

    def run(self) -> Observation:
        """The final observation of the lease; failures are statuses, never scores."""
        lease = self.order.lease
        forget_peak()  # what an earlier run needed is not this one's
        self.order.folder.mkdir(parents=True, exist_ok=True)
        self._score_base()
        ensure_rates(self.bench, lease.config, lambda: self.report("beat", {}))
        try:
            chosen = self._kept()
        except SelectionStopped:  # nothing was trained; what was scored is kept
            return self._observation(lease.from_step, "paused", {})
        with FolderLock(self.order.folder) if self.leads else nullcontext():
            begun, saved = self._saved()
            taken = None if saved is None else saved.taken()
            with self.bench.attached(lease.config, lease.seed, taken) as (attachment, network):
                training = self._training(attachment, network, chosen)
                try:
                    if begun and saved is not None:
                        self._resume(training, saved)
                    elif saved is not None:
                        training.masters.load_state(without_moments(saved.tensors()))
                    return self._carry_out(training, network)
                finally:
                    training.close()

    def _carry_out(self, training: Training, network: Network) -> Observation:
        lease = self.order.lease
        for rung in sorted({*lease.rungs, lease.to_step}):
            if rung not in self.seen:
                status = self._train_to(training, rung)
                if status == "paused":
                    return self._paused(training, training.step)
                if status != "ok":
                    detail = f"at step {training.step}, {training.guard.skipped} bad updates"
                    return self._observation(training.step, status, {}, detail=detail)
                metrics = self._evaluate(network, rung)
                if metrics is None:
                    return self._paused(training, rung - 1)  # a rung counts once it is evaluated
                self.seen[rung] = self._observation(rung, "ok", metrics, detail=training.regularizers.sentence())
                self._save(training)
            if rung >= lease.to_step and not self._tested(training, network):
                return self._observation(rung - 1, "paused", {})  # the rung's checkpoint is written
            observation = self.seen[rung]
            if rung >= lease.to_step:  # with the time that the test rows took
                wall, busy = observation.eval_s + self.eval_s, (observation.eval_cpu_s or 0.0) + self.eval_cpu_s
                return replace(observation, final=True, eval_s=wall, eval_cpu_s=busy)
            self.report("rung", replace(observation, final=False).to_json())
        raise AssertionError("unreachable: the last rung ends the lease")

    def _kept(self) -> Kept:
        """The rows that the configuration trains on; ranked now where no trial of the task has needed them before."""

        def on_progress(what: str, done: int, total: int) -> None:
            self.report("beat", {"selecting": what, "done": done, "of": total})

        return kept(
            self.bench,
            self.order.lease.config,
            pool=self.order.train_rows,
            seed=self.order.selection_seed,
            stopped=self.stopped,
            on_progress=on_progress,
        )

    def _training(self, attachment: Any, network: Network, chosen: Kept) -> Training:
        lease, bench = self.order.lease, self.bench
        rows = tuple(bench.split("train").rows[i] for i in sorted(chosen.rows))
        return Training(
            network,
            attachment,
            rows,
            row_source(bench, lease, chosen, network),
            loop_settings(lease, bench),
            build_regularizers(lease.config),
            backward=bench.accelerator.backward,
            ranks=self.ranks,
        )

    def _saved(self) -> tuple[bool, Checkpoint | None]:
        """Whether this run was begun before, and the checkpoint where it goes on or, of an earlier fit, begins."""
        lease = self.order.lease
        saved = checkpoint.newest(self.order.folder, at_most=lease.to_step)
        if saved is not None and saved.facts["seed"] == lease.seed:
            return True, saved
        if lease.from_step > 0:
            logger.warning("run %s has no valid checkpoint; it starts again", lease.run)
        start = self.order.initial_weights
        return False, None if start is None else saved_at(Path(start.folder), start.step)

    def _resume(self, training: Training, saved: Checkpoint) -> None:
        training.load_state(saved.step, saved.tensors(), saved.facts)
        seen = [Observation.from_json(value) for value in saved.facts["seen"]]
        self.seen = {observation.step: observation for observation in seen}
        self.train_s, self.tokens = saved.facts["since_s"], saved.facts["since_tokens"]  # not told yet
        self.train_cpu_s = saved.facts.get("since_cpu_s", 0.0)

    def _score_base(self) -> None:
        """Have the base's scores of all rows that the lease will be scored on, to say the gain over it.

        Each process works alone: the first may know scores of earlier jobs that the others have not seen.
        """
        with self._evaluating():
            rows = sorted({row for chosen in self.order.evaluation_rows.values() for row in chosen})
            self.base = self.bench.base_scores("validation", rows, self._alive("base", alone=True))

    @contextmanager
    def _evaluating(self) -> Iterator[None]:
        """Book the time inside as evaluation."""
        started, busy = time.perf_counter(), time.process_time()
        yield
        self.eval_s += time.perf_counter() - started
        self.eval_cpu_s += time.process_time() - busy

    def _alive(self, what: str, *, alone: bool = False) -> Callable[[int], bool]:
        """Tells the overseer how many rows are done, and the scorer whether to go on.

        All processes of a run agree on it, unless each works ``alone``.
        """

        def on_chunk(done: int) -> bool:
            self.report("beat", {what: done})
            return not (self.stopped() if alone else self.ranks.any(self.stopped()))

        return on_chunk

    def _train_to(self, training: Training, rung: int) -> Status:
        lease = self.order.lease

        def on_step(step: StepReport) -> bool:
            self.train_s += step.seconds
            self.tokens += step.tokens if step.step > lease.from_step else 0  # repeated steps were told already
            facts = {"step": step.step, "loss": step.loss if math.isfinite(step.loss) else None}
            self.report("step", {**facts, "of": lease.horizon, "tokens": step.tokens, "seconds": step.seconds})
            if time.perf_counter() - self.last_saved > SAFETY_CHECKPOINT_S:
                self._save(training)
            return not (self.stopped() or self._is_enough(step.step))

        busy = time.process_time()
        status = training.run(rung, on_step=on_step)
        self.train_cpu_s += time.process_time() - busy
        return status

    def _evaluate(self, network: Network, rung: int) -> dict[str, Score] | None:
        """Scores at a rung, or None when told to stop."""
        chosen = self.order.evaluation_rows[rung]
        answered = self.order.metric_rows.get(rung, ())
        on_chunk = self._alive("evaluated")
        with self._evaluating():
            scores = self.bench.score(network, "validation", chosen, on_chunk)
            if len(scores) < len(chosen):
                return None
            metrics = {"loss": loss_of(scores)}
            if (gained := gain(self.base.values(), scores)) is not None:
                metrics[GAIN] = gained
            if answered:
                answers = self.bench.answers(
                    network, "validation", answered, generation=True, known=scores, on_chunk=on_chunk
                )
                if len(answers) < len(answered) or any(answer.prediction is None for answer in answers):
                    return None
                result = METRICS[self.bench.task.metric].score(answers)
                metrics[self.bench.task.metric] = Score(result.value, result.standard_error, len(answered))
        return metrics

    def _tested(self, training: Training, network: Network) -> bool:
        """Whether the test rows asked for are answered; False when told to stop before."""
        test = self.order.test
        if test is None or not self.leads:
            return True

        def restore(step: int) -> None:
            if self.order.checkpoints:
                load_checkpoint(training.attachment, self.order.folder, step)
            else:
                training.masters.load_state(self.best_weights)

        with self._evaluating():
            return answer_test(
                self.bench,
                training.attachment,
                network,
                test,
                step=training.step,
                best=best_of(self.seen.values()),
                restore=restore,
                on_chunk=self._alive("tested", alone=True),
            )

    def _save(self, training: Training) -> None:
        lease = self.order.lease
        self.last_saved = time.perf_counter()
        if not self.order.checkpoints:
            if self.seen and best_of(self.seen.values()) == training.step:
                kept = without_moments(training.masters.state())
                self.best_weights = {name: tensor.clone() for name, tensor in kept.items()}
            return
        if not self.leads:
            return
        tensors, facts = training.state()
        tensors |= {checkpoint.TAKEN + name: tensor for name, tensor in self.bench.taken.items()}
        fence = {"lease": lease.id, "attempt": lease.attempt, "run": lease.run, "seed": lease.seed}
        seen = [observation.to_json() for _, observation in sorted(self.seen.items())]
        since = {"since_s": self.train_s, "since_cpu_s": self.train_cpu_s, "since_tokens": self.tokens}
        facts = {**facts, **fence, **since, "seen": seen, "config": dict(lease.config)}
        checkpoint.save(self.order.folder, training.step, tensors, facts)
        checkpoint.retain(self.order.folder, retained(self.seen.values(), training.step))

    def _is_enough(self, step: int) -> bool:
        return self.order.pause_at is not None and step >= self.order.pause_at

    def _paused(self, training: Training, reached: int) -> Observation:
        """The end of a lease that was told to stop, with a checkpoint to go on from.

        What was trained only to see how fast it goes counts as not told: who goes on tells its seconds again.
        """
        if self.order.pause_at is not None:
            self._save(training)
            return self._observation(reached, "paused", {})
        observation = self._observation(reached, "paused", {})
        self._save(training)
        return observation

    def _observation(self, step: int, status: Status, metrics: Mapping[str, Score], *, detail: str = "") -> Observation:
        observation = Observation(
            step=step,
            metrics=metrics,
            train_s=self.train_s,
            eval_s=self.eval_s,
            peak_bytes=peak_memory_bytes(self.bench.accelerator.device),
            status=status,
            tokens=self.tokens,
            detail=detail,
            train_cpu_s=self.train_cpu_s,
            eval_cpu_s=self.eval_cpu_s,
        )
        self.train_s = self.eval_s = self.train_cpu_s = self.eval_cpu_s = 0.0
        self.tokens = 0
        return observation


def loop_settings(lease: Lease, bench: Bench) -> LoopSettings:
    """The loop's settings for a lease's configuration."""
    config = lease.config
    return LoopSettings(
        optimizer=OptimizerSettings(
            learning_rate=float(config["learning_rate"]),
            total_steps=lease.horizon,
            schedule=config["schedule"],
            warmup_share=float(config["warmup_share"]),
            weight_decay=float(config["weight_decay"]),
            max_gradient_norm=float(config["max_gradient_norm"]),
        ),
        seed=lease.seed,
        micro_batch_tokens=bench.task.micro_batch_tokens,
        pad_id=bench.pad_id,
        decoder_start_id=bench.decoder_start_id,
        base_hash=bench.weights_hash,
        base_source=bench.folder_or_id,
    )


def loss_of(scores: Sequence[RowScore]) -> Score:
    """Mean loss per target token with its standard error over rows."""
    rows = [Answer(score.row, "", "", nll=score.nll, tokens=score.tokens) for score in scores]
    result = METRICS["loss"].score(rows)
    return Score(result.value, result.standard_error, len(scores))


def retained(seen: Collection[Observation], newest: int) -> set[int]:
    """The steps whose checkpoints are kept: the newest, the last evaluated one, and the one with the lowest loss.

    The last two are what `search.ranking.finalists` may choose; of equal losses it takes the later.
    """
    steps = [observation.step for observation in seen]
    return {newest, max(steps), best_of(seen)} if steps else {newest}


def best_of(seen: Iterable[Observation]) -> int:
    """The step with the lowest validation loss; the later of equals."""
    return -min((observation.metrics["loss"].value, -observation.step) for observation in seen)[1]
