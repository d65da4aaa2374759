"""Module roles and the selector language on tiny models of every family."""

from __future__ import annotations

import pytest
import torch
import transformers
from torch import nn

from foretune.errors import UsageError
from foretune.models.modules import linear_targets, role_of, roles
from foretune.models.selector import select

LAYERS = 3
_TINY = {"vocab_size": 32}


def _decoder(name: str, **extra: object) -> nn.Module:
    config = getattr(transformers, f"{name}Config")(
        hidden_size=8,
        intermediate_size=16,
        num_hidden_layers=LAYERS,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=4,
        **_TINY,
        **extra,
    )
    return getattr(transformers, f"{name}ForCausalLM")(config)


def _encoder_decoder(name: str) -> nn.Module:
    config = getattr(transformers, f"{name}Config")(
        d_model=8,
        encoder_layers=2,
        decoder_layers=LAYERS,
        encoder_ffn_dim=16,
        decoder_ffn_dim=16,
        encoder_attention_heads=2,
        decoder_attention_heads=2,
        pad_token_id=1,
        decoder_start_token_id=2,
        **_TINY,
    )
    kind = "MarianMTModel" if name == "Marian" else f"{name}ForConditionalGeneration"
    return getattr(transformers, kind)(config)


def _bert() -> nn.Module:
    config = transformers.BertConfig(
        hidden_size=8, intermediate_size=16, num_hidden_layers=LAYERS, num_attention_heads=2, num_labels=3, **_TINY
    )
    return transformers.BertForSequenceClassification(config)


def _t5() -> nn.Module:
    config = transformers.T5Config(
        d_model=8, d_kv=4, d_ff=16, num_layers=2, num_decoder_layers=LAYERS, num_heads=2,
        feed_forward_proj="gated-gelu",
        **_TINY,
    )  # fmt: skip
    return transformers.T5ForConditionalGeneration(config)


def _gpt2() -> nn.Module:
    return transformers.GPT2LMHeadModel(
        transformers.GPT2Config(n_embd=8, n_layer=LAYERS, n_head=2, n_inner=16, n_positions=16, **_TINY)
    )


BUILDERS = {
    "Llama": lambda: _decoder("Llama"),
    "Gemma": lambda: _decoder("Gemma"),
    "Gemma3": lambda: transformers.Gemma3ForCausalLM(
        transformers.Gemma3TextConfig(
            hidden_size=8,
            intermediate_size=16,
            num_hidden_layers=LAYERS,
            num_attention_heads=2,
            num_key_value_heads=1,
            head_dim=4,
            **_TINY,
        )
    ),
    "Qwen2": lambda: _decoder("Qwen2"),
    "Qwen3": lambda: _decoder("Qwen3"),
    "Bert": _bert,
    "Bart": lambda: _encoder_decoder("Bart"),
    "Marian": lambda: _encoder_decoder("Marian"),
    "T5": _t5,
    "GPT2": _gpt2,
}
PER_LAYER = {
    "Llama": 7, "Gemma": 7, "Gemma3": 7, "Qwen2": 7, "Qwen3": 7, "Bert": 6, "GPT2": 4,
}  # fmt: skip


@pytest.fixture(scope="module", params=sorted(BUILDERS))
def named(request: pytest.FixtureRequest) -> tuple[str, nn.Module]:
    torch.manual_seed(0)
    return request.param, BUILDERS[request.param]()


def test_every_module_of_a_layer_has_a_role(named: tuple[str, nn.Module]) -> None:
    name, model = named
    found = roles(model)
    assert [role.name for role in found if role.role == "other"] == []
    layers = {(role.stack, role.layer) for role in found if role.layer is not None}
    expected = LAYERS + 2 if name in ("Bart", "Marian", "T5") else LAYERS
    assert len(layers) == expected


def test_linear_targets_are_all_linears_but_the_heads(named: tuple[str, nn.Module]) -> None:
    name, model = named
    targets = linear_targets(model)
    assert not any(part in target for target in targets for part in ("lm_head", "classifier", "pooler"))
    if name in PER_LAYER:
        assert len(targets) == LAYERS * PER_LAYER[name]
    elif name == "T5":  # self-attention 4 + gated feed-forward 3, and 4 of cross-attention in the decoder
        assert len(targets) == 2 * 7 + LAYERS * 11
    else:  # BART, Marian: 4 + 2, and 4 of cross-attention in the decoder
        assert len(targets) == 2 * 6 + LAYERS * 10
    assert sorted(linear_targets(model, "attention") + linear_targets(model, "mlp")) == sorted(targets)


