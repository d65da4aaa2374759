"""What a model is made of, read from its ``config.json`` alone: every linear layer, norm and embedding with its size.

Everything that counts parameters or operations stands on this: the forecast, the plan, and the solver that turns
"0.5 % trainable" into a rank. No weights and no torch are needed. Names are those that transformers gives the
modules of the class Foretune loads (``AutoModelForCausalLM``, ``AutoModelForSeq2SeqLM``; ``AutoModel`` for encoders),
with ``{layer}`` for the layer's number; a test instantiates every supported architecture on the meta device and
compares names, shapes and the total.

Architectures that are not described raise `ModelError` here; `models.measured_shapes` measures them on the class
itself, which needs torch.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from foretune.catalogue.models import ModelKind
from foretune.errors import ModelError, Place

Stack = Literal["encoder", "decoder"]

CROSS = "cross_"
"""Roles of the encoder–decoder attention begin with this."""

TARGET_ROLES: Mapping[str, tuple[str, ...] | None] = {
    "all-linear": None,
    "attention": ("query", "key", "value", "output", "query_key_value"),
    "mlp": ("gate", "up", "down", "gate_up"),
}
"""The roles behind each choice of ``lora.targets``; None for all of them."""


@dataclass(frozen=True)
class Linear:
    """A family of equal linear layers, one (or ``per_layer``) in each layer of a stack.

    ``role`` is what it does, the same word in every architecture: query, key, value, output, gate, up, down, the
    fused query_key_value and gate_up, and these with `CROSS` in front; outside the layers head, pooler, project.
    """

    role: str
    pattern: str
    inputs: int
    outputs: int
    layers: int
    per_layer: int = 1
    bias: bool = False
    stack: Stack = "decoder"
    in_layers: bool = True

    @property
    def count(self) -> int:
        """How many of these matrices the model has."""
        return self.layers * self.per_layer

    @property
    def weights(self) -> int:
        """Entries of all their matrices, biases not counted."""
        return self.inputs * self.outputs * self.count

    @property
    def biases(self) -> int:
        """Entries of all their bias vectors."""
        return self.outputs * self.count if self.bias else 0

    @property
    def parameters(self) -> int:
        """Weights and biases."""
        return self.weights + self.biases

    def names(self) -> Iterator[str]:
        """The module names, one for every layer."""
        return (self.pattern.format(layer=layer) for layer in range(self.layers))


@dataclass(frozen=True)
class Norm:
    """A family of equal layer norms (with ``bias``) or RMS norms (without)."""

    role: str
    pattern: str
    width: int
    layers: int
    bias: bool = False
    stack: Stack = "decoder"
    in_layers: bool = True

    @property
    def parameters(self) -> int:
        """Scales and biases of all of them."""
        return self.width * self.layers * (2 if self.bias else 1)

    @property
    def biases(self) -> int:
        """Entries of their bias vectors."""
        return self.width * self.layers if self.bias else 0


@dataclass(frozen=True)
class Embedding:
    """A lookup table: (rows, width)."""

    role: str
    pattern: str
    rows: int
    width: int

    @property
    def parameters(self) -> int:
        """Entries of the table."""
        return self.rows * self.width


@dataclass(frozen=True)
class ModelShapes:
    """A model's sizes. ``layers`` counts decoder layers, or encoder layers where there is no decoder."""

    architecture: str
    """transformers' ``model_type``"""
    kind: ModelKind
    layers: int
    encoder_layers: int
    """Layers of the encoder of an encoder–decoder; 0 otherwise"""
    width: int
    heads: int
    kv_heads: int
    head_dim: int
    ffn_width: int
    vocabulary: int
    context_tokens: int
    """Longest sequence the positions were made for; 0 when the architecture has no limit of its own"""
    tied_embeddings: bool
    """Whether the output head is the input embedding, so that it counts once"""
    linears: tuple[Linear, ...]
    """Linear layers inside the layers: what adapters attach to"""
    norms: tuple[Norm, ...]
    embeddings: tuple[Embedding, ...]
    extra_linears: tuple[Linear, ...] = ()
    """Linear layers outside the layers: an untied head, a pooler, a projection of the embeddings"""
    extra_parameters: int = 0
    """Parameters that are none of the above, such as T5's relative position biases or the experts of a mixture"""
    routed_weights: int = 0
    """Entries of the experts that one token passes, in all layers"""
    activation: str = ""
    """transformers' name of the activation function in the feed-forward layer"""
    dropout: bool = False
    """Whether the configuration drops entries of the residual stream in training"""
    attention_dropout: bool = False
    """Whether it drops attention probabilities in training, which then have to be kept"""

    @classmethod
    def from_config(cls, config: Mapping[str, Any] | Path | str) -> ModelShapes:
        """Read a ``config.json``: its content, its path or the folder that holds it.

        Raises `ModelError` for an architecture that is not known, a missing or senseless size, a damaged file.
        """
        from foretune.cost.architectures import build

        if isinstance(config, Mapping):
            return build(config)
        path = Path(config)
        path = path / "config.json" if path.is_dir() else path
        return build(read_config(path), place=Place(path))

    @property
    def parameters(self) -> int:
        """All parameters, tied ones counted once."""
        return self.embedding_parameters + self.non_embedding_parameters

    @property
    def embedding_parameters(self) -> int:
        """Entries of the lookup tables, and of an untied head."""
        head = sum(linear.parameters for linear in self.extra_linears if linear.role == "head")
        return head + sum(table.parameters for table in self.embeddings)

    @property
    def non_embedding_parameters(self) -> int:
        """Everything but lookup tables and head."""
        extra = sum(linear.parameters for linear in self.extra_linears if linear.role != "head")
        return (
            sum(linear.parameters for linear in self.linears)
            + sum(norm.parameters for norm in self.norms)
            + extra
            + self.extra_parameters
        )

    @property
    def norm_parameters(self) -> int:
        """Scales and biases of the norms inside the layers: what "layer-norm tuning" trains."""
        return sum(norm.parameters for norm in self.norms if norm.in_layers)

    @property
    def bias_parameters(self) -> int:
        """Biases of linears and norms inside the layers: what BitFit trains."""
        return sum(item.biases for item in self.linears) + sum(n.biases for n in self.norms if n.in_layers)

    @property
    def cross_attention_parameters(self) -> int:
        """Encoder–decoder attention with its norm; 0 for other kinds."""
        linears = sum(linear.parameters for linear in self.linears if linear.role.startswith(CROSS))
        return linears + sum(norm.parameters for norm in self.norms if norm.role.startswith(CROSS))

    @property
    def total_layers(self) -> int:
        """Layers of all stacks: the L of the adapter formulas."""
        return self.layers + self.encoder_layers

    def select(self, roles: Iterable[str] | None = None) -> tuple[Linear, ...]:
        """The linears in the layers whose role is among ``roles`` (cross-attention included); None for all.

        Raises `ModelError` when nothing matches, naming the roles there are.
        """
        if roles is None:
            return self.linears
        wanted = set(roles)
        chosen = tuple(item for item in self.linears if item.role in wanted or item.role.removeprefix(CROSS) in wanted)
        if not chosen:
            known = ", ".join(dict.fromkeys(item.role for item in self.linears))
            raise ModelError(
                f"no linear layer of a {self.architecture} model has the role {', '.join(sorted(wanted))}.",
                remedy=f"Its roles are {known}.",
            )
        return chosen

    def lora_parameters(self, rank: int, roles: Iterable[str] | None = None) -> int:
        """Trainable parameters of LoRA: rank · (inputs + outputs) for every target (Hu et al. 2021, section 4)."""
        return sum(rank * (item.inputs + item.outputs) * item.count for item in self.select(roles))


def read_config(path: Path) -> dict[str, Any]:
    """The JSON object in ``path``. Raises `ModelError` when it is missing, damaged or not an object."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise ModelError(
            "there is no such file.", place=Place(path), remedy="A model folder holds a config.json beside its weights."
        ) from error
    except (OSError, UnicodeDecodeError, json.JSONDecodeError, RecursionError) as error:
        line = error.lineno if isinstance(error, json.JSONDecodeError) else None
        raise ModelError(
            f"this is not readable JSON ({error}).", place=Place(path, line), remedy="Fetch the model again."
        ) from error
    if not isinstance(value, dict):
        raise ModelError("this is JSON, but not an object.", place=Place(path), remedy="Fetch the model again.")
    return value
