"""`ModelShapes` against the models that transformers builds, and against published counts."""

import json

import pytest

from foretune.cost.architectures import BUILDERS
from foretune.cost.shapes import ModelShapes
from foretune.errors import ModelError

SMOLLM2 = {
    "model_type": "llama", "hidden_size": 576, "intermediate_size": 1536, "num_hidden_layers": 30,
    "num_attention_heads": 9, "num_key_value_heads": 3, "vocab_size": 49152, "tie_word_embeddings": True,
    "max_position_embeddings": 8192,
}  # fmt: skip
MBART50 = {"model_type": "mbart", "vocab_size": 250054, "d_model": 1024, "tie_word_embeddings": True}
_TINY = {"vocab_size": 96, "max_position_embeddings": 40}
_LLAMA = {**_TINY, "hidden_size": 48, "intermediate_size": 80, "num_hidden_layers": 3, "num_attention_heads": 6,
          "num_key_value_heads": 2, "pad_token_id": 0}  # fmt: skip
_BERT = {**_TINY, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3, "num_attention_heads": 4}
_BART = {**_TINY, "d_model": 32, "encoder_layers": 2, "decoder_layers": 3, "encoder_ffn_dim": 40,
         "decoder_ffn_dim": 48, "encoder_attention_heads": 4, "decoder_attention_heads": 4,
         "pad_token_id": 1}  # fmt: skip
_T5 = {"vocab_size": 96, "d_model": 32, "d_kv": 12, "d_ff": 40, "num_layers": 2, "num_decoder_layers": 3,
       "num_heads": 4}  # fmt: skip
