"""The lm-eval bridge, on a local task with a tiny model; without the extra only its refusal."""

import importlib.util
import json
import math
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from foretune.errors import DataError, UsageError
from foretune.evaluation.lm_eval_bridge import BenchmarkScore, _check_folder, _scores, run_benchmarks

HARNESS = importlib.util.find_spec("lm_eval") is not None
needs_harness = pytest.mark.skipif(not HARNESS, reason="the lm-eval extra is not installed")
WORDS = ["<unk>", "<s>", "</s>", "red", "blue", "is", "the", "sky", "rose", ":"]


def tiny() -> tuple[Any, Any]:
    torch.manual_seed(0)
    model = LlamaForCausalLM(LlamaConfig(
        vocab_size=len(WORDS), hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2,
        max_position_embeddings=64, initializer_range=0.5, bos_token_id=1, eos_token_id=2,
    ))  # fmt: skip
    raw = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="<unk>"))
    raw.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=raw,
        unk_token="<unk>",
        bos_token="<s>",
        eos_token="</s>",
        pad_token="</s>",
        model_max_length=64,
    )
    return model, tokenizer


def local_task(folder: Path, extra: str = "") -> Path:
    rows = [{"question": "the sky is", "choices": ["red", "blue"], "label": int(i % 3 == 0)} for i in range(6)]
    data = folder / "rows.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "colours.yaml").write_text(
        f"task: colours\ndataset_path: json\ndataset_kwargs:\n  data_files:\n    test: {data}\ntest_split: test\n"
        "output_type: multiple_choice\ndoc_to_text: '{{question}}'\ndoc_to_choice: '{{choices}}'\n"
        "doc_to_target: label\n"
        f"metric_list:\n  - metric: acc\n    aggregation: mean\n    higher_is_better: true\n{extra}"
    )
    return folder


@needs_harness
def test_a_local_task_is_scored_on_the_loaded_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    model, tokenizer = tiny()
    model.train()
    scores = run_benchmarks(model, tokenizer, ["colours"], folder=local_task(tmp_path), batch_rows=4)
    ids = torch.tensor([tokenizer("the sky is")["input_ids"]])
    chosen = [WORDS.index("red"), WORDS.index("blue")]
    with torch.no_grad():
        best = int(model(ids).logits[0, -1, chosen].argmax())
    expected = (2 if best else 4) / 6
    assert scores == [BenchmarkScore("colours", "acc", expected, pytest.approx(math.sqrt(2 / 45)), 6, True)]
    assert model.training


@needs_harness
def test_what_cannot_run_is_refused(tmp_path: Path) -> None:
    model, tokenizer = tiny()
    with pytest.raises(UsageError, match="Did you mean arc_easy"):
        run_benchmarks(model, tokenizer, ["arc_eazy"])
    folder = local_task(tmp_path, extra="process_docs: !function evil.run\n")
    with pytest.raises(UsageError, match=r"colours.yaml:15: this task file runs Python code"):
        run_benchmarks(model, tokenizer, ["colours"], folder=folder)
    with pytest.raises(UsageError, match="no such folder"):
        run_benchmarks(model, tokenizer, ["colours"], folder=tmp_path / "nowhere")
    local_task(tmp_path)
    (tmp_path / "rows.jsonl").unlink()
    with pytest.raises(DataError, match="cannot be had"):
        run_benchmarks(model, tokenizer, ["colours"], folder=tmp_path)


def test_without_the_extra_the_error_names_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    with pytest.raises(UsageError, match=r"pip install 'foretune\[lm-eval\]'"):
        run_benchmarks(*tiny(), ["arc_easy"])
    with pytest.raises(UsageError, match="no benchmark task"):
        run_benchmarks(*tiny(), [])


def test_the_harness_numbers_are_read_as_they_are() -> None:
    found = {
        "results": {"gsm8k": {"alias": "gsm8k", "exact_match,strict-match": 0.5, "exact_match_stderr,strict-match": 0.1,
                              "exact_match,flexible": 0.75, "exact_match_stderr,flexible": "N/A"}},
        "n-samples": {"gsm8k": {"original": 100, "effective": 4}},
        "higher_is_better": {"gsm8k": {"exact_match": True}},
    }  # fmt: skip
    assert _scores(found) == [
        BenchmarkScore("gsm8k", "exact_match (strict-match)", 0.5, 0.1, 4, True),
        BenchmarkScore("gsm8k", "exact_match (flexible)", 0.75, None, 4, True),
    ]
    with pytest.raises(DataError, match="no score"):
        _scores({"results": {"t": {"ppl,none": math.nan}}})


@pytest.mark.parametrize(
    ("files", "told"),
    [
        (
            {"task.yaml": "task: t\ninclude: _default", "_default": "process_docs: !function utils.f"},
            "runs Python code",
        ),
        ({"task.yaml": "task: t\ninclude: base.txt", "base.txt": "custom_dataset: !function utils.f"}, "runs Python"),
        ({"task.yaml": "task: t\ninclude: ../outside.yaml", "../outside.yaml": "class: mine.Task"}, "runs Python code"),
    ],
)
def test_what_a_task_file_includes_is_looked_at_too(tmp_path: Path, files: dict[str, str], told: str) -> None:
    (tmp_path / "tasks").mkdir()
    for name, text in files.items():
        (tmp_path / "tasks" / name).write_text(text)
    with pytest.raises(UsageError, match=told):
        _check_folder(tmp_path / "tasks", False)
    _check_folder(tmp_path / "tasks", True)


def test_task_files_that_include_each_other_are_read_once(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("include: b.yaml")
    (tmp_path / "b.yaml").write_text("include: [a.yaml, missing.yaml]")
    _check_folder(tmp_path, False)
