"""Metrics of one's own: what they compute, what is refused, and that a fit, `evaluate` and a study take them."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from foretune import plugins
from foretune.cli.main import app
from foretune.data.example import conversation
from foretune.errors import DataError, UsageError
from foretune.evaluation.base import SHARE, Answer
from foretune.evaluation.compare import compare
from foretune.evaluation.metrics import METRICS, metric, own_metric
from foretune.evaluation.metrics.own import OwnMetric
from foretune.execution.local import LocalExecutor
from foretune.files import read_lines
from foretune.report.record import read_record

from .. import tiny
from ..whole_fits import Ground

PLUGIN = """
from foretune.evaluation.metrics import own_metric

@own_metric(share=True)
def first_letter(answer):
    return answer.prediction[:1] == answer.reference[:1] and answer.prompt != ""

@own_metric(together=True, direction="lower", unit="letters")
def letters_apart(answers):
    return [abs(len(answer.prediction) - len(answer.reference)) for answer in answers]
"""


@pytest.fixture(autouse=True)
def _as_before(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Plugins stay in the process that loads them; every test begins without."""
    monkeypatch.setattr(plugins, "_loaded", set())
    before = dict(METRICS)
    yield
    METRICS.clear()
    METRICS.update(before)


def _answers(*pairs: tuple[str, str]) -> list[Answer]:
    return [Answer(row, f"question {row}", reference, prediction) for row, (reference, prediction) in enumerate(pairs)]


def _plugin(folder: Path, text: str = PLUGIN) -> Path:
    path = folder / "mine.py"
    path.write_text(text)
    return path


def test_the_mean_its_error_and_the_rows() -> None:
    own_metric(name="length", unit="letters")(lambda answer: len(answer.prediction))
    found = metric("length").score(_answers(("a", "a"), ("b", "bbb"), ("c", "cccccccc")))
    assert found.per_row == (1.0, 3.0, 8.0) and found.value == 4.0
    assert found.standard_error == pytest.approx(np.std([1, 3, 8], ddof=1) / math.sqrt(3))
    shorter = metric("length").score(_answers(("a", ""), ("b", "bb"), ("c", "ccccccc")))
    assert compare(found, shorter, direction="lower").difference == 1.0, "as any metric it is compared row by row"


def test_a_function_of_all_answers_and_one_of_each_agree() -> None:
    rows = _answers(("so", "sa"), ("nil", "nix"), ("x", "y"))
    each = OwnMetric("each", lambda answer: answer.prediction[0] == answer.reference[0], unit=SHARE)
    firsts = np.array([each.function(row) for row in rows])
    together = OwnMetric("together", lambda answers: firsts[: len(answers)], together=True, unit=SHARE)
    assert each.score(rows) == together.score(rows) and each.score(rows).per_row == (1.0, 1.0, 0.0)


def test_rows_that_are_all_alike_are_no_certainty() -> None:
    right = OwnMetric("right", lambda answer: True, unit=SHARE).score(_answers(*[("a", "a")] * 10))
    assert right.value == 1 and right.standard_error > 0.05


@pytest.mark.parametrize(
    ("function", "options", "said"),
    [
        (lambda answer: 1 / 0, {}, "raised ZeroDivisionError on the answer to row 0"),
        (lambda answer: math.nan, {}, "gave nan for the answer to row 0"),
        (lambda answer: "good", {}, "gave 'good' for the answer to row 0"),
        (lambda answer: None, {}, "gave None"),
        (lambda answer: 70, {"unit": SHARE}, "gave 70.0 for the answer to row 0"),
        (lambda answers: [1.0], {"together": True}, "gave 1 numbers for 2 answers"),
        (lambda answers: 1.0, {"together": True}, "gave float for 2 answers"),
    ],
)  # fmt: skip
def test_what_is_no_score_is_named(function: Any, options: Mapping[str, Any], said: str) -> None:
    mine = OwnMetric("mine", function, **options)
    with pytest.raises(UsageError) as caught:
        mine.score(_answers(("a", "b"), ("c", "d")))
    assert said in caught.value.what and "'mine'" in caught.value.what and "It gets" in str(caught.value.remedy)


def test_missing_rows_and_predictions_are_the_data_s_fault() -> None:
    mine = OwnMetric("mine", lambda answer: 1.0)
    with pytest.raises(DataError):
        mine.score([])
    with pytest.raises(DataError, match="row 3 has no prediction"):
        mine.score([Answer(3, "why", "so")])


