"""From a ``config.json`` to `ModelShapes`: one builder for each family of architectures.

Defaults are those of transformers' configuration classes, because a ``config.json`` leaves out what equals them.
Sources: the modelling files of transformers 5; every builder is compared with an instantiation in the tests.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from foretune.cost.decoders import gpt2, gpt_neox, llama_like, opt, phi
from foretune.cost.encoders import bert_like, distilbert
from foretune.cost.fields import Fields
from foretune.cost.seq2seq import bart_like, t5_like
from foretune.cost.shapes import ModelShapes
from foretune.errors import ModelError, Place

BUILDERS: Mapping[str, Callable[[Fields], ModelShapes]] = {
    "llama": llama_like,
    "mistral": llama_like,
    "qwen2": llama_like,
    "qwen3": llama_like,
    "smollm3": llama_like,
    "gemma": llama_like,
    "gemma2": llama_like,
    "gemma3_text": llama_like,
    "granite": llama_like,
    "olmo2": llama_like,
    "phi3": llama_like,
    "phi": phi,
    "gpt2": gpt2,
    "gpt_neox": gpt_neox,
    "opt": opt,
    "bert": bert_like,
    "roberta": bert_like,
    "xlm-roberta": bert_like,
    "camembert": bert_like,
    "electra": bert_like,
    "distilbert": distilbert,
    "bart": bart_like,
    "mbart": bart_like,
    "marian": bart_like,
    "pegasus": bart_like,
    "m2m_100": bart_like,
    "t5": t5_like,
    "mt5": t5_like,
}


def build(config: Mapping[str, Any], *, place: Place | None = None) -> ModelShapes:
    """The shapes of a configuration. Raises `ModelError` for an unknown architecture or a senseless size."""
    name = config.get("model_type")
    if not isinstance(name, str):
        raise ModelError(
            "this configuration names no model_type.", place=place, remedy="Point to the config.json of a model."
        )
    if name in BUILDERS:
        return BUILDERS[name](Fields(config, name, place))
    nested = config.get("text_config")
    if isinstance(nested, Mapping):
        reason = "it reads more than text, and only text models are counted"
    else:
        reason = "its layers are not described here"
    raise ModelError(
        f"the architecture {name!r} cannot be forecast: {reason}.",
        place=place,
        remedy=f"Use a model of one of these types: {', '.join(sorted(BUILDERS))}.",
    )
