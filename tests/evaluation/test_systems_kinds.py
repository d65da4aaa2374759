"""``evaluate`` and ``predict`` on run folders of classifiers, regressors and encoder–decoders."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from foretune.catalogue.methods import METHODS
from foretune.catalogue.models import ModelReference
from foretune.cli.main import app
from foretune.data.example import Example, Turn, conversation
from foretune.errors import UsageError
from foretune.execution.bench import Bench
from foretune.execution.types import TaskSpec
from foretune.export.adapter import export_adapter
from foretune.fit.prepare import write_split
from foretune.models.load import weights_hash
from foretune.report.record import ExportInfo, write_record
from tests.report.conftest import sample

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "</s>", *(f"w{i}" for i in range(40))]
SIZE = {
    "vocab_size": len(WORDS), "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2,
    "num_attention_heads": 2, "max_position_embeddings": 24, "initializer_range": 0.3,
}  # fmt: skip
CLASSES = ("bad", "fine", "good")


@pytest.fixture(autouse=True)
def _plain_arithmetic(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from foretune.models import load

    monkeypatch.setenv("FORETUNE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(load, "cpu_has_bfloat16", lambda: False)


def tokenizer(kind: str) -> Any:
    """Words as tokens, with the special tokens of BERT or of T5."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    raw = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="[UNK]"))
    raw.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    raw.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]" if kind == "encoder" else "$A </s>",
        special_tokens=[("[CLS]", 2), ("[SEP]", 3), ("</s>", 4)],
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=raw, unk_token="[UNK]", pad_token="[PAD]", eos_token="</s>", model_max_length=24
    )


def base_folder(folder: Path, kind: str) -> Path:
    from transformers import BertConfig, BertModel, T5Config, T5ForConditionalGeneration

    torch.manual_seed(1)
    model: Any
    if kind == "encoder":
        model = BertModel(BertConfig(**SIZE))
    else:
        model = T5ForConditionalGeneration(
            T5Config(vocab_size=len(WORDS), d_model=16, d_kv=8, d_ff=24, num_layers=1, num_heads=2, pad_token_id=0,
                     eos_token_id=4, decoder_start_token_id=0, initializer_factor=3.0)
        )  # fmt: skip
    model.save_pretrained(folder)
    tokenizer(kind).save_pretrained(folder)
    return folder


@dataclass(frozen=True)
class Run:
    """A run folder and what its system said of the test rows where it was trained."""

    folder: Path
    base: Path
    tuned: list[Any]
    before: list[Any]


def run_of(root: Path, kind: str, task: str, examples: Sequence[Example], labels: tuple[str, ...] = ()) -> Run:
    """A run folder as ``fit`` leaves it, with a LoRA that was moved at random instead of trained."""
    base = base_folder(root / "base", kind)
    write_split(root / "test.jsonl", examples)
    reference = ModelReference(str(base), kind=kind, dtype="float32")  # type: ignore[arg-type]
    bench = Bench(TaskSpec(str(root), task, reference, "loss", labels, context_tokens=24, device="cpu"))
    rows = range(len(examples))
    before = bench.answers(bench.network, "test", rows, generation=kind == "seq2seq")
    with bench.attached({"method": "lora", **METHODS["lora"].space.defaults()}, 0) as (attachment, network):
        torch.manual_seed(2)
        with torch.no_grad():
            for _, weight in attachment.trainable():  # type: ignore[attr-defined]
                weight.normal_(0.0, 0.3)
        tuned = bench.answers(network, "test", rows, generation=kind == "seq2seq")
        export_adapter(attachment, root / "run" / "adapter", tokenizer=bench.tokenizer, base_model=str(base))
    record = sample()
    write_record(root / "run", replace(
        record, model=replace(record.model, folder=str(base), kind=kind, weights_sha256=weights_hash(base)),
        data=replace(record.data, task=task, labels=labels), exports=(ExportInfo("adapter", "adapter"),),
    ))  # fmt: skip
    return Run(root / "run", base, tuned, before)


def called(*arguments: Any) -> Any:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def printed(*arguments: Any) -> dict[str, Any]:
    outcome = called(*arguments, "--json")
    assert outcome.exit_code == 0, repr(outcome.exception)
    return dict(json.loads(outcome.stdout[outcome.stdout.index("{") :]))


