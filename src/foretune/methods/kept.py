"""What a method makes autograd keep for the backward pass, beside a plain LoRA: measured on a small stand-in.

Some methods keep every layer's output again (DoRA), some a copy of every weight (LoHa), some many (HRA: one for each
reflection). No formula covers them all and their settings, so the method is attached to two layers of random weights
with the proportions of the real model, then to three, and the bytes that a forward pass keeps are counted at two
lengths. What a layer keeps for each token is told in outputs of the linear layers, what it keeps whatever the tokens in
copies of their weights: both carry over to the real width. It takes a second (ten for HRA or OSF) and loads torch.

What it does not do: tell the two stacks of an encoder–decoder apart, or count what dropout keeps.
"""

from __future__ import annotations

import weakref
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from foretune.catalogue.methods import declaration, resolve
from foretune.catalogue.methods.base import RAISED
from foretune.catalogue.priors import DEFAULT_LORA
from foretune.cost.shapes import ModelShapes
from foretune.errors import ForetuneError

if TYPE_CHECKING:
    import torch

AS_LORA = ("lora", "loratrf", "full", "rslora", "loraplus", "pissa", "olora", "eva", "loraga", "adalora", "lorafa")
"""Methods that `cost.memory` counts tensor by tensor, and those that differ from them in start or step alone"""
WIDEST = 768
"""A wider model is stood in for by one of this width: what some methods do grows with its cube"""
_TOKENS = (32, 160)
_LAYERS = (2, 3)
"""Their difference is a layer in the middle; of the first, some methods need no backward pass"""
_COMMON = {"num_hidden_layers": 1, "vocab_size": 64, "max_position_embeddings": 256}


@dataclass(frozen=True)
class Kept:
    """What is kept besides what a LoRA of some rank keeps."""

    outputs: float
    """For each token, in outputs of all linear layers; below zero where the method keeps less than LoRA"""
    weights: float
    """Whatever the tokens, in copies of the weights of all linear layers"""


def kept_beside_lora(shapes: ModelShapes, config: Mapping[str, Any], *, rank: int, dtype: str) -> Kept | None:
    """What the method of a flat configuration keeps beside LoRA of ``rank``.

    None where that is known to be nothing, or cannot be measured: a choice among the model's own parameters, a method
    that needs rows, settings that only the real model takes.
    """
    method = str(config["method"])
    if method in AS_LORA or declaration(method).expression:
        return None
    stand_in = _proportions(shapes)
    same = ModelShapes.from_config(stand_in)
    own = {key: value for key, value in config.items() if key.startswith(f"{method}.") and not key.endswith(RAISED)}
    try:
        token, fixed = _measured(stand_in, {"method": method, **own}, dtype)
        lora, _ = _measured(stand_in, {"method": "lora"}, dtype)
    except (ForetuneError, RuntimeError, ValueError, AttributeError, TypeError, KeyError, IndexError):
        return None
    size = 4 if dtype == "float32" else 2
    lora += size * (rank - int(DEFAULT_LORA["lora.rank"])) * sum(linear.count for linear in same.linears)
    outputs = sum(linear.outputs * linear.count for linear in same.linears)
    return Kept((token - lora) / (size * outputs), max(0.0, fixed) / (size * sum(x.weights for x in same.linears)))


def _proportions(shapes: ModelShapes) -> dict[str, Any]:
    """The configuration of a small model of the same proportions: a Llama, or for an encoder a BERT."""
    scale = min(1.0, WIDEST / shapes.width)
    ffn = round(shapes.ffn_width * scale)
    if shapes.kind == "encoder":
        width = shapes.width if scale == 1.0 else WIDEST
        heads = shapes.heads if scale == 1.0 else WIDEST // 64
        return {"model_type": "bert", "hidden_size": width, "intermediate_size": ffn, "num_attention_heads": heads,
                "hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0, **_COMMON}  # fmt: skip
    group, shared = shapes.heads // shapes.kv_heads, max(1, round(shapes.kv_heads * scale))
    return {"model_type": "llama", "hidden_size": round(shapes.width * scale), "intermediate_size": ffn,
            "num_attention_heads": group * shared, "num_key_value_heads": shared, "head_dim": shapes.head_dim,
            "tie_word_embeddings": True, **_COMMON}  # fmt: skip


def _measured(stand_in: Mapping[str, Any], config: Mapping[str, Any], dtype: str) -> tuple[float, float]:
    """(bytes for each token, bytes whatever the tokens) of a layer."""
    few, more = (_all_layers({**stand_in, "num_hidden_layers": layers}, config, dtype) for layers in _LAYERS)
    short, long = (b - a for a, b in zip(few, more, strict=True))
    token = (long - short) / (_TOKENS[1] - _TOKENS[0])
    return token, short - _TOKENS[0] * token


def _all_layers(stand_in: Mapping[str, Any], config: Mapping[str, Any], dtype: str) -> list[int]:
    """Bytes that are kept of each number of tokens."""
    import torch
    from transformers import CONFIG_MAPPING, AutoModelForCausalLM, AutoModelForSequenceClassification

    from foretune.methods.registry import get
    from foretune.seeding import torch_generator

    fields = dict(stand_in)
    made = CONFIG_MAPPING[fields.pop("model_type")](**fields)
    auto: Any = AutoModelForSequenceClassification if made.model_type == "bert" else AutoModelForCausalLM
    state = torch.get_rng_state()
    try:
        model = auto.from_config(made, dtype=getattr(torch, dtype)).eval().requires_grad_(False)
        attachment = get(str(config["method"])).attach(model, resolve(config), generator=torch_generator(0, "init"))
        return [saved_bytes(attachment.model, torch.zeros((1, n), dtype=torch.long)) for n in _TOKENS]
    finally:
        torch.set_rng_state(state)


class _Held:
    """A tensor that autograd keeps; it dies with the graph that needs it."""

    def __init__(self, tensor: torch.Tensor) -> None:
        self.tensor = tensor


def saved_bytes(model: Any, ids: torch.Tensor) -> int:
    """Bytes of what autograd keeps of a forward pass up to the last hidden state: each storage once, the model's own
    parameters left out."""
    import torch

    def storages(tensor: torch.Tensor) -> list[Any]:
        sparse = tensor.layout != torch.strided  # SHiRA's update: its numbers and where they belong
        parts = (tensor._values(), tensor._indices()) if sparse else (tensor,)
        return [part.untyped_storage() for part in parts]

    held: weakref.WeakSet[_Held] = weakref.WeakSet()

    def pack(tensor: torch.Tensor) -> _Held:
        kept = _Held(tensor)
        held.add(kept)
        return kept

    own = {storage.data_ptr() for weight in model.parameters() for storage in storages(weight)}
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda kept: kept.tensor):
        hidden = model.base_model(input_ids=ids, use_cache=False).last_hidden_state
    found = {storage.data_ptr(): storage.nbytes() for each in list(held) for storage in storages(each.tensor)}
    del hidden
    return sum(size for place, size in found.items() if place not in own)
