"""Whole fits on tiny models: every kind of model and task, and what is left in the folder."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from typer.testing import CliRunner

import foretune
from foretune.cli.main import app
from foretune.data.mask_check import TOOLS_AS_TEXT
from foretune.errors import DataError, TrainingError, UsageError
from foretune.experience.past import past_runs
from foretune.files import folder_damage, read_json, read_lines
from foretune.fit.job import FitResult
from foretune.fit.known import ANSWER_TOKENS, known_answer_tokens, known_reasoning
from foretune.fit.systems import Settings, predict_rows
from foretune.report.record import RunRecord, read_record

from .. import tiny
from ..whole_fits import SETTINGS, Ground

SHORT = Settings(device="cpu", dtype="float32", max_answer_tokens=8, context_tokens=96)
BRIEF = {"budget.steps": None, "budget.trials": 1, "training.epochs": 1}
"""The default LoRA alone, one epoch."""


# -- the ordinary case: question and answer, a causal model


def test_the_result_is_typed_and_its_files_agree(finished: Any) -> None:
    assert isinstance(finished, FitResult) and isinstance(finished.record, RunRecord)
    assert finished.record == read_record(finished.folder)
    assert finished.adapter == finished.folder / "adapter" and folder_damage(finished.adapter) is None
    record = finished.record
    assert record.budget.kind == "steps" and record.budget.used <= record.budget.total == SETTINGS["budget.steps"]
    assert record.winner is not None and record.winner.best_step == record.winner.horizon
    assert {system.role for system in record.comparison.systems} == {"base", "winner", "default", "examples"}
    rows = record.data.rows
    assert sum(rows.values()) == record.data.read == 60 and record.comparison.rows == rows["test"]
    given = [Path(finished.folder / "task" / f"{split}.jsonl") for split in ("train", "validation", "test")]
    prompts = [{json.dumps(row["turns"]) for row in read_lines(path)} for path in given]
    assert [len(part) for part in prompts] == [rows["train"], rows["validation"], rows["test"]]
    assert not (prompts[0] & prompts[2] or prompts[1] & prompts[2] or prompts[0] & prompts[1])
    report = (finished.folder / "report.html").read_text()
    assert record.winner.run in report and "<script src" not in report and "default-src 'none'" in report
    encoded = record.data.encoding
    assert encoded[0].startswith(f"train: {rows['train']} rows") and any(
        line.startswith("validation: ") for line in encoded
    )
    assert "<h3>Tokens</h3>" in report and encoded[0] in report
    assert not list(finished.folder.glob("**/.*.part"))


def test_a_fit_says_beforehand_how_it_will_search(ground: Ground, tmp_path: Path) -> None:
    from foretune.fit.request import FitRequest

    rows = [{"text": f"the {thing} is {i}", "label": "ab"[i % 2]} for i, thing in enumerate(tiny.THINGS * 4)]
    data = tiny.write_rows(tmp_path / "rows.jsonl", rows)
    request = FitRequest({"data.path": str(data), "model.source": str(tiny.bert(tmp_path / "bert"))})
    said = request.plan().outlook
    assert said.search.startswith("transfer: ") and "earlier tasks" in said.experience  # by the runs that ship


def test_the_card_is_valid(finished: Any) -> None:
    from huggingface_hub import ModelCard

    card = ModelCard.load(finished.adapter / "README.md")
    data = card.data.to_dict()
    assert data["library_name"] == "peft" and data["base_model"]
    assert data["model-index"][0]["results"], "no measured result"


def test_training_did_something_and_the_scores_are_those_of_the_answers(finished: Any) -> None:
    comparison = finished.record.comparison
    loss = {system.role: system.metrics["loss"].value for system in comparison.systems}
    assert loss["winner"] < loss["base"] - 0.5
    for role in ("base", "winner"):
        answers = read_json(finished.folder / "answers" / f"test-{role}.json")["answers"]
        mean = sum(a["nll"] for a in answers) / sum(a["tokens"] for a in answers)
        assert loss[role] == pytest.approx(mean)


def test_the_experience_holds_the_base_beside_every_score(finished: Any) -> None:
    runs = past_runs(finished.folder.parent / f"{finished.folder.name}.store.sqlite")
    assert len(runs) == len(finished.record.trials)
    for run in runs:
        for point in (*run.on("validation"), *run.on("test")):
            assert point.base["loss"][2] == point.metrics["loss"][2]  # on as many rows
            assert set(point.base) >= set(point.metrics) - {"gain"}
            if "gain" in point.metrics:
                assert point.metrics["gain"][0] == pytest.approx(
                    math.log(point.base["loss"][0] / point.metrics["loss"][0]), abs=1e-6
                )
    answered = [point for run in runs for point in run.on("validation") if "exact_match" in point.metrics]
    assert answered and runs[0].task_features["base_exact_match"] == answered[0].base["exact_match"][0]


def test_the_adapter_answers_in_peft_as_it_was_evaluated(finished: Any, ground: Ground) -> None:
    """P10, against transformers' own template and `generate`: nothing of Foretune is on this side."""
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer

    base = AutoModelForCausalLM.from_pretrained(ground.llama, dtype=torch.float32)
    untouched = {name: tensor.clone() for name, tensor in base.state_dict().items()}
    model = PeftModel.from_pretrained(base, finished.adapter).eval()
    tokenizer = AutoTokenizer.from_pretrained(finished.adapter)
    answers = read_json(finished.folder / "answers" / "test-winner.json")["answers"]
    for answer in answers:
        turns = [{"role": "user", "content": answer["prompt"]}]
        prompt = tokenizer.apply_chat_template(turns, add_generation_prompt=True, return_tensors="pt", return_dict=True)
        with torch.no_grad():
            written = model.generate(**prompt, max_new_tokens=8, do_sample=False, pad_token_id=5)
        start = prompt["input_ids"].shape[1]
        text = tokenizer.decode(written[0, start:], skip_special_tokens=True).strip()
        assert text == answer["prediction"]
        reply = tokenizer(answer["reference"] + "<|im_end|>", add_special_tokens=False, return_tensors="pt").input_ids
        ids = torch.cat([prompt["input_ids"], reply], dim=1)
        with torch.no_grad():
            logits = model(input_ids=ids).logits[0, start - 1 : -1].double()
        nll = torch.nn.functional.cross_entropy(logits, ids[0, start:], reduction="none")
        counted = nll[: answer["tokens"]].sum().item()  # the line end after the turn's end may count as well
        assert counted == pytest.approx(answer["nll"], rel=1e-3)
    with model.disable_adapter():
        assert all(
            torch.equal(tensor, untouched[name.replace("base_layer.", "")])
            for name, tensor in base.state_dict().items()
            if "lora" not in name
        )


