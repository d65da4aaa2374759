"""A worker's workbench: one base model, its tokenizer and the encoded splits of one task, kept between jobs.

Everything a job does with a model goes through here: attach a method, train, score, answer. The base is bitwise
the same between jobs (adapters leave no trace), which a hash checks where it is cheap.
"""

from __future__ import annotations

import functools
import gc
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from peft.tuners.tuners_utils import BaseTunerLayer

from foretune.data.encode import EncodedRow, encode_rows, inference_ids
from foretune.data.example import Example
from foretune.data.keywords import Calibration
from foretune.data.layout import TurnLayout, layout_of
from foretune.data.mask_check import MaskReport, check_encoding
from foretune.data.reasoning import AS_TEXT
from foretune.data.tasks import task_number, with_tasks
from foretune.data.template import answer_text, prompt_with_examples, stop_ids
from foretune.errors import DataError, Place, UsageError
from foretune.evaluation.base import Answer
from foretune.evaluation.generation import generate_ids
from foretune.evaluation.likelihood import RowScore, score_rows
from foretune.execution.memory import forget_peak, give_back_memory
from foretune.execution.orders import subset
from foretune.execution.types import TaskSpec
from foretune.files import cache_folder, read_lines
from foretune.methods.base import Attachment
from foretune.methods.registry import get as get_method
from foretune.methods.tuners.tasks import name_tasks
from foretune.models.kinds import infer_kind
from foretune.models.load import LoadedModel, load, locate, read_config
from foretune.seeding import torch_generator
from foretune.training.forward import Network
from foretune.training.prefix import FrozenPrefix, PrefixStore

CALIBRATION_ROWS = 64
"""Rows that starts from data look at: enough for the leading directions of activations and gradients."""
FEWEST_ANSWER_TOKENS = 16
ANSWER_FACTOR = 2
"""Generated answers may be this many times the longest training answer: more cannot be right, and costs time."""


@dataclass(frozen=True)
class Split:
    """The rows of one split, as read and as tokens."""

    examples: tuple[Example, ...]
    rows: tuple[EncodedRow, ...]


