"""One trainer in a process of its own, paced update by update from outside (see `throughput`).

    python benchmarks/contestant.py NAME ORDER.json

Reads an order (model, rows, which rows make up each update, settings), prepares everything, prints a line of JSON,
then does one update for every line it reads from standard input and answers each with the update's processor
seconds, seconds and loss. A process that waits for its turn uses no processor time, so contestants can take turns.

``NAME`` is ``foretune`` or a key of `VARIANTS`.
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

FORETUNE = "foretune"
DEFAULT = "trl-default"
LONGEST_ROW = 1024
"""Tokens; TRL's default ``max_length``. The rows of the shipped data are a tenth of that."""
LORA = {"rank": 16, "alpha": 32}


@dataclass(frozen=True)
class Variant:
    """Settings of ``trl.SFTTrainer`` that train the same thing at another speed."""

    about: str
    options: Mapping[str, Any] = field(default_factory=dict)
    """Fields of ``SFTConfig``"""
    dtype: str = "float32"
    """What the base is loaded in (``model_init_kwargs``; TRL's default is float32)"""
    adapters: str = "float32"
    """What the adapters are kept and stepped in (peft's default is float32 whatever the base is)"""
    micro_batches: int = 1
    """Gradient accumulation: the rows of an update sorted by length and cut into so many micro-batches"""


# Not among them: packing (other rows make up an update), liger and FlashAttention (no processor version),
# torch.compile (minutes of compiling for every new shape), group_by_length (another order of rows; sorting inside an
# update, which "two-lengths" does, is what is left of it).
_KEEP = {"gradient_checkpointing": False}
_BARE = {**_KEEP, "bf16": False}
_FLAT = {"padding_free": True, "max_length": None}
VARIANTS: dict[str, Variant] = {
    DEFAULT: Variant("as it comes: bf16 autocast over float32 weights, gradient checkpointing, padded rows"),
    "no-checkpointing": Variant("activations kept", _KEEP),
    "bf16-weights": Variant("and the base in bf16", _KEEP, "bfloat16"),
    "bf16-adapters": Variant("and the adapters in bf16", _KEEP, "bfloat16", "bfloat16"),
    "no-autocast": Variant("and no autocast, as nothing is left to cast", _BARE, "bfloat16", "bfloat16"),
    "two-lengths": Variant("and two length-sorted micro-batches", _BARE, "bfloat16", "bfloat16", 2),
    "four-lengths": Variant("and four length-sorted micro-batches", _BARE, "bfloat16", "bfloat16", 4),
    "padding-free": Variant("no-autocast with rows in one stream", {**_BARE, **_FLAT}, "bfloat16", "bfloat16"),
    "padding-free-2": Variant("the same in two streams", {**_BARE, **_FLAT}, "bfloat16", "bfloat16", 2),
    "padding-free-autocast": Variant(
        "bf16-weights with rows in two streams", {**_KEEP, **_FLAT}, "bfloat16", "float32", 2
    ),
}

Tell = Callable[[Mapping[str, Any]], None]


class Pace:
    """Waits for the order to do an update, measures it, reports it."""

    def __init__(self, tell: Tell) -> None:
        self._tell = tell

    def ready(self, **facts: Any) -> None:
        """Everything is prepared; wait for the first order."""
        self._tell(facts)
        self._wait()

    def done(self, loss: float) -> None:
        """An update is done, from the last order to here; wait for the next."""
        cpu_s, wall_s = time.process_time() - self._cpu, time.perf_counter() - self._wall
        self._tell({"cpu_s": cpu_s, "wall_s": wall_s, "loss": loss})
        self._wait()

    def _wait(self) -> None:
        if not sys.stdin.readline():
            os._exit(0)  # the benchmark is over; nothing is worth unwinding
        self._cpu, self._wall = time.process_time(), time.perf_counter()