def test_predict_answers_as_the_evaluation(finished: Any) -> None:
    answers = read_json(finished.folder / "answers" / "test-winner.json")["answers"]
    said = predict_rows(str(finished.folder), [answer["prompt"] for answer in answers], settings=SHORT)
    assert [one.answer for one in said] == [answer["prediction"] for answer in answers]


def test_resolved_settings_give_the_same_plan(finished: Any) -> None:
    from foretune.fit.request import saved_request

    first = saved_request(finished.folder).plan()
    again = foretune.plan(config=finished.folder / "resolved.yaml")
    assert again.resolution.spec == first.resolution.spec
    assert again.config == first.config and again.budget == first.budget
    kept = yaml.safe_load((finished.folder / "resolved.yaml").read_text())
    assert kept["budget"]["steps"] == SETTINGS["budget.steps"] and kept["origins"]


def test_a_finished_run_is_not_run_again(finished: Any, fast_fit: Callable[..., Any]) -> None:
    before = {path: path.stat().st_mtime_ns for path in finished.folder.rglob("*") if path.is_file()}
    events: list[str] = []
    again = fast_fit(output=finished.folder, on_event=lambda kind, payload: events.append(kind))
    assert again.record == finished.record and set(events) <= {"plan"}
    after = {path: path.stat().st_mtime_ns for path in finished.folder.rglob("*") if path.is_file()}
    assert {path.name for path in after if after[path] != before.get(path)} <= {".lock"}


def test_the_other_commands_read_the_run(finished: Any) -> None:
    runner = CliRunner()
    for command in (["report", str(finished.folder), "--json"], ["runs", str(finished.folder.parent), "--json"]):
        outcome = runner.invoke(app, command, catch_exceptions=False)
        assert outcome.exit_code == 0 and json.loads(outcome.stdout)


# -- other models and tasks


