"""Whole fits of architectures that are described nowhere here: a mixture of experts, one that sees, one that pools."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import foretune
from foretune.errors import ModelError, TrainingError
from foretune.files import write_json

from .. import tiny

BRIEF = {"budget.steps": None, "budget.trials": 1, "training.epochs": 1}
_SIZES = {"vocab_size": 400, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2,
          "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8, "max_position_embeddings": 128,
          "bos_token_id": 0, "eos_token_id": 2, "pad_token_id": 5, "initializer_range": 0.2}  # fmt: skip
SEEN = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2,
        "image_size": 28, "patch_size": 14}  # fmt: skip
MODELS: dict[str, dict[str, Any]] = {
    "mixtral": {**_SIZES, "num_local_experts": 4},
    "gemma3": {"text_config": _SIZES, "vision_config": SEEN, "mm_tokens_per_image": 4},
    "deberta-v2": {**_SIZES, "relative_attention": True, "pos_att_type": ["p2c", "c2p"]},
}


def made(name: str, folder: Path) -> Path:
    """A tiny model of random weights."""
    import torch
    from transformers import AutoConfig, AutoModel, AutoModelForCausalLM

    torch.manual_seed(3)
    encoder = name == "deberta-v2"
    (AutoModel if encoder else AutoModelForCausalLM).from_config(
        AutoConfig.for_model(name, **MODELS[name])
    ).save_pretrained(folder)
    tiny.tokenizer(chat=not encoder, encoder=encoder).save_pretrained(folder)
    return folder


@pytest.mark.parametrize("name", MODELS)
def test_a_fit_ends_with_an_adapter_that_answers_as_evaluated(
    name: str, fast_fit: Callable[..., Any], tmp_path: Path
) -> None:
    rows = tiny.questions(40)
    if name == "deberta-v2":
        rows = [{"text": row["question"], "label": ["red", "blue"][i % 2]} for i, row in enumerate(rows)]
    data = tiny.write_rows(tmp_path / "rows.jsonl", rows)
    result = fast_fit(data, model=made(name, tmp_path / "model"), output=tmp_path / "run", options=BRIEF)
    record = result.record
    assert [trial.status for trial in record.trials] == ["ok"]
    assert (result.adapter / "adapter_config.json").is_file() and record.exports[0].verified
    loss = {role: record.comparison.system(role).metrics["loss"].value for role in ("base", "winner")}
    assert loss["winner"] < loss["base"]


def test_a_regularizer_that_does_not_know_the_architecture_is_refused_by_name(
    fast_fit: Callable[..., Any], tmp_path: Path
) -> None:
    options = {**BRIEF, "training.regularizer": "guided-dropout"}
    with pytest.raises(TrainingError, match="MixtralModel has no place for mlp_output dropout") as raised:
        fast_fit(model=made("mixtral", tmp_path / "model"), output=tmp_path / "run", options=options)
    assert "leave out the setting that is refused" in str(raised.value.remedy)


def test_a_plan_of_one_that_transformers_does_not_know_says_so(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    write_json(folder / "config.json", {"model_type": "of_tomorrow", "architectures": ["TomorrowForCausalLM"]})
    data = tiny.write_rows(tmp_path / "rows.jsonl", tiny.questions(40))
    with pytest.raises(ModelError, match=r"config\.json: the installed transformers does not know .*'of_tomorrow'"):
        foretune.plan(data, model=str(folder))
