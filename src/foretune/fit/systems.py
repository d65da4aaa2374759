"""Any trained system on any file: a run, an adapter over its base, or a model, scored or asked for answers.

Serves ``foretune evaluate`` and ``foretune predict``. An adapter is loaded by peft into the base, which answers with
it and, switched off, without it: the comparison with the base needs no second model. What this does not do: adapters
that put vectors before the prompt (prefix and prompt tuning), which the scoring network cannot run.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal

from accelerate import Accelerator

from foretune.catalogue.languages import Languages
from foretune.catalogue.models import ModelKind, ModelReference
from foretune.data.choices import Choices
from foretune.data.example import Example, Turn
from foretune.data.instruction import before_texts, instructed
from foretune.data.reasoning import TO_COME
from foretune.data.row_label import LABELLED, asked, label_text
from foretune.data.translation import prefix_for
from foretune.errors import ModelError, Place, UsageError
from foretune.evaluation.base import Answer, MetricResult
from foretune.evaluation.compare import Comparison, compare
from foretune.evaluation.greedy import learns_prompts
from foretune.evaluation.metrics import metric
from foretune.evaluation.metrics.labels import read_choice, read_class
from foretune.execution.bench import Bench
from foretune.execution.types import TaskSpec
from foretune.export import loading
from foretune.export.adapter import check_weights
from foretune.export.job import Source, find_source
from foretune.fit.known import (
    known_answer_tokens,
    known_context,
    known_data,
    known_dtype,
    known_four_bit,
    known_languages,
    known_plain,
    known_reasoning,
)
from foretune.fit.prepare import write_split
from foretune.methods.tuners.tasks import ATTRIBUTE, named_tasks
from foretune.models.kinds import infer_kind
from foretune.models.load import LoadedModel, load, locate, read_config
from foretune.report.record import RESULT

SPLIT = "test"


@dataclass(frozen=True)
class Settings:
    """How a system is loaded and asked."""

    device: Literal["auto", "cpu", "cuda"] = "auto"
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    max_answer_tokens: int | None = None
    """None is as in the run behind the system, at least `known.ANSWER_TOKENS`"""
    context_tokens: int | None = None
    """None is as in the run, or `known.CONTEXT_TOKENS`"""
    plain_template: bool | None = None
    """Without the chat template; None is as in the run, or with it"""
    labels: tuple[str, ...] = ()
    """Class names in the order of the classifier's head, or those that answers may name, where no run's record says"""
    languages: Languages | None = None
    """Source and target of a translator, where the run's record does not know them"""
    instruction: str | None = None
    """What stands before every question or text, where it is not the run's own; see `data.instruction`"""


@dataclass(frozen=True)
class Evaluation:
    """Scores of a system on a file, and what they are beside the base model's."""

    kind: ModelKind
    scores: dict[str, MetricResult]
    base: dict[str, MetricResult]
    """Empty where the system is no adapter"""
    comparisons: dict[str, Comparison]
    """The system against its base"""
    answers: tuple[Answer, ...]