def test_names_are_taken_once() -> None:
    with pytest.raises(UsageError, match="there is a metric 'loss' already"):
        own_metric(name="loss")(lambda answer: 0.0)
    with pytest.raises(UsageError) as caught:
        metric("nobody_s")
    assert "--plugin" in str(caught.value.remedy)


def test_a_mistake_is_found_before_anything_is_trained() -> None:
    OwnMetric("fine", lambda answer: answer.prediction == answer.reference).try_out([conversation("q", "a")])
    OwnMetric("unasked", lambda answer: 1 / 0).try_out([])
    with pytest.raises(UsageError, match="raised AttributeError on the answer to row 0"):
        OwnMetric("typo", lambda answer: answer.predicted).try_out([conversation("q", "a")])


def test_a_fit_is_decided_by_it(ground: Ground, fast_fit: Callable[..., Any], tmp_path: Path) -> None:
    """Real workers, each of which loads the plugin; the report and `evaluate` know the metric as well."""
    plugin, run = _plugin(tmp_path), tmp_path / "run"
    options = {"budget.steps": None, "budget.trials": 1, "training.epochs": 1, "data.metric": "first_letter"}

    def real(logs: Path, *, workers: int = 1, plugins: Any = (), command: Any = None) -> LocalExecutor:
        return LocalExecutor(logs, workers=workers, plugins=plugins, threads=1)

    fast_fit(output=run, plugins=[plugin], options=options, executor=real)
    comparison = read_record(run).comparison
    assert comparison.metric == "first_letter" and comparison.metrics[0].share
    winner = next(system for system in comparison.systems if system.role == "winner")
    answers = json.loads((run / "answers" / "test-winner.json").read_text())["answers"]
    mine = [answer["prediction"][:1] == answer["reference"][:1] for answer in answers]
    assert winner.metrics["first_letter"].value == pytest.approx(np.mean(mine))
    assert "first_letter" in (run / "report.html").read_text()

    rows = tiny.write_rows(tmp_path / "more.jsonl", tiny.questions(6))
    given = ["evaluate", str(run), str(rows), "--metric", "letters_apart", "--answer-tokens", "4", "--json"]
    unknown = CliRunner().invoke(app, given)
    assert unknown.exit_code == 0, "the plugin is loaded in this process already"
    assert set(json.loads(unknown.stdout)["scores"]) == {"letters_apart"}


def test_a_fit_with_a_broken_one_is_refused_at_once(fast_fit: Callable[..., Any], tmp_path: Path) -> None:
    plugin = _plugin(tmp_path, PLUGIN.replace("answer.prediction[:1]", "answer.predicted[:1]"))
    with pytest.raises(UsageError, match="the metric 'first_letter' raised AttributeError"):
        fast_fit(output=tmp_path / "run", plugins=[plugin], options={"data.metric": "first_letter"})
    assert not (tmp_path / "run" / "logs").exists() or not list((tmp_path / "run" / "logs").glob("worker*"))


def test_a_study_is_decided_by_it(ground: Ground, tmp_path: Path) -> None:
    plugin, grid = _plugin(tmp_path), tmp_path / "grid.yaml"
    grid.write_text(
        f"name: own\nmodel: {ground.llama}\nprimary: metric\n"
        f"tasks: {{rows: {{path: {ground.rows}, metric: first_letter, context_tokens: 96}}}}\n"
        "arms: {lora: {}, dora: {method: dora}}\ncontrol: lora\nsizes: [20]\nseeds: 2\nhorizon: {steps: 4}\n"
        "evaluation: {validation_rows: 6, test_rows: 6, max_answer_tokens: 4}\nlearning_rate: 1e-3\n"
    )
    given = ["study", "run", str(grid), "--output", str(tmp_path / "study")]
    assert "there is no metric 'first_letter'" in str(CliRunner().invoke(app, given).exception)
    done = CliRunner().invoke(app, [*given, "--plugin", str(plugin)])
    assert done.exit_code == 0, done.output
    lines = list(read_lines(tmp_path / "study" / "results.jsonl"))
    assert len(lines) == 4 and {line["primary"] for line in lines} == {"first_letter"}
    assert all(0 <= line["scores"]["test"]["first_letter"][0] <= 1 for line in lines)
