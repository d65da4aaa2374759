"""The places of a model where activations are dropped, or could be, by role and qualified name.

=================  ======================================================  ==============================
kind               what is dropped                                         its group of parameters
=================  ======================================================  ==============================
embedding          the embeddings' output                                  tensors of the embedding block
attention          attention probabilities                                 query, key and value
attention_output   what a layer's attention adds to the residual stream    the output projection
mlp_output         what a layer's feed-forward block adds                  the last projection
=================  ======================================================  ==============================

Three forms (``how``). ``module``: an ``nn.Dropout`` of the architecture (BERT, DistilBERT, GPT-2, T5); its group is all
tensors of the module that holds it, so BERT-base has the 37 groups of Sharma et al. 2024 (2406.14005): embeddings (5
tensors), and in each layer attention.self (6), attention.output (4) and output (4). ``float``: a number on the
attention module that its kernel reads (Llama, Gemma, BART). ``inserted``: nothing is there (Llama, Gemma, Qwen), or one
number serves two places (BART), so a hook is placed on the module that writes the output. There the group is the linear
layers that write what is dropped, without norms: their few large entries would drown the matrices.

Names are relative to the backbone, without an adapter's wrappers, so that a model with a head and an adapter has the
places of its pre-trained form. A dropout module that is not understood is an error: nothing is left out silently. The
authors' code addresses dropouts by their index among all modules, which under today's transformers hits 10 of 37.

Dropout between the two projections of a feed-forward block (T5) and in a classifier's head stays as it is.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from foretune.errors import ModelError
from foretune.models.modules import describe, role_of

if TYPE_CHECKING:
    from torch import nn

Kind = Literal["embedding", "attention", "attention_output", "mlp_output"]
How = Literal["module", "float", "inserted"]
KINDS: tuple[Kind, ...] = ("embedding", "attention", "attention_output", "mlp_output")
FLOAT_NAMES = ("attention_dropout", "dropout")
"""What attention modules call the rate that their kernel gets."""
_WRAPPER = re.compile(r"\.base_layer(?=\.|$)")
_ADAPTER = re.compile(r"(?:^|\.)(?:lora_\w+|modules_to_save|\w+_adapter)(?:\.|$)")
_QKV = re.compile(r"\.(?:q|k|v|qkv|kv)$")


@dataclass(frozen=True)
class Site:
    """One place."""

    name: str
    """Qualified name, unique in a model and equal for all its forms"""
    kind: Kind
    layer: int | None
    stack: str
    """``encoder``, ``decoder`` or empty"""
    how: How
    owner: str
    """Name of the module to act on, relative to the backbone"""
    tensors: tuple[str, ...]
    """Names of the parameters that feed it, relative to the backbone"""
    attribute: str = ""
    """``float``: the attribute of the owner that holds the rate"""


def backbone(model: Any) -> Any:
    """The model without its head."""
    return model.base_model if hasattr(model, "base_model") else model


def find_sites(model: Any) -> tuple[Site, ...]:
    """All places of a transformers model, in the model's order. Raises `ModelError` where one is not understood."""
    body = backbone(model)
    modules = dict(body.named_modules())
    plain = {_WRAPPER.sub("", name): module for name, module in modules.items() if not _ADAPTER.search(name)}
    found = [*_modules(plain), *_floats(plain)]
    found += _inserted(plain, {(site.stack, site.layer, site.kind) for site in found})
    stacks = list(dict.fromkeys(describe(name).stack for name in plain))
    sites = tuple(
        sorted(found, key=lambda s: (stacks.index(s.stack), -1 if s.layer is None else s.layer, KINDS.index(s.kind)))
    )
    _complete(body, sites)
    return sites


def _modules(plain: dict[str, nn.Module]) -> Iterator[Site]:
    """Places that are ``nn.Dropout`` modules."""
    from torch import nn

    for name, module in plain.items():
        if not isinstance(module, nn.Dropout) or role_of(name) == "head":
            continue
        holder, _, last = name.rpartition(".")
        kind = _kind(plain, holder, last)
        if kind is None:
            raise ModelError(
                f"the dropout {name} of {type(plain['']).__name__} follows nothing that is known.",
                remedy="This architecture is not supported by guided dropout; please report it with the model's name.",
            )
        if kind == "inner":
            continue
        own = describe(name)
        group = _feeding(plain, holder, kind)
        yield Site(name, kind, own.layer, own.stack, "module", name, group)  # type: ignore[arg-type]


def _roles_below(plain: dict[str, nn.Module], holder: str, *, deep: bool) -> set[str]:
    """Roles of the modules with parameters directly in ``holder``, or anywhere below it."""
    prefix = f"{holder}." if holder else ""
    return {
        role_of(name, module)
        for name, module in plain.items()
        if name.startswith(prefix) and name != holder and (deep or "." not in name.removeprefix(prefix))
    }


def _kind(plain: dict[str, nn.Module], holder: str, last: str) -> str | None:
    """What a dropout module called ``last`` in ``holder`` drops; None where nothing says so."""
    direct = _roles_below(plain, holder, deep=False)
    writes = any(role.endswith("attention.o") for role in direct)
    if any(_QKV.search(role) for role in direct):
        return "attention_output" if writes and re.search(r"resid|proj|out_|output", last) else "attention"
    if writes:
        return "attention_output"
    if "mlp.down" in direct:
        return "inner" if {"mlp.up", "mlp.gate_up"} & direct and _followed(plain, holder) else "mlp_output"
    if describe(f"{holder}.{last}").layer is None and "embedding" in _roles_below(plain, holder, deep=False):
        return "embedding"
    deep = _roles_below(plain, holder, deep=True)
    if any(role.endswith("attention.o") for role in deep) and "mlp.down" not in deep:
        return "attention_output"
    if "mlp.down" in deep and not any("attention" in role for role in deep):
        return "mlp_output"
    return None


