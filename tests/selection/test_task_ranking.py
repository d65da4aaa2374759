"""Ranking tasks: LogME beside the closed form of the evidence, INSTA beside a loop, and the command."""

from __future__ import annotations

import json

import numpy as np
import pytest
from scipy.optimize import minimize
from scipy.stats import multivariate_normal
from typer.testing import CliRunner

from foretune.cli.main import app
from foretune.data.example import conversation
from foretune.errors import DataError, UsageError
from foretune.selection.base import Request
from foretune.selection.embeddings import embed
from foretune.selection.task_ranking import (
    _instruction,
    instruction_similarity,
    labels_of,
    log_evidence,
    rank_tasks,
    through_map,
)

from .. import tiny
from .conftest import rows


def _plain_evidence(features, label, alpha, beta):
    """Log N(y; 0, 1/β + F Fᵀ/α): the weights integrated out, with nothing diagonalised."""
    covariance = np.eye(len(label)) / beta + features @ features.T / alpha
    return multivariate_normal(np.zeros(len(label)), covariance).logpdf(label)


@pytest.mark.parametrize(("count", "width"), [(30, 5), (12, 20)])
def test_logme_is_the_largest_evidence(count, width):
    draw = np.random.default_rng(1)
    features = draw.normal(size=(count, width))
    label = features @ draw.normal(size=width) * (0.3 if width < count else 0.1) + draw.normal(size=count)

    def negative(logs):
        logs = np.clip(logs, -12, 12)
        return -_plain_evidence(features, label, *np.exp(logs))

    best = -min(minimize(negative, start, method="Nelder-Mead").fun for start in ((0.0, 0.0), (2.0, 0.0), (0.0, 2.0)))
    assert log_evidence(features, label) * count == pytest.approx(best, abs=0.02)


def test_a_label_that_does_not_vary_says_nothing():
    assert log_evidence(np.random.default_rng(0).normal(size=(10, 3)), np.ones(10)) == 0.0


def test_features_that_explain_the_label_have_more_evidence():
    draw = np.random.default_rng(2)
    features, noise = draw.normal(size=(80, 6)), draw.normal(size=(80, 6))
    label = features @ draw.normal(size=6)
    assert log_evidence(features, label) > log_evidence(noise, label) + 0.5


def test_the_map_of_an_untouched_model_is_the_identity():
    draw = np.random.default_rng(3)
    before, goal = draw.normal(size=(40, 4)).astype(np.float32), draw.normal(size=(7, 4)).astype(np.float32)
    assert np.abs(through_map(before, before, goal) - goal).max() < 1e-5
    moved = through_map(before, 1.5 * before, goal)
    assert np.abs(moved).sum() > np.abs(goal).sum()  # what the training stretches is stretched


@pytest.fixture(scope="module")
def bench(make_bench):
    return make_bench(rows(6))


def test_insta_is_the_mean_cosine_of_instructions(bench):
    one, other = rows(4), [conversation(f"Say w{i}", "x") for i in range(3)]
    request = Request((), 0, bench=bench)
    vectors = [embed(request, [_instruction(row) for row in part], bench=bench) for part in (one, other)]
    plain = np.mean([a @ b for a in vectors[0] for b in vectors[1]])
    assert instruction_similarity(request, bench, one, other) == pytest.approx(float(plain), abs=1e-6)


@pytest.mark.parametrize("method", ["insta", "esm-logme"])
def test_a_source_of_the_targets_kind_is_at_least_ranked(bench, method):
    target = rows(24)
    sources = {"other": [conversation(f"{i} + {i} = ?", str(2 * i)) for i in range(20)], "same": rows(40)[20:]}
    found = rank_tasks(target, sources, bench=bench, method=method)
    assert {one.name for one in found} == set(sources) and found[0].score >= found[1].score
    if method == "insta":
        assert found[0].name == "same"
    assert rank_tasks(target, sources, bench=bench, method=method) == found


def test_labels_are_classes_numbers_or_answers(bench):
    request = Request((), 0, bench=bench)
    classes = [conversation("q", "", label=name) for name in "aba"]
    assert labels_of(request, bench, classes).tolist() == [[1, 0], [0, 1], [1, 0]]
    numbers = [conversation("q", "", label=value) for value in (0.5, 2.0)]
    assert labels_of(request, bench, numbers).tolist() == [[0.5], [2.0]]
    assert labels_of(request, bench, rows(12)).shape == (12, 8)


def test_bad_requests(bench):
    with pytest.raises(UsageError, match="insta, esm-logme"):
        rank_tasks(rows(2), {"a": rows(2)}, bench=bench, method="magic")  # type: ignore[arg-type]
    with pytest.raises(DataError, match="b has no rows"):
        rank_tasks(rows(2), {"a": rows(2), "b": []}, bench=bench)


def test_the_command(ground, tmp_path):
    sums = [{"question": f"{i} + {i} = ?", "answer": str(2 * i)} for i in range(20)]
    other = tiny.write_rows(tmp_path / "sums.jsonl", sums)
    same = tiny.write_rows(tmp_path / "colours.jsonl", tiny.questions(80)[60:])
    arguments = ["rank-tasks", str(ground.rows), str(other), str(same), "--model", str(ground.llama), "--context", "96"]
    shown = CliRunner().invoke(app, [*arguments, "--json"], catch_exceptions=False)
    assert [one["name"] for one in json.loads(shown.output)] == [str(same), str(other)]
    assert "colours.jsonl" in CliRunner().invoke(app, arguments, catch_exceptions=False).output
    with pytest.raises(UsageError, match="nothing to rank"):
        CliRunner().invoke(app, arguments[:3], catch_exceptions=False)