CASES = [
    ("llama", _LLAMA),
    ("llama", {**_LLAMA, "head_dim": 12, "attention_bias": True, "mlp_bias": True, "tie_word_embeddings": True}),
    ("mistral", {**_LLAMA, "head_dim": 10}),
    ("qwen2", {**_LLAMA, "tie_word_embeddings": True}),
    ("qwen3", {**_LLAMA, "head_dim": 16}),
    ("smollm3", _LLAMA),
    ("gemma", {**_LLAMA, "head_dim": 16}),
    ("gemma2", {**_LLAMA, "head_dim": 16}),
    ("gemma3_text", {**_LLAMA, "head_dim": 16}),
    ("granite", _LLAMA),
    ("olmo2", _LLAMA),
    ("phi3", _LLAMA),
    ("phi", _LLAMA),
    ("phi", {**_LLAMA, "tie_word_embeddings": True}),
    ("gpt2", {"vocab_size": 96, "n_embd": 32, "n_layer": 3, "n_head": 4, "n_positions": 20}),
    ("gpt2", {"vocab_size": 96, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_inner": 50, "tie_word_embeddings": False}),
    ("gpt_neox", {**_BERT}),
    ("opt", {**_TINY, "hidden_size": 32, "ffn_dim": 48, "num_hidden_layers": 3, "num_attention_heads": 4,
             "word_embed_proj_dim": 32}),
    ("bert", _BERT), ("roberta", _BERT), ("xlm-roberta", _BERT), ("camembert", _BERT),
    ("electra", {**_BERT, "embedding_size": 16}),
    ("electra", {**_BERT, "embedding_size": 32}),
    ("distilbert", {**_TINY, "dim": 32, "hidden_dim": 48, "n_layers": 3, "n_heads": 4}),
    ("bart", _BART), ("mbart", _BART), ("marian", {**_BART, "decoder_vocab_size": 96}), ("pegasus", _BART),
    ("m2m_100", _BART),
    ("t5", _T5),
    ("t5", {**_T5, "feed_forward_proj": "gated-gelu", "tie_word_embeddings": False}),
    ("mt5", {**_T5, "feed_forward_proj": "gated-gelu"}),
]  # fmt: skip


def _instantiate(name, fields):
    torch = pytest.importorskip("torch")
    from transformers import CONFIG_MAPPING, AutoModel, AutoModelForCausalLM, AutoModelForSeq2SeqLM

    config = CONFIG_MAPPING[name](**fields)
    kind = BUILDERS[name] and ModelShapes.from_config({"model_type": name, **fields}).kind
    loader = {"causal": AutoModelForCausalLM, "seq2seq": AutoModelForSeq2SeqLM, "encoder": AutoModel}[kind]
    with torch.device("meta"):
        model = loader.from_config(config)
    if getattr(config, "tie_word_embeddings", False):
        model.tie_weights()
    return model, config


@pytest.mark.parametrize(("name", "fields"), CASES)
def test_every_name_size_and_total_equals_the_instantiated_model(name, fields):
    model, config = _instantiate(name, fields)
    saved = json.loads(config.to_json_string(use_diff=True))  # what a config.json holds: defaults are left out
    for source in ({"model_type": name, **fields}, saved):
        shapes = ModelShapes.from_config(source)
        assert shapes.parameters == sum(p.numel() for p in model.parameters())
        modules = dict(model.named_modules())
        for linear in (*shapes.linears, *shapes.extra_linears):
            for module_name in linear.names():
                module = modules[module_name]
                if linear.inputs:  # 0: a tied head, of which only the bias is its own
                    sizes = {linear.inputs, linear.outputs}
                    assert set(module.weight.shape) == sizes, module_name
                assert (module.bias is not None) == linear.bias, module_name
        for norm in shapes.norms:
            assert modules[norm.pattern.format(layer=norm.layers - 1)].weight.shape == (norm.width,)
        for table in shapes.embeddings:
            assert tuple(modules[table.pattern].weight.shape) == (table.rows, table.width)


@pytest.mark.parametrize(("name", "fields"), CASES)
def test_every_linear_of_the_layers_is_listed(name, fields):
    model, _ = _instantiate(name, fields)
    shapes = ModelShapes.from_config({"model_type": name, **fields})
    listed = {n for linear in (*shapes.linears, *shapes.extra_linears) for n in linear.names()}
    present = {n for n, m in model.named_modules() if type(m).__name__ in ("Linear", "Conv1D")}
    assert present - listed <= {"lm_head"}  # a tied head is the embedding


def test_every_builder_has_a_case():
    assert {name for name, _ in CASES} == set(BUILDERS)


def test_smollm2_counts():
    shapes = ModelShapes.from_config(SMOLLM2)
    assert shapes.parameters == 134_515_008
    assert shapes.lora_parameters(16) == 4_884_480
    assert shapes.lora_parameters(1) / shapes.parameters == pytest.approx(0.00227, abs=1e-5)


def test_mbart50_figures_of_the_translation_study():
    """Üstün & Cooper Stickland 2022: adapters m=1024 are 8.26 %, equal to cross-attention tuning."""
    shapes = ModelShapes.from_config(MBART50)
    assert shapes.parameters == 610_879_488
    assert shapes.bias_parameters == 331_776
    assert shapes.norm_parameters == 122_880
    assert shapes.cross_attention_parameters == 50_405_376
    width, adapter = shapes.width, 1024
    adapters = shapes.total_layers * (adapter * (2 * width + 1) + 3 * width)
    assert adapters == 50_429_952
    assert adapters / shapes.parameters == pytest.approx(0.0826, abs=5e-5)


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"model_type": "mamba"}, "mamba"),
        ({"model_type": "gemma3", "text_config": {}}, "more than text"),
        ({}, "model_type"),
        ({**SMOLLM2, "hidden_size": "576"}, "hidden_size"),
        ({**SMOLLM2, "hidden_size": -1}, "hidden_size"),
        ({**SMOLLM2, "num_attention_heads": 7}, "multiple"),
        ({k: v for k, v in SMOLLM2.items() if k != "vocab_size"}, "vocab_size"),
        ({**MBART50, "tie_word_embeddings": False}, "untied"),
        ({**SMOLLM2, "tie_word_embeddings": "yes"}, "tie_word_embeddings"),
    ],
)
def test_what_cannot_be_read_is_a_model_error_with_a_remedy(config, words):
    with pytest.raises(ModelError, match=words) as caught:
        ModelShapes.from_config(config)
    assert caught.value.remedy


def test_a_damaged_config_file_names_its_line(tmp_path):
    path = tmp_path / "config.json"
    path.write_text('{\n"model_type": "llama",\n oops}')
    with pytest.raises(ModelError) as caught:
        ModelShapes.from_config(tmp_path)
    assert caught.value.place.line == 3
    path.write_text("[1]")
    with pytest.raises(ModelError, match="not an object"):
        ModelShapes.from_config(path)
    with pytest.raises(ModelError, match="no such file"):
        ModelShapes.from_config(tmp_path / "nothing" / "config.json")


def test_unknown_roles_are_refused_and_cross_attention_is_reached_by_the_plain_role():
    shapes = ModelShapes.from_config(MBART50)
    assert {item.role for item in shapes.select(["query"])} == {"query", "cross_query"}
    with pytest.raises(ModelError, match="roles are query"):
        shapes.select(["gate"])
