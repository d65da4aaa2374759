"""The metrics by name, and which one a task asks for."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from foretune.data.example import Example
from foretune.data.tools import found_in
from foretune.errors import UsageError
from foretune.evaluation.base import SHARE, Direction, Metric
from foretune.evaluation.metrics import comet, labels, numbers, text
from foretune.evaluation.metrics.own import OwnMetric
from foretune.evaluation.metrics.rows import ShareMetric

Function = TypeVar("Function", bound=Callable[[Any], Any])

METRICS: dict[str, Metric] = {
    "loss": numbers.LikelihoodMetric("loss", "tokens", "nats per token"),
    "loss_per_byte": numbers.LikelihoodMetric("loss_per_byte", "bytes", "bits per byte"),
    "exact_match": ShareMetric("exact_match", text.exact),
    "token_f1": ShareMetric("token_f1", text.token_f1),
    "rouge_l": ShareMetric("rouge_l", text.rouge_l),
    "chrf": text.Chrf(),
    "bleu": text.Bleu(),
    "comet": comet.COMET,
    "label_f1": labels.LabelF1(),
    "choice": labels.ChoiceAccuracy(),
    "json_validity": ShareMetric("json_validity", text.json_valid),
    "json_match": ShareMetric("json_match", text.json_equal),
    "tool_calls": ShareMetric("tool_calls", text.same_calls),
    "accuracy": labels.Accuracy(),
    "balanced_accuracy": labels.ClassMetric("balanced_accuracy"),
    "brier": labels.BrierMetric(),
    "calibration_error": labels.CalibrationMetric(),
    "macro_f1": labels.ClassMetric("macro_f1"),
    "pearson": numbers.Correlation("pearson"),
    "spearman": numbers.Correlation("spearman"),
    "mse": numbers.ErrorMetric("mse", 2, "squared units of the label"),
    "mae": numbers.ErrorMetric("mae", 1, "units of the label"),
}

ROW_LOSS_UNITS = {"classification": "nats per row", "regression": "squared error"}
"""The unit of the loss of a model with a head for labels, whose rows have no tokens to predict"""
TASK_METRICS = {"classification": "accuracy", "regression": "spearman", "language-modelling": "loss"}
FORMAT_METRICS = {
    "translation": "chrf",
    "source-target": "chrf",
    "summary": "rouge_l",
    "text-labels": "label_f1",
    "multiple-choice": "choice",
}
SHORT_ANSWER_WORDS = 5
"""A median answer of at most this many words is right or wrong; a longer one is more or less right."""
CALLING_SHARE = 0.5
"""With this share of answers calling tools, what they call is the task."""
JSON_SHARE = 0.9
"""With this share of answers being JSON objects or arrays, the task is taken to want JSON."""


def loss_unit(kind: str, task: str) -> str:
    """The unit of the loss: of a row where a model of this kind has a head for labels, else of a token."""
    return ROW_LOSS_UNITS[task] if kind == "encoder" else METRICS["loss"].unit


def metric(name: str) -> Metric:
    """The metric called ``name``; raises `UsageError` with the nearest known one."""
    if name not in METRICS:
        import difflib

        near = difflib.get_close_matches(name, METRICS, n=1)
        hint = f"Did you mean {near[0]}? " if near else ""
        remedy = f"{hint}Known: {', '.join(METRICS)}; one of your own comes with --plugin."
        raise UsageError(f"there is no metric {name!r}.", remedy=remedy)
    return METRICS[name]


def own_metric(
    *, name: str | None = None, together: bool = False, direction: Direction = "higher", unit: str = "",
    share: bool = False,
) -> Callable[[Function], Function]:  # fmt: skip
    """Make a metric of the function below it, called like the function unless ``name`` is given.

    The function gets an `Answer` and returns a number, or with ``together`` a list of them and returns as many.
    ``share`` says that all numbers lie between 0 and 1; they are then shown in percent. Raises `UsageError` for a name
    that is taken.
    """

    def added(function: Function) -> Function:
        called = name or function.__name__
        add(OwnMetric(called, function, together, direction, SHARE if share else unit))
        return function

    return added


def add(one: Metric) -> None:
    """Add a metric from outside. Raises `UsageError` for a name that is taken."""
    if one.name in METRICS:
        raise UsageError(f"there is a metric {one.name!r} already.", remedy="Call yours something else.")
    METRICS[one.name] = one


def try_out(name: str, examples: Sequence[Example]) -> None:
    """Let a metric from outside score reference answers, so that a mistake in it is found before anything is trained.

    Raises as `OwnMetric.score` does.
    """
    if isinstance(one := metric(name), OwnMetric):
        one.try_out(examples)


def default_metric(task: str, examples: Sequence[Example], *, translation: bool = False, format: str = "") -> str:
    """The primary metric for ``task``, judged by the ``format`` of the rows and the shape of the answers.

    ``translation`` says that languages were named; a row's own ``task`` of that name says so too.
    """
    if task in TASK_METRICS:
        return TASK_METRICS[task]
    if format in FORMAT_METRICS:
        return FORMAT_METRICS[format]
    answers = [example.answer for example in examples]
    if translation or (examples and all(example.task == "translation" for example in examples)):
        return "chrf"
    if not answers:
        return "loss"
    if sum(bool(found_in(answer)) for answer in answers) >= CALLING_SHARE * len(answers):
        return "tool_calls"
    values = [text.parsed(answer) for answer in answers]
    if sum(valid and isinstance(value, dict | list) for valid, value in values) >= JSON_SHARE * len(answers):
        return "json_validity"
    short = statistics.median(len(text.words(answer)) for answer in answers) <= SHORT_ANSWER_WORDS
    return "exact_match" if short else "rouge_l"