@contextmanager
def opened(
    name: str, examples: Sequence[Example], task: str, *, base: Path | str | None = None, settings: Settings
) -> Iterator[tuple[Bench, Any]]:
    """The bench of system ``name`` with ``examples`` as its test split, and its peft model (None without adapter).

    ``name`` is a run folder, an adapter folder, a model folder, a hub id or a catalogue name. Raises `ModelError`
    when something is missing or does not fit together, `UsageError` when class names are unknown.
    """
    source = _source(name, base)
    reference = _reference(source, name, settings)
    encoder = reference.kind == "encoder"
    if encoder and task not in LABELLED:
        raise UsageError("a classifier writes no answers.", remedy="Use foretune evaluate with labelled rows.")
    labels: tuple[str, ...] = ()
    if task == "classification":  # a language model writes whatever the rows' classes are called
        written = {label_text(row.label) for row in examples}
        labels = _labels(source, name, settings) if encoder else tuple(sorted(written))
    device = str(Accelerator(cpu=settings.device == "cpu").device)
    regression = encoder and task == "regression"
    loaded = load(reference, labels=labels if encoder else (), regression=regression, device=device)
    adapted = None
    if source is not None and source.base is not None:
        adapted = _adapted(loaded, source.trained)
        loaded = replace(loaded, model=adapted.get_base_model())
    with TemporaryDirectory(prefix="foretune-") as folder:
        before = instruction_of(name, reference, loaded.model, settings)
        write_split(Path(folder) / f"{SPLIT}.jsonl", instructed(examples, before))
        spec = TaskSpec(
            folder=folder, task=task, model=reference, metric="loss", labels=labels, device=settings.device,
            context_tokens=_context(loaded, settings.context_tokens or known_context(name)),
            plain_template=known_plain(name) if settings.plain_template is None else settings.plain_template,
            max_answer_tokens=settings.max_answer_tokens or known_answer_tokens(name),
        )  # fmt: skip
        spec = replace(spec, tasks=_tasks(adapted, examples, name))
        bench = Bench(spec, loaded)
        if not bench.quantized:  # weights in four bits stay where they were put
            bench.model.to(bench.accelerator.device)
        yield bench, adapted


def evaluate_rows(
    name: str,
    examples: Sequence[Example],
    task: str,
    metrics: Sequence[str],
    *,
    base: Path | str | None = None,
    settings: Settings,
    seed: int = 0,
) -> Evaluation:
    """Score system ``name`` on ``examples``; an adapter also beside its base, row by row. See `opened` for errors."""
    chosen = [metric(wanted) for wanted in metrics]
    generation = any(wanted.needs_generation for wanted in chosen)
    reasons = known_reasoning(name)
    with opened(name, examples, task, base=base, settings=settings) as (bench, adapted):
        answers = _answers(bench, generation, reasons)
        scores = {wanted.name: wanted.score(answers) for wanted in chosen}
        if adapted is None:
            return Evaluation(bench.kind, scores, {}, {}, tuple(answers))
        with adapted.disable_adapter():
            untouched = _answers(bench, generation, reasons)
    before = {wanted.name: wanted.score(untouched) for wanted in chosen}
    groups = None if any(row.group is None for row in examples) else [row.group for row in examples]
    comparisons = {
        wanted.name: compare(
            scores[wanted.name], before[wanted.name], direction=wanted.direction, groups=groups, seed=seed
        )
        for wanted in chosen
    }
    return Evaluation(bench.kind, scores, before, comparisons, tuple(answers))


def _answers(bench: Bench, generation: bool, reasons: bool) -> list[Answer]:
    """Losses and predictions; what ``reasons`` does so also where the rows hold answers alone."""
    examples = bench.split(SPLIT).examples
    if not (generation and reasons and bench.kind == "causal"):
        return bench.answers(bench.network, SPLIT, range(len(examples)), generation=generation)
    answers = bench.answers(bench.network, SPLIT, range(len(examples)), generation=False)
    texts = bench.write(bench.network, [_reasoned(example) for example in examples])
    return [replace(answer, prediction=texts[answer.row]) for answer in answers]


def _reasoned(example: Example) -> Example:
    """A row whose last answer, where it has no reasoning of its own, has some to come."""
    last = example.targets[-1] if example.targets else -1
    turns = [
        replace(turn, reasoning=TO_COME) if number == last and not turn.reasoning else turn
        for number, turn in enumerate(example.turns)
    ]
    return replace(example, turns=tuple(turns))


@dataclass(frozen=True)
class Prediction:
    """What a system says to a prompt: a text, or a class with its probability, or a number."""

    prompt: str
    answer: str
    probability: float | None = None
    label: str | None = None
    """The class or choice that a written answer names; None where it names none, or where there are none"""

    @classmethod
    def written(cls, row: Example, answer: str, classes: Sequence[str]) -> Prediction:
        """A language model's ``answer`` to ``row``, and which of ``classes`` or of the choices asked for it names."""
        choices = Choices.asked_in(row.prompt)
        names: Sequence[str] = classes
        named = read_class(answer, classes)
        if choices is not None and not classes:
            names, named = choices.labels, read_choice(answer, choices)
        return cls(row.prompt, answer, label=named if named in names else None)


