"""What the modules of a model are for: names become roles, layer numbers and stacks.

Roles: ``attention.q|k|v|o|qkv`` (self-attention), ``cross_attention.q|k|v|o|kv``, ``mlp.gate|up|down|gate_up``,
``router``, ``kernel`` (a matrix that a fused state-space kernel reads itself), ``embedding``, ``position_embedding``,
``norm``, ``head`` (anything between the last layer and the scores, poolers included), ``sense`` (what reads images or
sound, which text does not pass) and ``other``. The tables below hold the names that Llama, Gemma, Qwen, Mistral, Phi,
GPT-2, GPT-NeoX, OPT, Falcon, BERT, DistilBERT, BART, Marian, M2M and T5 use in transformers 5.

What it does not do: count (`foretune.cost.shapes` does, without weights), or freeze (methods do, by name).
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from foretune.errors import UsageError

if TYPE_CHECKING:
    from torch import nn

_LAYER = re.compile(r"(?:^|\.)(?:layers?|h|blocks?)\.(\d+)(?:\.|$)")
_STACK = re.compile(r"(?:^|\.)(encoder|decoder)(?:\.|$)")
_CROSS = re.compile(r"(?:^|\.)(?:encoder_attn|crossattention|EncDecAttention|cross_attn)\.")
_HEAD = re.compile(
    r"(?:^|\.)(?:lm_head|score|classifier|classification_head|pre_classifier|pooler|cls|qa_outputs|embed_out"
    r"|vocab_projector|vocab_transform|output_projection)(?:\.|$)"
)
_SENSE = re.compile(r"(?:^|\.)(?:vision_\w+|visual|audio_\w+|multi_modal_projector|embed_vision|embed_audio)(?:\.|$)")
_ROUTER = re.compile(r"(?:^|\.)(?:router(?:\.layer)?|mlp\.gate(?:\.wg)?|block_sparse_moe\.gate|shared_expert_gate)$")
_KERNEL = re.compile(r"(?:^|\.)(?:mixer|mamba)\.out_proj$")

_ATTENTION = {
    "q": r"q_proj|query|q_lin|SelfAttention\.q|EncDecAttention\.q|q_attn",
    "k": r"k_proj|key|k_lin|SelfAttention\.k|EncDecAttention\.k",
    "v": r"v_proj|value|v_lin|SelfAttention\.v|EncDecAttention\.v",
    "o": r"(?:self_attn|encoder_attn|cross_attn)\.(?:o_proj|out_proj|dense)|attention\.output\.dense|out_lin"
    r"|SelfAttention\.o|EncDecAttention\.o|attn\.c_proj|crossattention\.c_proj|(?:self_)?attention\.dense"
    r"|attention\.out_proj|attn\.out_proj|attn\.Wo",
    "qkv": r"qkv_proj|query_key_value|attn\.c_attn|Wqkv",
}
_MLP = {
    "gate": r"gate_proj|wi_0|w1",
    "up": r"up_proj|fc1|fc_in|c_fc|intermediate\.dense|lin1|dense_h_to_4h|wi_1|wi|w3",
    "down": r"down_proj|fc2|fc_out|mlp\.c_proj|output\.dense|lin2|dense_4h_to_h|wo|w2",
    "gate_up": r"gate_up_proj|mlp\.Wi",
}
_MLP_EXTRA = {"down": r"mlp\.Wo"}


def _table(kind: str, patterns: dict[str, str]) -> list[tuple[re.Pattern[str], str]]:
    return [(re.compile(rf"(?:^|\.)(?:{names})$"), f"{kind}.{part}") for part, names in patterns.items()]


_ATTENTION_ROLES = _table("attention", _ATTENTION)
_MLP_ROLES = _table("mlp", _MLP) + _table("mlp", _MLP_EXTRA)

GROUPS: dict[str, tuple[str, ...]] = {
    "attention": ("attention.", "cross_attention."),
    "self_attention": ("attention.",),
    "cross_attention": ("cross_attention.",),
    "mlp": ("mlp.",),
    "norm": ("norm",),
    "embedding": ("embedding", "position_embedding"),
    "head": ("head",),
    "router": ("router",),
}
"""Group name -> the beginnings of the roles it takes in."""


@dataclass(frozen=True)
class ModuleRole:
    """A module with parameters of its own, and what it is for."""

    name: str
    role: str
    layer: int | None
    """Number of its layer within its stack, from 0; None outside the layers."""
    stack: str
    """``encoder``, ``decoder`` or empty, as the module's name says."""

    def belongs(self, group: str) -> bool:
        """True when the role is ``group`` itself or in the group of that name (`GROUPS`)."""
        return self.role == group or self.role.startswith(GROUPS.get(group, (f"{group}\0",)))


