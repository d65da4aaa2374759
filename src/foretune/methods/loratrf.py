"""LoRATRF, a reconstruction: LoRA plus a task-relevant edit of each layer's output behind a task-aware filter.

Li, Ding, Luan and Di (2024, 2412.09827) describe LoRA with task-relevant feature enhancement "from the perspective of
editing neural network representations" and a task-aware filter over hidden representations. Their equations could not
be read; the form here follows the one public implementation and its ancestor TOAST (Shi et al. 2023, 2305.15542):

    h(x) = W₀ x + b
    g(x) = clamp( ⟨h, t⟩ / max(‖h‖·‖t‖, ε), 0, 1 )             one scalar a token, in float32
    y    = h + (α/r)·B A drop(x) + (α_t/r_t)·D ( g·(C h) )       (g·(C h) before D: two thin products)
    init : A, C Kaiming uniform (a = √5); B = D = 0; t ~ N(0, I)     trained: A, B, C, D, t

With t ~ N(0, I) the cosine is about 1/√o in size and half the tokens are clamped to 0, so the edit is nearly shut;
``cos_scaled`` multiplies the cosine by √o first. Controls of every comparison: ``trf_rank=0`` (plain LoRA),
``trf_gate=none``, ``use_lora=False``. With ``trf_gate=none`` the edit is linear and everything merges exactly:

    W' = W₀ + s B A + s_t D C W₀        b' = b + s_t D C b

The same holds for ``channel``, a gate for each output that no token moves: C·diag(σ(t)) stands in place of C. Otherwise
the gate depends on the token and merging is refused; `foretune.export.approximate` measures the mean gate.

``trf_positions``: all, or the first k of each row. The last of the prompt, which while training differ from row to row,
are not offered.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import islice
from typing import Any, cast

import torch
from torch import nn
from torch.nn.functional import linear

from foretune.catalogue.methods.loratrf import TOKENLESS, edit_rank
from foretune.errors import UsageError
from foretune.methods.adapter import AdapterMethod, Request
from foretune.methods.attachment import PeftAttachment
from foretune.methods.fused import Stack, plain, stacked, unhooked
from foretune.methods.tuners.config import AdapterConfig
from foretune.methods.tuners.edit import EditModel
from foretune.methods.tuners.fused_edit import GATES, EditedLora, Group
from foretune.methods.tuners.layer import AdapterLayer, Update, widths_of
from foretune.methods.tuners.model import define
from foretune.methods.tuners.task_edit import SMALLEST_NORM, Edit, Gate

CALIBRATION_ROWS = 32
"""Rows that ``trf_task_init=mean_hidden`` looks at."""


@dataclass
class LoratrfConfig(AdapterConfig):
    """Settings of LoRATRF."""

    rank: int = field(default=16, metadata={"help": "Rank of the LoRA branch."})
    alpha: float = field(default=32.0, metadata={"help": "The LoRA branch is scaled by alpha / rank."})
    dropout: float = field(default=0.0, metadata={"help": "Dropout on the input of the LoRA branch."})
    trf_rank: int = field(default=-1, metadata={"help": "Rank of the edit; -1 half the rank; 0 no edit."})
    trf_alpha: float = field(default=0.0, metadata={"help": "The edit's scale over its rank; 0: as LoRA's."})
    trf_site: str = field(default="module", metadata={"help": "module or block."})
    trf_gate: str = field(default="cos_scaled", metadata={"help": "How the edit is let through."})
    trf_task_init: str = field(default="normal", metadata={"help": "normal or mean_hidden."})
    trf_positions: str = field(default="all", metadata={"help": "all, or first:k of each row."})
    use_lora: bool = field(default=True, metadata={"help": "Whether the LoRA branch is there."})
    blocks: list[str] = field(default_factory=list, metadata={"help": "Blocks that are edited (site block)."})

    method = "loratrf"


class LoratrfUpdate(Update):
    """The LoRA branch and the edit of one linear layer."""

    def __init__(self, base: nn.Module, inputs: int, outputs: int, config: Any, name: str) -> None:
        super().__init__(base, inputs, outputs, config, name)
        rank = config.knob_of(name)
        self.a = nn.Parameter(torch.empty(rank, inputs)) if config.use_lora else None
        self.b = nn.Parameter(torch.empty(outputs, rank)) if config.use_lora else None
        self.scale: float = config.alpha / rank
        edit = edit_rank({"trf_rank": config.trf_rank}, rank) if config.trf_site == "module" else 0
        self.edit = Edit(outputs, edit, config) if edit else None
        exact = self.edit is None or (config.trf_gate in TOKENLESS and config.trf_positions == "all")
        self.refuses_merge = "" if exact else _GATED

    def reset(self) -> None:
        """A Kaiming uniform, B = 0; the edit as its class says."""
        if self.a is not None and self.b is not None:
            nn.init.kaiming_uniform_(self.a, a=math.sqrt(5))
            nn.init.zeros_(self.b)
        if self.edit is not None:
            self.edit.reset()

    def forward(self, x: torch.Tensor, hidden: torch.Tensor) -> torch.Tensor:
        """(..., outputs): what is added to the layer's output."""
        inner: list[torch.Tensor] = []
        ups: list[torch.Tensor] = []
        if self.a is not None and self.b is not None:
            inner, ups = [linear(self.dropout(x), self.a) * self.scale], [self.b]
        if self.edit is not None:
            inner, ups = [*inner, self.edit(hidden)], [*ups, self.edit.up]
        return linear(torch.cat(inner, dim=-1), torch.cat(ups, dim=1))  # one product of full width for both branches

    def merged(self, weight: torch.Tensor, bias: torch.Tensor | None) -> tuple[torch.Tensor, torch.Tensor | None]:
        """W₀ + s B A + s_t D C W₀ and b + s_t D C b; raises `ValueError` behind a gate."""
        if self.refuses_merge:
            raise ValueError(self.refuses_merge)
        down, up, shift = self.as_lora(weight, bias)
        return weight + up @ down, bias if bias is None or shift is None else bias + shift

    def as_lora(
        self, weight: torch.Tensor, bias: torch.Tensor | None, gate: float = 1.0
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
        """A' (ranks, inputs), B' (outputs, ranks) and the change of the bias, float32, with ``gate`` for the gate.

        Exact where the gate depends on no token: ``none`` (1), and ``channel``, whose own values are used.
        """
        downs, ups, shift = [], [], None
        if self.a is not None and self.b is not None:
            downs, ups = [self.a.float()], [self.scale * self.b.float()]
        if self.edit is not None:
            down = self.edit.down.float()
            if self.edit.kind == "channel" and self.edit.task is not None:
                down = down * torch.sigmoid(self.edit.task.float())
            downs.append(down @ weight.float())
            ups.append(gate * self.edit.scale * self.edit.up.float())
            shift = None if bias is None else ups[-1] @ (down @ bias.float())
        return torch.cat(downs).detach(), torch.cat(ups, dim=1).detach(), None if shift is None else shift.detach()


class LoratrfLayer(AdapterLayer):
    """A linear layer with the shorter way of `foretune.methods.tuners.fused_edit` where that is exact."""

    stack: Stack | None = None

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """(..., in) to (..., out)."""
        if self.stack is None or len(args) != 1 or kwargs or not self.exact_for(args[0]):
            return super().forward(*args, **kwargs)
        return self.stack.output(self, args[0])

    def exact_for(self, x: torch.Tensor) -> bool:
        """Whether the shorter way gives this layer's own result for ``x`` in its present state."""
        if self.disable_adapters or self.merged or len(active := self._active()) != 1:
            return False
        update, base = active[0], self.base_layer
        if not isinstance(update, LoratrfUpdate) or (edit := update.edit) is None or update.a is None:
            return False
        if edit.kind not in GATES or edit.first is not None or edit.seen is not None:
            return False
        if not plain(base) or not (unhooked(update) and unhooked(edit)) or torch.is_autocast_enabled(x.device.type):
            return False
        if base.weight.requires_grad or (isinstance(update.dropout, nn.Dropout) and update.dropout.training):
            return False
        return all(weight.dtype == x.dtype for weight in (base.weight, update.a, edit.down))


def _apply(layers: Sequence[LoratrfLayer], x: torch.Tensor) -> tuple[torch.Tensor, ...]:
    updates: list[Any] = [layer._active()[0] for layer in layers]
    bases: list[Any] = [layer.base_layer for layer in layers]
    group = Group(
        updates[0].edit.kind,
        tuple(update.scale for update in updates),
        tuple(update.edit.scale for update in updates),
        tuple(base.bias for base in bases),
    )
    tensors = [
        tensor
        for base, own in zip(bases, updates, strict=True)
        for tensor in (base.weight, own.a, own.b, own.edit.down, own.edit.up, own.edit.task)
    ]
    return EditedLora.apply(x, group, *tensors)  # type: ignore[no-any-return, no-untyped-call]


_GATED = (
    "the edit of LoRATRF depends on the token (trf_gate), so it is no fixed weight; "
    "export it with --approximate, or train with trf_gate=none"
)


class BlockUpdate(Update):
    """The edit of a whole block's output."""

    refuses_merge = "an edit of a block's output is no weight of a layer"

    def __init__(self, base: nn.Module, inputs: int, outputs: int, config: Any, name: str) -> None:
        super().__init__(base, inputs, outputs, config, name)
        rank = edit_rank({"trf_rank": config.trf_rank}, config.rank)
        self.edit = Edit(outputs, rank, config)

    def reset(self) -> None:
        """As the edit's class says."""
        self.edit.reset()

    def forward(self, x: torch.Tensor, hidden: torch.Tensor) -> torch.Tensor:
        """(..., width): the edit."""
        return linear(self.edit(hidden), self.edit.up)


class LoratrfBase(EditModel):
    """Linear layers get the LoRA branch; blocks get their edit where the site is the block."""

    layer_class = LoratrfLayer

    def build(self, config: Any, base: nn.Module, name: str) -> Update:
        """The update of the module called ``name``."""
        if name in config.blocks:
            width = int(self.model.config.get_text_config().hidden_size)
            update: Any = BlockUpdate(base, width, width, config, name)
        else:
            update = LoratrfUpdate(base, *widths_of(base), config, name)
        if update.edit is not None:
            update.edit.watch = self._watch()
        return cast(Update, update)

    def _post_injection_hook(self, model: nn.Module, config: Any, adapter_name: str) -> None:
        if config.trf_positions != "all":
            self._watch().attach(model)
        layers = {name: module for name, module in model.named_modules() if isinstance(module, LoratrfLayer)}
        for names in stacked(name for name, layer in layers.items() if plain(layer.base_layer)):
            stack = Stack([layers[name] for name in names], _apply)
            for name in names:
                layers[name].stack = stack

    @contextmanager
    def observing(self) -> Iterator[None]:
        """Inside, gates count what passes them."""
        found = edits(self.model)
        for edit in found.values():
            edit.seen = Gate()
        try:
            yield
        finally:
            self._seen = {name: edit.seen for name, edit in found.items() if edit.seen is not None and edit.seen.tokens}
            for edit in found.values():
                edit.seen = None

    def statistics(self) -> dict[str, float]:
        """The gates seen while observing: their mean, the share of open ones, and the least and most open layer."""
        seen: list[Gate] = list(getattr(self, "_seen", {}).values())
        if not seen:
            return {}
        means = [gate.total / gate.tokens for gate in seen]
        tokens = sum(gate.tokens for gate in seen)
        return {
            "gate_mean": sum(gate.total for gate in seen) / tokens,
            "gate_open_share": sum(gate.open for gate in seen) / tokens,
            "gate_lowest_layer": min(means),
            "gate_highest_layer": max(means),
        }


def edits(model: nn.Module) -> dict[str, Edit]:
    """Every edit in a model, by its module's name."""
    return {name: module for name, module in model.named_modules() if isinstance(module, Edit)}


def build(request: Request) -> LoratrfConfig:
    """The peft configuration."""
    fields = ("rank", "alpha", "dropout", "trf_rank", "trf_alpha", "trf_site", "trf_gate", "trf_task_init",
              "trf_positions", "use_lora")  # fmt: skip
    if not request.own["use_lora"] and request.own["trf_rank"] == 0:
        raise UsageError("loratrf with neither its LoRA branch nor its edit trains nothing.")
    settings = request.settings(*fields)
    blocks: list[str] = []
    if request.own["trf_site"] == "block" and request.own["trf_rank"] != 0:
        blocks = list(dict.fromkeys(name for target in request.targets if (name := _block_of(target.name))))
        linears = request.names if request.own["use_lora"] else []
        settings["target_modules"] = [*blocks, *linears]
    return LoratrfConfig(**settings, blocks=blocks)


def _block_of(name: str) -> str:
    """The decoder block that a linear layer belongs to: the name up to its first number."""
    parts = name.split(".")
    number = next((i for i, part in enumerate(parts) if part.isdigit()), None)
    return "" if number is None else ".".join(parts[: number + 1])


def mean_hidden(model: Any, calibration: Iterable[Mapping[str, Any]]) -> dict[str, torch.Tensor]:
    """The mean hidden state over calibration rows at every edit with a task vector, stretched to the norm √width.

    ``calibration`` yields keyword arguments of the model. The edits are still zero, so they see the base's states.
    """
    sums: dict[str, torch.Tensor] = {}

    def adding(name: str) -> Any:
        def add(_: Any, arguments: tuple[torch.Tensor, ...]) -> None:
            hidden = arguments[0].detach().float()
            mean = hidden.reshape(-1, hidden.shape[-1]).mean(0)
            sums[name] = sums.get(name, torch.zeros_like(mean)) + mean

        return add

    asked = {name: edit for name, edit in edits(model).items() if edit.task is not None}
    handles = [edit.register_forward_pre_hook(adding(name)) for name, edit in asked.items()]
    try:
        with torch.no_grad():
            for batch in islice(calibration, CALIBRATION_ROWS):
                model(**{key: value for key, value in batch.items() if key != "labels"})
    finally:
        for handle in handles:
            handle.remove()
    norms = {name: torch.linalg.vector_norm(total).clamp_min(SMALLEST_NORM) for name, total in sums.items()}
    return {name: total / norms[name] * math.sqrt(total.numel()) for name, total in sums.items()}


def start(attachment: PeftAttachment, request: Request) -> None:
    """With ``trf_task_init=mean_hidden``, task vectors start as mean hidden states; `UsageError` without rows."""
    if request.own["trf_task_init"] != "mean_hidden":
        return
    model: Any = attachment.model
    found = request.from_rows(lambda calibration: mean_hidden(model, calibration))
    if found is None:
        raise UsageError("trf_task_init=mean_hidden needs calibration rows.", remedy="Use normal here.")
    begun = edits(model)
    with torch.no_grad():
        for name, vector in found.items():
            begun[name].get_parameter("task").copy_(vector)


define(LoratrfConfig, LoratrfUpdate, model=LoratrfBase)
METHOD = AdapterMethod("loratrf", build, start)