def test_classification_with_an_encoder(fast_fit: Callable[..., Any], tmp_path: Path) -> None:
    rows = [{"text": f"the {tiny.THINGS[i % 12]} is {c} {i}", "label": c} for i in range(40) for c in ("red", "blue")]
    data = tiny.write_rows(tmp_path / "rows.jsonl", rows)
    options = {"budget.steps": 60, "training.epochs": 2, "training.method": "lora"}
    result = fast_fit(data, model=tiny.bert(tmp_path / "bert"), output=tmp_path / "run", options=options)
    record = result.record
    assert record.data.task == "classification" and record.data.labels == ("blue", "red")
    assert {system.role for system in record.comparison.systems} >= {"base", "winner"}
    winner = next(system for system in record.comparison.systems if system.role == "winner")
    assert 0 <= winner.metrics["accuracy"].value <= 1 and winner.calibration is not None
    _answers_as_classifier(result, tmp_path / "bert", labels=["blue", "red"])


@pytest.mark.parametrize("kind", ["classification", "regression"])
def test_labels_with_a_causal_model(fast_fit: Callable[..., Any], tmp_path: Path, kind: str) -> None:
    """The label is the answer of a conversation; general text, which has none, is compared all the same."""
    labels = [["red", "blue"], [1.5, 2.5]][kind == "regression"]
    rows = [{"text": f"the {tiny.THINGS[i % 12]} {i}", "label": labels[i % 2]} for i in range(60)]
    data = tiny.write_rows(tmp_path / "rows.jsonl", rows)
    record = fast_fit(data, output=tmp_path / "run", options={**BRIEF, "data.task": kind}).record
    assert record.data.task == kind and record.comparison is not None
    assert record.forgetting is not None and record.forgetting.rows > 20


def _answers_as_classifier(result: Any, base: Path, labels: list[str]) -> None:
    from peft import PeftModel
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    torch.manual_seed(9)
    model = AutoModelForSequenceClassification.from_pretrained(base, num_labels=len(labels), dtype=torch.float32)
    model = PeftModel.from_pretrained(model, result.adapter).eval()
    tokenizer = AutoTokenizer.from_pretrained(result.adapter)
    for answer in read_json(result.folder / "answers" / "test-winner.json")["answers"]:
        with torch.no_grad():
            logits = model(**tokenizer(answer["prompt"], return_tensors="pt")).logits[0]
        assert labels[int(logits.argmax())] == answer["prediction"]
        assert logits.softmax(-1).max().item() == pytest.approx(answer["probability"], abs=1e-3)


def test_regression_with_an_encoder(fast_fit: Callable[..., Any], tmp_path: Path) -> None:
    rows = [{"text": f"{tiny.THINGS[i % 12]} number {i}", "label": (i % 9) / 4} for i in range(60)]
    data = tiny.write_rows(tmp_path / "rows.jsonl", rows)
    options = {**BRIEF, "data.task": "regression", "training.method": "lora"}
    result = fast_fit(data, model=tiny.bert(tmp_path / "bert"), output=tmp_path / "run", options=options)
    assert result.record.data.task == "regression" and result.record.comparison.metric in ("pearson", "spearman", "mse")
    assert all(system.calibration is None for system in result.record.comparison.systems)


def test_sequence_to_sequence(fast_fit: Callable[..., Any], tmp_path: Path) -> None:
    rows = [{"source": row["question"], "target": row["answer"]} for row in tiny.questions()]
    data = tiny.write_rows(tmp_path / "rows.jsonl", rows)
    result = fast_fit(data, model=tiny.bart(tmp_path / "bart"), output=tmp_path / "run", options=BRIEF)
    assert result.record.model.kind == "seq2seq"
    assert read_json(result.adapter / "adapter_config.json")["task_type"] == "SEQ_2_SEQ_LM"
    answers = read_json(result.folder / "answers" / "test-winner.json")["answers"]
    assert answers and all(answer["prediction"] is not None for answer in answers)


def test_plain_text(fast_fit: Callable[..., Any], tmp_path: Path) -> None:
    text = [{"text": f"The {tiny.THINGS[i % 12]} number {i} is {tiny.COLOURS[i % 5]} today."} for i in range(60)]
    data = tiny.write_rows(tmp_path / "rows.jsonl", text)
    result = fast_fit(data, output=tmp_path / "run", options=BRIEF)
    assert result.record.data.task == "language-modelling" and result.record.comparison.metric.startswith("loss")
    assert {system.role for system in result.record.comparison.systems} == {"base", "winner"}


