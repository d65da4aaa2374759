"""Learnt vectors before every row: what prompt tuning, p-tuning, multitask prompt tuning, CPT and DePT have in common.

The prompt is run through the model once a call, and its keys and values stand before every row's in each attention
(`foretune.methods.tuners.prefix`), which is the same as putting it before the row: it sees nothing of the row. So rows
keep their length, whatever evaluates or writes answers needs to know nothing of the prompt, and their positions move
behind it. While nothing is trained, a prompt is not run again until it or another part of the adapter, through which it
runs as well, has changed. Causal models only; not with gradient checkpointing, under which transformers keeps no keys.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from torch.utils.hooks import RemovableHandle

from foretune.catalogue.methods.sites import attentions_of
from foretune.methods.adalink import token_embeddings
from foretune.methods.adapter import Request
from foretune.methods.tuners.config import AdapterConfig
from foretune.methods.tuners.layer import AdapterLayer, Update
from foretune.methods.tuners.prefix import GivenPrefix, PrefixModel
from foretune.models.cache import cache_of


@dataclass
class PromptConfig(AdapterConfig):
    """Settings of a prompt."""

    prompt: int = field(default=20, metadata={"help": "Learnt vectors before the row."})
    attentions: list[str] = field(default_factory=list, metadata={"help": "Attention modules that see the prompt."})

    knob = "prompt"


class PromptUpdate(Update):
    """Goes to the embedding, whose output it leaves alone; says what stands before the rows."""

    refuses_merge = "a prompt is no weight of a layer"

    def __init__(self, base: nn.Module, inputs: int, outputs: int, config: Any, name: str) -> None:
        super().__init__(base, inputs, outputs, config, name)
        self.__dict__["table"] = base
        self.row_positions: torch.Tensor | None = None
        """(1 or batch, time) positions within the row, in the call that runs"""

    def vectors(self) -> torch.Tensor:
        """(1 or batch, length, width): the prompt of the call that runs."""
        raise NotImplementedError

    def embedded(self, ids: torch.Tensor) -> torch.Tensor:
        """(length, width): the base's embeddings of token ``ids``."""
        with torch.no_grad():
            table: Any = self.__dict__["table"]
            found: torch.Tensor = table(ids.to(table.weight.device))
        return found

    def some_tokens(self, count: int) -> torch.Tensor:
        """(count,): tokens of the vocabulary, drawn at random."""
        return torch.randint(0, self.__dict__["table"].weight.shape[0], (count,))

    def forward(self, x: torch.Tensor, hidden: torch.Tensor) -> torch.Tensor | None:  # type: ignore[override]
        """None: nothing is added to the embeddings of the row."""
        return None


class SoftPrompt(PromptUpdate):
    """Vectors that are trained as they are and begin as embeddings of tokens, as in Lester et al. (2021)."""

    def __init__(self, base: nn.Module, inputs: int, outputs: int, config: Any, name: str) -> None:
        super().__init__(base, inputs, outputs, config, name)
        self.prompt = nn.Parameter(torch.empty(config.prompt, outputs))

    def reset(self) -> None:
        """The embeddings of tokens drawn at random."""
        with torch.no_grad():
            self.prompt.copy_(self.embedded(self.some_tokens(len(self.prompt))))

    def vectors(self) -> torch.Tensor:
        """(1, length, width)."""
        return self.prompt[None]


class PromptModel(PrefixModel):
    """Embeddings hold the prompt, attention modules see its keys and values, the backbone has a hook to make them."""

    def build(self, config: Any, base: nn.Module, name: str) -> Update:
        """The update of the module called ``name``."""
        if name in config.attentions:
            return GivenPrefix(base)
        width = int(self.model.config.get_text_config().hidden_size)
        return self.update_class(base, width, width, config, name)

    def _post_injection_hook(self, model: Any, config: Any, adapter_name: str) -> None:
        if "hook" not in self.__dict__:
            self.__dict__["hook"] = _PromptHook(model)

    def _unload_and_optionally_merge(self, *args: Any, **settings: Any) -> nn.Module:
        model = super()._unload_and_optionally_merge(*args, **settings)
        self.__dict__["hook"].handle.remove()
        return model