def role_of(name: str, module: nn.Module | None = None) -> str:
    """The role of a module by its dotted name, and by its class where given (embeddings and norms)."""
    if _SENSE.search(name):
        return "sense"
    if _HEAD.search(name):
        return "head"
    by_class = "" if module is None else _role_of_class(name, module)
    if by_class:
        return by_class
    if _ROUTER.search(name):
        return "router"
    if _KERNEL.search(name):
        return "kernel"
    for pattern, role in _ATTENTION_ROLES:
        if pattern.search(name):
            return role.replace("attention", "cross_attention") if _CROSS.search(name) else role
    return next((role for pattern, role in _MLP_ROLES if pattern.search(name)), "other")


def _role_of_class(name: str, module: nn.Module) -> str:
    from torch import nn

    last = name.rpartition(".")[2].lower()
    if isinstance(module, nn.Embedding):
        return "position_embedding" if "position" in last or last in ("wpe", "relative_attention_bias") else "embedding"
    kind = type(module).__name__.lower()
    return "norm" if "norm" in kind and not list(module.children()) else ""


def describe(name: str, module: nn.Module | None = None) -> ModuleRole:
    """Role, layer and stack of one module."""
    role, layer, stack = role_of(name, module), _LAYER.search(name), _STACK.search(name)
    if role == "sense":  # its layers are no layers of the model that reads the text
        return ModuleRole(name, role, None, "")
    return ModuleRole(name, role, int(layer[1]) if layer else None, stack[1] if stack else "")


def roles(model: nn.Module) -> list[ModuleRole]:
    """Every module that holds parameters of its own, in the model's order; the model's own scorer is a head."""
    scorer = _scorer(model)
    found = []
    for name, module in model.named_modules():
        if name and any(True for _ in module.parameters(recurse=False)):
            role = describe(name, module)
            found.append(ModuleRole(name, "head", None, role.stack) if module is scorer else role)
    return found


def backbone_of(model: Any) -> Any:
    """What lies below the head. Llama 4 for text names a prefix that it does not have: its own ``model`` is meant."""
    base = model.base_model
    return getattr(model, "model", base) if base is model else base


def first_position(model: Any) -> int:
    """The number of a text's first position: RoBERTa's kind counts from behind the padding's entry."""
    from torch import nn

    for name, module in backbone_of(model).named_modules():
        if isinstance(module, nn.Embedding) and name.endswith("position_embeddings"):
            return 0 if module.padding_idx is None else module.padding_idx + 1
    return 0


def input_embeddings(model: Any) -> Any:
    """The module that a model calls on its input ids: the encoder's, where an encoder and a decoder have one each."""
    return (model.get_encoder() if model.config.is_encoder_decoder else model).get_input_embeddings()


def _scorer(model: nn.Module) -> Any:
    getter = getattr(model, "get_output_embeddings", None)
    try:
        return getter() if getter is not None else None
    except (AttributeError, NotImplementedError):  # models without a scorer raise either
        return None


def layer_counts(found: list[ModuleRole]) -> dict[str, int]:
    """Stack -> its number of layers."""
    counts: dict[str, int] = {}
    for role in found:
        if role.layer is not None:
            counts[role.stack] = max(counts.get(role.stack, 0), role.layer + 1)
    return counts


def is_linear(module: nn.Module) -> bool:
    """True for a matrix product: ``nn.Linear`` (4-bit ones included) and GPT-2's transposed ``Conv1D``."""
    from torch import nn
    from transformers.pytorch_utils import Conv1D

    return isinstance(module, nn.Linear | Conv1D)


def linear_targets(model: nn.Module, which: str = "all-linear") -> list[str]:
    """Names of the linear modules that an adapter goes to, in the model's order; never a head, router, kernel or sense.

    ``which`` is as for `chosen_linears`. Raises `UsageError` when nothing in the model answers to it.
    """
    modules = dict(model.named_modules())
    return [role.name for role in chosen_linears([r for r in roles(model) if is_linear(modules[r.name])], which)]


def chosen_linears(linears: Sequence[ModuleRole], which: str = "all-linear") -> list[ModuleRole]:
    """Those of ``linears`` that ``which`` means, in the given order; never a head, a router, a kernel's own
    matrix or what reads images, where an adapter would be passed over.

    ``which``: ``all-linear``, a group of `GROUPS` (``attention``, ``mlp``, ``cross_attention``, …), a role
    (``attention.q``), or several joined by ``+`` (``attention.q+attention.v``). Needs names only, so it serves a
    model's shapes as well as the model. Raises `UsageError` when nothing answers to it.
    """
    wanted = [part.strip() for part in which.split("+")]
    candidates = [role for role in linears if role.role not in ("head", "router", "kernel", "sense")]
    if wanted == ["all-linear"]:
        chosen = [role for role in candidates if role.layer is not None]
    else:
        chosen = [role for role in candidates if any(role.belongs(part) for part in wanted)]
    if not chosen:
        available = sorted({role.role for role in candidates})
        raise UsageError(
            f"no linear module of this model is {which!r}.",
            remedy=f"It has {', '.join(available) or 'none that we know'}; or say all-linear.",
        )
    return chosen