def predict_rows(
    name: str,
    prompts: Sequence[str | tuple[str, str] | Example],
    *,
    base: Path | str | None = None,
    untouched: bool = False,
    settings: Settings,
    tasks: Sequence[str] = (),
) -> list[Prediction]:
    """What system ``name`` says to every prompt (its base alone when ``untouched``). See `opened` for errors.

    A prompt is a text, the two texts that a label is about, or turns without the answer.

    ``tasks`` names every prompt's task for an adapter of several; without, its default answers.
    """
    source = _source(name, base)
    encoder = _reference(source, name, settings).kind == "encoder"
    task = _label_task(source, name, settings) if encoder else "generation"
    label = _labels(source, name, settings)[0] if task == "classification" else 0.0
    reasons = known_reasoning(name)
    examples = [_unanswered(prompt, label if encoder else None, reasons) for prompt in prompts]
    if tasks:
        examples = [replace(example, task=task) for example, task in zip(examples, tasks, strict=True)]
    with opened(name, examples, task, base=base, settings=settings) as (bench, adapted):
        if untouched and adapted is None:
            raise UsageError("this system has no adapter to switch off.", remedy="Name its base itself.")
        with adapted.disable_adapter() if untouched else nullcontext():
            if bench.kind != "encoder":
                texts = bench.write(bench.network, bench.split(SPLIT).examples)
                classes = settings.labels or (source.labels if source is not None else ())
                return [Prediction.written(row, text or "", classes) for row, text in zip(examples, texts, strict=True)]
            answers = bench.answers(bench.network, SPLIT, range(len(prompts)), generation=False)
        return [Prediction(row.prompt, row.prediction or "", row.probability) for row in answers]


def instruction_of(name: str, reference: ModelReference, model: Any, settings: Settings) -> str:
    """What stands before every text that system ``name`` is asked: as said, as in its run, or as its languages ask."""
    data = known_data(name)
    if settings.instruction is None and settings.languages is None and data is not None and data.instruction:
        return data.instruction
    told = ""
    if reference.languages is not None:
        where = locate(reference.source)
        folder = where if isinstance(where, Path) else None
        told = prefix_for(reference.languages, reference.kind, str(model.config.model_type), folder)
    return before_texts(settings.instruction, told, replaces=reference.kind == "causal")


def _unanswered(prompt: str | tuple[str, str] | Example, label: str | float | None, reasons: bool) -> Example:
    """A prompt as a row. A classifier's row needs a label, which is not read."""
    if not isinstance(prompt, Example):
        prompt = Example(tuple(Turn("user", text) for text in ((prompt,) if isinstance(prompt, str) else prompt)))
    if label is not None:
        return replace(prompt, label=label)
    turns = asked(prompt.turns)
    answer = Turn("assistant", "", reasoning=TO_COME if reasons else "")
    return replace(prompt, turns=(*turns, answer), targets=(len(turns),))


def _label_task(source: Source | None, name: str, settings: Settings) -> str:
    """Whether a classifier names classes or says a number: by its record, the given classes, or its head."""
    if source is not None and source.record is not None:
        return source.record.data.task
    own = _own_config(source, name)
    number = own.get("problem_type") == "regression" or len(own.get("id2label") or ()) == 1
    return "regression" if number and not settings.labels else "classification"


def _own_config(source: Source | None, name: str) -> dict[str, Any]:
    """The configuration of whole weights; empty for an adapter, whose base says nothing about its head."""
    if source is not None and source.base is not None:
        return {}
    return read_config(locate(name) if source is None else source.trained)


