"""Training a parent from random weights with the product's own loop, checkpoints and rows.

The weights are drawn once from the recipe's seed; every `parents.CHECKPOINT_STEPS` updates and at every stop the state
goes to disk, so that an interrupted pre-training ends with the same weights as one that was not.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import AutoTokenizer, BartConfig, BartForConditionalGeneration

from foretune.data.encode import encode_rows
from foretune.data.example import Example
from foretune.data.update import Epochs
from foretune.errors import TrainingError
from foretune.methods.registry import get as get_method
from foretune.packages import Progress
from foretune.seeding import derive, torch_generator
from foretune.study.parents import CHECKPOINT_STEPS, Recipe, config_of
from foretune.training import checkpoint
from foretune.training.forward import Network
from foretune.training.loop import LoopSettings, StepReport, Training
from foretune.training.optimizer import OptimizerSettings

MICRO_BATCH_TOKENS = 2048
"""Half of what fits: the scores over the vocabulary then stay in the cache, a fifth less time."""
SAID_S = 30.0
"""Between two lines of progress."""


class ParentTraining:
    """One parent under way."""

    def __init__(self, recipe: Recipe, work: Path, examples: Sequence[Example]) -> None:
        """``work`` holds the tokenizer and the checkpoints."""
        self.recipe, self.work = recipe, work
        self.tokenizer: Any = AutoTokenizer.from_pretrained(str(work / "tokenizer"))
        model = _fresh(recipe, self.tokenizer)
        rows = encode_rows(examples, self.tokenizer, kind="seq2seq", task="generation", context_tokens=recipe.positions)
        self.attachment = get_method("full").attach(model, {}, generator=torch_generator(recipe.seed, "init"))
        optimizer = OptimizerSettings(recipe.learning_rate, recipe.steps, "linear", 0.05, 0.01, 1.0)
        settings = LoopSettings(
            optimizer, recipe.seed, MICRO_BATCH_TOKENS, pad_id=int(self.tokenizer.pad_token_id),
            decoder_start_id=int(model.config.decoder_start_token_id),
        )  # fmt: skip
        source = Epochs(len(rows), recipe.rows_per_update, recipe.seed)
        network = Network(self.attachment.model, "seq2seq")
        self.training = Training(network, self.attachment, rows, source, settings)
        saved = checkpoint.newest(work)
        if saved is not None:
            self.training.load_state(saved.step, saved.tensors(), saved.facts)

    def run(self, progress: Progress, stopped: Callable[[], bool], name: str) -> bool:
        """Train to the end, or until told to stop; whether the end was reached. Raises `TrainingError`."""
        said = time.monotonic()

        def on_step(report: StepReport) -> bool:
            nonlocal said
            if time.monotonic() - said > SAID_S:
                said = time.monotonic()
                progress(f"{name}: update {report.step:,} of {self.recipe.steps:,}, loss {report.loss:.3f}")
            if report.step % CHECKPOINT_STEPS == 0:
                self._save()
            return not stopped()

        status = self.training.run(self.recipe.steps, on_step=on_step)
        if status == "paused":
            self._save()
            return False
        if status != "ok":
            raise TrainingError(f"pre-training {name} ended: {status}.", remedy="Delete its folder to begin again.")
        return True

    def _save(self) -> None:
        tensors, facts = self.training.state()
        checkpoint.save(self.work, self.training.step, tensors, facts)
        checkpoint.retain(self.work, {self.training.step})

    def save(self, folder: Path) -> None:
        """Write weights, configuration and tokenizer."""
        self.attachment.save(folder)
        self.tokenizer.save_pretrained(folder)

    def clean(self) -> None:
        """Remove what training left behind."""
        shutil.rmtree(self.work, ignore_errors=True)


def _fresh(recipe: Recipe, tokenizer: Any) -> Any:
    """The model with weights drawn from the recipe's seed."""
    config = BartConfig(**config_of(
        recipe, int(tokenizer.pad_token_id), int(tokenizer.bos_token_id), int(tokenizer.eos_token_id), len(tokenizer)
    ))  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive(recipe.seed, "parents", "weights"))
        return BartForConditionalGeneration(config)
