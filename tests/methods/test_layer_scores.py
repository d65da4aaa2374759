"""Scores of layers: the formula by hand, the states against transformers' own, the command on both kinds of models."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from foretune.cli.main import app
from foretune.errors import DataError, UsageError
from foretune.evaluation.probes.layer_scores import EPSILON, LayerScore, cosines, expression, highest, score
from foretune.fit.layers import score_layers
from foretune.models.selector import parse
from tests.tiny import bart, bert, llama, questions, write_rows


def of_values(*values: float) -> float:
    return sum(np.log(value + EPSILON) + 1 / (value + EPSILON) for value in values)


def test_the_score_is_that_of_the_eigenvalues() -> None:
    assert score(np.eye(4)) == pytest.approx(of_values(1, 1, 1, 1))
    assert score(np.ones((2, 2))) == pytest.approx(of_values(2, 0), rel=1e-6)
    half = np.array([[1.0, 0.5], [0.5, 1.0]])
    assert score(half) == pytest.approx(of_values(1.5, 0.5))
    assert score(half) < score(np.ones((2, 2)))
    states = torch.tensor([[[1.0, 0.0], [0.0, 1.0]], [[1.0, 0.0], [0.0, 0.0]]])
    assert cosines(states)[0, 1] == pytest.approx(1 / np.sqrt(2)) and np.allclose(np.diag(cosines(states)), 1)


def test_the_highest_layers_become_an_expression_that_picks_them() -> None:
    scores = [LayerScore(layer, value) for layer, value in enumerate([2.0, 5.0, 5.0, 1.0, 7.0])]
    assert highest(scores, 2) == [1, 4] and highest(scores, 9) == [0, 1, 2, 3, 4]
    assert expression([1, 4]) == "layers==1 | layers==4"
    parse(expression([1, 4]))


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    """Questions of different words from the first on."""
    return write_rows(tmp_path / "rows.jsonl", questions(20))


def test_states_are_those_of_transformers_behind_what_all_rows_share(tmp_path: Path, rows: Path) -> None:
    """One row at a time without padding, positions behind the common head, longest row's width filled with zeros."""
    from transformers import AutoModelForCausalLM

    from foretune.catalogue.selection import Keep
    from foretune.fit.select import SelectionJob, open_bench, read_pool
    from foretune.seeding import generator

    folder = llama(tmp_path / "llama")
    found, pool = read_pool(rows)
    drawn = tuple(pool[int(i)] for i in generator(3, "layers").permutation(len(pool))[:4])
    with open_bench(SelectionJob(drawn, found.task, "random", Keep("rows", 0), model=str(folder))) as bench:
        ids = [torch.tensor(row.ids, dtype=torch.int64) for row in bench.encode(drawn)]
    width = max(map(len, ids))
    head = next(i for i in range(width) if len({int(row[i]) for row in ids}) > 1)
    assert head > 0, "the template gives all rows the same beginning"
    model = AutoModelForCausalLM.from_pretrained(folder).eval()
    flat: list[list[torch.Tensor]] = []
    with torch.no_grad():
        for row in ids:
            states = model(row[None], output_hidden_states=True).hidden_states
            flat.append([torch.nn.functional.pad(s[0, head:], (0, 0, 0, width - len(row))).flatten() for s in states])
    expected = []
    for layer in range(1, len(flat[0]) - 1):  # transformers' last states are behind the final norm
        unit = torch.stack([row[layer] / row[layer].norm() for row in flat]).double()
        values = torch.linalg.eigvalsh(unit @ unit.T).clamp_min(0) + EPSILON
        expected.append(float((values.log() + 1 / values).sum()))
    own = score_layers(rows, model=str(folder), rows=4, group=4, seed=3)
    assert [one.score for one in own[:-1]] == pytest.approx(expected, rel=1e-3)
    assert len(own) == len(expected) + 1


def test_groups_are_averaged_and_rows_beyond_the_last_group_left_out(tmp_path: Path, rows: Path) -> None:
    folder = str(llama(tmp_path / "llama"))
    first, second = (score_layers(rows, model=folder, rows=n, group=4, seed=1) for n in (4, 8))
    both = score_layers(rows, model=folder, rows=11, group=4, seed=1)
    assert both == second != first


def test_the_command_scores_a_classifier_and_says_what_to_adapt(tmp_path: Path) -> None:
    labelled = [{"text": f"{row['question']} {row['answer']}", "label": ("a", "b")[n % 2]}
                for n, row in enumerate(questions(16))]  # fmt: skip
    data = write_rows(tmp_path / "labelled.jsonl", labelled)
    model = str(bert(tmp_path / "bert"))
    asked = ["methods", "layers", str(data), "--model", model, "--keep", "1"]
    done = CliRunner().invoke(app, [*asked, "--json"], catch_exceptions=False)
    found = json.loads(done.output)
    best = max(found["scores"], key=lambda one: one["score"])["layer"]
    assert found["layers"] == [best] and found["expression"] == f"layers=={best}"
    shown = CliRunner().invoke(app, asked, catch_exceptions=False).output
    assert f"--layers 'layers=={best}'" in shown and shown.count("chosen") == 1


def test_what_cannot_be_scored_is_refused(tmp_path: Path, rows: Path) -> None:
    with pytest.raises(DataError, match="fill no group of 8"):
        score_layers(rows, model=str(llama(tmp_path / "llama")), rows=5)
    with pytest.raises(UsageError, match="one stack of blocks"):
        score_layers(rows, model=str(bart(tmp_path / "bart")))
