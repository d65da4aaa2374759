"""Rules, findings and the page from planted results: what is resolved is said, with its scope, and nothing else."""

from __future__ import annotations

import json
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from foretune.cli.main import app
from foretune.config.rules_file import read_rules
from foretune.study.effects import fit_budget
from foretune.study.findings import findings
from foretune.study.gaps import Gap, budget_points, distances_of
from foretune.study.grid import GridSpec
from foretune.study.outputs import write_outputs
from foretune.study.rules import ruling
from foretune.study.statistics import compare_arms
from foretune.study.tables import relative

LANGUAGES = {"sv": 0.1, "de": 0.15, "es": 0.19, "hu": 0.38, "cs": 0.42, "ja": 0.45, "tr": 0.52, "ko": 0.4}
SHARES = {"0.1pct": 0.001, "1pct": 0.01, "8pct": 0.08}
MODELS = {"small": 3_400_000, "large": 9_400_000}
SIZES = (100, 1000, 8000)


def grid(**changes: Any) -> GridSpec:
    return GridSpec.model_validate({
        "name": "planted", "about": "planted", "model": {name: {"source": name} for name in MODELS},
        "tasks": {code: {"path": "x.jsonl", "languages": f"en-{code}"} for code in LANGUAGES},
        "arms": {"full": {"method": "full"}}, "factors": {"method": ["lora"], "trainable": ["0.1%", "1%", "8%"]},
        "control": "full", "sizes": list(SIZES), "seeds": 3, "horizon": {"steps": 5}, "primary": "loss_per_byte",
        "learning_rate": {"factors": [0.3, 1, 3]}, **changes,
    })  # fmt: skip


def line(model: str, task: str, arm: str, size: int, seed: int, score: float) -> dict[str, Any]:
    share = 1.0 if arm == "full" else SHARES[arm.partition("-")[2]]
    return {
        "cell": f"{model}:{task}:{arm}:{size}:{seed}", "model": model, "task": task, "arm": arm, "size": str(size),
        "rows": size, "seed": seed, "pair": f"{model}:{task}:{size}:{seed}", "status": "finished", "detail": "",
        "primary": "loss_per_byte", "direction": "lower", "run": f"{model}{task}{arm}{size}{seed}",
        "scores": {"test": {"loss_per_byte": [score, 0.01, 50]}}, "config": {"method": arm.partition("-")[0],
        "learning_rate": 1e-3}, "trainable": int(share * MODELS[model]), "parameters": MODELS[model], "kind": "seq2seq",
        "task_kind": "generation", "covariates": {"distance": LANGUAGES[task], "fertility": 1.0 + LANGUAGES[task]},
        "train_s": 1.0, "eval_s": 1.0, "answers": None,
    }  # fmt: skip


def planted(effect: float, seed: int = 0) -> list[dict[str, Any]]:
    """Results as the paper has them, times ``effect``: the gap shrinks with the share, faster for distant targets."""
    random = np.random.default_rng(seed)
    lines = []
    for model in MODELS:
        for task, far in LANGUAGES.items():
            for size in SIZES:
                for repetition in range(3):
                    full = 2.0 - 0.3 * (model == "large") - 0.1 * np.log10(size) + random.normal(0, 0.01)
                    lines.append(line(model, task, "full", size, repetition, full))
                    for name, share in SHARES.items():
                        slope = -(0.03 + 0.2 * far) * (np.log10(share) + 1.1) + 0.08 * (np.log10(size) - 3.3)
                        gap = effect * slope + random.normal(0, 0.01)
                        lines.append(line(model, task, f"lora-{name}", size, repetition, full + gap))
    return lines


BASE = {(model, task): {"loss_per_byte": [3.0, 0.01, 50]} for model in MODELS for task in LANGUAGES}


def test_planted_findings_are_found_and_become_rules() -> None:
    lines = planted(1.0)
    found = ruling(grid(), lines)
    assert {rule.id.partition(":")[2] for rule in found.rules} == {
        "lora:budget", "lora:distance", "lora:interaction", "lora:few-rows", "lora:rows", "lora:parents",
    }  # fmt: skip
    interaction = next(rule for rule in found.rules if rule.id.endswith("interaction"))
    assert interaction.measured is not None and interaction.measured.value == pytest.approx(-0.2, abs=0.03)
    assert interaction.when.kinds == ("seq2seq",) and interaction.when.tasks == ("translation",)
    assert interaction.when.rows == (100.0, 8000.0) and interaction.advice["trainable"] == pytest.approx(0.08)
    few = next(rule for rule in found.rules if rule.id.endswith("few-rows"))
    assert few.advice == {"method": "lora"} and few.when.rows == (100.0, 100.0)
    judged = {one.number: one.judgement for one in findings(grid(), lines, found, BASE)}
    assert judged == dict.fromkeys(("i", "ii", "iii", "iv", "v"), "replicated")


