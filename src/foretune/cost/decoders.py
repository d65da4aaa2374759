"""Shapes of decoder-only models: the Llama family (gated FFN, RMS norms, grouped keys), GPT-2, GPT-NeoX, OPT, Phi."""

from __future__ import annotations

from foretune.cost.fields import Fields
from foretune.cost.shapes import Embedding, Linear, ModelShapes, Norm

_TIED_BY_DEFAULT = frozenset({"smollm3", "gemma", "gemma2", "gemma3_text"})
_HEAD_DIM = {"gemma": 256, "gemma2": 256, "gemma3_text": 256, "qwen3": 128}
_CONTEXT = {"mistral": 131072, "qwen2": 32768, "qwen3": 32768, "smollm3": 32768, "gemma": 8192, "gemma2": 8192,
            "gemma3_text": 131072, "phi3": 4096}  # fmt: skip
_DEFAULT_CONTEXT = 2048
_KV_HEADS = {"mistral": 8, "smollm3": 4, "gemma": 16, "gemma2": 4, "gemma3_text": 4, "qwen2": 32, "qwen3": 32}
_FOUR_NORMS = frozenset({"gemma2", "gemma3_text"})
_GPT_DROPOUT = 0.1  # the default probability of GPT-2 and OPT
_OPT_POSITION_OFFSET = 2  # OPT's position table has two rows in front that padding uses


def llama_like(f: Fields) -> ModelShapes:
    """Llama, Mistral, Qwen 2 and 3, SmolLM 3, Gemma 1–3, Granite, OLMo 2, Phi-3."""
    kind = f.architecture
    width, ffn, layers = f.size("hidden_size"), f.size("intermediate_size"), f.size("num_hidden_layers")
    heads = f.size("num_attention_heads")
    kv_heads = f.size("num_key_value_heads", _KV_HEADS.get(kind, heads))
    head_dim = _head_dim(f)
    inner, kv = heads * head_dim, kv_heads * head_dim
    attention_bias = f.flag("attention_bias", False) and kind not in ("mistral", "phi3")
    qkv_bias = attention_bias or kind == "qwen2"
    mlp_bias = f.flag("mlp_bias", False) and kind in ("llama", "smollm3", "granite")

    def attention(role: str, name: str, inputs: int, outputs: int, bias: bool) -> Linear:
        return Linear(role, f"model.layers.{{layer}}.self_attn.{name}", inputs, outputs, layers, bias=bias)

    def mlp(role: str, name: str, inputs: int, outputs: int) -> Linear:
        return Linear(role, f"model.layers.{{layer}}.mlp.{name}", inputs, outputs, layers, bias=mlp_bias)

    if kind == "phi3":
        linears: tuple[Linear, ...] = (
            attention("query_key_value", "qkv_proj", width, inner + 2 * kv, False),
            attention("output", "o_proj", inner, width, False),
            mlp("gate_up", "gate_up_proj", width, 2 * ffn),
            mlp("down", "down_proj", ffn, width),
        )
    else:
        linears = (
            attention("query", "q_proj", width, inner, qkv_bias),
            attention("key", "k_proj", width, kv, qkv_bias),
            attention("value", "v_proj", width, kv, qkv_bias),
            attention("output", "o_proj", inner, width, attention_bias),
            mlp("gate", "gate_proj", width, ffn),
            mlp("up", "up_proj", width, ffn),
            mlp("down", "down_proj", ffn, width),
        )
    vocabulary, tied = f.size("vocab_size"), f.flag("tie_word_embeddings", kind in _TIED_BY_DEFAULT)
    return ModelShapes(
        architecture=kind, kind="causal", layers=layers, encoder_layers=0, width=width, heads=heads,
        kv_heads=kv_heads, head_dim=head_dim, ffn_width=ffn, vocabulary=vocabulary,
        context_tokens=f.size("max_position_embeddings", _CONTEXT.get(kind, _DEFAULT_CONTEXT)), tied_embeddings=tied,
        linears=linears, norms=_llama_norms(kind, width, layers, head_dim, inner, kv),
        embeddings=(Embedding("tokens", "model.embed_tokens", vocabulary, width),),
        extra_linears=() if tied else (_head("lm_head", width, vocabulary),),
        activation=f.word("hidden_act", "silu"), attention_dropout=f.noise("attention_dropout", 0.0),
    )  # fmt: skip


def _head_dim(f: Fields) -> int:
    if f.config.get("head_dim") is None and f.architecture in _HEAD_DIM:
        return _HEAD_DIM[f.architecture]
    return f.share("head_dim", "hidden_size", "num_attention_heads")


