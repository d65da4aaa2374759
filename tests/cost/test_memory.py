"""The bytes formula against what autograd really saves, and properties of the peak."""

from dataclasses import replace

import pytest

from foretune.catalogue.methods import resolve
from foretune.cost.memory import Layout, activation_bytes, layer_bytes_per_token, peak, trained_bytes, weight_bytes
from foretune.cost.operations import RowTokens
from foretune.cost.shapes import ModelShapes
from foretune.fit.find_model import CATALOGUE_CONFIGS
from foretune.fit.method_choice import adapter_layout
from foretune.methods.kept import kept_beside_lora

torch = pytest.importorskip("torch")
TOKENS = 64
RANK = 8
_DECODER = {"vocab_size": 96, "hidden_size": 96, "intermediate_size": 256, "num_hidden_layers": 2,
            "num_attention_heads": 3, "num_key_value_heads": 1, "max_position_embeddings": 128,
            "pad_token_id": 0}  # fmt: skip
_GPT2 = {"vocab_size": 96, "n_embd": 96, "n_layer": 2, "n_head": 3, "n_positions": 128}
_BERT = {"vocab_size": 96, "hidden_size": 96, "intermediate_size": 256, "num_hidden_layers": 2,
         "num_attention_heads": 3, "max_position_embeddings": 128}  # fmt: skip
_BART = {"vocab_size": 96, "d_model": 96, "encoder_layers": 2, "decoder_layers": 2, "encoder_ffn_dim": 256,
         "decoder_ffn_dim": 256, "encoder_attention_heads": 3, "decoder_attention_heads": 3,
         "max_position_embeddings": 128}  # fmt: skip
_LAYER_COUNTS = ("num_hidden_layers", "n_layer", "encoder_layers", "decoder_layers")


def _saved_bytes(name, fields, layers, *, full, dtype, dropout, checkpointing, method="lora"):
    from peft import LoraConfig, get_peft_model
    from transformers import CONFIG_MAPPING, AutoModel, AutoModelForCausalLM, AutoModelForSeq2SeqLM

    from foretune.methods.registry import get
    from foretune.seeding import torch_generator

    fields = {**fields, **{k: layers for k in _LAYER_COUNTS if k in fields}}
    config = CONFIG_MAPPING[name](**fields)
    loader = {"bert": AutoModel, "bart": AutoModelForSeq2SeqLM}.get(name, AutoModelForCausalLM)
    model = loader.from_config(config, dtype=getattr(torch, dtype), attn_implementation="sdpa")
    if method != "lora":
        settings = resolve({"method": method, **({"loratrf.rank": RANK} if method == "loratrf" else {})})
        model = get(method).attach(model.requires_grad_(False), settings, generator=torch_generator(0, "init")).model
    elif not full:
        lora = LoraConfig(r=RANK, target_modules="all-linear", lora_dropout=dropout)
        model = get_peft_model(model, lora, autocast_adapter_dtype=False)
    model.train()
    if checkpointing:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    ids = torch.randint(5, 90, (1, TOKENS))
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    if name == "bart":
        inputs["decoder_input_ids"] = ids
    if name != "bert":
        inputs["use_cache"] = False
    owned = {tensor.untyped_storage().data_ptr() for tensor in (*model.parameters(), *model.buffers())}
    kept = {}

    def pack(tensor):
        if tensor.untyped_storage().data_ptr() not in owned:
            kept[tensor.untyped_storage().data_ptr()] = tensor  # holding it keeps its address from being used again
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        model(**inputs)
    return sum(tensor.untyped_storage().nbytes() for tensor in kept.values())


@pytest.mark.parametrize(
    ("name", "fields", "full", "dtype", "dropout"),
    [
        ("llama", _DECODER, False, "bfloat16", 0.0),
        ("llama", _DECODER, False, "bfloat16", 0.1),
        ("llama", _DECODER, False, "float32", 0.0),
        ("llama", _DECODER, True, "bfloat16", 0.0),
        ("qwen3", {**_DECODER, "head_dim": 32}, False, "bfloat16", 0.0),
        ("gemma3_text", {**_DECODER, "head_dim": 32}, False, "bfloat16", 0.0),
        ("gemma3_text", {**_DECODER, "head_dim": 32}, True, "bfloat16", 0.0),
        ("gpt2", _GPT2, True, "bfloat16", 0.0),
        ("gpt2", {**_GPT2, "attn_pdrop": 0.0, "resid_pdrop": 0.0}, True, "bfloat16", 0.0),
        ("bert", _BERT, False, "bfloat16", 0.0),
        ("bart", _BART, False, "bfloat16", 0.0),
        ("bart", _BART, True, "bfloat16", 0.0),
    ],
)
def test_bytes_kept_per_layer_and_token_equal_what_autograd_saves(name, fields, full, dtype, dropout):
    measure = {"full": full, "dtype": dtype, "dropout": dropout, "checkpointing": False}
    two, four = (_saved_bytes(name, fields, n, **measure) for n in (2, 4))
    measured = (four - two) / 2 / TOKENS
    layout = Layout(TOKENS, dtype=dtype, adapter_rank=RANK, adapter_dropout=dropout > 0, longest_row=TOKENS)
    shapes = ModelShapes.from_config({"model_type": name, **fields})
    stacks = ("encoder", "decoder") if name == "bart" else ("encoder",) if name == "bert" else ("decoder",)
    formula = sum(layer_bytes_per_token(shapes, layout, full=full, stack=stack) for stack in stacks)
    assert formula == pytest.approx(measured, rel=0.05)


