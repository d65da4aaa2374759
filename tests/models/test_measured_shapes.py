"""Architectures that nobody described: measured on the class, they are what the described ones are counted as."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest

from foretune.cost.memory import Layout, layer_bytes_per_token, peak
from foretune.cost.operations import RowTokens, row_operations
from foretune.cost.shapes import ModelShapes
from foretune.errors import ModelError
from foretune.methods.targets import model_targets, shape_targets
from foretune.models.measured_shapes import from_json, measured, shapes_of
from tests.cost.test_shapes import _LLAMA, CASES

KINDS = {"causal": "LlamaForCausalLM", "seq2seq": "T5ForConditionalGeneration", "encoder": "BertForMaskedLM"}


@pytest.mark.parametrize(("name", "fields"), CASES)
def test_what_is_described_is_measured_alike(name: str, fields: dict[str, Any]) -> None:
    config = {"model_type": name, **fields}
    counted = ModelShapes.from_config(config)
    found = measured(
        {**config, "architectures": [KINDS[counted.kind]], "is_encoder_decoder": counted.kind == "seq2seq"}
    )
    assert found.parameters == counted.parameters
    by_name = [sorted(shape_targets(shapes), key=lambda target: target.name) for shapes in (found, counted)]
    assert by_name[0] == by_name[1]
    assert found.lora_parameters(4) == counted.lora_parameters(4)
    for number in ("layers", "encoder_layers", "width", "heads", "kv_heads", "head_dim", "vocabulary", "kind",
                   "tied_embeddings", "bias_parameters", "norm_parameters"):  # fmt: skip
        assert getattr(found, number) == getattr(counted, number), number
    assert from_json(json.loads(json.dumps(asdict(found)))) == found


_SMALL = {"vocab_size": 96, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3,
          "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8, "max_position_embeddings": 40,
          "pad_token_id": 0}  # fmt: skip
_EXPERTS = {"num_local_experts": 4, "num_experts": 4, "n_routed_experts": 4, "num_experts_per_tok": 2,
            "moe_intermediate_size": 24}  # fmt: skip
UNDESCRIBED = [
    ("olmo3", "Olmo3ForCausalLM", _SMALL),
    ("mixtral", "MixtralForCausalLM", {**_SMALL, **_EXPERTS}),
    ("gpt_oss", "GptOssForCausalLM", {**_SMALL, **_EXPERTS}),
    ("deepseek_v3", "DeepseekV3ForCausalLM", {
        **_SMALL, **_EXPERTS, "num_key_value_heads": 4, "q_lora_rank": 16, "kv_lora_rank": 8, "qk_rope_head_dim": 8,
        "qk_nope_head_dim": 8, "v_head_dim": 8, "n_group": 1, "topk_group": 1, "first_k_dense_replace": 1,
    }),
    ("lfm2", "Lfm2ForCausalLM", {**_SMALL, "layer_types": ["conv", "full_attention", "conv"]}),
    ("llama4_text", "Llama4ForCausalLM", {**_SMALL, **_EXPERTS, "intermediate_size_mlp": 40}),
    ("gemma3", "Gemma3ForConditionalGeneration", {
        "text_config": _SMALL, "vision_config": {**_SMALL, "image_size": 28, "patch_size": 14},
        "mm_tokens_per_image": 4,
    }),
    ("qwen3_5", "Qwen3_5ForConditionalGeneration", {"text_config": {
        **_SMALL, "layer_types": ["linear_attention", "full_attention", "full_attention"], "linear_num_value_heads": 4,
        "linear_num_key_heads": 2, "linear_key_head_dim": 8, "linear_value_head_dim": 8,
    }}),
    ("mamba2", "Mamba2ForCausalLM", {"vocab_size": 96, "hidden_size": 32, "num_hidden_layers": 2, "state_size": 4,
                                     "num_heads": 8, "head_dim": 8, "n_groups": 1}),
    ("modernbert", "ModernBertForMaskedLM", _SMALL),
    ("deberta-v2", "DebertaV2ForMaskedLM", {**_SMALL, "relative_attention": True, "pos_att_type": ["p2c", "c2p"]}),
    ("umt5", "UMT5ForConditionalGeneration", {"vocab_size": 96, "d_model": 32, "d_kv": 8, "d_ff": 48, "num_layers": 2,
                                              "num_heads": 4}),
]  # fmt: skip


def config_of(name: str, written: str, fields: dict[str, Any]) -> dict[str, Any]:
    return {"model_type": name, "architectures": [written], "is_encoder_decoder": name == "umt5", **fields}


@pytest.mark.parametrize(("name", "written", "fields"), UNDESCRIBED)
def test_what_is_not_described_is_counted_as_it_is_built(name: str, written: str, fields: dict[str, Any]) -> None:
    """Parameters and the layers that adapters go to, name by name, with layers that differ and experts."""
    import torch
    from transformers import CONFIG_MAPPING, AutoModel, AutoModelForCausalLM, AutoModelForSeq2SeqLM

    shapes = measured(config_of(name, written, fields))
    auto = {"causal": AutoModelForCausalLM, "seq2seq": AutoModelForSeq2SeqLM, "encoder": AutoModel}[shapes.kind]
    with torch.device("meta"):
        model = auto.from_config(CONFIG_MAPPING[name](**fields))
    model.tie_weights()
    assert shapes.parameters == sum(weight.numel() for weight in model.parameters())
    both = [{target.name: target for target in found} for found in (shape_targets(shapes), model_targets(model))]
    assert both[0] == both[1] and both[0]
    assert not [target for target in both[0] if target.endswith("mixer.out_proj")], "a kernel reads it itself"
    assert not [target for target in both[0] if "vision" in target], "rows are text"
    assert shapes.layers == fields.get("text_config", fields).get("num_hidden_layers", 2)
    assert row_operations(shapes, RowTokens(8, 2, 100.0, 10), trainable=0).forward > 0
    layout = Layout(64, longest_row=10, dtype="float32")
    assert shapes.parameters * 4 < peak(shapes, layout, trainable=shapes.lora_parameters(4), full=False).total


def test_a_token_costs_the_experts_that_it_is_sent_to() -> None:
    shapes = measured(config_of("mixtral", "MixtralForCausalLM", {**_SMALL, **_EXPERTS}))
    each = 3 * 32 * 48  # gate, up and down
    assert shapes.routed_weights == 3 * 2 * each, "two of four experts in each of three layers"
    assert shapes.extra_parameters == 3 * (4 * each + 4 * 32), "experts and the router's matrix are no linear layers"


def test_layers_that_differ_are_kept_by_number_and_weigh_as_many_as_there_are() -> None:
    fields = {**_SMALL, "layer_types": ["conv", "full_attention", "conv"]}
    shapes = measured(config_of("lfm2", "Lfm2ForCausalLM", fields))
    queries = [linear for linear in shapes.linears if linear.role == "query"]
    assert [(linear.layers, *linear.names()) for linear in queries] == [(1, "model.layers.1.self_attn.q_proj")]
    up = next(linear for linear in shapes.linears if linear.role == "up")
    assert up.layers == 3 and "{layer}" in up.pattern
    layout, ranks = Layout(64, longest_row=10, dtype="float32"), (4, 8)
    kept = [layer_bytes_per_token(shapes, replace(layout, adapter_rank=r), full=False, stack="decoder") for r in ranks]
    assert 3 * (kept[1] - kept[0]) == pytest.approx(4 * 4 * sum(linear.count for linear in shapes.linears))


def test_the_first_measurement_is_kept_and_asks_for_torch_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import foretune.models.measured_shapes as module

    monkeypatch.setenv("FORETUNE_CACHE", str(tmp_path))
    config = config_of("olmo3", "Olmo3ForCausalLM", _SMALL)
    first = shapes_of(config)
    (kept,) = tmp_path.rglob("*.json")
    for damaged in ("{", "[]", "{}"):
        kept.write_text(damaged)
        assert shapes_of(config) == first, "a damaged file is measured again"
    monkeypatch.setattr(module, "measured", lambda config, place=None: pytest.fail("measured again"))
    assert shapes_of(config) == first
    assert shapes_of({**_LLAMA, "model_type": "llama"}).architecture == "llama", "what is described is counted"


@pytest.mark.parametrize(
    ("config", "words"),
    [
        (config_of("of_tomorrow", "TomorrowForCausalLM", _SMALL), "does not know the architecture 'of_tomorrow'"),
        (config_of("olmo3", "Olmo3ForCausalLM", {**_SMALL, "hidden_size": "wide"}), "cannot be built"),
        (
            config_of("albert", "AlbertForMaskedLM", {**_SMALL, "embedding_size": 16}),
            "no linear layer is found by name",
        ),
        ({"model_type": "olmo3", **_SMALL}, "does not say what kind"),
        (config_of("llava", "LlavaForConditionalGeneration", {"text_config": {}}), "no class of 'llava'"),
    ],
)
def test_what_cannot_be_measured_is_refused(
    config: dict[str, Any], words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FORETUNE_CACHE", str(tmp_path))
    with pytest.raises(ModelError, match=words):
        shapes_of(config)
    assert not list(tmp_path.rglob("*.json")), "nothing is kept of it"