class _PromptHook:
    """Before the backbone runs: the prompt's own pass, and the shift of the row's positions."""

    def __init__(self, model: Any) -> None:
        self.model = model
        self.running = False
        self.last: torch.Tensor | None = None
        """The prompt whose keys and values lie in the attention modules, where they may be used again"""
        self.written: tuple[tuple[int, int], ...] = ()
        """Every tensor of the adapter they were made with, and how often it was written to"""
        self.handle: RemovableHandle = model.base_model.register_forward_pre_hook(self, with_kwargs=True)

    def __call__(self, backbone: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """The call's arguments with positions behind the prompt; None leaves them."""
        layers = [module for module in self.model.modules() if isinstance(module, AdapterLayer)]
        prompts = [update for layer in layers for update in self._active(layer) if isinstance(update, PromptUpdate)]
        given = [update for layer in layers for update in self._active(layer) if isinstance(update, GivenPrefix)]
        if self.running or not prompts:
            return None
        (prompt,) = prompts
        vectors = prompt.vectors().to(backbone.dtype)
        if vectors.shape[1] == 0:  # a prompt that is left out
            return None
        written = _written(update for layer in layers for update in self._active(layer))
        same = self.last is not None and self.written == written and torch.equal(self.last, vectors)
        if torch.is_grad_enabled() or not same:
            self._run(backbone, vectors, given)
            self.written = written
        positions = row_positions(args, kwargs)
        prompt.row_positions = positions
        return args, {**kwargs, "position_ids": positions + vectors.shape[1]}

    @staticmethod
    def _active(layer: AdapterLayer) -> list[Update]:
        return [] if layer.disable_adapters else layer._active()

    def _run(self, backbone: Any, vectors: torch.Tensor, given: list[GivenPrefix]) -> None:
        """Run the prompt and hand its keys and values to the attention modules."""
        for prefix in given:
            prefix.put(None, None)
        self.running = True
        try:
            output = backbone(inputs_embeds=vectors, use_cache=True)
        finally:
            self.running = False
        cache = cache_of(output)
        if cache is None:
            raise ValueError("the model keeps no keys of the prompt (gradient checkpointing?)")
        for prefix, layer in zip(given, cache.layers, strict=True):
            prefix.put(layer.keys, layer.values)
        self.last = None if torch.is_grad_enabled() else vectors.clone()


def _written(updates: Iterable[Update]) -> tuple[tuple[int, int], ...]:
    """Every parameter of ``updates``, and how often it was written to."""
    weights = [weight for update in updates for weight in update.parameters()]
    return tuple((id(weight), -1 if weight.is_inference() else weight._version) for weight in weights)


def row_positions(args: tuple[Any, ...], kwargs: dict[str, Any]) -> torch.Tensor:
    """(1 or batch, time): the positions that a call of a backbone gives its tokens, as they are without a prompt."""
    ids = kwargs.get("input_ids", args[0] if args else None)
    ids = kwargs["inputs_embeds"] if ids is None else ids
    positions: torch.Tensor | None = kwargs.get("position_ids")
    if positions is None:
        cache = cache_of(kwargs)
        past = 0 if cache is None else cache.get_seq_length()
        positions = torch.arange(past, past + ids.shape[1], device=ids.device)[None]
    return positions


def prompt_settings(request: Request, *names: str) -> dict[str, Any]:
    """The usual fields of a `PromptConfig`, and the own settings called ``names``."""
    attentions = attentions_of(request.targets)
    own = {name: request.own[name] for name in names}
    modules = [*token_embeddings(request.model), *attentions]
    return {"target_modules": modules, "attentions": attentions, "task_type": request.task_type, **own}
