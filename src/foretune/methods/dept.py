"""DePT (Shi & Lipani 2023, 2309.05173, section 2.2): a short soft prompt and a low-rank change of the embeddings.

    [P ; E + (A B)]        P ∈ R^{m×d},  A ∈ R^{s×r},  B ∈ R^{r×d}: row j of A B is added at position j < s

P starts as the embeddings of random tokens, B = 0. P and (A, B) have learning rates of their own.

The prompt is run through the model once a call, and its keys and values stand before every row's in each attention
(`foretune.methods.tuners.prefix`), which is the same as putting it before the row: it sees nothing of the row. So rows
keep their length; their positions move behind the prompt. The change of the embeddings goes by a token's position in
its row, whatever the layout. Causal models only; not with gradient checkpointing, under which transformers keeps no
keys.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from torch.utils.hooks import RemovableHandle

from foretune.catalogue.methods.sites import attentions_of
from foretune.methods.adalink import token_embeddings
from foretune.methods.adapter import AdapterMethod, Request
from foretune.methods.attachment import PeftAttachment
from foretune.methods.tuners.config import AdapterConfig
from foretune.methods.tuners.layer import AdapterLayer, Update
from foretune.methods.tuners.model import AdapterModel, define
from foretune.methods.tuners.prefix import GivenPrefix, restore_all


@dataclass
class DeptConfig(AdapterConfig):
    """Settings of DePT."""

    prompt: int = field(default=40, metadata={"help": "Learnt vectors before the row."})
    rank: int = field(default=45, metadata={"help": "Rank of the change of the embeddings."})
    positions: int = field(default=256, metadata={"help": "Positions whose embeddings change."})
    attentions: list[str] = field(default_factory=list, metadata={"help": "Attention modules that see the prompt."})

    method = "dept"


class Dept(Update):
    """The prompt, and what is added to the embeddings."""

    refuses_merge = "a prompt is no weight of a layer"

    def __init__(self, base: nn.Module, inputs: int, outputs: int, config: Any, name: str) -> None:
        super().__init__(base, inputs, outputs, config, name)
        self.prompt = nn.Parameter(torch.empty(config.prompt, outputs))
        self.a = nn.Parameter(torch.empty(config.positions, config.rank))
        self.b = nn.Parameter(torch.empty(config.rank, outputs))
        self.__dict__["table"] = base
        self.row_positions: torch.Tensor | None = None
        """(1 or batch, time) positions within the row, in the call that runs"""

    def reset(self) -> None:
        """P from the table of embeddings, A Kaiming uniform, B = 0."""
        weight: torch.Tensor = self.table.weight  # type: ignore[union-attr,assignment]
        chosen = torch.randint(0, weight.shape[0], (len(self.prompt),))
        with torch.no_grad():
            self.prompt.copy_(self.table(chosen.to(weight.device)))  # type: ignore[operator]
        nn.init.kaiming_uniform_(self.a, a=math.sqrt(5))
        nn.init.zeros_(self.b)

    def forward(self, x: torch.Tensor, hidden: torch.Tensor) -> torch.Tensor:
        """(batch, time, width): the change at the first positions, zero behind them."""
        positions = self.row_positions
        if positions is None:
            positions = torch.arange(hidden.shape[1], device=hidden.device)[None]
        change = nn.functional.embedding(positions.clamp(0, len(self.a) - 1), self.a) @ self.b
        return change * (positions < len(self.a))[..., None].to(change.dtype)


class DeptModel(AdapterModel):
    """Embeddings get the change, attention modules the prompt's keys and values, the backbone a hook to make them."""

    def build(self, config: Any, base: nn.Module, name: str) -> Update:
        """The update of the module called ``name``."""
        if name in config.attentions:
            return GivenPrefix(base)
        width = int(self.model.config.get_text_config().hidden_size)
        return Dept(base, width, width, config, name)

    def _post_injection_hook(self, model: Any, config: Any, adapter_name: str) -> None:
        if "hook" not in self.__dict__:
            self.__dict__["hook"] = _PromptHook(model)

    def _unload_and_optionally_merge(self, *args: Any, **settings: Any) -> nn.Module:
        model = super()._unload_and_optionally_merge(*args, **settings)
        self.__dict__["hook"].handle.remove()
        restore_all(model)
        return model


class _PromptHook:
    """Before the backbone runs: the prompt's own pass, and the shift of the row's positions."""

    def __init__(self, model: Any) -> None:
        self.model = model
        self.running = False
        self.handle: RemovableHandle = model.base_model.register_forward_pre_hook(self, with_kwargs=True)

    def __call__(self, backbone: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """The call's arguments with positions behind the prompt; None leaves them."""
        layers = [module for module in self.model.modules() if isinstance(module, AdapterLayer)]
        embeddings = [update for layer in layers for update in self._active(layer) if isinstance(update, Dept)]
        given = [update for layer in layers for update in self._active(layer) if isinstance(update, GivenPrefix)]
        if self.running or not embeddings:
            return None
        (dept,) = embeddings
        shift = self._run(backbone, dept, given)
        ids = kwargs.get("input_ids", args[0] if args else None)
        ids = kwargs["inputs_embeds"] if ids is None else ids
        positions = kwargs.get("position_ids")
        if positions is None:
            cache = kwargs.get("cache", kwargs.get("past_key_values"))
            past = 0 if cache is None else cache.get_seq_length()
            positions = torch.arange(past, past + ids.shape[1], device=ids.device)[None]
        dept.row_positions = positions
        return args, {**kwargs, "position_ids": positions + shift}

    @staticmethod
    def _active(layer: AdapterLayer) -> list[Update]:
        return [] if layer.disable_adapters else layer._active()

    def _run(self, backbone: Any, dept: Dept, given: list[GivenPrefix]) -> int:
        """Run the prompt, hand its keys and values to the attention modules; its length."""
        for prefix in given:
            prefix.put(None, None)
        self.running = True
        try:
            output = backbone(inputs_embeds=dept.prompt[None].to(backbone.dtype), use_cache=True)
        finally:
            self.running = False
        cache = getattr(output, "cache", None)
        cache = getattr(output, "past_key_values", None) if cache is None else cache
        if cache is None:
            raise ValueError("the model keeps no keys of the prompt (gradient checkpointing?)")
        for prefix, layer in zip(given, cache.layers, strict=True):
            prefix.put(layer.keys[0], layer.values[0])
        return len(dept.prompt)


def build(request: Request) -> DeptConfig:
    """The peft configuration."""
    attentions = attentions_of(request.targets)
    own = {name: request.own[name] for name in ("prompt", "rank", "positions")}
    names = [*token_embeddings(request.model), *attentions]
    return DeptConfig(target_modules=names, attentions=attentions, task_type=request.task_type, **own)


def start(attachment: PeftAttachment, request: Request) -> None:
    """Give the prompt its own learning rate."""
    ratio = float(request.own["rate_ratio"])
    attachment.rate_factor = lambda name: ratio if name.endswith(".prompt") else 1.0


define(DeptConfig, Dept, model=DeptModel)
METHOD = AdapterMethod("dept", build, start)
