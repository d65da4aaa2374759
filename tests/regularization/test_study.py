"""The regularization studies: presets are whole, and the control is the uniform rate that validation prefers."""

from __future__ import annotations

import runpy
from pathlib import Path
from typing import Any

import pytest

from foretune.evaluation.base import Answer
from foretune.evaluation.metrics import METRICS
from foretune.study.grid_file import load_grid, presets
from tests.structure.source import REPOSITORY

CONTROLS = {"uniform-0", "uniform-0.05", "uniform-0.1", "guided", "type-only", "reversed", "random"}


@pytest.mark.parametrize("name", [name for name in presets() if name.startswith("regularization")])
def test_presets_differ_in_the_regularizer_alone(name: str) -> None:
    grid = load_grid(name)
    configs = {arm: grid.config(arm) for arm in grid.arms}
    for config in configs.values():
        rest = {k: v for k, v in config.items() if "." not in k and k not in ("regularizer", "learning_rate")}
        assert rest == {k: v for k, v in configs[grid.control].items() if k in rest}
    if name in ("regularization", "regularization:tiny-encoder"):
        assert {"native", "gaussian-0.1", *CONTROLS} <= set(grid.arms)
        assert grid.sizes == (100, 200, 500, 2000) and len(grid.seeds) >= 10
    if name == "regularization:decoder":
        assert set(grid.arms) >= CONTROLS and len(grid.seeds) >= 5


def line(arm: str, seed: int, validation: float, loss: float, accuracy: float = 0.5) -> dict[str, Any]:
    scores = {
        "validation": {"loss": [validation, 0.1, 9]},
        "test": {"loss": [loss, 0.1, 9], "accuracy": [accuracy, 0.1, 9]},
    }
    return {"model": "m", "task": "t", "size": "100", "arm": arm, "seed": seed, "scores": scores}


def test_the_control_is_the_uniform_rate_with_the_lowest_validation_loss() -> None:
    tables = runpy.run_path(str(REPOSITORY / "scripts" / "regularization_tables.py"))
    lines = []
    for seed in range(5):
        lines += [
            line("uniform-0", seed, 0.60, 0.50), line("uniform-0.1", seed, 0.55 + 0.01 * seed, 0.52),
            line("guided", seed, 0.40, 0.45 + 0.001 * seed, 0.6),
        ]  # fmt: skip
    assert tables["best_uniform"](lines) == "uniform-0.1"  # not guided, and not the better test loss
    found = {d.arm: d for d in tables["differences"](lines, "uniform-0.1", "loss")}
    assert found["guided"].mean == pytest.approx(0.452 - 0.52) and found["guided"].verdict == "better"
    assert found["uniform-0"].pairs == 5
    rows = tables["table"](("m", "t", "100", "tweets"), "uniform-0.1", tables["compared"](lines, "uniform-0.1"))
    (guided,) = [row for row in "\n".join(rows).splitlines() if row.startswith("| guided | 5 |")]
    assert "-0.0680 [" in guided and "**better**" in guided and "uniform-0.1" in rows[0] and "tweets" in rows[0]
    with pytest.raises(ValueError, match="no arm"):
        tables["best_uniform"]([line("guided", 0, 0.4, 0.4)])


def test_a_study_under_way_shows_its_whole_blocks_and_counts_the_others(tmp_path: Path) -> None:
    tables = runpy.run_path(str(REPOSITORY / "scripts" / "regularization_tables.py"))
    grid = load_grid("regularization:mini").model_copy(update={"sizes": (36, 72)})
    lines = []
    for size, seeds in ((36, 2), (72, 1)):
        for seed in range(seeds):
            for number, arm in enumerate(grid.arms):
                made = line(arm, seed, 0.6 + 0.01 * number, 0.5 + 0.1 * seed * number, 0.5)
                ends = {"status": "finished", "train_s": 1.0, "eval_s": 1.0, "task": "film", "size": str(size)}
                lines.append({**made, **ends, "tests": {"tweets": {"loss": [0.7 + number, 0.1, 9]}}})
    text = "\n".join(tables["study"](grid, lines))
    assert "12 of 16 runs, 1 of 2 blocks" in text and "72 rows" not in text
    assert "film, 36 rows, tested on tweets" in text
    assert "| guided | 0 / 0 / 2 |" in text, "two test sets of one block"
    assert "0 of 16 runs, 0 of 2 blocks" in "\n".join(tables["study"](grid, []))


def test_brier_by_hand() -> None:
    rows = [Answer(0, "", "a", prediction="a", probability=0.9), Answer(1, "", "a", prediction="b", probability=0.7)]
    result = METRICS["brier"].score(rows)
    assert result.value == pytest.approx((0.1**2 + 0.7**2) / 2) and METRICS["brier"].direction == "lower"


def test_the_tiny_encoder_is_made_and_gives_its_own_fisher(tmp_path: Path, monkeypatch: Any) -> None:
    from foretune.catalogue.models import ModelReference
    from foretune.regularization.fisher.model_rates import load_for_fisher, model_rates

    script = runpy.run_path(str(REPOSITORY / "scripts" / "make_tiny_encoder.py"))
    things, kinds = ("name", "end", "size", "key"), ("plain", "large", "text", "broken", "shared", "old")
    corpus = [f"the {thing} of a {kind} file is a {thing} that holds it" for thing in things for kind in kinds] * 4
    monkeypatch.setitem(script["train"].__globals__, "HELD_OUT", 16)
    monkeypatch.setitem(script["train"].__globals__, "ROWS_PER_UPDATE", 16)
    tokenizer = script["word_pieces"](corpus)
    model = script["encoder"](tokenizer, 0)
    arguments = type("Arguments", (), {"updates": 12, "minutes": 1.0, "seed": 0})()
    facts = script["train"](model, tokenizer, corpus, arguments)
    assert facts["updates"] == 12 and facts["held_out_loss_after"] < facts["held_out_loss_before"]
    model.save_pretrained(tmp_path / "tiny")
    tokenizer.save_pretrained(tmp_path / "tiny")
    monkeypatch.setenv("FORETUNE_CACHE", str(tmp_path / "cache"))
    loaded, variant = load_for_fisher(ModelReference(str(tmp_path / "tiny")))
    rates = model_rates(loaded, variant, corpus[:40], text_name="test")
    assert rates.variant == "pre-training: masked tokens" and len(rates.places) == 13 and rates.samples == 40
