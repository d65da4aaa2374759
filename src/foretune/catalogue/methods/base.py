"""What is declared of a fine-tuning method without loading it: settings, promises, learning-rate scale, and its count.

A *count* is a closed form over the linear layers that a method attaches to (`Target`) and the model's widths
(`Widths`, which `foretune.cost.shapes.ModelShapes` satisfies), so a trainable share becomes a rank without torch.
Settings reach a count without the method's prefix: ``{"rank": 16, "alpha": 32.0, …}``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

from foretune.catalogue.space import Choice, Number, Parameter, Space
from foretune.catalogue.traits import Traits

Evidence = Literal["paper equations", "released code", "reconstruction"]
Family = Literal["whole", "delta", "edit", "sublayer", "embedding", "prompt", "selection", "recipe"]
"""What a method adds to: every weight; a linear layer's weight; activations; sub-layers; embeddings; the prompt; a
selection of the model's own parameters; or a way of training another method."""

TARGET_CHOICES = ("all-linear", "attention", "mlp")
RAISED = "raised"
"""The setting that says how many targets have a knob one higher than the others."""


@dataclass(frozen=True)
class Target:
    """A linear layer that an adapter may go to."""

    name: str
    role: str
    """As `foretune.models.modules` names it: ``attention.q``, ``mlp.down``, …"""
    inputs: int
    outputs: int
    layer: int | None = None
    bias: bool = False


class Widths(Protocol):
    """What counts need of a model besides its linear layers."""

    @property
    def width(self) -> int:
        """Hidden width d."""
        ...

    @property
    def layers(self) -> int:
        """Layers of the (only or) decoder stack."""
        ...

    @property
    def total_layers(self) -> int:
        """Layers of all stacks: the L of the formulas."""
        ...

    @property
    def heads(self) -> int:
        """Attention heads."""
        ...

    @property
    def kv_heads(self) -> int:
        """Heads of keys and values."""
        ...

    @property
    def head_dim(self) -> int:
        """Width of a head."""
        ...

    @property
    def ffn_width(self) -> int:
        """Inner width f of the feed-forward layers."""
        ...

    @property
    def vocabulary(self) -> int:
        """Rows of the embedding."""
        ...

    @property
    def kind(self) -> str:
        """causal, seq2seq or encoder."""
        ...


Count = Callable[[Sequence[Target], Widths, Mapping[str, Any]], int]
"""(targets, model, settings) -> trainable parameters. ``targets`` are those the settings choose, in model order."""


@dataclass(frozen=True)
class Declaration:
    """What is known of a method without loading it."""

    name: str
    about: str
    space: Space
    """Every setting it has, named ``"<method>.<setting>"``, with the default."""
    menu: Space
    """The part of the space, and the values, that a search draws from."""
    traits: Traits
    rate_multiplier: float
    """Its best learning rate as a multiple of full fine-tuning's."""
    short_run_multiplier: float
    """A further factor for runs shorter than `priors.SHORT_RUN_STEPS`."""
    source: str
    """Where method and multipliers come from."""
    knob: str = ""
    """The setting (without prefix) that a trainable share decides; empty where the size is fixed."""
    formula: str = ""
    """The count in words: r ranks, i inputs, o outputs of a target; d width, f inner width, L layers."""
    count: Count | None = None
    """The closed form; None where only an instantiation on the meta device can tell."""
    evidence: Evidence = "paper equations"
    family: Family = "delta"
    expression: str = ""
    """For a selection of the model's own parameters: the expression that picks them, its settings in braces"""
    layerwise: bool = True
    """Whether the key ``layers`` can restrict it to some layers."""
    kinds: tuple[str, ...] = ("causal", "seq2seq", "encoder")
    """Kinds of model it works on."""
    example: Mapping[str, Any] = field(default_factory=dict)
    """Settings, without the prefix, that suit a model of width 32: what the contract is checked with."""
    switches: bool = True
    """Whether two adapters of it can be attached at once."""
    notes: tuple[str, ...] = ()
    """What a user should know before choosing it."""
    merges: Callable[[Mapping[str, Any]], bool] | None = None
    """Which of its settings merge exactly, where the trait is ``approximate``."""

    def own(self, config: Mapping[str, Any]) -> dict[str, Any]:
        """Its settings in a flat configuration, without the prefix, completed with the defaults."""
        prefix = f"{self.name}."
        given = {key.removeprefix(prefix): value for key, value in config.items() if key.startswith(prefix)}
        return {name.removeprefix(prefix): value for name, value in self.space.defaults().items()} | given

    def merges_exactly(self, config: Mapping[str, Any]) -> bool:
        """Whether what a flat configuration trains on one task becomes part of the base weights as it is."""
        if self.traits.merge in ("exact", "per_task"):
            return True
        return self.merges is not None and self.merges(self.own(config))

    def selector(self, own: Mapping[str, Any], layers: str) -> str:
        """The expression of a selection with its settings put in, restricted to ``layers``."""
        words = self.expression.format(**own)
        return words if layers == "all" else f"({words}) & ({layers})"

    @property
    def knob_range(self) -> tuple[int, int]:
        """The smallest and the largest value of the knob. Raises `ValueError` where there is none."""
        parameter = self.space[f"{self.name}.{self.knob}"] if self.knob else None
        if not isinstance(parameter, Number):
            raise ValueError(f"{self.name} has no knob")
        return int(parameter.low), int(parameter.high)

    @property
    def fills(self) -> bool:
        """Whether some targets may have a knob one higher, so that a share is met closely."""
        return f"{self.name}.{RAISED}" in self.space