def test_calls_of_tools(fast_fit: Callable[..., Any], tmp_path: Path) -> None:
    """A template that knows no tools: they are written as text, which the report says, and calls are compared."""
    tools = [{"name": "paint", "parameters": {"type": "object"}}]
    rows = []
    for row in tiny.questions(40):
        call = {"function": {"name": "paint", "arguments": json.dumps({"to": row["answer"]})}}
        turns = [{"role": "user", "content": row["question"]}, {"role": "assistant", "tool_calls": [call]}]
        rows.append({"messages": turns, "tools": tools})
    data = tiny.write_rows(tmp_path / "rows.jsonl", rows)
    result = fast_fit(data, output=tmp_path / "run", options={**BRIEF, "data.context_tokens": 512})
    comparison = result.record.comparison
    assert comparison.metric == "tool_calls" and TOOLS_AS_TEXT in result.record.data.template
    assert comparison.info("tool_calls").share, "shown in percent"
    answers = read_json(tmp_path / "run" / "answers" / "test-winner.json")["answers"]
    assert all(answer["reference"].startswith("<tool_call>") for answer in answers)


@pytest.mark.parametrize("model", [None, tiny.bert])
@pytest.mark.parametrize("what", ["label", "task"])
def test_what_no_training_row_has_is_refused_before_anything_is_trained(
    fast_fit: Callable[..., Any], tmp_path: Path, what: str, model: Callable[[Path], Path] | None
) -> None:
    """A test row of an unknown class ended whole fits at their last step."""
    rows = [
        {"text": row["question"], "label": ["x", "y"][i % 2], "kind": "a"} for i, row in enumerate(tiny.questions(60))
    ]
    unknown = {"label": {"label": "z"}, "task": {"kind": "b"}}[what]
    data = tiny.write_rows(tmp_path / "rows.jsonl", rows[:50])
    test = tiny.write_rows(tmp_path / "test.jsonl", [*rows[50:], {**rows[0], "text": "?", **unknown}])
    given = {"data.test": str(test), "data.columns.task": "kind"}
    with pytest.raises(DataError, match=rf"test.jsonl:11: the {what} '.' of this test row is in no training row"):
        made = None if model is None else model(tmp_path / "model")
        fast_fit(data, model=made, output=tmp_path / "run", options={**BRIEF, **given})
    assert not (tmp_path / "run" / "result.json").exists()


def test_several_labels_are_named_by_a_language_model(fast_fit: Callable[..., Any], tmp_path: Path) -> None:
    """By a head for labels they cannot be, which the error says beforehand, unless every combination is a class."""
    rows = [{"text": row["question"], "labels": [row["answer"].split()[0], "thing"][: 1 + i % 2]}
            for i, row in enumerate(tiny.questions(60))]  # fmt: skip
    data = tiny.write_rows(tmp_path / "rows.jsonl", rows)
    result = fast_fit(data, output=tmp_path / "run", options=BRIEF)
    comparison = result.record.comparison
    assert [info.name for info in comparison.metrics][:2] == ["label_f1", "exact_match"] and comparison.metrics[0].share
    answers = read_json(tmp_path / "run" / "answers" / "test-winner.json")["answers"]
    assert any(answer["reference"].endswith("; thing") for answer in answers)
    encoder = tiny.bert(tmp_path / "bert")
    with pytest.raises(UsageError, match="every combination of labels is a class"):
        fast_fit(data, model=encoder, output=tmp_path / "second", options=BRIEF)
    classes = fast_fit(data, model=encoder, output=tmp_path / "third", options={**BRIEF, "data.task": "classification"})
    assert classes.record.comparison.metric == "accuracy"


def test_reasoning(fast_fit: Callable[..., Any], tmp_path: Path) -> None:
    """It is trained as text, which the report says, and answers are compared without it."""
    rows = [
        {"messages": [{"role": "user", "content": row["question"]},
                      {"role": "assistant", "content": row["answer"], "reasoning_content": "As it always was."}]}
        for row in tiny.questions(40)
    ]  # fmt: skip
    data = tiny.write_rows(tmp_path / "rows.jsonl", rows)
    result = fast_fit(data, output=tmp_path / "run", options={**BRIEF, "evaluation.max_answer_tokens": 8})
    record = result.record
    assert record.data.reasoning == 1.0 and any(
        line.startswith("reasoning is trained") for line in record.data.template
    )
    assert any("evaluation.max_answer_tokens" in line for line in record.data.encoding), "8 tokens hold no such answer"
    answers = read_json(tmp_path / "run" / "answers" / "test-winner.json")["answers"]
    assert {answer["reference"] for answer in answers} <= {row["answer"] for row in tiny.questions(40)}
    thought = len("As it always was.")
    assert all(answer["bytes"] > thought + len(answer["reference"]) for answer in answers), "losses per byte count it"
    run = str(tmp_path / "run")
    assert known_reasoning(run) and not known_reasoning(str(tmp_path))
    assert record.data.answer_tokens == 8 and known_answer_tokens(run) == ANSWER_TOKENS == known_answer_tokens(".")
    assert known_answer_tokens(run, 4) == 8, "what is asked later gets the room that the comparison had"