def write_rows(path: Path, rows: Sequence[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def texts(count: int) -> list[str]:
    draw = np.random.default_rng(4)
    return [" ".join(f"w{i}" for i in draw.integers(0, 40, draw.integers(3, 60))) for _ in range(count)]


def mean(answers: Sequence[Any]) -> float:
    return sum(answer.nll for answer in answers) / sum(answer.tokens for answer in answers)


def test_a_classifier_is_scored_and_names_classes(tmp_path: Path) -> None:
    said = texts(12)
    rows = [{"text": text, "label": CLASSES[i % 3]} for i, text in enumerate(said)]
    examples = [Example((Turn("user", row["text"]),), label=row["label"]) for row in rows]
    run = run_of(tmp_path, "encoder", "classification", examples, CLASSES)
    file = write_rows(tmp_path / "rows.jsonl", rows)
    found = printed("evaluate", run.folder, file, "--metric", "accuracy", "--metric", "loss", "--metric", "macro_f1")
    right = [answer.prediction == row["label"] for answer, row in zip(run.tuned, rows, strict=True)]
    assert found["task"] == "classification" and found["scores"]["accuracy"]["value"] == pytest.approx(np.mean(right))
    assert found["scores"]["loss"]["value"] == pytest.approx(mean(run.tuned), rel=1e-4)
    assert found["base"]["loss"]["value"] == pytest.approx(mean(run.before), rel=1e-4)
    predicted = printed("predict", run.folder, file, "--prompt-column", "text")["answers"]
    assert [row["answer"] for row in predicted] == [answer.prediction for answer in run.tuned]
    assert [row["probability"] for row in predicted] == pytest.approx([a.probability for a in run.tuned], rel=1e-4)
    assert isinstance(called("evaluate", run.folder / "adapter", file).exception, UsageError)
    named = printed("evaluate", run.folder / "adapter", file, "--labels", ",".join(CLASSES), "--metric", "loss")
    assert named["scores"]["loss"]["value"] == pytest.approx(mean(run.tuned), rel=1e-4)


def test_a_regressor_is_scored_and_says_numbers(tmp_path: Path) -> None:
    rows = [{"text": text, "label": i / 3} for i, text in enumerate(texts(9))]
    examples = [Example((Turn("user", row["text"]),), label=row["label"]) for row in rows]
    run = run_of(tmp_path, "encoder", "regression", examples)
    file = write_rows(tmp_path / "rows.jsonl", rows)
    found = printed("evaluate", run.folder, file, "--metric", "mse", "--metric", "mae")
    errors = [float(answer.prediction) - row["label"] for answer, row in zip(run.tuned, rows, strict=True)]
    assert found["scores"]["mse"]["value"] == pytest.approx(np.mean(np.square(errors)), rel=1e-3)
    assert found["scores"]["mae"]["value"] == pytest.approx(np.mean(np.abs(errors)), rel=1e-3)
    predicted = printed("predict", run.folder, file, "--prompt-column", "text")["answers"]
    assert [float(row["answer"]) for row in predicted] == pytest.approx(
        [float(a.prediction) for a in run.tuned], rel=1e-3
    )


def test_whole_numbers_are_classes_where_the_run_says_so(tmp_path: Path) -> None:
    labels = ("1", "2", "3")
    rows = [{"text": text, "label": 1 + i % 3} for i, text in enumerate(texts(9))]
    examples = [Example((Turn("user", row["text"]),), label=str(row["label"])) for row in rows]
    run = run_of(tmp_path, "encoder", "classification", examples, labels)
    found = printed("evaluate", run.folder, write_rows(tmp_path / "rows.jsonl", rows), "--metric", "loss")
    assert found["scores"]["loss"]["value"] == pytest.approx(mean(run.tuned), rel=1e-4)


def test_an_encoder_decoder_is_scored_and_answers(tmp_path: Path) -> None:
    rows = [{"prompt": text, "completion": f"w{i} w{i + 1}"} for i, text in enumerate(texts(8))]
    run = run_of(tmp_path, "seq2seq", "generation", [conversation(r["prompt"], r["completion"]) for r in rows])
    file = write_rows(tmp_path / "rows.jsonl", rows)
    common = ["--answer-tokens", 128, "--context", 24]
    found = printed("evaluate", run.folder, file, "--metric", "loss", "--metric", "token_f1", *common)
    assert found["scores"]["loss"]["value"] == pytest.approx(mean(run.tuned), rel=1e-4)
    assert found["base"]["loss"]["value"] == pytest.approx(mean(run.before), rel=1e-4)
    predicted = printed("predict", run.folder, file, *common)["answers"]
    assert [row["answer"] for row in predicted] == [answer.prediction for answer in run.tuned]
    untouched = printed("predict", run.folder, file, "--base-only", *common)["answers"]
    assert [row["answer"] for row in untouched] == [answer.prediction for answer in run.before]
    assert untouched != predicted
    asked = "".join(row["prompt"] + "\n" for row in rows[:3])
    arguments = ["chat", str(run.folder), "--json", "--context", "24", "--max-tokens", "128"]
    outcome = CliRunner().invoke(app, arguments, input=asked)
    told = [json.loads(line)["answer"] for line in outcome.stdout.splitlines()]
    assert told == [answer.prediction for answer in run.tuned[:3]], "each question stands alone"


def test_only_test_rows_are_scored_where_rows_name_their_split(tmp_path: Path) -> None:
    parts = ["train"] * 7 + ["test"] * 5
    rows = [{"text": text, "label": CLASSES[i % 3], "split": parts[i]} for i, text in enumerate(texts(12))]
    examples = [Example((Turn("user", row["text"]),), label=row["label"]) for row in rows]
    run = run_of(tmp_path, "encoder", "classification", examples, CLASSES)
    file = write_rows(tmp_path / "rows.jsonl", rows)
    assert printed("evaluate", run.folder, file, "--metric", "loss")["rows"] == 5
    assert printed("evaluate", run.folder, file, "--metric", "loss", "--split", "train")["rows"] == 7
    assert "rows of the split 'dev'" in str(called("evaluate", run.folder, file, "--split", "dev").exception)