def test_the_other_sign_contradicts_and_nothing_gives_no_rule() -> None:
    reverse = planted(-1.0)
    judged = {one.number: one.judgement for one in findings(grid(), reverse, ruling(grid(), reverse), BASE)}
    assert (judged["ii"], judged["iii"], judged["v"]) == ("contradicted",) * 3
    claims = [len([r for r in ruling(grid(), planted(0.0, seed)).rules if "parents" not in r.id]) for seed in range(20)]
    assert sum(count > 0 for count in claims) <= 3
    nothing = ruling(grid(), planted(0.0, 1))
    assert any("not resolved by this grid" in text and "detectable" in text for text in nothing.unresolved)


def test_a_grid_without_a_contrast_is_not_judged() -> None:
    lines = [e for e in planted(1.0) if e["model"] == "small" and e["rows"] == 100 and e["arm"] != "lora-8pct"]
    judged = {one.number: one.judgement for one in findings(grid(), lines, ruling(grid(), lines), BASE)}
    assert (judged["i"], judged["iv"], judged["v"]) == ("not judged",) * 3


@pytest.mark.parametrize(("slope", "ahead"), [(0.2, "full tuning"), (-0.2, "lora")])
def test_who_overtakes_goes_by_the_sign_of_the_slope(slope: float, ahead: str) -> None:
    random = np.random.default_rng(0)
    lines = []
    for task, size, seed in product(("sv", "de"), (100, 1000), range(3)):
        lines.append(line("small", task, "full", size, seed, 2.0))
        gap = slope * np.log10(size / 300) + random.normal(0, 0.01)
        lines.append(line("small", task, "lora-1pct", size, seed, 2.0 + gap))
    (rule,) = (rule for rule in ruling(grid(), lines).rules if rule.id.endswith("lora:rows"))
    assert f"; {ahead} overtakes at about " in rule.statement


def test_tasks_with_different_outcomes_are_not_put_together() -> None:
    lines = []
    for seed in range(4):
        lines += [line("small", "sv", "full", 100, seed, 2.0), line("small", "sv", "lora-8pct", 100, seed, 1.5)]
        for arm, score in (("full", 40.0), ("lora-8pct", 37.0)):
            measured = {"test": {"chrf": [score + 0.1 * seed, 1, 50], "loss_per_byte": [1.0, 0.01, 50]}}
            lines.append(line("small", "de", arm, 100, seed, 0.0) | {"primary": "chrf", "direction": "higher",
                                                                     "scores": measured})  # fmt: skip
    found = ruling(grid(), lines)
    assert found.rules == () and found.unresolved == ("Tasks have different outcomes, so they are not pooled.",)
    base = {("small", "sv"): {"loss_per_byte": [3.0, 0, 50]}, ("small", "de"): {"loss_per_byte": [3.0, 0, 50],
                                                                               "chrf": [20.0, 1, 50]}}  # fmt: skip
    assert findings(grid(), lines, found, base) == ()
    heading, rows = relative(grid(), lines, base)
    assert heading == ["arm", "mean", "sv", "de"] and rows[0][2:] == ["150 %", "85 %"]


def study_folder(root: Path, spec: GridSpec, lines: list[dict[str, Any]]) -> Path:
    root.mkdir()
    dumped = {"identity": spec.identity, "started": "", "grid": spec.model_dump(mode="json")}
    (root / "study.json").write_text(json.dumps(dumped))
    (root / "results.jsonl").write_text("".join(json.dumps(entry) + "\n" for entry in lines))
    for (model, task), scores in BASE.items():
        folder = root / "tasks" / model / task
        folder.mkdir(parents=True)
        (folder / "base.json").write_text(json.dumps(scores))
    return root


