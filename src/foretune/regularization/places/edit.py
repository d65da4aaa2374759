"""Giving the places of a model their rates, and taking everything back.

A dropout module of the architecture is replaced by one whose noise belongs to the row (`row_noise`); attention modules
get their noise as an attribute that `places.attention` reads; elsewhere a forward hook is placed. The adapter's own
dropout takes the rate of the block that its layer belongs to. Everything that is touched is counted, and a place that
is not there as the table says is an error. `restore` puts the very same objects and numbers back.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import nn

from foretune.data.update import MicroBatch
from foretune.errors import ModelError
from foretune.models.modules import describe, role_of
from foretune.regularization.places.attention import PLACE
from foretune.regularization.places.find import Site, backbone
from foretune.regularization.row_noise import Noise, RowNoise

FUNCTIONAL = "dropout"
"""The number by which layers without dropout modules (BART) drop all their outputs alike."""


class Rows:
    """The rows that are in the batch, shared by all places of a model."""

    def __init__(self) -> None:
        self.noise: RowNoise | None = None

    def set(self, batch: MicroBatch, generator: torch.Generator) -> None:
        """The rows of the next pass and the root of their noise."""
        self.noise = RowNoise.of(batch, generator)


class NoisyDropout(nn.Dropout):
    """An ``nn.Dropout`` whose noise is drawn row by row; ``p`` is its rate, for code that reads it."""

    def __init__(self, rate: float, place: int, noise: Noise, rows: Rows, *, decoder: bool) -> None:
        super().__init__(rate)
        self.place, self.noise, self.rows, self.decoder = place, noise, rows, decoder

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        """hidden: (batch, time, width)."""
        return self.apply_noise(hidden, training=self.training)

    def apply_noise(self, hidden: torch.Tensor, *, training: bool) -> torch.Tensor:
        """The same for an owner that says itself whether it trains."""
        if not training or self.p == 0.0 or self.rows.noise is None:
            return hidden
        like = hidden.detach()
        return hidden * self.rows.noise.multiplier(like, self.place, self.p, self.noise, decoder=self.decoder)

    def probabilities(self, *, cross: bool) -> Callable[[torch.Tensor], torch.Tensor]:
        """What multiplies (rows, heads, queries, keys) attention probabilities; ``cross``: keys are the encoder's."""
        sides = (self.decoder, self.decoder and not cross)

        def multiply(values: torch.Tensor) -> torch.Tensor:
            if self.p == 0.0 or self.rows.noise is None:
                return values
            like = values.detach()
            return values * self.rows.noise.pair_multiplier(like, self.place, self.p, self.noise, decoder=sides)

        return multiply