def _llama_norms(kind: str, width: int, layers: int, head_dim: int, inner: int, kv: int) -> tuple[Norm, ...]:
    if kind in _FOUR_NORMS:
        names: tuple[str, ...] = ("input", "post_attention", "pre_feedforward", "post_feedforward")
    elif kind == "olmo2":
        names = ("post_attention", "post_feedforward")
    else:
        names = ("input", "post_attention")
    norms = [Norm(name, f"model.layers.{{layer}}.{name}_layernorm", width, layers) for name in names]
    key_sizes = {"qwen3": (head_dim, head_dim), "gemma3_text": (head_dim, head_dim), "olmo2": (inner, kv)}
    if kind in key_sizes:
        for letter, size in zip("qk", key_sizes[kind], strict=True):
            norms.append(Norm(f"{letter}_norm", f"model.layers.{{layer}}.self_attn.{letter}_norm", size, layers))
    return (*norms, Norm("final", "model.norm", width, 1, in_layers=False))


def _head(name: str, width: int, vocabulary: int, *, bias: bool = False) -> Linear:
    return Linear("head", name, width, vocabulary, 1, bias=bias, in_layers=False)


def gpt2(f: Fields) -> ModelShapes:
    """GPT-2: fused query-key-value, learnt positions, biases everywhere."""
    width, layers, heads = f.size("n_embd", 768), f.size("n_layer", 12), f.size("n_head", 12)
    ffn = f.size("n_inner", 4 * width)
    vocabulary, positions = f.size("vocab_size", 50257), f.size("n_positions", 1024)
    tied = f.flag("tie_word_embeddings", True)
    block = "transformer.h.{layer}."
    return ModelShapes(
        architecture="gpt2", kind="causal", layers=layers, encoder_layers=0, width=width, heads=heads, kv_heads=heads,
        head_dim=width // heads, ffn_width=ffn, vocabulary=vocabulary, context_tokens=positions, tied_embeddings=tied,
        linears=(
            Linear("query_key_value", block + "attn.c_attn", width, 3 * width, layers, bias=True),
            Linear("output", block + "attn.c_proj", width, width, layers, bias=True),
            Linear("up", block + "mlp.c_fc", width, ffn, layers, bias=True),
            Linear("down", block + "mlp.c_proj", ffn, width, layers, bias=True),
        ),
        norms=(
            Norm("input", block + "ln_1", width, layers, bias=True),
            Norm("post_attention", block + "ln_2", width, layers, bias=True),
            Norm("final", "transformer.ln_f", width, 1, bias=True, in_layers=False),
        ),
        embeddings=(
            Embedding("tokens", "transformer.wte", vocabulary, width),
            Embedding("positions", "transformer.wpe", positions, width),
        ),
        extra_linears=() if tied else (_head("lm_head", width, vocabulary),),
        activation=f.word("activation_function", "gelu_new"), dropout=f.noise("resid_pdrop", _GPT_DROPOUT),
        attention_dropout=f.noise("attn_pdrop", _GPT_DROPOUT),
    )  # fmt: skip


def gpt_neox(f: Fields) -> ModelShapes:
    """GPT-NeoX and Pythia."""
    width, layers, heads = f.size("hidden_size"), f.size("num_hidden_layers"), f.size("num_attention_heads")
    ffn, vocabulary = f.size("intermediate_size"), f.size("vocab_size")
    bias, tied = f.flag("attention_bias", True), f.flag("tie_word_embeddings", False)
    block = "gpt_neox.layers.{layer}."
    return ModelShapes(
        architecture="gpt_neox", kind="causal", layers=layers, encoder_layers=0, width=width, heads=heads,
        kv_heads=heads, head_dim=f.share("head_dim", "hidden_size", "num_attention_heads"), ffn_width=ffn,
        vocabulary=vocabulary, context_tokens=f.size("max_position_embeddings", _DEFAULT_CONTEXT),
        tied_embeddings=tied,
        linears=(
            Linear("query_key_value", block + "attention.query_key_value", width, 3 * width, layers, bias=bias),
            Linear("output", block + "attention.dense", width, width, layers, bias=bias),
            Linear("up", block + "mlp.dense_h_to_4h", width, ffn, layers, bias=True),
            Linear("down", block + "mlp.dense_4h_to_h", ffn, width, layers, bias=True),
        ),
        norms=(
            Norm("input", block + "input_layernorm", width, layers, bias=True),
            Norm("post_attention", block + "post_attention_layernorm", width, layers, bias=True),
            Norm("final", "gpt_neox.final_layer_norm", width, 1, bias=True, in_layers=False),
        ),
        embeddings=(Embedding("tokens", "gpt_neox.embed_in", vocabulary, width),),
        extra_linears=() if tied else (_head("lm_head", width, vocabulary),),
        activation=f.word("hidden_act", "gelu"), dropout=f.noise("hidden_dropout", 0.0),
        attention_dropout=f.noise("attention_dropout", 0.0),
    )  # fmt: skip


