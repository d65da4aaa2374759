"""What kind of model a ``config.json`` describes, without importing torch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from foretune.catalogue.models import ModelKind
from foretune.errors import ModelError

_CAUSAL_ENDINGS = ("ForCausalLM", "LMHeadModel")
_SEQ2SEQ_ENDINGS = ("ForConditionalGeneration", "ForSeq2SeqLM")
_ENCODER_TYPES = frozenset(
    {"albert", "bert", "camembert", "convbert", "deberta", "deberta-v2", "distilbert", "electra", "ernie", "eurobert",
     "mobilebert", "modernbert", "mpnet", "nomic_bert", "roberta", "roformer", "squeezebert", "xlm-roberta",
     "xlm-roberta-xl"}
)  # fmt: skip
_CAUSAL_TYPES = frozenset(
    {"bloom", "cohere", "falcon", "gemma", "gemma2", "gemma3", "gemma3_text", "gpt2", "gpt_neo", "gpt_neox", "gptj",
     "granite", "llama", "mistral", "mixtral", "mpt", "olmo", "olmo2", "opt", "phi", "phi3", "qwen2", "qwen3",
     "smollm3", "stablelm", "starcoder2"}
)  # fmt: skip

ATTENTION_DROPOUT_NAMES = ("attention_dropout", "attn_pdrop", "attention_probs_dropout_prob")
"""What configurations call the rate of dropout on attention probabilities (applied inside the kernel)."""
DROPOUT_NAMES = (
    *ATTENTION_DROPOUT_NAMES, "dropout", "activation_dropout", "hidden_dropout_prob", "hidden_dropout", "resid_pdrop",
    "embd_pdrop", "residual_dropout", "embedding_dropout",
)  # fmt: skip
"""What configurations call a rate of dropout anywhere in a model: OPT, XGLM, BioGPT and Starcoder 2 apply theirs
without a module that would show it."""


def infer_kind(config: Mapping[str, Any]) -> ModelKind:
    """causal, seq2seq or encoder, from the content of a ``config.json``.

    ``is_encoder_decoder`` decides first, then the name of the architecture (BERT's ``ForCausalLM`` needs
    ``is_decoder``), then ``model_type``. Raises `ModelError` when none of them says.
    """
    if config.get("is_encoder_decoder"):
        return "seq2seq"
    model_type = str(config.get("model_type", ""))
    architectures = [str(name) for name in config.get("architectures") or ()]
    if model_type in _ENCODER_TYPES:
        return "causal" if config.get("is_decoder") else "encoder"
    if any(name.endswith(_CAUSAL_ENDINGS) for name in architectures):
        return "causal"
    if isinstance(config.get("text_config"), Mapping):  # a language model that reads images or sound as well
        return "causal"
    if model_type in _CAUSAL_TYPES:  # before the next line: Gemma 3 with images calls itself ForConditionalGeneration
        return "causal"
    if any(name.endswith(_SEQ2SEQ_ENDINGS) for name in architectures):
        return "seq2seq"
    if any(name.endswith(("ForMaskedLM", "ForSequenceClassification")) for name in architectures):
        return "encoder"
    raise ModelError(
        f"the configuration does not say what kind of model this is (model_type {model_type or 'missing'!r}, "
        f"architectures {architectures or 'missing'}).",
        remedy="Name the kind: causal, seq2seq or encoder.",
    )
