"""What a model of any architecture is made of: built without memory from its ``config.json``, and looked at.

`foretune.cost` counts the layers of common architectures from their configuration alone, in no time and without torch.
For every other text model that transformers knows, its class is built here on the meta device, which holds no numbers,
and each module is read: its name, size and role. What was read is kept in the cache, so that only the first plan of an
architecture loads torch.

Of a model that reads images or sound as well, what reads those is counted and left alone: rows here are text. Where
transformers has a class for its text alone, that is the one that is built and loaded.

Experts of a mixture are tensors, not linear layers: adapters leave them alone, they are counted, and a token costs
those that it is sent to. Not covered: classes that come with the weights as code.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, TypeVar

from foretune.cost.architectures import BUILDERS, build
from foretune.cost.shapes import CROSS, Embedding, Linear, ModelShapes, Norm, Stack
from foretune.errors import ModelError, Place
from foretune.files import cache_folder, fingerprint, read_json, write_json
from foretune.models.kinds import ATTENTION_DROPOUT_NAMES, infer_kind
from foretune.models.modules import describe, is_linear

_Part = TypeVar("_Part", Linear, Norm)

FOLDER = "shapes"
_ROLES = {
    "q": "query", "k": "key", "v": "value", "o": "output", "qkv": "query_key_value", "kv": "key_value",
    "gate": "gate", "up": "up", "down": "down", "gate_up": "gate_up",
}  # fmt: skip
_CHOSEN = ("num_experts_per_tok", "num_experts_per_token", "moe_topk", "moe_k", "top_k_experts")
"""What configurations call the number of experts that a token is sent to."""
_REFUSALS = (ValueError, TypeError, KeyError, AttributeError, RuntimeError, OSError, ImportError)
"""What a configuration or a class raises that does not like its numbers, beside what the hub's checked ones raise."""
_NUMBER = re.compile(r"(?<=\.)\d+(?=\.|$)")


def shapes_of(config: Mapping[str, Any], place: Place | None = None) -> ModelShapes:
    """The shapes of a configuration: counted where its architecture is described, else measured (and kept).

    Raises `ModelError` for a model that transformers does not know, cannot build, or has no class of for text.
    """
    name = config.get("model_type")
    if name in BUILDERS or not isinstance(name, str):
        return build(config, place=place)
    kept = cache_folder() / FOLDER / f"{fingerprint([dict(config), version('transformers')])}.json"
    with suppress(OSError, ValueError, TypeError, KeyError):  # none yet, damaged, or of another Foretune
        return from_json(read_json(kept))
    shapes = measured(config, place)
    write_json(kept, asdict(shapes))
    return shapes


def from_json(value: Mapping[str, Any]) -> ModelShapes:
    """The inverse of `dataclasses.asdict`."""
    parts: dict[str, Any] = {"linears": Linear, "extra_linears": Linear, "norms": Norm, "embeddings": Embedding}
    read = {key: tuple(part(**each) for each in value[key]) for key, part in parts.items()}
    made: dict[str, Any] = {**value, **read}
    return ModelShapes(**made)


def measured(config: Mapping[str, Any], place: Place | None = None) -> ModelShapes:
    """The shapes of the class that transformers builds for ``config``. Raises `ModelError`."""
    import torch
    from huggingface_hub.errors import StrictDataclassError
    from transformers import CONFIG_MAPPING, AutoConfig, AutoModel, AutoModelForCausalLM, AutoModelForSeq2SeqLM
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    name, kind = str(config["model_type"]), infer_kind(config)
    auto: Any = {"causal": AutoModelForCausalLM, "seq2seq": AutoModelForSeq2SeqLM, "encoder": AutoModel}[kind]
    if name not in CONFIG_MAPPING:
        raise ModelError(
            f"the installed transformers does not know the architecture {name!r}.",
            place=place,
            remedy="Install a transformers that does, or use another model; code that comes with weights is not read.",
        )
    if kind == "causal" and name not in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES:
        raise ModelError(
            f"transformers has no class of {name!r} that reads text and writes it.",
            place=place,
            remedy="Use a model for text, or one that reads images as well and is loaded by AutoModelForCausalLM.",
        )
    try:
        with TemporaryDirectory(prefix="foretune-") as folder:
            write_json(Path(folder) / "config.json", dict(config))
            made = AutoConfig.from_pretrained(folder, local_files_only=True)
        with torch.device("meta"):
            model = auto.from_config(made)
        model.tie_weights()
        shapes = _described(name, kind, made.get_text_config(), model)
    except (*_REFUSALS, StrictDataclassError) as error:
        reason = " ".join(str(error).split()).rstrip(".") or type(error).__name__
        raise ModelError(f"this {name} model cannot be built from its configuration: {reason}.", place=place) from error
    if not shapes.linears:
        raise ModelError(
            f"no linear layer is found by name in the layers of this {name} model, so no adapter can go there.",
            place=place,
            remedy="Use another model.",
        )
    return shapes