class Edit:
    """The places of one model with their rates, in place until `restore`."""

    def __init__(
        self, model: Any, sites: Sequence[Site], rates: Mapping[str, float], noise: Noise, *, adapters: bool = True
    ) -> None:
        """``rates`` by site name, one for every site. Raises `ModelError` where a place is not as the table says."""
        self.rows = Rows()
        self.touched: dict[str, float] = {}
        """Rate of every place that was touched, adapters' included"""
        self._undo: list[Callable[[], None]] = []
        self._body = backbone(model)
        self._noise: Noise = noise
        self._attention: set[nn.Module] = set()
        try:
            for number, site in enumerate(sites):
                self._place(site, number, rates[site.name])
            if any(site.how == "inserted" for site in sites):
                self._silence_functional()
            if adapters:
                self._adapters(sites, rates, len(sites))
        except BaseException:
            self.restore()
            raise

    def restore(self) -> None:
        """Put everything back; twice does no harm."""
        while self._undo:
            self._undo.pop()()
        self.rows.noise = None

    def _place(self, site: Site, number: int, rate: float) -> None:
        owner = self._module(site)
        dropout = NoisyDropout(rate, number, self._noise, self.rows, decoder=site.stack == "decoder")
        dropout.train(owner.training)
        attention = site.kind == "attention"
        if site.how == "module":
            if not isinstance(owner, nn.Dropout):
                raise ModelError(f"{site.owner} is a {type(owner).__name__}, not a dropout.")
            self._exchange(site.owner, dropout)
            owner = self._body.get_submodule(site.owner.rpartition(".")[0])
        elif site.how == "inserted":
            self._hook(owner, dropout)
        elif not isinstance(getattr(owner, site.attribute, None), int | float):
            raise ModelError(f"{site.owner} has no number called {site.attribute}.")
        if attention:
            self._attention.add(owner)
            if site.how == "float":
                self._set(owner, site.attribute, rate)
            if rate > 0:  # without noise the fused kernels stay
                cross = "cross" in role_of(site.tensors[0].rpartition(".")[0])
                owner.__dict__[PLACE] = dropout.probabilities(cross=cross)
                self._undo.append(lambda: owner.__dict__.pop(PLACE, None))
        self.touched[site.name] = rate

    def _module(self, site: Site) -> nn.Module:
        try:
            module: nn.Module = self._body.get_submodule(site.owner)
        except AttributeError:
            raise ModelError(
                f"this model has no {site.owner}.", remedy="The rates are of another architecture: compute its own."
            ) from None
        return module

    def _exchange(self, name: str, module: nn.Module) -> None:
        holder_name, _, last = name.rpartition(".")
        holder = self._body.get_submodule(holder_name)
        before = holder._modules[last]
        holder._modules[last] = module
        self._undo.append(lambda: holder._modules.__setitem__(last, before))

    def _hook(self, owner: nn.Module, dropout: NoisyDropout) -> None:
        def drop(module: nn.Module, inputs: Any, output: Any) -> Any:
            if isinstance(output, tuple):
                return (dropout.apply_noise(output[0], training=module.training), *output[1:])
            return dropout.apply_noise(output, training=module.training)

        self._undo.append(owner.register_forward_hook(drop).remove)

    def _set(self, module: nn.Module, attribute: str, value: float) -> None:
        before = getattr(module, attribute)
        setattr(module, attribute, value)
        self._undo.append(lambda: setattr(module, attribute, before))

    def _silence_functional(self) -> None:
        """Layers that drop by one number of their own do so no more: hooks have taken over."""
        for module in self._body.modules():
            if module not in self._attention and isinstance(module.__dict__.get(FUNCTIONAL), int | float):
                self._set(module, FUNCTIONAL, 0.0)

    def _adapters(self, sites: Sequence[Site], rates: Mapping[str, float], number: int) -> None:
        """The dropout of adapters, where it is an identity, takes the rate of its layer's block."""
        block: dict[tuple[str, int | None, str], float] = {
            (site.stack, site.layer, site.kind): rates[site.name] for site in sites
        }
        for name, module in list(self._body.named_modules()):
            dropouts = module._modules.get("lora_dropout")
            if not isinstance(dropouts, nn.ModuleDict):
                continue
            own, role = describe(name), role_of(name)
            kind = "mlp_output" if role.startswith("mlp.") else "attention"
            kind = "attention_output" if role.endswith("attention.o") else kind
            rate = block.get((own.stack, own.layer, kind))
            if rate is None:
                continue
            for adapter, dropout in list(dropouts.items()):
                if not isinstance(dropout, nn.Identity):
                    raise ModelError(
                        f"the adapter on {name} has a dropout of its own ({type(dropout).__name__}).",
                        remedy="Leave lora.dropout at 0.",
                    )
                path = f"{name}.lora_dropout.{adapter}"
                self.touched[path] = rate
                if rate == 0:  # an identity is what it is, and fused layers stay fused
                    continue
                made = NoisyDropout(rate, number, self._noise, self.rows, decoder=own.stack == "decoder")
                made.train(dropout.training)
                self._exchange(path, made)
                number += 1