class Bench:
    """A loaded base model and one task's data."""

    def __init__(self, task: TaskSpec, loaded: LoadedModel | None = None, prefixes: PrefixStore | None = None) -> None:
        """Load the model (or take a loaded one, with the states kept for it).

        Raises `ModelError` or `DataError` with place and remedy.
        """
        self.task = task
        self.accelerator = Accelerator(cpu=task.device == "cpu")
        if self.accelerator.device.type == "cuda":
            torch.backends.cuda.enable_cudnn_sdp(False)  # it plans anew for every shape: a fifth of a small update
        loaded = loaded or load(
            task.model,
            labels=task.labels if task.model.kind == "encoder" else (),
            regression=task.task == "regression" and task.model.kind == "encoder",
            device=str(self.accelerator.device),
        )
        forget_peak()
        self._loaded: LoadedModel | None = loaded
        self.model: Any = loaded.model
        self.tokenizer: Any = loaded.tokenizer
        self.kind = loaded.kind
        self.weights_hash = loaded.weights_hash
        self.folder_or_id = loaded.folder_or_id
        self.quantized = bool(getattr(loaded.model, "is_quantized", False))
        self.model.requires_grad_(False)
        self.model.eval()
        if task.gradient_checkpointing:
            self.model.gradient_checkpointing_enable({"use_reentrant": False})
            self.model.enable_input_require_grads()
        self.network = Network(self.model, self.kind)
        self.network.verify()
        self.prefixes = prefixes or PrefixStore(task.prefix_cache_bytes)
        self._splits: dict[str, Split] = {}
        self._base_scores: dict[str, dict[int, RowScore]] = {}
        self._others: dict[str, Bench] = {}
        self.taken: Mapping[str, torch.Tensor] = {}
        """What the attached method made of training rows and does not train"""
        self.mask_reports: dict[str, MaskReport] = {}

    def for_task(self, task: TaskSpec) -> Bench:
        """A bench for another task, with this one's model where that is the same."""
        mine = self.task
        same = (task.model, task.labels, task.task, task.device) == (mine.model, mine.labels, mine.task, mine.device)
        return Bench(task, self._loaded, self.prefixes) if same else Bench(task)

    def with_model(self, source: str) -> Bench:
        """A bench of the same task with another model, kept while this one lives: a scorer, or a bare encoder."""
        if source not in self._others or self._others[source].unloaded:
            where = locate(source)
            kind = infer_kind(read_config(where))
            reference = replace(self.task.model, source=str(where), kind=kind, quantize="none", revision=None)
            task = replace(self.task, model=reference, labels=() if kind == "encoder" else self.task.labels)
            self._others[source] = Bench(replace(task, task="generation") if kind == "encoder" else task)
        return self._others[source]

    def unload(self) -> None:
        """Let go of the model; this bench can do nothing more, and a job that follows gets another one."""
        self._loaded = self.model = self.network = None  # type: ignore[assignment]
        self._others.clear()
        gc.collect()
        give_back_memory()

    @property
    def unloaded(self) -> bool:
        """Whether the model was let go."""
        return self._loaded is None

    @cached_property
    def pad_id(self) -> int:
        """What fills padded batches."""
        return int(self.tokenizer.pad_token_id or 0)

    @cached_property
    def decoder_start_id(self) -> int:
        """What encoder–decoders begin their answers with."""
        start = getattr(self.model.config, "decoder_start_token_id", None)
        return int(self.pad_id if start is None else start)

    def split(self, name: str) -> Split:
        """A split of the task, encoded (from the cache where the same text was encoded before) and checked."""
        if name not in self._splits:
            path = Path(self.task.folder) / f"{name}.jsonl"
            if not path.parent.is_dir():
                raise DataError("the rows of this run are gone.", place=Place(path), remedy="Put its folder back.")
            examples = tuple(Example.from_json(value) for value in read_lines(path))
            rows = tuple(with_tasks(self.encode(examples), examples, self.task.tasks))
            self.mask_reports[name] = check_encoding(examples, rows, self.tokenizer, **self._encoding)
            self._splits[name] = Split(examples, rows)
        return self._splits[name]

    def encoding_report(self, splits: Sequence[str]) -> tuple[list[str], list[str]]:
        """How the rows of these splits became tokens, a line each: lengths and what was cut; what the template does."""
        for name in splits:
            self.split(name)
        reports = {name: self.mask_reports[name] for name in splits}
        lines = [f"{name}: {line}" for name, report in reports.items() for line in report.counted()]
        longest = max((report.longest_target for report in reports.values()), default=0)
        if self.task.task == "generation" and self.kind != "encoder" and longest > self.most_answer_tokens:
            lines.append(
                f"answers have up to {longest:,} tokens, but at most {self.most_answer_tokens:,} are written when they "
                "are compared (evaluation.max_answer_tokens, and half of the context)"
            )
        return lines, list(dict.fromkeys(note for report in reports.values() for note in report.notes))

    @property
    def _encoding(self) -> dict[str, Any]:
        """The settings that encoding and its check share."""
        task = self.task
        return {
            "kind": self.kind,
            "task": task.task,
            "labels": task.labels,
            "context_tokens": task.context_tokens,
            "plain": task.plain_template,
        }

    def encode(self, examples: Sequence[Example]) -> list[EncodedRow]:
        """Token rows of any examples under this task's settings."""
        return encode_rows(examples, self.tokenizer, cache=cache_folder() / "tokens", **self._encoding)

    def encode_texts(self, examples: Sequence[Example]) -> list[EncodedRow]:
        """Token rows of plain texts, whatever this task's rows are: texts have no labels."""
        settings = {**self._encoding, "task": "language-modelling", "labels": ()}
        return encode_rows(examples, self.tokenizer, cache=cache_folder() / "tokens", **settings)

    @contextmanager
    def attached(
        self, config: Mapping[str, Any], seed: int, taken: Mapping[str, torch.Tensor] | None = None
    ) -> Iterator[tuple[Attachment, Network]]:
        """Inside, the method of ``config`` is attached with fresh weights; afterwards the base is as before.

        ``taken`` is what the method made of training rows when the run began, where it goes on (`taken` of its bench).
        Where attaching fails midway the model is let go, and the bench with it; settings that are refused leave both.
        """
        method = get_method(str(config["method"]))
        generator = torch_generator(seed, "init")
        self._check_tasks(config)
        calibration = self._calibration(taken or {})
        try:
            attachment = method.attach(self.model, config, generator=generator, calibration=calibration)
            name_tasks(attachment, self.task.tasks)
            self.taken = {} if calibration is None else calibration.taken
        except BaseException as error:
            if not isinstance(error, UsageError) or any(isinstance(m, BaseTunerLayer) for m in self.model.modules()):
                self.unload()  # what a failed start left in the base must not be trained on
            raise
        try:
            yield attachment, Network(attachment.model, self.kind, self._prefix(attachment.model))
        finally:
            self.model = attachment.detach()
            self.network = Network(self.model, self.kind)
            give_back_memory()

    def _check_tasks(self, config: Mapping[str, Any]) -> None:
        """Refuse a multi-task method with fewer tasks than the rows have."""
        setting = f"{config['method']}.tasks"
        if len(self.task.tasks) > int(config.get(setting, len(self.task.tasks))):
            raise UsageError(
                f"{setting} is {config[setting]}, and the rows are of {len(self.task.tasks)} tasks.",
                remedy=f"Set training.{setting} to {len(self.task.tasks)}: {', '.join(map(repr, self.task.tasks))}.",
            )

    def _calibration(self, taken: Mapping[str, torch.Tensor]) -> Calibration | None:
        """The training rows that a method may look at before it starts: the same for every run on this task."""
        task = self.task
        rows = self.split("train").rows if (Path(task.folder) / "train.jsonl").is_file() else ()
        if not rows and not taken:
            return None
        chosen = [rows[i] for i in subset(min(CALIBRATION_ROWS, len(rows)), len(rows), task.seed)]
        limit, device = task.micro_batch_tokens, self.model.device
        return Calibration(chosen, self.kind, limit, self.pad_id, self.decoder_start_id, device, dict(taken))

    def _prefix(self, adapted: Any) -> FrozenPrefix | None:
        """The part of an adapted model below its lowest adapted layer, where there is one worth keeping."""
        if self.kind != "causal" or self.prefixes.budget_bytes == 0:
            return None
        prefix = FrozenPrefix(adapted, f"{self.weights_hash}/{adapted.dtype}/{self.quantized}", self.prefixes)
        return prefix if prefix.block > 0 else None

    def score(
        self, network: Network, split: str, chosen: Sequence[int], on_chunk: Callable[[int], bool] = lambda done: True
    ) -> list[RowScore]:
        """Teacher-forced scores of rows of a split; those of the untouched base are remembered for `base_scores`."""
        scores = self.score_encoded(network, self.split(split).rows, chosen, on_chunk)
        if network is self.network:
            self._base_scores.setdefault(split, {}).update({score.row: score for score in scores})
        return scores

    def base_scores(
        self, split: str, chosen: Sequence[int], on_chunk: Callable[[int], bool] = lambda done: True
    ) -> dict[int, RowScore]:
        """Scores of rows by the untouched base model, by row: each row is scored once in a bench's life.

        Only while nothing is attached.
        """
        known = self._base_scores.get(split, {})
        missing = [row for row in chosen if row not in known]
        if missing:
            self.score(self.network, split, missing, on_chunk)
        return self._base_scores[split]

    def score_encoded(
        self,
        network: Network,
        rows: Sequence[EncodedRow],
        chosen: Sequence[int],
        on_chunk: Callable[[int], bool] = lambda done: True,
    ) -> list[RowScore]:
        """Teacher-forced scores of encoded rows."""
        return score_rows(
            network,
            rows,
            chosen,
            micro_batch_tokens=self.task.micro_batch_tokens,
            pad_id=self.pad_id,
            decoder_start_id=self.decoder_start_id,
            on_chunk=on_chunk,
        )

    def answers(
        self,
        network: Network,
        split: str,
        chosen: Sequence[int],
        *,
        generation: bool,
        shots: Mapping[int, Sequence[Example]] | None = None,
        known: Sequence[RowScore] = (),
        on_chunk: Callable[[int], bool] = lambda done: True,
    ) -> list[Answer]:
        """Losses and predictions of rows of a split; ``shots`` puts solved examples before a row's question.

        ``known`` are scores of this network that were taken before, of these rows or more.
        """
        part = self.split(split)
        examples, rows = part.examples, part.rows
        if shots is not None:
            examples = tuple(
                prompt_with_examples(example, shots.get(i, ())) if i in shots else example
                for i, example in enumerate(examples)
            )
            longer = [examples[i] for i in chosen]
            encoded = dict(zip(chosen, with_tasks(self.encode(longer), longer, self.task.tasks), strict=True))
            rows = tuple(encoded.get(i, row) for i, row in enumerate(rows))
        if known:
            scores = [score for score in known if score.row in set(chosen)]
        elif shots is None:
            scores = self.score(network, split, chosen, on_chunk)
        else:
            scores = self.score_encoded(network, rows, chosen, on_chunk)
        texts: dict[int, str | None] = {}
        if generation and self.kind != "encoder":
            done = [score.row for score in scores]
            written = self.write(network, [examples[i] for i in done], on_chunk)
            texts = dict(zip(done, written, strict=True))
        return [
            self._answer(part.examples[score.row], rows[score.row], score, texts.get(score.row)) for score in scores
        ]

    def write(
        self, network: Network, examples: Sequence[Example], on_chunk: Callable[[int], bool] = lambda done: True
    ) -> list[str | None]:
        """Greedy answers to the prompts of ``examples``; None for those not reached when told to stop."""
        plain = self.task.plain_template
        causal = self.kind == "causal"
        layout = layout_of(self.tokenizer, plain=plain) if causal else None
        prompts = [
            inference_ids(
                example,
                self.tokenizer,
                kind=self.kind,
                context_tokens=self.task.context_tokens,
                answer_tokens=self.answer_tokens,
                layout=layout,
            )
            for example in examples
        ]
        ends = stop_ids(self.tokenizer, plain=plain) if causal else (int(self.tokenizer.eos_token_id),)
        numbers: list[int | None] = [None] * len(examples)
        if network.reads_tasks and self.task.tasks:
            numbers = [task_number(example, self.task.tasks) for example in examples]
        written: dict[int, list[int] | None] = {}
        for number in dict.fromkeys(numbers):  # a batch answers for one task
            rows = [i for i, other in enumerate(numbers) if other == number]
            with network.answering_for(number):
                answers = generate_ids(
                    network.model,
                    [prompts[i] for i in rows],
                    max_new_tokens=self.answer_tokens,
                    stop_ids=ends,
                    on_chunk=functools.partial(_counted, on_chunk, len(written)),
                )
            written |= dict(zip(rows, answers, strict=True))
        texts = (written[i] for i in range(len(examples)))
        return [None if ids is None else self.text_of(ids, layout) for ids in texts]

    def text_of(self, ids: Sequence[int], layout: TurnLayout | None) -> str:
        """The answer in ids that the model wrote; ``layout`` is a causal model's."""
        if layout is not None:
            return answer_text(ids, self.tokenizer, layout=layout)
        return AS_TEXT.answer_in(str(self.tokenizer.decode(list(ids), skip_special_tokens=True))).strip()

    @property
    def most_answer_tokens(self) -> int:
        """Longest answer that may be written: as set; at most half the context where the prompt shares it."""
        most = self.task.max_answer_tokens
        return min(most, max(1, self.task.context_tokens // 2)) if self.kind == "causal" else most

    @cached_property
    def answer_tokens(self) -> int:
        """Longest generated answer: twice the longest training answer where that is below `most_answer_tokens`."""
        lengths = [row.targets for row in self.split("train").rows]
        if not lengths:
            return self.most_answer_tokens
        return min(self.most_answer_tokens, max(FEWEST_ANSWER_TOKENS, ANSWER_FACTOR * max(lengths)))

    def _answer(self, example: Example, row: EncodedRow, score: RowScore, text: str | None) -> Answer:
        prediction = text
        if self.kind == "encoder" and score.prediction is not None:
            named = self.task.task == "classification"
            prediction = self.task.labels[int(score.prediction)] if named else repr(score.prediction)
        return Answer(
            row=score.row,
            prompt=example.prompt,
            reference=example.answer,
            prediction=prediction,
            nll=score.nll,
            tokens=score.tokens,
            bytes=len(example.answer.encode()) if self.kind == "encoder" else row.answer_bytes,
            probability=score.probability,
        )


def _counted(on_chunk: Callable[[int], bool], before: int, done: int) -> bool:
    """``on_chunk`` told of ``done`` rows beside those done ``before``."""
    return on_chunk(before + done)
