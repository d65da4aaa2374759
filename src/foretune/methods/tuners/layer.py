"""The layer that wraps an adapted module, and the seam through which a method says what it adds there.

A method writes one `Update`: its tensors, how they start, and what is added to the module's output,

    y = h + update(x, h)          h = base(x)

so an update whose addition is zero leaves the base's output bitwise as it is. Where the addition is a matrix product
(``delta``), merging adds it to the weight in float32 and rounds once; the weight as it was is kept until `unmerge`,
which therefore is exact. Where the module returns a tuple, ``h`` is its first entry.
"""

from __future__ import annotations

from typing import Any

import torch
from peft.tuners.tuners_utils import BaseTunerLayer, check_adapters_to_merge
from torch import nn
from torch.nn.functional import linear


class Update(nn.Module):
    """What a method adds to the output of one module.

    ``inputs`` and ``outputs`` are the widths of the module's input and output.
    """

    refuses_merge = ""
    """Why the update cannot become part of the weights; empty where it can."""

    def __init__(self, base: nn.Module, inputs: int, outputs: int, config: Any, name: str) -> None:
        super().__init__()
        self.inputs, self.outputs = inputs, outputs
        self.dropout = nn.Dropout(p) if (p := float(getattr(config, "dropout", 0.0))) > 0 else nn.Identity()

    def reset(self) -> None:
        """Give the trainable tensors their values at the start, drawn from torch's global generator."""
        raise NotImplementedError

    def before(self, base: nn.Module) -> None:
        """Called before the module ``base`` runs, while the update is active."""

    def after(self, base: nn.Module) -> None:
        """Called when ``base`` has run, or has failed: takes back what `before` placed and nobody took."""

    def delta(self) -> torch.Tensor:
        """(outputs, inputs) float: the change of the weight, where the addition is a matrix product."""
        raise NotImplementedError

    def merged(self, weight: torch.Tensor, bias: torch.Tensor | None) -> tuple[torch.Tensor, torch.Tensor | None]:
        """The merged weight (outputs, inputs) and bias, float32."""
        return weight + self.delta().float(), bias

    def forward(self, x: torch.Tensor, hidden: torch.Tensor) -> torch.Tensor:
        """(..., outputs) from the module's input (..., inputs) and its output (..., outputs)."""
        return linear(self.dropout(x), self.delta())


class AdapterLayer(nn.Module, BaseTunerLayer):  # type: ignore[misc]
    """A module with one update for each adapter."""

    def __init__(self, base_layer: nn.Module, prefix: str) -> None:
        super().__init__()
        self.base_layer = base_layer
        self.container = f"{prefix}update"
        self.adapter_layer_names = (self.container,)
        self.other_param_names = ()
        self.add_module(self.container, nn.ModuleDict())
        self._disable_adapters = False
        self.merged_adapters: list[str] = []
        self._unmerged: tuple[torch.Tensor, torch.Tensor | None] | None = None

    @property
    def updates(self) -> nn.ModuleDict:
        """Adapter name -> its `Update`."""
        container: nn.ModuleDict = self._modules[self.container]  # type: ignore[assignment]
        return container

    def add_adapter(self, adapter: str, update: Update, *, inference: bool) -> None:
        """Put an update in; it is active where the layer's adapters say so."""
        update.reset()
        self.updates[adapter] = update
        self._move_adapter_to_device_of_base_layer(adapter)
        self.set_adapter(self.active_adapters, inference_mode=inference)

    def set_first(self, adapter: str) -> None:
        """The adapter that is active from the start."""
        self._active_adapter: Any = adapter

    def _active(self) -> list[Update]:
        return [self.updates[name] for name in self.active_adapters if name in self.updates]  # type: ignore[misc]

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """The module's output with the active updates added."""
        if self.disable_adapters and self.merged:
            self.unmerge()
        active = [] if self.disable_adapters or self.merged else self._active()
        try:
            for update in active:
                update.before(self.base_layer)
            output = self.base_layer(*args, **kwargs)
        finally:
            for update in active:
                update.after(self.base_layer)
        if not active:
            return output
        hidden: torch.Tensor = output[0] if isinstance(output, tuple) else output
        x = args[0] if args else next(iter(kwargs.values()))
        edited = hidden
        for update in active:
            first = next(update.parameters(), None)
            added = update(x if first is None else x.to(first.dtype), hidden)
            edited = edited if added is None else edited + added.to(hidden.dtype)
        return (edited, *output[1:]) if isinstance(output, tuple) else edited

    def merge(self, safe_merge: bool = False, adapter_names: list[str] | None = None) -> None:
        """Add the updates to the weight in float32, rounding once; NaN and infinity are refused."""
        names = [name for name in check_adapters_to_merge(self, adapter_names) if name in self.updates]
        if not names:
            return
        base: Any = self.get_base_layer()
        before = base.weight.data, None if getattr(base, "bias", None) is None else base.bias.data
        weight, bias = before[0].float(), None if before[1] is None else before[1].float()
        weight = weight.T if transposed(base) else weight
        with torch.no_grad():
            for name in names:
                weight, bias = self.updates[name].merged(weight, bias)  # type: ignore[operator]
        if not all(bool(torch.isfinite(tensor).all()) for tensor in (weight, bias) if tensor is not None):
            raise ValueError(f"the merged weights hold NaN or infinity: the adapter {', '.join(names)} is broken")
        base.weight.data = (weight.T if transposed(base) else weight).to(before[0].dtype).contiguous()
        if bias is not None:
            kept = bias.to(before[0].dtype)
            if before[1] is None:
                base.bias = nn.Parameter(kept, requires_grad=False)
            else:
                base.bias.data = kept
        self._unmerged = self._unmerged or before
        self.merged_adapters.extend(names)

    def unmerge(self) -> None:
        """Put the weight back, bitwise."""
        if self._unmerged is None:
            return
        base: Any = self.get_base_layer()
        base.weight.data, bias = self._unmerged[0], self._unmerged[1]
        if bias is not None:
            base.bias.data = bias
        elif getattr(base, "bias", None) is not None:
            base.bias = None
        self._unmerged = None
        self.merged_adapters = []

    def __getattr__(self, name: str) -> Any:
        """What the wrapped module has and the layer has not: models ask their blocks for attributes of their own."""
        try:
            return super().__getattr__(name)
        except AttributeError:
            if name in ("base_layer", "_modules") or "base_layer" not in self._modules:
                raise
            return getattr(self._modules["base_layer"], name)


def transposed(base: nn.Module) -> bool:
    """Whether the weight is kept as (inputs, outputs): GPT-2's Conv1D."""
    return type(base).__name__ == "Conv1D"


def widths_of(module: nn.Module) -> tuple[int, int]:
    """(inputs, outputs) of a linear layer, 4-bit ones included; (0, 0) for other modules."""
    if hasattr(module, "in_features"):
        return int(module.in_features), int(module.out_features)  # type: ignore[arg-type]
    if transposed(module):
        weight: Any = module.weight
        return int(weight.shape[0]), int(weight.shape[1])
    return 0, 0
