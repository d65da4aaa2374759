"""Shapes of encoder–decoders: BART, mBART, Marian, Pegasus, M2M-100/NLLB, T5 and mT5."""

from __future__ import annotations

from foretune.cost.fields import Fields
from foretune.cost.shapes import CROSS, Embedding, Linear, ModelShapes, Norm, Stack

_POSITION_OFFSET = 2  # BART's position tables have two rows in front
_VOCABULARY = {"marian": 58101, "m2m_100": 128112}
_BART_VOCABULARY = 50265
_BART_CONTEXT = 1024
_DROPOUT = 0.1
_NORM_AT_END = frozenset({"mbart", "pegasus", "m2m_100"})
_EMBEDDING_NORM = frozenset({"bart", "mbart"})
_ATTENTION = (("query", "q_proj"), ("key", "k_proj"), ("value", "v_proj"), ("output", "out_proj"))


def bart_like(f: Fields) -> ModelShapes:
    """BART and the translation models built like it; biases everywhere, one shared vocabulary."""
    kind, width = f.architecture, f.size("d_model", 1024)
    encoder_layers, decoder_layers = f.size("encoder_layers", 12), f.size("decoder_layers", 12)
    heads, ffn = f.size("decoder_attention_heads", 16), f.size("decoder_ffn_dim", 4096)
    vocabulary = f.size("vocab_size", _VOCABULARY.get(kind, _BART_VOCABULARY))
    positions = f.size("max_position_embeddings", _BART_CONTEXT)
    if not f.flag("tie_word_embeddings", True):
        raise f.refuse("untied embeddings are not described here")
    if kind == "marian" and not f.flag("share_encoder_decoder_embeddings", True):
        raise f.refuse("separate vocabularies of encoder and decoder are not described here")
    encoder = _bart_stack("encoder", width, f.size("encoder_ffn_dim", 4096), encoder_layers)
    decoder = _bart_stack("decoder", width, ffn, decoder_layers)
    return ModelShapes(
        architecture=kind, kind="seq2seq", layers=decoder_layers, encoder_layers=encoder_layers, width=width,
        heads=heads, kv_heads=heads, head_dim=width // heads, ffn_width=ffn, vocabulary=vocabulary,
        context_tokens=positions, tied_embeddings=True,
        linears=encoder + decoder,
        norms=_bart_norms(kind, width, encoder_layers, decoder_layers),
        embeddings=(Embedding("tokens", "model.shared", vocabulary, width), *_bart_positions(kind, positions, width)),
        activation=f.word("activation_function", "relu" if kind in ("m2m_100", "pegasus") else "gelu"),
        dropout=f.noise("dropout", _DROPOUT), attention_dropout=f.noise("attention_dropout", 0.0),
    )  # fmt: skip


def _bart_stack(stack: Stack, width: int, ffn: int, layers: int) -> tuple[Linear, ...]:
    block = f"model.{stack}.layers.{{layer}}."
    sizes = [(role, f"self_attn.{name}", width, width) for role, name in _ATTENTION]
    if stack == "decoder":
        sizes += [(CROSS + role, f"encoder_attn.{name}", width, width) for role, name in _ATTENTION]
    sizes += [("up", "fc1", width, ffn), ("down", "fc2", ffn, width)]
    return tuple(Linear(r, block + n, i, o, layers, bias=True, stack=stack) for r, n, i, o in sizes)


def _bart_norms(kind: str, width: int, encoder_layers: int, decoder_layers: int) -> tuple[Norm, ...]:
    norms = []
    stacks: tuple[tuple[Stack, int], ...] = (("encoder", encoder_layers), ("decoder", decoder_layers))
    for stack, layers in stacks:
        block = f"model.{stack}.layers.{{layer}}."
        names = [("post_attention", "self_attn_layer_norm"), ("post_feedforward", "final_layer_norm")]
        if stack == "decoder":
            names.append((CROSS + "post_attention", "encoder_attn_layer_norm"))
        norms += [Norm(role, block + name, width, layers, bias=True, stack=stack) for role, name in names]
        outside = ["layernorm_embedding"] if kind in _EMBEDDING_NORM else []
        outside += ["layer_norm"] if kind in _NORM_AT_END else []
        norms += [Norm(n, f"model.{stack}.{n}", width, 1, bias=True, stack=stack, in_layers=False) for n in outside]
    return tuple(norms)


