"""Adapter, merged and GGUF exports of a tiny Llama: they load elsewhere and answer as the evaluated model."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from foretune import files
from foretune.errors import ModelError, UsageError
from foretune.export import verify as verifying
from foretune.export.adapter import export_adapter
from foretune.export.gguf import export_gguf, gguf_name, pre_tokenizer_name, reorder_rotary
from foretune.export.loading import load_adapted, load_tokenizer
from foretune.export.merge import export_merged
from foretune.export.verify import answer_probes, compare, encode, verify

from .conftest import Tiny, make_adapter, make_base

PROBES = ("what comes after Tuesday?", "the garden of 1984")


@pytest.fixture(scope="module")
def reference(tiny: Tiny) -> Any:
    return answer_probes(load_adapted(tiny.base, tiny.adapter, torch.float32), tiny.tokenizer, PROBES)


def test_adapter_folder_is_whole_and_loads_with_peft(tiny: Tiny, reference: Any, tmp_path: Path) -> None:
    from peft import AutoPeftModelForCausalLM

    folder = export_adapter(
        tiny.adapter, tmp_path / "out", tokenizer=tiny.tokenizer, base_model=str(tiny.base), card="# card\n"
    )
    assert files.folder_damage(folder) is None
    assert (folder / "README.md").read_text() == "# card\n"
    assert json.loads((folder / "adapter_config.json").read_text())["base_model_name_or_path"] == str(tiny.base)
    loaded = AutoPeftModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    assert compare(loaded, reference, 1e-5).tokens > 2
    result = verify(reference, folder, PROBES, base=tiny.base, dtype="float32")
    assert result.largest < 1e-5 and result.ties == 0


def test_pefts_empty_card_is_not_exported(tiny: Tiny, tmp_path: Path) -> None:
    assert (tiny.adapter / "README.md").is_file()
    assert not (export_adapter(tiny.adapter, tmp_path / "out", tokenizer=tiny.tokenizer) / "README.md").exists()


def test_adapter_export_refuses_pickled_missing_and_nan_weights(tiny: Tiny, tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    (source / "adapter_config.json").write_text((tiny.adapter / "adapter_config.json").read_text())
    with pytest.raises(ModelError, match="no weights"):
        export_adapter(source, tmp_path / "out", tokenizer=tiny.tokenizer)
    weights = load_file(tiny.adapter / "adapter_model.safetensors")
    next(iter(weights.values()))[0, 0] = float("nan")
    save_file(weights, source / "adapter_model.safetensors")
    with pytest.raises(ModelError, match="NaN"):
        export_adapter(source, tmp_path / "out", tokenizer=tiny.tokenizer)
    (source / "pytorch_model.bin").write_bytes(b"\x80\x04.")
    with pytest.raises(ModelError, match="pickled"):
        export_adapter(source, tmp_path / "out", tokenizer=tiny.tokenizer)
    assert not (tmp_path / "out").exists() and not list(tmp_path.glob(".out*"))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_merged_model_answers_as_the_adapter(tiny: Tiny, reference: Any, tmp_path: Path, dtype: str) -> None:
    folder = export_merged(tiny.base, tiny.adapter, tmp_path / "merged", dtype)
    config = json.loads((folder / "config.json").read_text())
    assert config["dtype"] == dtype and "quantization_config" not in config and config["tie_word_embeddings"] is True
    assert "lm_head.weight" not in load_file(folder / "model.safetensors")
    tokenizer = load_tokenizer(folder)
    assert encode(tokenizer, PROBES[0]) == encode(tiny.tokenizer, PROBES[0])
    result = verify(reference, folder, PROBES)
    assert result.tokens == sum(len(answer.tokens) for answer in reference)
    assert result.largest < verifying.RELATIVE[dtype]


def test_merged_weight_is_the_exact_sum_cast_once(tiny: Tiny, tmp_path: Path) -> None:
    folder = export_merged(tiny.base, tiny.adapter, tmp_path / "merged", "bfloat16")
    name = "model.layers.1.self_attn.v_proj"
    base = load_file(tiny.base / "model.safetensors")[f"{name}.weight"]
    lora = load_file(tiny.adapter / "adapter_model.safetensors")
    down, up = (lora[f"base_model.model.{name}.lora_{part}.weight"] for part in "AB")
    expected = (base + 8 / 4 * (up @ down)).to(torch.bfloat16)
    merged = load_file(folder / "model.safetensors")[f"{name}.weight"]
    assert (merged.float() - expected.float()).abs().max() <= 2**-8 * expected.float().abs().max()
    assert (merged == expected).float().mean() > 0.99  # the sums' order may differ in the last bit before rounding


def test_head_trained_apart_is_no_longer_tied(tiny: Tiny, tmp_path: Path) -> None:
    model = make_base(tmp_path / "base")
    tiny.tokenizer.save_pretrained(tmp_path / "base")
    make_adapter(model, tmp_path / "adapter", target_modules=["q_proj"], modules_to_save=["lm_head"])
    path = tmp_path / "adapter" / "adapter_model.safetensors"
    weights = load_file(path)
    head = next(name for name in weights if "lm_head" in name)
    weights[head] = weights[head] + 0.5 * torch.randn(weights[head].shape, generator=torch.Generator().manual_seed(1))
    save_file(weights, path, metadata={"format": "pt"})
    adapted = load_adapted(tmp_path / "base", tmp_path / "adapter", torch.float32)
    wanted = answer_probes(adapted, tiny.tokenizer, PROBES)
    folder = export_merged(tmp_path / "base", tmp_path / "adapter", tmp_path / "merged", "float32")
    assert json.loads((folder / "config.json").read_text())["tie_word_embeddings"] is False
    verify(wanted, folder, PROBES)


def test_wrong_export_is_refused_and_removed(tiny: Tiny, reference: Any, tmp_path: Path) -> None:
    folder = export_merged(tiny.base, tiny.adapter, tmp_path / "merged", "float32")
    weights = load_file(folder / "model.safetensors")
    weights["model.layers.0.mlp.down_proj.weight"] *= 1.05
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelError, match="does not answer as the evaluated model does"):
        verify(reference, folder, PROBES)
    assert not folder.exists()


def test_a_base_that_is_not_here_leaves_the_adapter(tiny: Tiny, reference: Any, tmp_path: Path) -> None:
    folder = shutil.copytree(tiny.adapter, tmp_path / "adapter")
    with pytest.raises(ModelError, match="no config"):
        verify(reference, folder, PROBES, base=tmp_path / "nowhere")
    assert (folder / "adapter_model.safetensors").is_file()


def test_changed_chat_template_is_a_difference(tiny: Tiny, reference: Any, tmp_path: Path) -> None:
    folder = export_merged(tiny.base, tiny.adapter, tmp_path / "merged", "float32")
    tokenizer = load_tokenizer(folder)
    tokenizer.chat_template = tokenizer.chat_template.replace("assistant", "bot")
    tokenizer.save_pretrained(folder)
    with pytest.raises(ModelError, match="chat template gives another prompt"):
        verify(reference, folder, PROBES, keep=True)
    assert folder.exists()


def test_merging_prompts_or_onto_quantized_weights_is_refused(tiny: Tiny, tmp_path: Path) -> None:
    import peft

    model = make_base(tmp_path / "base")
    config = peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3)
    peft.get_peft_model(model, config).save_pretrained(tmp_path / "prompt")
    tiny.tokenizer.save_pretrained(tmp_path / "base")
    with pytest.raises(UsageError, match="prompt_tuning cannot be folded"):
        export_merged(tmp_path / "base", tmp_path / "prompt", tmp_path / "out")
    path = tmp_path / "base" / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "quantization_config": {"quant_method": "x"}}))
    with pytest.raises(ModelError, match="quantized"):
        export_merged(tmp_path / "base", tiny.adapter, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_adapter_of_another_base_is_refused(tiny: Tiny, tmp_path: Path) -> None:
    make_base(tmp_path / "base", hidden_size=48, num_attention_heads=4)
    tiny.tokenizer.save_pretrained(tmp_path / "base")
    with pytest.raises(ModelError, match="does not fit the base model"):
        export_merged(tmp_path / "base", tiny.adapter, tmp_path / "out", "float32")


@pytest.mark.parametrize("classes_of_the_base", [None, 5])
def test_classifier_keeps_its_head_and_labels(tiny: Tiny, tmp_path: Path, classes_of_the_base: int | None) -> None:
    import peft
    from transformers import LlamaConfig, LlamaForSequenceClassification

    make_base(tmp_path / "base")
    if classes_of_the_base:
        headed = LlamaForSequenceClassification.from_pretrained(tmp_path / "base", num_labels=classes_of_the_base)
        headed.save_pretrained(tmp_path / "base")
    tiny.tokenizer.save_pretrained(tmp_path / "base")
    config = LlamaConfig.from_pretrained(tmp_path / "base")
    config.num_labels, config.pad_token_id = 3, 2
    torch.manual_seed(0)
    model = LlamaForSequenceClassification(config)
    model.model.load_state_dict(
        LlamaForSequenceClassification.from_pretrained(
            tmp_path / "base", num_labels=3, ignore_mismatched_sizes=True
        ).model.state_dict()
    )
    peft.get_peft_model(model, peft.LoraConfig(r=2, task_type="SEQ_CLS", init_lora_weights=False)).save_pretrained(
        tmp_path / "adapter"
    )
    adapted = load_adapted(tmp_path / "base", tmp_path / "adapter", torch.float32, labels=("bad", "fair", "good"))
    wanted = answer_probes(adapted, tiny.tokenizer, PROBES)
    folder = export_merged(
        tmp_path / "base", tmp_path / "adapter", tmp_path / "out", "float32", labels=("bad", "fair", "good")
    )
    assert json.loads((folder / "config.json").read_text())["id2label"] == {"0": "bad", "1": "fair", "2": "good"}
    assert verify(wanted, folder, PROBES).tokens == len(PROBES)
    assert load_adapted(tmp_path / "base", tmp_path / "adapter", torch.float32).config.num_labels == 3


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize("tied", [True, False])
def test_gguf_reads_back_and_answers_the_same(tiny: Tiny, tmp_path: Path, dtype: str, tied: bool) -> None:
    model = make_base(tmp_path / "base", tied=tied)
    tiny.tokenizer.save_pretrained(tmp_path / "base")
    wanted = answer_probes(model, tiny.tokenizer, PROBES)
    path = export_gguf(tmp_path / "base", tmp_path / "out", dtype)
    result = verify(wanted, path.parent, PROBES, gguf=path.name, dtype=dtype)
    assert result.largest < verifying.RELATIVE[dtype]
    if dtype == "float32":
        assert result.largest < 1e-5


def test_gguf_tokenizer_is_the_same(tiny: Tiny, tmp_path: Path) -> None:
    from gguf import GGUFReader

    path = export_gguf(tiny.base, tmp_path / "out", "float16")
    fields = GGUFReader(path).fields
    tokens = fields["tokenizer.ggml.tokens"].contents()
    assert len(tokens) == 330 and tokens[-1] == "[PAD329]"
    assert all(tokens[number] == text for text, number in tiny.tokenizer.get_vocab().items())
    assert fields["tokenizer.ggml.pre"].contents() == "smollm"
    assert fields["tokenizer.ggml.token_type"].contents()[:4] == [3, 3, 3, 1]
    assert fields["tokenizer.ggml.token_type"].contents()[-1] == 5
    assert fields["tokenizer.chat_template"].contents() == tiny.tokenizer.chat_template
    assert fields["tokenizer.ggml.eos_token_id"].contents() == 2
    merges = json.loads(tiny.tokenizer.backend_tokenizer.to_str())["model"]["merges"]
    assert fields["tokenizer.ggml.merges"].contents() == [" ".join(pair) for pair in merges]


def test_rotary_order_by_hand() -> None:
    import numpy

    rows = numpy.arange(8.0).reshape(8, 1)  # two heads of width four: halves (0 1 | 2 3) and (4 5 | 6 7)
    assert reorder_rotary(rows, 2).ravel().tolist() == [0, 2, 1, 3, 4, 6, 5, 7]


def test_gguf_names() -> None:
    assert gguf_name("model.layers.11.mlp.down_proj.weight") == "blk.11.ffn_down.weight"
    assert gguf_name("lm_head.weight") == "output.weight"
    assert gguf_name("model.layers.0.self_attn.rotary_emb.inv_freq") is None
    with pytest.raises(KeyError):
        gguf_name("model.layers.0.self_attn.q_norm.weight")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model_type": "qwen3"}, "architecture 'qwen3'"),
        ({"attention_bias": True}, "biases"),
        ({"rope_parameters": {"rope_type": "llama3", "rope_theta": 5e5}}, "position scaling 'llama3'"),
        ({"hidden_act": "gelu"}, "activation 'gelu'"),
    ],
)
def test_gguf_refuses_what_it_cannot_hold(tiny: Tiny, tmp_path: Path, change: dict[str, Any], message: str) -> None:
    import shutil

    folder = tmp_path / "model"
    shutil.copytree(tiny.base, folder)
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    with pytest.raises(UsageError, match=message):
        export_gguf(folder, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_unknown_pre_tokenizer_has_no_name() -> None:
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "use_regex": True}
    assert pre_tokenizer_name({"pre_tokenizer": byte_level}) == "gpt-2"
    assert pre_tokenizer_name({"pre_tokenizer": {**byte_level, "add_prefix_space": True}}) is None
    assert pre_tokenizer_name({"pre_tokenizer": {"type": "Metaspace"}}) is None
    assert pre_tokenizer_name({}) is None