def _source(name: str, base: Path | str | None) -> Source | None:
    """Where a trained folder's parts are; None for a plain model. A named base is fetched when it can be."""
    return (
        find_source(Path(name), None if base is None else Path(locate(str(base)))) if _is_trained(Path(name)) else None
    )


def _is_trained(folder: Path) -> bool:
    return (folder / RESULT).is_file() or loading.is_adapter(folder)


def _reference(source: Source | None, name: str, settings: Settings) -> ModelReference:
    weights = name if source is None else str(source.base or source.trained)
    kind = infer_kind(read_config(locate(weights)))
    if source is not None and loading.kind_of(source.trained) == "classifier":
        kind = "encoder"
    languages = settings.languages or known_languages(name)
    dtype = settings.dtype if settings.dtype != "auto" else known_dtype(name)
    in_four_bits = source is not None and source.base is not None and known_four_bit(name)
    quantize: Literal["none", "4bit"] = "4bit" if in_four_bits and find_spec("bitsandbytes") else "none"
    return ModelReference(weights, kind=kind, dtype=dtype, quantize=quantize, languages=languages)


def _context(loaded: LoadedModel, wanted: int) -> int:
    """``wanted`` tokens, or what the model has positions for (an encoder's tokenizer says it exactly)."""
    positions = getattr(loaded.model.config.get_text_config(), "max_position_embeddings", None)
    limits = [wanted, positions if isinstance(positions, int) and positions > 0 else wanted]
    if loaded.kind == "encoder":
        limits.append(loaded.tokenizer.model_max_length)
    return int(min(limits))


def _adapted(loaded: LoadedModel, folder: Path) -> Any:
    """The peft model of ``loaded`` with the adapter in ``folder``."""
    import peft

    check_weights(folder)
    try:
        adapted = peft.PeftModel.from_pretrained(loaded.model, str(folder), local_files_only=True)
    except (OSError, ValueError, RuntimeError, KeyError, TypeError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")
        raise ModelError(f"the adapter does not fit its base model: {reason}.", place=Place(folder)) from error
    if learns_prompts(adapted):
        raise UsageError("adapters that learn a prompt cannot be scored here.", place=Place(folder))
    return adapted.eval()


def _tasks(adapted: Any, examples: Sequence[Example], name: str) -> tuple[str, ...]:
    """The names of the adapter's tasks where some row names one; without, every row is of the adapter's default task.

    Raises `UsageError` for rows of tasks and an adapter that knows none.
    """
    if not any(example.task for example in examples):
        return ()
    known = named_tasks(adapted)
    if not known and adapted is not None and hasattr(adapted.get_base_model(), ATTRIBUTE):
        raise UsageError("this adapter's tasks have no names.", place=Place(name), remedy="Leave the task out.")
    return known


def task_of(adapted: Any, task: str, name: str) -> int:
    """The number of the adapter's task called ``task``. Raises `UsageError` where there is none."""
    known = named_tasks(adapted)
    if task not in known:
        remedy = f"It knows {', '.join(map(repr, known))}." if known else "Leave the task out."
        raise UsageError(f"the adapter has no task {task!r}.", place=Place(name), remedy=remedy)
    return known.index(task)


def _labels(source: Source | None, name: str, settings: Settings) -> tuple[str, ...]:
    """Class names in the order of the head: the user's, the run record's, or those in the weights' own folder."""
    known = settings.labels or (source.labels if source is not None else ()) or _written(_own_config(source, name))
    if not known:
        raise UsageError(
            "the order of this classifier's classes is not known.",
            place=Place(name),
            remedy="Name the run folder, or give --labels first,second,… in the order of training.",
        )
    return known


def _written(config: Mapping[str, Any]) -> tuple[str, ...]:
    """The class names in a configuration, unless they are transformers' fillers (LABEL_0, LABEL_1, …)."""
    written = config.get("id2label") or {}
    names = tuple(str(written[key]) for key in sorted(written, key=int))
    return () if names == tuple(f"LABEL_{number}" for number in range(len(names))) else names
