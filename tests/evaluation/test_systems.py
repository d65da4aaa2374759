"""``foretune evaluate`` and ``foretune predict`` on a tiny base with a LoRA adapter."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

from foretune.cli.main import app
from foretune.errors import DataError, ModelError, UsageError
from foretune.fit.systems import Settings, evaluate_rows

WORDS = ["<unk>", "<s>", "</s>", *(f"w{i}" for i in range(30))]
PLAIN = Settings(plain_template=True, max_answer_tokens=4, context_tokens=64, device="cpu", dtype="float32")


@pytest.fixture
def folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, Path]:
    """Base and adapter."""
    from peft import LoraConfig, get_peft_model
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    monkeypatch.setenv("FORETUNE_CACHE", str(tmp_path / "cache"))
    raw = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="<unk>"))
    raw.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=raw, unk_token="<unk>", bos_token="<s>", eos_token="</s>")
    torch.manual_seed(0)
    model = LlamaForCausalLM(LlamaConfig(
        vocab_size=len(WORDS), hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2,
        max_position_embeddings=64, initializer_range=0.4, bos_token_id=1, eos_token_id=2,
    ))  # fmt: skip
    base, adapter = tmp_path / "base", tmp_path / "adapter"
    model.save_pretrained(base)
    tokenizer.save_pretrained(base)
    lora = LoraConfig(r=2, target_modules="all-linear", task_type="CAUSAL_LM", init_lora_weights=False,
                      base_model_name_or_path=str(base))  # fmt: skip
    adapted = get_peft_model(LlamaForCausalLM.from_pretrained(base), lora)
    adapted.save_pretrained(adapter)
    return base, adapter


def data_file(folder: Path) -> Path:
    path = folder / "rows.jsonl"
    rows = [{"prompt": f"w{i} w{i + 1}", "completion": f" w{(7 * i) % 30}"} for i in range(12)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def called(*arguments: Any) -> Any:
    return CliRunner().invoke(app, [str(argument) for argument in arguments], catch_exceptions=True)


def test_an_adapter_is_scored_beside_its_base(folders: tuple[Path, Path], tmp_path: Path) -> None:
    base, adapter = folders
    common = ["--plain", "--metric", "loss", "--metric", "token_f1", "--answer-tokens", 4, "--context", 64, "--json"]
    outcome = called("evaluate", adapter, data_file(tmp_path), *common, "--answers", tmp_path / "answers.jsonl")
    assert outcome.exit_code == 0, outcome.output
    both = json.loads(outcome.stdout[outcome.stdout.index("{") :])
    alone = called("evaluate", base, data_file(tmp_path), *common)
    base_only = json.loads(alone.stdout[alone.stdout.index("{") :])
    assert base_only["comparisons"] == {} and base_only["base"] == {}
    for name in ("loss", "token_f1"):
        assert both["base"][name]["value"] == pytest.approx(base_only["scores"][name]["value"], rel=1e-4)
        difference = both["scores"][name]["value"] - both["base"][name]["value"]
        assert both["comparisons"][name]["difference"] == pytest.approx(difference)
    assert both["scores"]["loss"]["value"] != pytest.approx(both["base"]["loss"]["value"], rel=1e-3)
    answers = [json.loads(line) for line in (tmp_path / "answers.jsonl").read_text().splitlines()]
    assert len(answers) == 12 and all(answer["prediction"] is not None for answer in answers)


def test_the_text_form_says_what_the_base_has(folders: tuple[Path, Path], tmp_path: Path) -> None:
    outcome = called("evaluate", folders[1], data_file(tmp_path), "--plain", "--metric", "loss", "--rows", 8)
    assert outcome.exit_code == 0, outcome.output
    assert "on 8 rows" in outcome.stdout and "the base has" in outcome.stdout and "95 % interval" in outcome.stdout


def test_predict_writes_an_answer_a_prompt(folders: tuple[Path, Path], tmp_path: Path) -> None:
    base, adapter = folders
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text("".join(json.dumps({"prompt": f"w{i} w3"}) + "\n" for i in range(5)))
    lines = tmp_path / "prompts.txt"
    lines.write_text("".join(f"w{i} w3\n" for i in range(5)))
    written: dict[str, list[str]] = {}
    for name, arguments in {
        "adapter": [adapter, prompts], "base": [base, prompts], "off": [adapter, prompts, "--base-only"],
        "text": [adapter, lines],
    }.items():  # fmt: skip
        output = tmp_path / f"{name}.out"
        outcome = called("predict", *arguments, "-o", output, "--plain", "--answer-tokens", 6)
        assert outcome.exit_code == 0, outcome.output
        rows = [json.loads(line) for line in output.read_text().splitlines()]
        assert [row["prompt"] for row in rows] == [f"w{i} w3" for i in range(5)]
        written[name] = [row["answer"] for row in rows]
    assert written["off"] == written["base"] != written["adapter"]
    assert written["text"] == written["adapter"]


def test_bad_input_is_named(folders: tuple[Path, Path], tmp_path: Path) -> None:
    adapter = folders[1]
    file = data_file(tmp_path)
    assert isinstance(called("evaluate", adapter, tmp_path / "none.jsonl").exception, DataError)
    assert isinstance(called("evaluate", adapter, file, "--metric", "blue").exception, UsageError)
    assert isinstance(called("evaluate", tmp_path / "nowhere", file).exception, ModelError)
    overwriting = called("predict", adapter, file, "-o", file).exception
    assert isinstance(overwriting, UsageError) and "replace the prompts" in str(overwriting)
    overwriting = called("evaluate", adapter, file, "--answers", file).exception
    assert isinstance(overwriting, UsageError) and "replace the data" in str(overwriting)
    (adapter / "adapter_model.safetensors").write_bytes(b"damaged")
    broken = called("evaluate", adapter, file, "--plain").exception
    assert isinstance(broken, ModelError), repr(broken)
    config = json.loads((adapter / "adapter_config.json").read_text())
    (adapter / "adapter_config.json").write_text(json.dumps({**config, "base_model_name_or_path": "gone"}))
    with pytest.raises(ModelError, match="--base FOLDER"):
        evaluate_rows(str(adapter), [], "generation", ["loss"], settings=PLAIN)


def test_predict_uses_the_answer_length_that_was_asked_for(folders: tuple[Path, Path], tmp_path: Path) -> None:
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text("".join(json.dumps({"prompt": f"w{i} w3"}) + "\n" for i in range(5)))
    lengths = []
    for limit in (20, 40):
        outcome = called("predict", folders[1], prompts, "--plain", "--answer-tokens", limit, "--json")
        assert outcome.exit_code == 0, outcome.output
        answers = json.loads(outcome.stdout[outcome.stdout.index("{") :])["answers"]
        lengths.append(max(len(row["answer"].split()) for row in answers))
    assert 16 < lengths[0] <= 20 < lengths[1] <= 40
    assert isinstance(called("predict", folders[1], prompts).exception, UsageError)