def test_loratrf_keeps_what_it_is_said_to_keep():
    measure = {"full": False, "dtype": "bfloat16", "dropout": 0.0, "checkpointing": False, "method": "loratrf"}
    two, four = (_saved_bytes("llama", _DECODER, n, **measure) for n in (2, 4))
    shapes = ModelShapes.from_config({"model_type": "llama", **_DECODER})
    layout = Layout(TOKENS, adapter_rank=RANK, longest_row=TOKENS, keeps_outputs=True)
    formula = layer_bytes_per_token(shapes, layout, full=False, stack="decoder")
    assert formula == pytest.approx((four - two) / 2 / TOKENS, rel=0.05)
    plain = layer_bytes_per_token(shapes, replace(layout, keeps_outputs=False), full=False, stack="decoder")
    assert formula > 1.1 * plain, "what is kept besides LoRA's is no matter of rounding"


@pytest.mark.parametrize("method", ["loha", "hra", "c3a", "bottleneck"])
def test_what_other_methods_keep_is_measured_on_a_stand_in(method):
    """Of other width and depth than the model: outputs of layers and copies of weights carry over."""
    fields = {**_DECODER, "hidden_size": 192, "intermediate_size": 480, "head_dim": 32}
    measure = {"full": False, "dtype": "bfloat16", "dropout": 0.0, "checkpointing": False, "method": method}
    two, four = (_saved_bytes("llama", fields, n, **measure) for n in (2, 4))
    shapes = ModelShapes.from_config({"model_type": "llama", **fields, "num_hidden_layers": 1})
    settings = adapter_layout(resolve({"method": method}), shapes, "bfloat16")
    layout = Layout(TOKENS, longest_row=TOKENS, **settings)
    lora = replace(layout, extra_outputs=0.0, weight_copies=0.0)

    def one_layer(layout):
        copies = 2 * layout.weight_copies * sum(linear.weights for linear in shapes.linears)
        return TOKENS * layer_bytes_per_token(shapes, layout, full=False, stack="decoder") + copies

    assert one_layer(layout) == pytest.approx((four - two) / 2, rel=0.05)
    assert abs(one_layer(lora) / one_layer(layout) - 1) > 0.1, "what LoRA keeps is another amount"
    more = activation_bytes(shapes, replace(layout, weight_copies=layout.weight_copies + 1), full=False)
    assert more - activation_bytes(shapes, layout, full=False) == 2 * sum(linear.weights for linear in shapes.linears)
    norms = tuple(replace(norm, layers=3) if norm.in_layers else norm for norm in shapes.norms)
    linears = tuple(replace(linear, layers=3) for linear in shapes.linears)
    three = replace(shapes, layers=3, linears=linears, norms=norms)
    once = replace(layout, gradient_checkpointing=True)
    assert activation_bytes(three, once, full=False) - activation_bytes(shapes, once, full=False) == pytest.approx(
        2 * 2 * fields["hidden_size"] * layout.tokens
    ), "one layer at a time has its copies"


def test_dora_keeps_two_outputs_more():
    found = kept_beside_lora(SMOLLM2, resolve({"method": "dora"}), rank=16, dtype="bfloat16")
    assert found.outputs == pytest.approx(2.0, abs=0.02) and found.weights < 0.01


@pytest.mark.parametrize("method", ["cartridge", "bitfit", "lora"])
def test_what_cannot_be_measured_or_needs_not_is_left_to_the_formula(method):
    assert kept_beside_lora(SMOLLM2, resolve({"method": method}), rank=16, dtype="bfloat16") is None


def test_checkpointing_keeps_one_input_per_layer():
    measure = {"full": True, "dtype": "bfloat16", "dropout": 0.0, "checkpointing": True}
    two, four = (_saved_bytes("llama", _DECODER, n, **measure) for n in (2, 4))
    assert (four - two) / 2 / TOKENS == 2 * _DECODER["hidden_size"]


