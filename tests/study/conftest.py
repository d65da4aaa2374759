"""A tiny random Llama with a word tokenizer in a folder, rows to train it on, and a grid over them."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from ..inline import InlineExecutor

WORDS = ["<unk>", "<s>", "</s>", *(f"w{i}" for i in range(40))]


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The model's folder."""
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    raw = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="<unk>"))
    raw.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=raw, unk_token="<unk>", bos_token="<s>", eos_token="</s>", pad_token="<unk>"
    )
    torch.manual_seed(0)
    model = LlamaForCausalLM(LlamaConfig(
        vocab_size=len(WORDS), hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2,
        max_position_embeddings=64, initializer_range=0.4, bos_token_id=1, eos_token_id=2, pad_token_id=0,
    ))  # fmt: skip
    folder = tmp_path_factory.mktemp("tiny") / "tiny-llama"
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture
def places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache and a store of the test's own."""
    monkeypatch.setenv("FORETUNE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("FORETUNE_STORE", str(tmp_path / "store.sqlite"))
    return tmp_path


@pytest.fixture
def inline(monkeypatch: pytest.MonkeyPatch) -> None:
    """Workers inside the test's own process: no start, no import of torch for each."""
    monkeypatch.setattr("foretune.study.run.LocalExecutor", InlineExecutor)


@pytest.fixture
def write_grid(places: Path, tiny_model: Path) -> Callable[..., Path]:
    """A function that writes a grid file over two tasks of forty rows; keyword arguments replace its settings."""
    for task, factor in (("near", 7), ("far", 11)):
        rows = [
            {"prompt": f"w{i % 40} w{i * i % 40} w{i // 40}", "completion": f" w{factor * i % 40}", "split": split}
            for i, split in enumerate(["train"] * 28 + ["validation"] * 6 + ["test"] * 6)
        ]
        (places / f"{task}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))

    def write(**changes: Any) -> Path:
        grid = {
            "name": "tiny",
            "model": {"tiny": {"source": str(tiny_model), "plain_template": True, "dtype": "float32"}},
            "tasks": {"near": "near.jsonl", "far": "far.jsonl"},
            "base": {"rows_per_update": 4},
            "arms": {"r2": {"lora": {"rank": 2}}, "r4": {"lora": {"rank": 4}}},
            "control": "r2",
            "sizes": [8],
            "seeds": 2,
            "horizon": {"steps": 4},
            "evaluation": {"validation_rows": 4, "test_rows": 5},
            "learning_rate": 0.01,
            "device": "cpu",
            **changes,
        }
        path = places / "grid.yaml"
        path.write_text(
            yaml.safe_dump({key: value for key, value in grid.items() if value is not None}, sort_keys=False)
        )
        return path

    return write


def committed(study: Path, place: Path) -> Path:
    """A copy of what git takes of a study's folder."""
    git = ["git", "-C", str(study)]
    subprocess.run([*git, "init", "--quiet"], check=True)
    subprocess.run([*git, "add", "."], check=True)
    files = subprocess.run([*git, "ls-files"], check=True, capture_output=True, text=True).stdout.split()
    shutil.rmtree(study / ".git")
    for file in files:
        (place / file).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(study / file, place / file)
    assert not [file for file in files if file.endswith(("train.jsonl", ".safetensors", ".lock"))]
    return place