def fingerprint(rows: Sequence[tuple[Sequence[int], Sequence[int]]]) -> str:
    """A hash of token ids and trained positions: contestants with the same one train on the same tokens."""
    return hashlib.sha256(json.dumps([[list(ids), list(trained)] for ids, trained in rows]).encode()).hexdigest()


def start_weights(state: Mapping[str, torch.Tensor], seed: int) -> dict[str, torch.Tensor]:
    """The same fresh LoRA matrices for everyone: A uniform as peft draws it, B zero; exact in bf16."""
    generator = torch.Generator().manual_seed(seed)
    fresh = {}
    for name in sorted(state):
        shape = state[name].shape
        drawn = torch.zeros(shape)
        if ".lora_A." in name:
            drawn = (torch.rand(shape, generator=generator) * 2 - 1) / shape[1] ** 0.5
        fresh[name] = drawn.bfloat16().to(state[name].dtype)
    return fresh


def run_foretune(order: Mapping[str, Any], pace: Pace) -> None:
    """Foretune's loop through its workbench, with its default layout (packed, 512 tokens a micro-batch)."""
    from foretune.catalogue.methods import METHODS
    from foretune.catalogue.models import ModelReference
    from foretune.execution.bench import Bench
    from foretune.execution.types import TaskSpec
    from foretune.training.loop import LoopSettings, StepReport, Training
    from foretune.training.optimizer import OptimizerSettings

    class InTurn:
        def rows(self, step: int) -> Sequence[int]:
            return list(order["updates"][step])

    reference = ModelReference(order["model"], dtype="float32" if order["float32"] else "auto")
    bench = Bench(TaskSpec(order["folder"], "generation", reference, "loss", device="cpu", context_tokens=LONGEST_ROW))
    rows = bench.split("train").rows
    config = {
        "method": "lora", **METHODS["lora"].space.defaults(), "lora.rank": LORA["rank"], "lora.alpha": LORA["alpha"],
    }  # fmt: skip
    optimizer = OptimizerSettings(order["learning_rate"], len(order["updates"]), "linear", 0.0, 0.0, 1.0)
    with bench.attached(config, order["seed"]) as (attachment, network):
        attachment.load_state(start_weights(attachment.state(), order["seed"]))
        training = Training(
            network, attachment, rows, InTurn(), LoopSettings(optimizer, order["seed"], pad_id=bench.pad_id),
            backward=bench.accelerator.backward,
        )  # fmt: skip
        pace.ready(
            fingerprint=fingerprint([(row.ids.tolist(), np.flatnonzero(row.target_mask).tolist()) for row in rows]),
            trainable=int(attachment.statistics()["trainable_parameters"]),
            rows=[[len(row.ids), row.targets] for row in rows],
            about=f"packed: {training.packing}, shared head: {training.share_head}, {bench.model.dtype}",
        )

        def on_step(report: StepReport) -> bool:
            pace.done(report.loss)
            return True

        training.run(len(order["updates"]), on_step=on_step)