def _described(name: str, kind: Any, config: Any, model: Any) -> ModelShapes:
    import torch

    found = _Modules.of(model, kind)
    width = int(config.hidden_size)
    heads = int(getattr(config, "num_attention_heads", None) or 1)
    stated: tuple[Linear | Norm | Embedding, ...] = (
        *found.linears,
        *found.extra_linears,
        *found.norms,
        *found.embeddings,
    )
    total = sum(parameter.numel() for parameter in model.parameters())
    chosen = next((int(n) for key in _CHOSEN if (n := getattr(config, key, None))), 1)
    ffn = int(getattr(config, "intermediate_size", None) or 4 * width)
    if found.experts:
        ffn = chosen * int(getattr(config, "moe_intermediate_size", None) or ffn)
    encoder, decoder = found.layers("encoder"), found.layers("decoder")
    return ModelShapes(
        architecture=name, kind=kind, layers=encoder if kind == "encoder" else decoder,
        encoder_layers=encoder if kind == "seq2seq" else 0, width=width, heads=heads,
        kv_heads=int(getattr(config, "num_key_value_heads", None) or heads),
        head_dim=int(getattr(config, "head_dim", None) or width // heads), ffn_width=ffn,
        vocabulary=int(config.vocab_size), context_tokens=int(getattr(config, "max_position_embeddings", None) or 0),
        tied_embeddings=found.tied, linears=found.linears, norms=found.norms, embeddings=found.embeddings,
        extra_linears=found.extra_linears, extra_parameters=total - sum(part.parameters for part in stated),
        routed_weights=sum(numel * min(chosen, count) // count for numel, count in found.experts),
        activation=str(getattr(config, "hidden_act", "")),
        dropout=any(isinstance(module, torch.nn.Dropout) and module.p > 0 for module in model.modules()),
        attention_dropout=any(getattr(config, key, 0.0) for key in ATTENTION_DROPOUT_NAMES),
    )  # fmt: skip


@dataclass(frozen=True)
class _Modules:
    """What a built model holds."""

    linears: tuple[Linear, ...]
    extra_linears: tuple[Linear, ...]
    norms: tuple[Norm, ...]
    embeddings: tuple[Embedding, ...]
    experts: tuple[tuple[int, int], ...]
    """(entries, experts) of every tensor that holds one matrix an expert"""
    tied: bool

    @classmethod
    def of(cls, model: Any, kind: str) -> _Modules:
        """Read every module of ``model``; equal ones of successive layers become one family."""
        from torch import nn

        scorer = None if kind == "encoder" else model.get_output_embeddings()
        source = model.get_input_embeddings()
        tied = scorer is None or scorer.weight is source.weight
        linears, norms, experts = [], [], []
        embeddings: dict[int, Embedding] = {}
        for name, module in model.named_modules():
            role = describe(name, module)
            stack: Any = role.stack or ("encoder" if kind == "encoder" else "decoder")
            own = dict(module.named_parameters(recurse=False))
            if module is scorer:
                linears.append(_linear("head", name, module, stack, in_layers=False, tied=tied))
            elif is_linear(module):
                inside = role.layer is not None and role.role != "head"
                linears.append(_linear(_role(role.role) if inside else "project", name, module, stack, inside))
            elif isinstance(module, nn.Embedding):
                table = Embedding("tokens" if role.role == "embedding" else "positions", name, *module.weight.shape)
                embeddings.setdefault(id(module.weight), table)
            elif role.role == "norm" and set(own) in ({"weight"}, {"weight", "bias"}) and own["weight"].dim() == 1:
                word, width = name.rpartition(".")[2], own["weight"].numel()
                norms.append(Norm(word, name, width, 1, "bias" in own, stack, in_layers=role.layer is not None))
            elif "experts" in name:
                experts += [(tensor.numel(), tensor.shape[0]) for tensor in own.values() if tensor.dim() == 3]
        return cls(
            _families([part for part in linears if part.in_layers]),
            tuple(part for part in linears if not part.in_layers),
            _families(norms), tuple(embeddings.values()), tuple(experts), tied,
        )  # fmt: skip

    def layers(self, stack: Stack) -> int:
        """The number of layers of a stack: behind the highest number in the name of one of its linear layers."""
        names = [name for linear in self.linears if linear.stack == stack for name in linear.names()]
        return max((describe(name).layer or 0 for name in names), default=-1) + 1


def _linear(role: str, name: str, module: Any, stack: Stack, in_layers: bool, *, tied: bool = False) -> Linear:
    """One linear layer; of a tied head only the bias is its own."""
    outputs, inputs = module.weight.shape
    if hasattr(module, "nf"):  # GPT-2's Conv1D keeps its matrix as (inputs, outputs)
        inputs, outputs = outputs, inputs
    bias = module.bias is not None
    return Linear(role, name, 0 if tied else inputs, outputs, 1, bias=bias, stack=stack, in_layers=in_layers)


def _role(role: str) -> str:
    """The word of `cost.shapes` for a role of `models.modules`."""
    group, _, part = role.partition(".")
    word = _ROLES.get(part, group)
    return CROSS + word if group == "cross_attention" else word


def _families(parts: Sequence[_Part]) -> tuple[_Part, ...]:
    """Parts that are equal but for the layer become one, where all layers from the first on have it."""
    groups: dict[_Part, list[_Part]] = {}
    for part in parts:
        layer = describe(part.pattern).layer
        family = part if layer is None else replace(part, pattern=_pattern(part.pattern, layer))
        groups.setdefault(family, []).append(part)
    found: list[_Part] = []
    for family, members in groups.items():
        layers = [describe(member.pattern).layer for member in members]
        found += [replace(family, layers=len(layers))] if layers == list(range(len(layers))) else members
    return tuple(found)


def _pattern(name: str, layer: int) -> str:
    """The name with ``{layer}`` for the layer's number: the first that equals it."""
    found = next(match for match in _NUMBER.finditer(name) if int(match[0]) == layer)
    return f"{name[: found.start()]}{{layer}}{name[found.end() :]}"
