"""Shapes of encoders: BERT, MiniLM, RoBERTa, XLM-R, CamemBERT, ELECTRA and DistilBERT, as ``AutoModel`` builds them."""

from __future__ import annotations

from foretune.cost.fields import Fields
from foretune.cost.shapes import Embedding, Linear, ModelShapes, Norm

_BERT_VOCABULARY = 30522
_VOCABULARY = {"roberta": 50265}
_CONTEXT = 512
_DROPOUT = 0.1


def bert_like(f: Fields) -> ModelShapes:
    """BERT and its relatives: norms after the sub-layers, learnt positions, a pooler (not in ELECTRA)."""
    small = f.architecture == "electra"
    width, layers = f.size("hidden_size", 256 if small else 768), f.size("num_hidden_layers", 12)
    heads, ffn = f.size("num_attention_heads", 4 if small else 12), f.size("intermediate_size", 1024 if small else 3072)
    vocabulary = f.size("vocab_size", _VOCABULARY.get(f.architecture, _BERT_VOCABULARY))
    table = f.size("embedding_size", 128) if small else width
    positions, types = f.size("max_position_embeddings", _CONTEXT), f.size("type_vocab_size", 2)
    block = "encoder.layer.{layer}."
    sizes = (("query", "attention.self.query", width, width), ("key", "attention.self.key", width, width),
             ("value", "attention.self.value", width, width), ("output", "attention.output.dense", width, width),
             ("up", "intermediate.dense", width, ffn), ("down", "output.dense", ffn, width))  # fmt: skip
    extra: tuple[Linear, ...] = ()
    if not small:
        extra = (_extra("pooler", "pooler.dense", width, width),)
    elif table != width:
        extra = (_extra("project", "embeddings_project", table, width),)
    return ModelShapes(
        architecture=f.architecture, kind="encoder", layers=layers, encoder_layers=0, width=width, heads=heads,
        kv_heads=heads, head_dim=width // heads, ffn_width=ffn, vocabulary=vocabulary, context_tokens=positions,
        tied_embeddings=True,
        linears=tuple(Linear(r, block + n, i, o, layers, bias=True, stack="encoder") for r, n, i, o in sizes),
        norms=(
            _norm("post_attention", block + "attention.output.LayerNorm", width, layers),
            _norm("post_feedforward", block + "output.LayerNorm", width, layers),
            Norm("embedding", "embeddings.LayerNorm", table, 1, bias=True, stack="encoder", in_layers=False),
        ),
        embeddings=(
            Embedding("tokens", "embeddings.word_embeddings", vocabulary, table),
            Embedding("positions", "embeddings.position_embeddings", positions, table),
            Embedding("types", "embeddings.token_type_embeddings", types, table),
        ),
        extra_linears=extra, activation=f.word("hidden_act", "gelu"), dropout=f.noise("hidden_dropout_prob", _DROPOUT),
        attention_dropout=f.noise("attention_probs_dropout_prob", _DROPOUT),
    )  # fmt: skip


def distilbert(f: Fields) -> ModelShapes:
    """DistilBERT: BERT's layers under other names, no token types, no pooler."""
    width, layers, heads = f.size("dim", 768), f.size("n_layers", 6), f.size("n_heads", 12)
    ffn, vocabulary = f.size("hidden_dim", 3072), f.size("vocab_size", _BERT_VOCABULARY)
    positions, block = f.size("max_position_embeddings", _CONTEXT), "transformer.layer.{layer}."
    sizes = (("query", "attention.q_lin", width, width), ("key", "attention.k_lin", width, width),
             ("value", "attention.v_lin", width, width), ("output", "attention.out_lin", width, width),
             ("up", "ffn.lin1", width, ffn), ("down", "ffn.lin2", ffn, width))  # fmt: skip
    return ModelShapes(
        architecture="distilbert", kind="encoder", layers=layers, encoder_layers=0, width=width, heads=heads,
        kv_heads=heads, head_dim=width // heads, ffn_width=ffn, vocabulary=vocabulary, context_tokens=positions,
        tied_embeddings=True,
        linears=tuple(Linear(r, block + n, i, o, layers, bias=True, stack="encoder") for r, n, i, o in sizes),
        norms=(
            _norm("post_attention", block + "sa_layer_norm", width, layers),
            _norm("post_feedforward", block + "output_layer_norm", width, layers),
            Norm("embedding", "embeddings.LayerNorm", width, 1, bias=True, stack="encoder", in_layers=False),
        ),
        embeddings=(
            Embedding("tokens", "embeddings.word_embeddings", vocabulary, width),
            Embedding("positions", "embeddings.position_embeddings", positions, width),
        ),
        activation=f.word("activation", "gelu"), dropout=f.noise("dropout", _DROPOUT),
        attention_dropout=f.noise("attention_dropout", _DROPOUT),
    )  # fmt: skip


def _norm(role: str, pattern: str, width: int, layers: int) -> Norm:
    return Norm(role, pattern, width, layers, bias=True, stack="encoder")


def _extra(role: str, name: str, inputs: int, outputs: int) -> Linear:
    return Linear(role, name, inputs, outputs, 1, bias=True, stack="encoder", in_layers=False)