SMOLLM2 = ModelShapes.from_config(
    {"model_type": "llama", "hidden_size": 576, "intermediate_size": 1536, "num_hidden_layers": 30,
     "num_attention_heads": 9, "num_key_value_heads": 3, "vocab_size": 49152, "tie_word_embeddings": True}
)  # fmt: skip


def test_hand_computed_parts():
    layout = Layout(dtype="bfloat16")
    assert weight_bytes(SMOLLM2, layout) == 2 * 134_515_008
    assert weight_bytes(SMOLLM2, replace(layout, dtype="float32")) == 4 * 134_515_008
    packed = 106_168_320  # the matrices of the 30 layers
    rest = 134_515_008 - packed
    assert weight_bytes(SMOLLM2, replace(layout, quantize="4bit")) == packed * 0.5625 + rest * 2
    # adapter: bf16 value 2, bf16 gradient 2, float32 master 4, its gradient 4, two moments 8
    assert trained_bytes(1000, layout) == 20_000
    # float32: the value (or the copy that full tuning puts back) 4, its gradient 4, two moments 8
    assert trained_bytes(1000, replace(layout, dtype="float32")) == 16_000
    # one micro-batch an update: a bf16 gradient is gone before the next one begins
    row = RowTokens(prompt=20, answer=5, mean_square=625, longest=25, head=10)
    assert trained_bytes(1000, replace(layout, row=row)) == 18_000
    assert (replace(layout, row=row, longest_row=25).tokens, replace(layout, row=row).documents) == (
        10 + 16 * 15,
        502 / 15,
    )


def test_the_peak_moves_the_right_way():
    base = peak(SMOLLM2, Layout(), trainable=4_884_480, full=False)
    wider = peak(SMOLLM2, Layout(micro_batch_tokens=1024), trainable=4_884_480, full=False)
    saved = peak(SMOLLM2, Layout(gradient_checkpointing=True), trainable=4_884_480, full=False)
    full = peak(SMOLLM2, Layout(), trainable=SMOLLM2.parameters, full=True)
    assert wider.activations == pytest.approx(2 * base.activations)
    assert saved.activations < base.activations / 4
    assert saved.weights == base.weights
    assert full.trained > 20 * base.trained
    assert base.interval.low < base.total < base.interval.high
    longest = peak(SMOLLM2, Layout(micro_batch_tokens=64, longest_row=512), trainable=1, full=False)
    assert longest.activations == base.activations  # a row is never cut in two


MINILM = ModelShapes.from_config({"model_type": "bert", **CATALOGUE_CONFIGS["all-MiniLM-L6-v2"]})
FACTS = RowTokens(41.3, 3.6, 2050, 53, 24)
FOLDOC = RowTokens(37.9, 50.5, 8765, 189, 24)
FILM = RowTokens(25.8, 1, 900, 79)


@pytest.mark.parametrize(
    ("shapes", "row", "rank", "changes", "measured_mib"),
    [
        (SMOLLM2, FACTS, 16, {}, 1412),
        (SMOLLM2, FOLDOC, 16, {}, 1772),
        (SMOLLM2, FOLDOC, 64, {"micro_batch_tokens": 1024}, 2667),
        (SMOLLM2, FOLDOC, 16, {"micro_batch_tokens": 256}, 1583),
        (SMOLLM2, FOLDOC, 16, {"micro_batch_tokens": 1024, "gradient_checkpointing": True}, 1479),
        (SMOLLM2, FOLDOC, 16, {"dtype": "float32"}, 2594),
        (SMOLLM2, FACTS, None, {}, 3550),
        (MINILM, FILM, 16, {}, 764),
        (MINILM, FILM, None, {}, 1146),
    ],
)
def test_the_peak_meets_what_was_measured_on_two_cores(shapes, row, rank, changes, measured_mib):
    """Peak resident memory of a worker that loads, scores and trains three updates of 16 rows; no export."""
    layout = Layout(**{"longest_row": row.longest, "row": row, "adapter_rank": rank or 0, **changes})
    trainable = shapes.parameters if rank is None else shapes.lora_parameters(rank)
    forecast = peak(shapes, layout, trainable=trainable, full=rank is None)
    assert forecast.total / 2**20 == pytest.approx(measured_mib, rel=0.1)  # the aim of the specification
    assert forecast.interval.holds(measured_mib * 2**20)


def test_answers_take_at_most_a_gibibyte_of_keys_and_values():
    seven = ModelShapes.from_config(
        {"model_type": "llama", "hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32,
         "num_attention_heads": 32, "vocab_size": 32000}
    )  # fmt: skip
    cache = peak(seven, Layout(row=FACTS, answer_tokens=128), trainable=1, full=False).cache
    assert 2**30 <= cache < 1.05 * 2**30  # logits included
    assert peak(SMOLLM2, Layout(row=FACTS, answer_tokens=0), trainable=1, full=False).cache == 0.0