def test_linear_targets_by_role() -> None:
    model = BUILDERS["Bart"]()
    assert linear_targets(model, "cross_attention.q") == [
        f"model.decoder.layers.{i}.encoder_attn.q_proj" for i in range(LAYERS)
    ]
    both = linear_targets(model, "attention.q+attention.v")
    assert len(both) == 2 * (2 + LAYERS) and all("self_attn" in name for name in both)
    with pytest.raises(UsageError, match="no linear module"):
        linear_targets(model, "attention.nothing")


def test_llama_targets_equal_those_of_peft() -> None:
    from peft import LoraConfig, get_peft_model

    model = BUILDERS["Llama"]()
    ours = linear_targets(model)
    adapted = get_peft_model(model, LoraConfig(target_modules="all-linear", task_type="CAUSAL_LM"))
    theirs = [
        name.removeprefix("base_model.model.") for name, module in adapted.named_modules() if hasattr(module, "lora_A")
    ]
    assert ours == theirs


@pytest.mark.parametrize(
    ("name", "role"),
    [
        ("model.layers.3.self_attn.o_proj", "attention.o"),
        ("bert.encoder.layer.0.attention.output.dense", "attention.o"),
        ("bert.encoder.layer.0.output.dense", "mlp.down"),
        ("bert.encoder.layer.0.crossattention.self.key", "cross_attention.k"),
        ("model.layers.0.mlp.experts.3.gate_proj", "mlp.gate"),
        ("model.layers.0.mlp.gate", "router"),
        ("model.layers.0.mlp.router.layer", "router"),
        ("model.layers.0.mlp.gate.wg", "router"),
        ("transformer.h.0.self_attention.dense", "attention.o"),
        ("gpt_neox.layers.1.attention.query_key_value", "attention.qkv"),
        ("gpt_neox.layers.1.attention.dense", "attention.o"),
        ("model.layers.0.self_attn.qkv_proj", "attention.qkv"),
        ("model.layers.0.mlp.gate_up_proj", "mlp.gate_up"),
        ("distilbert.transformer.layer.0.ffn.lin2", "mlp.down"),
        ("transformer.h.0.mlp.c_proj", "mlp.down"),
        ("transformer.h.0.attn.c_proj", "attention.o"),
        ("score", "head"),
        ("something.else", "other"),
    ],
)
def test_roles_by_name(name: str, role: str) -> None:
    assert role_of(name) == role


def test_selector_picks_exactly_what_it_says() -> None:
    model = BUILDERS["Bart"]()
    everything = [name for name, _ in model.named_parameters()]
    assert select(model, "all") == everything
    assert select(model, "bias") == [name for name in everything if name.endswith(".bias")]
    assert select(model, "!bias") == [name for name in everything if not name.endswith(".bias")]
    cross = select(model, "cross_attention")
    assert len(cross) == LAYERS * 8 and all(".encoder_attn." in name for name in cross)
    assert select(model, "norm") == [name for name in everything if "norm" in name]
    assert select(model, "decoder & layers>=2") == [name for name in everything if ".decoder.layers.2." in name]


def test_last_counts_within_each_stack() -> None:
    model = BUILDERS["Bart"]()
    chosen = select(model, "last:1 & attention.q & weight")
    assert chosen == [
        "model.encoder.layers.1.self_attn.q_proj.weight",
        f"model.decoder.layers.{LAYERS - 1}.self_attn.q_proj.weight",
    ]
    assert (
        select(model, "first:1 & encoder")
        == select(model, "layers==0 & encoder")
        == select(model, r"/encoder\.layers\.0\./")
    )


def test_precedence_and_parentheses() -> None:
    model = BUILDERS["Bert"]()
    loose = set(select(model, "norm | bias & mlp"))
    assert loose == set(select(model, "norm")) | (set(select(model, "bias")) & set(select(model, "mlp")))
    assert set(select(model, "(norm | bias) & mlp")) == set(select(model, "bias & mlp"))
    assert set(select(model, "!(norm | bias)")) == set(select(model, "!norm & !bias"))


def test_a_tied_scorer_is_listed_as_the_embedding() -> None:
    model = _decoder("Llama", tie_word_embeddings=True)
    assert select(model, "embedding") == ["model.embed_tokens.weight"]
    with pytest.raises(UsageError, match="picks no parameter"):
        select(model, "head")


@pytest.mark.parametrize(
    "expression", ["", "bias |", "(bias", "bias)", "biass", "layers>=", "last>=2", "/[/", "bias & & norm", "$", "/open"]
)
def test_a_bad_expression_is_refused_with_its_position(expression: str) -> None:
    with pytest.raises(UsageError, match="cannot be read at character"):
        select(BUILDERS["Llama"](), expression)