def _bart_positions(kind: str, positions: int, width: int) -> tuple[Embedding, ...]:
    if kind == "m2m_100":  # sinusoidal, held outside the parameters
        return ()
    rows = positions + (_POSITION_OFFSET if kind in ("bart", "mbart") else 0)
    return tuple(
        Embedding("positions", f"model.{stack}.embed_positions", rows, width) for stack in ("encoder", "decoder")
    )


def t5_like(f: Fields) -> ModelShapes:
    """T5 and mT5: RMS norms, no biases, relative positions learnt in the first layer of each stack.

    transformers 5 ties the head to the embedding whatever the configuration says.
    """
    width, head_dim = f.size("d_model", 512), f.size("d_kv", 64)
    is_mt5 = f.architecture == "mt5"
    encoder_layers = f.size("num_layers", 8 if is_mt5 else 6)
    decoder_layers = f.size("num_decoder_layers", encoder_layers)
    heads, ffn = f.size("num_heads", 6 if is_mt5 else 8), f.size("d_ff", 1024 if is_mt5 else 2048)
    vocabulary = f.size("vocab_size", 250112 if is_mt5 else 32128)
    buckets = f.size("relative_attention_num_buckets", 32)
    feed_forward = f.config.get("feed_forward_proj") or ("gated-gelu" if is_mt5 else "relu")
    sizes = (width, ffn, heads * head_dim, str(feed_forward).startswith("gated"))
    norms = (*_t5_norms("encoder", width, encoder_layers), *_t5_norms("decoder", width, decoder_layers))
    return ModelShapes(
        architecture=f.architecture, kind="seq2seq", layers=decoder_layers, encoder_layers=encoder_layers, width=width,
        heads=heads, kv_heads=heads, head_dim=head_dim, ffn_width=ffn, vocabulary=vocabulary, context_tokens=0,
        tied_embeddings=True,
        linears=_t5_stack("encoder", encoder_layers, *sizes) + _t5_stack("decoder", decoder_layers, *sizes),
        norms=norms,
        embeddings=(Embedding("tokens", "shared", vocabulary, width),),
        extra_parameters=2 * buckets * heads,
        activation="gelu_new" if "gelu" in str(feed_forward) else "relu", dropout=f.noise("dropout_rate", _DROPOUT),
        attention_dropout=True,
    )  # fmt: skip


def _t5_stack(stack: Stack, layers: int, width: int, ffn: int, inner: int, gated: bool) -> tuple[Linear, ...]:
    block = f"{stack}.block.{{layer}}.layer."
    sizes: list[tuple[str, str, int, int]] = []
    attentions = [("", "0.SelfAttention")] + ([(CROSS, "1.EncDecAttention")] if stack == "decoder" else [])
    for prefix, name in attentions:
        sizes += [(prefix + role, f"{name}.{role[0]}", width, inner) for role in ("query", "key", "value")]
        sizes.append((prefix + "output", f"{name}.o", inner, width))
    dense = f"{len(attentions)}.DenseReluDense."
    if gated:
        sizes += [("gate", dense + "wi_0", width, ffn), ("up", dense + "wi_1", width, ffn)]
    else:
        sizes.append(("up", dense + "wi", width, ffn))
    sizes.append(("down", dense + "wo", ffn, width))
    return tuple(Linear(role, block + name, i, o, layers, stack=stack) for role, name, i, o in sizes)


def _t5_norms(stack: Stack, width: int, layers: int) -> tuple[Norm, ...]:
    roles = ("input", "input_feedforward") if stack == "encoder" else ("input", CROSS + "input", "input_feedforward")
    inside = (
        Norm(role, f"{stack}.block.{{layer}}.layer.{i}.layer_norm", width, layers, stack=stack)
        for i, role in enumerate(roles)
    )
    return (*inside, Norm("final", f"{stack}.final_layer_norm", width, 1, stack=stack, in_layers=False))