def test_full_fine_tuning_leaves_a_whole_model(fast_fit: Callable[..., Any], tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    result = fast_fit(output=tmp_path / "run", options={"budget.steps": 20}, sets=["training.method=full"])
    record = result.record
    assert record.winner.config["method"] == "full" and record.exports[0].kind == "full"
    model = AutoModelForCausalLM.from_pretrained(result.adapter)
    assert sum(p.numel() for p in model.parameters()) == record.model.parameters
    assert {system.role for system in record.comparison.systems} >= {"base", "winner", "default"}


# -- files and rows


def test_given_files_bad_rows_and_a_merged_export(ground: Ground, fast_fit: Callable[..., Any], tmp_path: Path) -> None:
    rows = tiny.questions(90)
    lines = [json.dumps(row) for row in rows[:40]]
    lines[7] = '{"question": "cut off'
    lines[20] = json.dumps({"question": "no answer?"})
    test = tiny.write_rows(tmp_path / "test.jsonl", rows[65:])
    test.write_text(test.read_text() + lines[20] + "\n")
    data = tmp_path / "train.jsonl"
    data.write_text("\n".join(lines) + "\n")
    options = {
        **BRIEF,
        "data.validation": str(tiny.write_rows(tmp_path / "validation.jsonl", rows[40:65])),
        "data.test": str(test),
        "data.on_bad_row": "quarantine",
        "output.deploy": "merged",
    }
    result = fast_fit(data, output=tmp_path / "run", options=options)
    record = result.record
    assert (record.data.read, record.data.quarantined) == (40, 3)
    assert dict(record.data.rows) == {"train": 38, "validation": 25, "test": 25}
    assert len(read_lines(tmp_path / "run" / "quarantine.jsonl")) == 2
    assert len(read_lines(tmp_path / "run" / "test-quarantine.jsonl")) == 1
    assert any("train.jsonl:8" in problem for problem in record.data.problems)
    merged = next(export for export in record.exports if export.kind == "merged")
    assert merged.verified and (tmp_path / "run" / merged.folder / "config.json").is_file()
    answers = read_json(tmp_path / "run" / "answers" / "test-winner.json")["answers"]
    said = predict_rows(str(tmp_path / "run" / merged.folder), [answer["prompt"] for answer in answers], settings=SHORT)
    assert [one.answer for one in said] == [answer["prediction"] for answer in answers]


def test_one_trial_is_of_the_settings_that_were_fixed(fast_fit: Callable[..., Any], tmp_path: Path) -> None:
    record = fast_fit(output=tmp_path / "run", options={**BRIEF, "training.lora.rank": 4}).record
    (trial,) = record.trials
    assert trial.config["lora.rank"] == 4 and not trial.is_default
    assert "the budget holds no comparison" in trial.why
    assert {system.role for system in record.comparison.systems} == {"base", "winner", "examples"}
    timed = {row.quantity: row.measured for row in record.forecast if "run" in row.quantity}
    assert set(timed) == {"the one run", "the one run, after the probe", "whole run", "whole run, after the probe"}
    assert timed["the one run"] == timed["the one run, after the probe"] > 0


def test_a_budget_that_held_the_default_alone_says_that_fixed_settings_were_not_tried(
    fast_fit: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("foretune.search.zero_shot.agrees", lambda *_: True)
    with pytest.raises(TrainingError, match="the default LoRA alone") as raised:
        fast_fit(output=tmp_path / "run", options={**BRIEF, "training.lora.rank": 4})
    assert raised.value.exit_code == 8 and "larger budget" in raised.value.remedy


def test_a_hub_model_of_a_revision_is_exported_and_checked_as_trained(
    fast_fit: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    snapshot = tmp_path / "hub" / "models--owner--tiny" / "snapshots" / ("a" * 40)
    tiny.llama(snapshot)
    refs = snapshot.parents[1] / "refs"
    refs.mkdir()
    (refs / "v1").write_text("a" * 40)
    options = {**BRIEF, "model.revision": "v1", "output.deploy": "merged"}
    record = fast_fit(model="owner/tiny", output=tmp_path / "run", options=options).record
    assert [export.verified for export in record.exports] == [True, True]
    assert record.model.source == "owner/tiny" and record.model.folder == str(snapshot)
    config = read_json(tmp_path / "run" / "adapter" / "adapter_config.json")
    assert config["base_model_name_or_path"] == "owner/tiny"
