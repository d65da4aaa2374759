"""A whole fit with regularizers on a tiny base: rates computed once, effective rates and cost in the report."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from foretune.cli.main import app
from foretune.errors import UsageError
from tests.tiny import bert, llama, questions


@pytest.fixture
def own_places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FORETUNE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("FORETUNE_STORE", str(tmp_path / "store.sqlite"))


def bench_of(tmp_path: Path, base: Path, **fields: Any) -> Any:
    from foretune.catalogue.models import ModelReference
    from foretune.execution.bench import Bench
    from foretune.execution.types import TaskSpec

    folder = tmp_path / "task"
    folder.mkdir(exist_ok=True)
    kind = fields.pop("kind", "causal")
    return Bench(
        TaskSpec(str(folder), "generation", ModelReference(str(base), kind=kind), "loss", device="cpu", **fields)
    )


@pytest.mark.usefixtures("own_places")
def test_rates_of_an_unknown_base_are_computed_once_and_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from foretune.execution import base_rates
    from foretune.regularization.places.rates import cached_path, find

    bench = bench_of(tmp_path, llama(tmp_path / "model"))
    config = {"regularizer": "neftune:5,guided-dropout", "guided-dropout.rates": "auto"}
    base_rates.ensure_rates(bench, {"regularizer": "neftune:5"}, lambda: None)
    assert not cached_path(bench.weights_hash).exists()
    beats: list[int] = []
    base_rates.ensure_rates(bench, config, lambda: beats.append(1))
    kept = find("auto", weights=bench.weights_hash)
    assert beats and kept.variant == "pre-training: next tokens" and len(kept.places) == 7
    assert not any(weight.requires_grad for weight in bench.model.parameters())
    monkeypatch.setattr(base_rates, "model_rates", None)  # not computed again
    base_rates.ensure_rates(bench, config, lambda: None)


@pytest.mark.usefixtures("own_places")
def test_an_encoder_without_its_head_gets_label_sampled_rates(tmp_path: Path) -> None:
    runner = CliRunner()
    base = bert(tmp_path / "encoder")
    text = tmp_path / "text.txt"
    text.write_text("\n\n".join(f"{row['question']} {row['answer']}" for row in questions(20)), encoding="utf-8")
    arguments = ["regularize", "rates", "--model", str(base), "--text", str(text), "--output", str(tmp_path / "r.json")]
    done = runner.invoke(app, [*arguments, "--json"])
    assert done.exit_code == 0, done.output
    made = json.loads(done.output[done.output.index('{"format"') :].splitlines()[0])
    assert made["variant"] == "label-sampled: classes drawn from a fresh head" and made["samples"] == 20
    assert sum(place["rate"] for place in made["places"]) / len(made["places"]) == pytest.approx(0.05)
    page = (tmp_path / "r.html").read_text(encoding="utf-8")
    assert page.count("<rect") == 7 and "encoder layer 1" in page and "<script" not in page
    shown = runner.invoke(app, ["regularize", "show", str(tmp_path / "r.json")])
    assert shown.exit_code == 0 and "encoder layer 1" in shown.output and "█" in shown.output
    for bad, words in (
        (["--high", "2"], "outside its range"),
        (["--low", "0.5"], "above"),
        (["--schedule", "x"], "option"),
    ):
        with pytest.raises(UsageError, match=words):
            runner.invoke(app, [*arguments, *bad], catch_exceptions=False)


def test_the_list_names_all(tmp_path: Path) -> None:
    from foretune.catalogue.regularizers import REGULARIZERS

    rows = json.loads(CliRunner().invoke(app, ["regularize", "list", "--json"]).output)
    assert [row["name"] for row in rows] == list(REGULARIZERS)
    assert "2406.14005" in CliRunner().invoke(app, ["regularize", "list"]).output


def test_a_fit_with_regularizers_reports_rates_and_cost(fast_fit: Any, tmp_path: Path) -> None:
    from foretune.report.record import read_record

    words = "guided-dropout:0.2,l2-sp:0.5"
    result = fast_fit(output=tmp_path / "run", options={"training.regularizer": words})
    record = read_record(result.folder)
    assert record.winner is not None and record.winner.config["regularizer"] == words
    assert record.winner.config["guided-dropout.high"] == 0.2
    notes = " ".join(record.notes)
    assert f"composed in this order: {words}" in notes
    assert re.search(r"guided-dropout \(places \d+, mean rate 0\.\d+, highest rate 0\.2", notes)
    assert "l2-sp (weight 0.5, distance" in notes
    assert "times the processor seconds that it took in the default LoRA" in notes
    assert "highest rate 0.2" in (result.folder / "report.html").read_text(encoding="utf-8")
    default = next(trial for trial in record.trials if trial.is_default)
    assert default.config["regularizer"] == "none" and not default.detail


def test_what_cannot_work_is_refused_before_the_run_begins(fast_fit: Any, tmp_path: Path) -> None:
    for words, message in (("guided-droput", "Did you mean guided-dropout"), ("mixout", "method=full")):
        with pytest.raises(UsageError, match=message):
            fast_fit(output=tmp_path / "run", options={"training.regularizer": words})
        assert not (tmp_path / "run" / "trials").exists()