def _followed(plain: dict[str, nn.Module], holder: str) -> bool:
    """Whether the module around a feed-forward block has a dropout of its own (T5): the inner one is another."""
    from torch import nn

    around = holder.rpartition(".")[0]
    beside = [module for name, module in plain.items() if name.rpartition(".")[0] == around]
    return any(isinstance(module, nn.Dropout) for module in beside)


def _feeding(plain: dict[str, nn.Module], holder: str, kind: str) -> tuple[str, ...]:
    """Parameters of the module that holds a dropout; only those of its side where it holds more than one block."""
    prefix = f"{holder}." if holder else ""
    whole_stack = any(name.startswith(prefix) and describe(name).layer is not None for name in plain)
    names = []
    for name, module in plain.items():
        inside = name.startswith(prefix) or name == holder
        if not inside or (kind == "embedding" and describe(name).layer is not None):
            continue
        role = role_of(name, module)
        if role.endswith("attention.o") and kind == "attention":
            continue
        if _QKV.search(role) and kind == "attention_output":
            continue
        if role in ("mlp.up", "mlp.gate", "mlp.gate_up") or (kind == "embedding" and role == "norm" and whole_stack):
            continue
        names += [f"{name}.{part}" if name else part for part, _ in module.named_parameters(recurse=False)]
    return tuple(n for n in names if "relative_attention_bias" not in n)


def _floats(plain: dict[str, nn.Module]) -> Iterator[Site]:
    """Attention modules whose kernel reads the rate from a number."""
    for name, module in plain.items():
        roles = _roles_below(plain, name, deep=False) if name else set()
        if not any(_QKV.search(role) for role in roles):
            continue
        attribute = next((a for a in FLOAT_NAMES if isinstance(getattr(module, a, None), int | float)), None)
        if attribute is None:
            continue
        own = describe(name)
        tensors = _tensors(plain, name, _QKV)
        yield Site(f"{name}.probabilities", "attention", own.layer, own.stack, "float", name, tensors, attribute)


def _tensors(plain: dict[str, nn.Module], holder: str, roles: re.Pattern[str]) -> tuple[str, ...]:
    """Parameters of the modules directly in ``holder`` whose role is one of ``roles``."""
    return tuple(
        f"{name}.{part}"
        for name, module in plain.items()
        if name.rpartition(".")[0] == holder and roles.search(role_of(name, module))
        for part, _ in _own_parameters(module)
    )


def _own_parameters(module: Any) -> list[tuple[str, Any]]:
    """A linear layer's own weight and bias, wrapped by an adapter or not."""
    inner = getattr(module, "base_layer", module)
    return list(inner.named_parameters(recurse=False))


def _inserted(plain: dict[str, nn.Module], there: set[tuple[str, int | None, str]]) -> Iterator[Site]:
    """Hooks where the architecture has no dropout of its own."""
    embeddings = [n for n, module in plain.items() if role_of(n, module) == "embedding" and describe(n).layer is None]
    own_stacks = any(describe(name).stack for name in embeddings)
    for name, module in plain.items():
        role, own = role_of(name, module), describe(name)
        if name in embeddings and (own.stack or not own_stacks) and (own.stack, None, "embedding") not in there:
            owner = _normed(plain, name)
            tensors = [f"{n}.{part}" for n in dict.fromkeys((name, owner)) for part, _ in _own_parameters(plain[n])]
            yield Site(f"{owner}.output", "embedding", None, own.stack, "inserted", owner, tuple(tensors))
        elif role.endswith("attention.o") and (own.stack, own.layer, "attention_output") not in there:
            tensors = [f"{name}.{part}" for part, _ in _own_parameters(module)]
            holder = name.rpartition(".")[0]
            yield Site(f"{holder}.output", "attention_output", own.layer, own.stack, "inserted", name, tuple(tensors))
        elif role == "mlp.down" and (own.stack, own.layer, "mlp_output") not in there:
            tensors = [f"{name}.{part}" for part, _ in _own_parameters(module)]
            yield Site(f"{name}.output", "mlp_output", own.layer, own.stack, "inserted", name, tuple(tensors))


def _normed(plain: dict[str, nn.Module], embedding: str) -> str:
    """The norm of the embeddings where there is one (BART), else the embedding itself."""
    holder = embedding.rpartition(".")[0]
    name = f"{holder}.layernorm_embedding" if holder else "layernorm_embedding"
    return name if name in plain else embedding


def _complete(body: Any, sites: tuple[Site, ...]) -> None:
    """Every layer has to have its three places; raises `ModelError` where one is missing or named twice."""
    names = [site.name for site in sites]
    layers = {(site.stack, site.layer) for site in sites if site.layer is not None}
    for stack, layer in sorted(layers, key=str):
        here = {site.kind for site in sites if (site.stack, site.layer) == (stack, layer)}
        if missing := [kind for kind in KINDS[1:] if kind not in here]:
            raise ModelError(
                f"layer {layer} of {type(body).__name__} has no place for {', '.join(missing)} dropout that is known.",
                remedy="This architecture is not supported by guided dropout; please report it with the model's name.",
            )
    embedded = any(site.kind == "embedding" for site in sites)
    if not layers or not embedded or len(set(names)) < len(names):
        what = "no layers" if not layers else "no embeddings" if not embedded else "two places of one name"
        raise ModelError(f"{type(body).__name__} has {what} that guided dropout could address.")