def run_trl(variant: Variant, order: Mapping[str, Any], pace: Pace) -> None:
    """``trl.SFTTrainer`` on prompt–completion conversations, everything not said here at its defaults."""
    from datasets import Dataset
    from peft import LoraConfig, get_peft_model_state_dict, set_peft_model_state_dict
    from torch.utils.data import Sampler
    from transformers import TrainerCallback
    from trl import SFTConfig, SFTTrainer

    class Turns(Sampler):  # type: ignore[type-arg]
        def __iter__(self) -> Iterator[int]:
            for update in order["updates"]:
                yield from in_micro_batches(update, lengths, variant.micro_batches)

        def __len__(self) -> int:
            return sum(map(len, order["updates"]))

    class Paced(SFTTrainer):  # type: ignore[misc]
        losses: list[float] = []  # noqa: RUF012

        def _get_train_sampler(self, *_: Any, **__: Any) -> Turns:
            return Turns()

        def training_step(self, *positional: Any, **named: Any) -> torch.Tensor:
            loss: torch.Tensor = super().training_step(*positional, **named)
            self.losses.append(float(loss))
            return loss

    class Reports(TrainerCallback):  # type: ignore[misc]
        def on_step_end(self, *_: Any, **__: Any) -> None:
            pace.done(sum(trainer.losses))
            trainer.losses.clear()

    exact = {"bf16": False} if order["float32"] else {}
    dtype, adapters = ("float32", "float32") if order["float32"] else (variant.dtype, variant.adapters)
    rows_per_update = len(order["updates"][0])
    trainer = Paced(
        model=order["model"],
        args=SFTConfig(
            output_dir=str(Path(order["folder"]) / "trl"), use_cpu=True, max_steps=len(order["updates"]),
            per_device_train_batch_size=-(-rows_per_update // variant.micro_batches),
            gradient_accumulation_steps=variant.micro_batches, learning_rate=order["learning_rate"],
            seed=order["seed"], report_to="none", save_strategy="no", disable_tqdm=True,
            model_init_kwargs={"dtype": dtype}, **{**variant.options, **exact},
        ),
        train_dataset=Dataset.from_list(order["conversations"]),
        peft_config=LoraConfig(
            r=LORA["rank"], lora_alpha=LORA["alpha"], target_modules="all-linear", task_type="CAUSAL_LM"
        ),
        callbacks=[Reports()],
    )  # fmt: skip
    end = trainer.processing_class.eos_token_id
    trainer.train_dataset = trainer.train_dataset.map(lambda row: without_rest(row, end))
    lengths = [len(ids) for ids in trainer.train_dataset["input_ids"]]
    for weight in trainer.model.parameters():
        if weight.requires_grad:
            weight.data = weight.data.to(getattr(torch, adapters))
    set_peft_model_state_dict(trainer.model, start_weights(get_peft_model_state_dict(trainer.model), order["seed"]))
    pace.ready(
        fingerprint=fingerprint([
            (row["input_ids"], [at for at, label in enumerate(row["labels"]) if label >= 0])
            for row in trainer.train_dataset
        ]),
        trainable=sum(weight.numel() for weight in trainer.model.parameters() if weight.requires_grad),
        about=f"{variant.about}; {settings_of(trainer)}",
    )  # fmt: skip
    trainer.train()


def without_rest(row: Mapping[str, Any], end: int) -> dict[str, list[int]]:
    """A row up to its last end of turn.

    TRL also trains the line break that a chat template writes after it, which no server ever asks for; Foretune does
    not. Left out here, the target tokens of both are the same.
    """
    last = max(at for at, token in enumerate(row["input_ids"]) if token == end) + 1
    return {"input_ids": row["input_ids"][:last], "labels": row["labels"][:last]}


def in_micro_batches(update: Sequence[int], lengths: Sequence[int], count: int) -> list[int]:
    """The rows of an update in the order they are fed: sorted by length where there are several micro-batches."""
    return list(update) if count == 1 else sorted(update, key=lambda row: -lengths[row])


def settings_of(trainer: Any) -> str:
    """The settings of a trainer that decide its speed, as they really are."""
    arguments = trainer.args
    names = ("bf16", "gradient_checkpointing", "padding_free", "packing", "loss_type", "optim",
             "per_device_train_batch_size", "gradient_accumulation_steps")  # fmt: skip
    base = trainer.model.get_base_model()
    shown = [f"{name}={getattr(arguments, name)}" for name in names]
    return ", ".join([*shown, f"weights={base.dtype}", f"attention={base.config._attn_implementation}"])


def main() -> None:
    """Be the contestant that the command line names."""
    name, path = sys.argv[1:3]
    channel = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print goes to the log

    def tell(message: Mapping[str, Any]) -> None:
        channel.write(json.dumps(message) + "\n")
        channel.flush()

    order = json.loads(Path(path).read_text())
    torch.set_num_threads(order["threads"])
    if name == FORETUNE:
        run_foretune(order, Pace(tell))
    else:
        run_trl(VARIANTS[name], order, Pace(tell))


if __name__ == "__main__":
    main()