def phi(f: Fields) -> ModelShapes:
    """Phi-1, 1.5 and 2: attention and FFN in parallel behind one norm."""
    width, layers, heads = f.size("hidden_size", 2048), f.size("num_hidden_layers", 24), f.size("num_attention_heads")
    kv_heads = f.size("num_key_value_heads", heads)
    head_dim = f.share("head_dim", "hidden_size", "num_attention_heads", 2048)
    ffn, vocabulary = f.size("intermediate_size", 8192), f.size("vocab_size", 51200)
    tied, block = f.flag("tie_word_embeddings", False), "model.layers.{layer}."
    sizes = (("query", "q_proj", heads * head_dim), ("key", "k_proj", kv_heads * head_dim),
             ("value", "v_proj", kv_heads * head_dim))  # fmt: skip
    if f.flag("qk_layernorm", False):
        raise f.refuse("qk_layernorm is on, which no published model of this type uses")
    return ModelShapes(
        architecture="phi", kind="causal", layers=layers, encoder_layers=0, width=width, heads=heads,
        kv_heads=kv_heads, head_dim=head_dim, ffn_width=ffn, vocabulary=vocabulary,
        context_tokens=f.size("max_position_embeddings", _DEFAULT_CONTEXT), tied_embeddings=tied,
        linears=(
            *(Linear(r, f"{block}self_attn.{n}", width, size, layers, bias=True) for r, n, size in sizes),
            Linear("output", block + "self_attn.dense", heads * head_dim, width, layers, bias=True),
            Linear("up", block + "mlp.fc1", width, ffn, layers, bias=True),
            Linear("down", block + "mlp.fc2", ffn, width, layers, bias=True),
        ),
        norms=(
            Norm("input", block + "input_layernorm", width, layers, bias=True),
            Norm("final", "model.final_layernorm", width, 1, bias=True, in_layers=False),
        ),
        embeddings=(Embedding("tokens", "model.embed_tokens", vocabulary, width),),
        extra_linears=(_head("lm_head", 0 if tied else width, vocabulary, bias=True),),
        activation=f.word("hidden_act", "gelu_new"), dropout=f.noise("resid_pdrop", 0.0),
        attention_dropout=f.noise("attention_dropout", 0.0),
    )  # fmt: skip


def opt(f: Fields) -> ModelShapes:
    """OPT with the norm in front and embeddings of the model's width (all published sizes but 350M)."""
    width, layers, heads = f.size("hidden_size"), f.size("num_hidden_layers"), f.size("num_attention_heads")
    ffn, vocabulary = f.size("ffn_dim"), f.size("vocab_size")
    positions = f.size("max_position_embeddings", _DEFAULT_CONTEXT)
    if f.size("word_embed_proj_dim", width) != width or not f.flag("do_layer_norm_before", True):
        raise f.refuse("embeddings narrower than the model, or norms after the layers, are not described here")
    bias, tied = f.flag("enable_bias", True), f.flag("tie_word_embeddings", True)
    block = "model.decoder.layers.{layer}."
    sizes = (("query", "self_attn.q_proj", width, width), ("key", "self_attn.k_proj", width, width),
             ("value", "self_attn.v_proj", width, width), ("output", "self_attn.out_proj", width, width),
             ("up", "fc1", width, ffn), ("down", "fc2", ffn, width))  # fmt: skip
    return ModelShapes(
        architecture="opt", kind="causal", layers=layers, encoder_layers=0, width=width, heads=heads, kv_heads=heads,
        head_dim=width // heads, ffn_width=ffn, vocabulary=vocabulary, context_tokens=positions, tied_embeddings=tied,
        linears=tuple(Linear(role, block + name, i, o, layers, bias=bias) for role, name, i, o in sizes),
        norms=(
            Norm("input", block + "self_attn_layer_norm", width, layers, bias=True),
            Norm("post_attention", block + "final_layer_norm", width, layers, bias=True),
            Norm("final", "model.decoder.final_layer_norm", width, 1, bias=True, in_layers=False),
        ),
        embeddings=(
            Embedding("tokens", "model.decoder.embed_tokens", vocabulary, width),
            Embedding("positions", "model.decoder.embed_positions", positions + _OPT_POSITION_OFFSET, width),
        ),
        extra_linears=() if tied else (_head("lm_head", width, vocabulary),),
        activation=f.word("activation_function", "relu"), dropout=f.noise("dropout", _GPT_DROPOUT),
        attention_dropout=f.noise("attention_dropout", 0.0),
    )  # fmt: skip
