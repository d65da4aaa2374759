"""One lease, carried out: attach, resume, train to each rung, evaluate there, write a checkpoint, detach.

A rung is always evaluated on the same leading rows of the validation split (nested sets), and its checkpoint is
written before its observation is reported, so whatever was told can be continued from. A stop, by order or by the
clock, ends at the next step with a checkpoint; nothing trained is lost.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from foretune.data.update import Epochs
from foretune.errors import StoreError
from foretune.evaluation.base import Answer
from foretune.evaluation.likelihood import RowScore
from foretune.evaluation.metrics import METRICS
from foretune.execution.bench import Bench, peak_memory_bytes
from foretune.execution.final import answer_test, best_step
from foretune.execution.orders import TrialOrder
from foretune.files import FolderLock
from foretune.regularization.registry import build as build_regularizers
from foretune.search.types import Lease, Observation, Score, Status
from foretune.training import checkpoint
from foretune.training.forward import Network
from foretune.training.loop import LoopSettings, StepReport, Training
from foretune.training.optimizer import OptimizerSettings

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
        self.report = report
        self.stopped = stopped
        self.train_s = 0.0
        self.eval_s = 0.0
        self.tokens = 0
        self.last_saved = time.perf_counter()

    def run(self) -> Observation:
        """The final observation of the lease; failures are statuses, never scores."""
        lease = self.order.lease
        self.order.folder.mkdir(parents=True, exist_ok=True)
        with FolderLock(self.order.folder), self.bench.attached(lease.config, lease.seed) as (attachment, network):
            training = self._training(attachment, network)
            try:
                return self._carry_out(training, network)
            finally:
                training.close()

    def _carry_out(self, training: Training, network: Network) -> Observation:
        lease = self.order.lease
        self._resume(training)
        for rung in [*lease.rungs, lease.to_step]:
            if rung <= training.step:
                continue
            status = self._train_to(training, rung)
            if status != "ok":
                return self._end(training, status)
            metrics = self._evaluate(network, rung)
            if metrics is None:
                self._save(training)
                return self._end(training, "paused")
            self._save(training, {name: [s.value, s.standard_error, s.n] for name, s in metrics.items()})
            if rung >= lease.to_step and not self._tested(training, network):
                return self._end(training, "paused")
            observation = self._observation(training.step, "ok", metrics, final=rung >= lease.to_step)
            if observation.final:
                return observation
            self.report("rung", observation.to_json())
        return self._finished_before(training)

    def _training(self, attachment: Any, network: Network) -> Training:
        lease, bench = self.order.lease, self.bench
        rows = bench.split("train").rows
        if self.order.train_rows is not None:
            rows = tuple(rows[i] for i in self.order.train_rows)
        return Training(
            network,
            attachment,
            rows,
            Epochs(len(rows), int(lease.config["rows_per_update"]), lease.seed),
            loop_settings(lease, bench),
            build_regularizers(lease.config),
            backward=bench.accelerator.backward,
        )

    def _resume(self, training: Training) -> None:
        lease = self.order.lease
        saved = checkpoint.newest(self.order.folder, at_most=lease.to_step)
        if saved is not None and saved.facts["seed"] == lease.seed:
            training.load_state(saved.step, saved.tensors(), saved.facts)
        elif lease.from_step > 0:
            raise StoreError(
                f"run {lease.run} has no valid checkpoint at or before step {lease.to_step}; it starts again."
            )

    def _train_to(self, training: Training, rung: int) -> Status:
        lease = self.order.lease

        def on_step(step: StepReport) -> bool:
            self.train_s += step.seconds
            self.tokens += step.tokens
            facts = {"step": step.step, "loss": step.loss if math.isfinite(step.loss) else None}
            self.report("step", {**facts, "of": lease.horizon, "tokens": step.tokens, "seconds": step.seconds})
            if time.perf_counter() - self.last_saved > SAFETY_CHECKPOINT_S:
                self._save(training)
            return not self.stopped()

        status = training.run(rung, on_step=on_step)
        if status == "paused":
            self._save(training)
        return status

    def _evaluate(self, network: Network, rung: int) -> dict[str, Score] | None:
        """Scores at a rung, or None when told to stop."""
        started = time.perf_counter()
        chosen = self.order.evaluation_rows[rung]
        answered = self.order.metric_rows.get(rung, ())

        def on_chunk(done: int) -> bool:
            self.report("beat", {"evaluated": done})
            return not self.stopped()

        scores = self.bench.score(network, "validation", chosen, on_chunk)
        if len(scores) < len(chosen):
            return None
        metrics = {"loss": loss_of(scores)}
        if answered:
            answers = self.bench.answers(network, "validation", answered, generation=True, on_chunk=on_chunk)
            if len(answers) < len(answered) or any(answer.prediction is None for answer in answers):
                return None
            result = METRICS[self.bench.task.metric].score(answers)
            metrics[self.bench.task.metric] = Score(result.value, result.standard_error, len(answered))
        self.eval_s += time.perf_counter() - started
        return metrics

    def _tested(self, training: Training, network: Network) -> bool:
        """Whether the test rows asked for are answered; False when told to stop before."""
        test = self.order.test
        if test is None:
            return True
        started = time.perf_counter()

        def on_chunk(done: int) -> bool:
            self.report("beat", {"tested": done})
            return not self.stopped()

        done = answer_test(
            self.bench,
            network,
            training.attachment,
            self.order.folder,
            test,
            step=training.step,
            on_chunk=on_chunk,
        )
        self.eval_s += time.perf_counter() - started
        return done

    def _save(self, training: Training, metrics: Mapping[str, Any] | None = None) -> None:
        lease = self.order.lease
        tensors, facts = training.state()
        fence = {"lease": lease.id, "attempt": lease.attempt, "run": lease.run, "seed": lease.seed}
        checkpoint.save(
            self.order.folder,
            training.step,
            tensors,
            {**facts, **fence, "metrics": metrics, "config": dict(lease.config)},
        )
        self.last_saved = time.perf_counter()
        checkpoint.retain(self.order.folder, retained(self.order.folder, training.step))

    def _finished_before(self, training: Training) -> Observation:
        """The lease was already carried out by an earlier attempt that died before it could report."""
        saved = checkpoint.read(self.order.folder, training.step)
        metrics = {} if saved is None or saved.facts["metrics"] is None else saved.facts["metrics"]
        if not metrics:
            fresh = self._evaluate(training.network, self.order.lease.to_step)
            if fresh is None:
                return self._end(training, "paused")
            metrics = {name: [s.value, s.standard_error, s.n] for name, s in fresh.items()}
            self._save(training, metrics)
        if not self._tested(training, training.network):
            return self._end(training, "paused")
        scores = {name: Score(*parts) for name, parts in metrics.items()}
        return self._observation(training.step, "ok", scores, final=True)

    def _end(self, training: Training, status: Status) -> Observation:
        detail = "" if status in ("ok", "paused") else f"at step {training.step}, {training.guard.skipped} bad updates"
        # paused means that something of the lease is left to do, if only the evaluation at its last step
        step = min(training.step, self.order.lease.to_step - 1) if status == "paused" else training.step
        return self._observation(step, status, {}, final=True, detail=detail)

    def _observation(
        self, step: int, status: Status, metrics: Mapping[str, Score], *, final: bool, detail: str = ""
    ) -> Observation:
        observation = Observation(
            step=step,
            metrics=metrics,
            train_s=self.train_s,
            eval_s=self.eval_s,
            peak_bytes=peak_memory_bytes(self.bench.accelerator.device),
            status=status,
            tokens=self.tokens,
            detail=detail,
            final=final,
        )
        self.train_s = self.eval_s = 0.0
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
    )


def loss_of(scores: Sequence[RowScore]) -> Score:
    """Mean loss per target token with its standard error over rows."""
    rows = [Answer(score.row, "", "", nll=score.nll, tokens=score.tokens) for score in scores]
    result = METRICS["loss"].score(rows)
    return Score(result.value, result.standard_error, len(scores))


def retained(folder: Path, newest: int) -> set[int]:
    """The steps whose checkpoints are kept: the newest, and the evaluated one with the lowest validation loss."""
    best = best_step(folder)
    return {newest} if best is None else {newest, best}
