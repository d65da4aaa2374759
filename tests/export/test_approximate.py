"""A gated adapter as a plain LoRA: exact where no token moves the gate, measured elsewhere, refused when too far."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from transformers import Qwen2Config, Qwen2ForCausalLM

from foretune.errors import UsageError
from foretune.export.approximate import approximate
from foretune.export.loading import load_adapted, load_plain, read_config
from foretune.export.merge import merge
from foretune.methods.contract.checks import disturb
from foretune.methods.registry import get
from foretune.seeding import torch_generator
from tests import tiny

PROMPTS = [f"What colour is the {thing}?" for thing in tiny.THINGS]


def trained(folder: Path, base: Path, size: float = 1.0, **settings: Any) -> Path:
    """An adapter with noise on its weights, as if it had been trained."""
    model = load_plain(base, "causal", torch.float32)
    config = {"method": "loratrf", "loratrf.rank": 4, "loratrf.alpha": 4.0, "layers": "all", "loratrf.raised": 2}
    config |= {f"loratrf.{name}": value for name, value in settings.items()}
    attachment = get("loratrf").attach(model, config, generator=torch_generator(0, "init"))
    disturb(attachment)
    with torch.no_grad():
        for group in attachment.parameter_groups(1.0):
            for name, weight in zip(group["names"], group["params"], strict=True):
                weight.mul_(size if name.endswith(".up") else 1.0)
    attachment.save(folder)
    return folder


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.llama(tmp_path_factory.mktemp("base"))


@pytest.mark.parametrize("gate", ["none", "channel"])
def test_a_gate_that_no_token_moves_is_converted_exactly(gate: str, base: Path, tmp_path: Path) -> None:
    adapter = trained(tmp_path / "adapter", base, trf_gate=gate)
    found = approximate(base, adapter, tmp_path / "plain", PROMPTS)
    assert found.kl < 1e-6 and found.top1 == 1.0
    config = read_config(tmp_path / "plain", "adapter_config.json")
    assert config["peft_type"] == "LORA" and config["r"] == 7  # rank 5 and its edit of 2, where raised
    ids = torch.arange(12)[None]
    gated = load_adapted(base, adapter, torch.float32)(input_ids=ids).logits
    plain = peft.PeftModel.from_pretrained(load_plain(base, "causal", torch.float32), str(tmp_path / "plain"))
    assert torch.allclose(plain(input_ids=ids).logits, gated, atol=1e-4)


def test_a_token_gate_is_approximated_and_the_loss_is_measured(base: Path, tmp_path: Path) -> None:
    adapter = trained(tmp_path / "adapter", base, 0.3)
    found = approximate(base, adapter, tmp_path / "plain", PROMPTS, most_kl=10.0)
    assert found.kl > 0 and found.positions > 20 and len(found.gates) == 14
    assert all(0 <= gate <= 1 for gate in found.gates) and "KL" in found.detail
    with pytest.raises(UsageError, match="too far"):
        approximate(base, adapter, tmp_path / "near", PROMPTS, most_kl=found.kl / 2)
    assert not (tmp_path / "near").exists()


def test_layers_without_a_bias_among_some_with_one(tmp_path: Path) -> None:
    """Qwen2 has biases on q, k and v alone; a change of them can be served, and not merged by peft."""
    torch.manual_seed(1)
    size = {"vocab_size": 400, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1}
    model = Qwen2ForCausalLM(Qwen2Config(**size, num_attention_heads=4, num_key_value_heads=2, initializer_range=0.2))
    with torch.no_grad():
        model.model.layers[0].self_attn.q_proj.bias.normal_()
    model.save_pretrained(tmp_path / "base")
    tiny.tokenizer().save_pretrained(tmp_path / "base")
    adapter = trained(tmp_path / "adapter", tmp_path / "base", trf_gate="none")
    found = approximate(tmp_path / "base", adapter, tmp_path / "plain", PROMPTS)
    assert found.kl < 1e-6 and found.top1 == 1.0
    with pytest.raises(UsageError, match="has no bias"):
        merge(tmp_path / "base", tmp_path / "plain")


def test_what_is_no_lora_is_refused(base: Path, tmp_path: Path) -> None:
    for name, settings in (("block", {"trf_site": "block"}), ("some", {"trf_positions": "first:2"})):
        adapter = trained(tmp_path / name, base, **settings)
        with pytest.raises(UsageError, match="no LoRA"):
            approximate(base, adapter, tmp_path / "plain", PROMPTS)