def test_the_page_stands_alone_and_holds_every_chart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FORETUNE_STORE", str(tmp_path / "place" / "store.sqlite"))
    root = study_folder(tmp_path / "study", grid(about="<script>alert(1)</script>"), planted(1.0))
    page = write_outputs(root).material.folder.report.read_text()
    for title in ("Findings", "Rules", "Score by budget", "Gap by language distance", "Score by training rows",
                  "Parents", "Relative to the reference"):  # fmt: skip
        assert f">{title}</h2>" in page, title
    assert page.count("<svg") >= 2 * (2 * len(SIZES) + 1 + 2 + 1)
    assert "<script" not in page and "http" not in page.replace("http-equiv", "")
    assert "full tuning" in page and "lora = full" in page, "the band and the crossing"
    assert "replicated" in page
    again = CliRunner().invoke(app, ["study", "rules", str(root), "--use", "--json"])
    assert again.exit_code == 0, again.output
    used = read_rules(tmp_path / "place" / "priors.yaml")
    assert {rule.id for rule in used} == {rule["id"] for rule in json.loads(again.stdout)["rules"]}
    assert read_rules(root / "priors.yaml") == used


def test_rules_about_rates_that_were_not_swept_are_not_put_to_use(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FORETUNE_STORE", str(tmp_path / "place" / "store.sqlite"))
    root = study_folder(tmp_path / "study", grid(learning_rate="rule"), planted(1.0))
    refused = CliRunner().invoke(app, ["study", "rules", str(root), "--use"])
    assert refused.exit_code != 0 and "not swept" in str(refused.exception)
    assert all("learning-rate-confounded" in rule.source for rule in read_rules(root / "priors.yaml"))


def test_published_rules_are_listed() -> None:
    shown = CliRunner().invoke(app, ["study", "rules"])
    assert shown.exit_code == 0 and "2205.11277" in shown.stdout and "larger-parent" in shown.stdout


def test_an_arm_that_is_better_than_another_arm_than_all_is_no_advice() -> None:
    """Better than random rows of a tenth says nothing against all rows."""
    lines = [line("small", "de", "full", SIZES[0], 0, 1.0)]
    noisy = {"full": {seed: 1.0 + 0.01 * seed for seed in range(5)}, "ifd": {s: 0.5 + 0.011 * s for s in range(5)}}
    for control, advice in (("full", {"keep": 0.1, "selection": "ifd"}), ("random", {})):
        arms = {"full": {"method": "full"}, "random": {"keep": 0.1, "selection": "random"}}
        own = {"keep": 0.1, "selection": "ifd", **({"control": control} if control != "full" else {})}
        spec = grid(arms={**arms, "ifd": own}, factors=None)
        values = {control: noisy["full"], "ifd": noisy["ifd"]}
        (rule,) = ruling(spec, lines, compare_arms(values, control, "lower", expected=5)).rules
        assert rule.statement == f"ifd against {control}: better" and rule.advice == advice


def test_advice_holds_settings_of_a_fit_alone() -> None:
    """Which tasks an arm is for, and what it is compared with, is said of the arm in its study."""
    own = {"method": "lora", "lora.rank": 4, "tasks": ["sv"], "control": "full"}
    spec = grid(arms={"full": {"method": "full"}, "lora": own}, factors=None)
    values = {"full": {seed: 1.0 + 0.01 * seed for seed in range(5)}, "lora": {s: 0.5 + 0.011 * s for s in range(5)}}
    lines = [line("small", "sv", "full", SIZES[0], 0, 1.0)]
    (rule,) = ruling(spec, lines, compare_arms(values, "full", "lower", expected=5)).rules
    assert rule.advice == {"method": "lora", "lora.rank": 4}


def test_a_method_with_larger_shares_and_smaller_gaps_is_no_slope() -> None:
    """Within each method nothing changes with the share; between them both do."""
    random = np.random.default_rng(3)
    gaps = [
        Gap(model="m", task=task, rows=100, seed=seed, arm=f"{method}-{share}", method=method, share=share,
            parameters=10**6, value=level + random.normal(0, 0.002), score=1.0, reference=1.0, distance=far,
            fertility=1.0)
        for task, far in LANGUAGES.items() for seed in range(3)
        for method, level, shares in (("lora", 0.1, (0.001, 0.005)), ("bottleneck", 0.02, (0.02, 0.1)))
        for share in shares
    ]  # fmt: skip
    fit = fit_budget(budget_points(gaps), distances_of(gaps), alpha=0.05)
    assert fit is not None and fit.budget is not None and fit.budget.low < 0 < fit.budget.high
    points = budget_points(gaps)["de"]
    assert np.mean([y for _, y in points]) == pytest.approx(np.mean([g.value for g in gaps if g.task == "de"]))


def test_models_on_the_same_rows_repeat_nothing() -> None:
    found = ruling(grid(), planted(1.0))
    assert found.effects["lora:few-rows"].units == found.effects["lora:rows"].units == len(LANGUAGES) * 3