def raise_order(targets: Sequence[Target]) -> list[Target]:
    """The order in which targets get a higher knob: feed-forward before attention, upper layers before lower.

    The feed-forward layers come first because LoRA gains most there (Schulman et al. 2025).
    """

    def place(target: Target) -> tuple[bool, int, bool, str]:
        return (not target.role.startswith("mlp"), -(target.layer or 0), "decoder" not in target.name, target.role)

    return sorted(targets, key=place)


def knob_values(targets: Sequence[Target], own: Mapping[str, Any], knob: str) -> list[int]:
    """The knob of every target: as set, one higher for the first ``raised`` of `raise_order`."""
    raised = {target.name for target in raise_order(targets)[: int(own.get(RAISED, 0))]}
    return [int(own[knob]) + (target.name in raised) for target in targets]


def per_linear(formula: Callable[[int, int, int, Mapping[str, Any]], int], knob: str = "rank") -> Count:
    """A count that is a sum over targets: ``formula(inputs, outputs, knob's value, settings)``."""

    def count(targets: Sequence[Target], model: Widths, own: Mapping[str, Any]) -> int:
        values = knob_values(targets, own, knob)
        return sum(formula(t.inputs, t.outputs, value, own) for t, value in zip(targets, values, strict=True))

    return count


def rank(
    method: str, default: int = 16, *, high: int = 1024, low: int = 1, about: str = "Rank of the update."
) -> Number:
    """The usual knob ``<method>.rank``."""
    return Number(f"{method}.rank", low, high, default, log=True, whole=True, about=about)


def alpha(method: str, default: float = 32.0, about: str = "The update is scaled by alpha / rank.") -> Number:
    """The usual scale ``<method>.alpha``."""
    return Number(f"{method}.alpha", 1e-3, 4096, default, log=True, about=about)


def dropout(method: str) -> Number:
    """The usual dropout ``<method>.dropout``."""
    return Number(f"{method}.dropout", 0.0, 0.9, 0.0, about="Dropout on the input of the update.")


def targets(method: str, default: str = "all-linear") -> Choice:
    """The usual choice ``<method>.targets``."""
    return Choice(f"{method}.targets", TARGET_CHOICES, default, about="Which linear layers.")


def raised(method: str) -> Number:
    """How many targets have a knob one higher: set by the trainable-share solver, 0 otherwise."""
    about = "Targets whose knob is one higher, feed-forward and upper layers first; set by --trainable."
    return Number(f"{method}.{RAISED}", 0, 100_000, 0, whole=True, about=about)


def low_rank_space(method: str, *more: Parameter, default_rank: int = 16, default_alpha: float = 32.0) -> Space:
    """rank, alpha, dropout, targets, then ``more``, then raised."""
    usual = (rank(method, default_rank), alpha(method, default_alpha), dropout(method), targets(method))
    return Space((*usual, *more, raised(method)))


def low_rank_menu(method: str) -> Space:
    """What a search draws of a LoRA-like method."""
    return Space(
        (
            Choice(f"{method}.rank", (8, 16, 32, 64), 16),
            Choice(f"{method}.alpha", (16, 32, 64), 32),
            Choice(f"{method}.targets", TARGET_CHOICES, "all-linear"),
        )
    )


ADAPTER_TRAITS = Traits(
    identity_at_init=True, merge="exact", disables_to_base=True, packable=True, deterministic=True, servable=False
)
"""A mergeable adapter of ours: servers need our package for the adapter itself, and none once it is merged."""
