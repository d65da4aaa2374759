"""Squared norms of every sample's gradient of every parameter, from one batched backward pass through activations.

Of the diagonal Fisher information I = (1/n) Σ_x (∂L(x)/∂θ)² only means over tensors are needed, and the sum over a
tensor's elements is the squared norm of the sample's gradient. For a linear layer with inputs x_t and output gradients
δ_t that is ‖Σ_t δ_t x_tᵀ‖²_F = Σ_{t,t'} (δ_t · δ_t')(x_t · x_t'), two Gram matrices (Goodfellow 2015, 1510.01799;
for sequences Li et al. 2022, 2110.05679). An embedding's input is a one-hot row, so x_t · x_t' says whether two tokens
are the same. Vectors (biases, norms) are summed directly. A parameter that is used more than once (a head tied to the
embedding, a stack shared by two sides) has the gradient Σ_u G_u, whose norm needs the inner products ⟨G_u, G_v⟩ too.

No weight gets a gradient: a base in 4 bits works, and memory is that of the activations. A module whose parameters are
none of these kinds is an error, as is a batch dimension that is not the samples'.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import torch
from torch import nn
from torch.nn.functional import layer_norm

from foretune.errors import ModelError
from foretune.models.modules import is_linear, role_of


@dataclass(frozen=True)
class Use:
    """One use of a parameter in a forward pass, with the gradient that came back to it."""

    output: torch.Tensor
    """linear: δ (samples, time, out); embedding: δ (samples, time, width); vector: the gradient (samples, size)"""
    input: torch.Tensor | None = None
    """linear: x (samples, time, in)"""
    ids: torch.Tensor | None = None
    """embedding: (samples, time) int64, -1 where no gradient flows"""

    def with_itself(self) -> torch.Tensor:
        """(samples,) ‖G‖²."""
        if self.input is None:
            return self.inner(self)
        time, out, width = self.input.shape[1], self.output.shape[2], self.input.shape[2]
        if time * (out + width) <= out * width:
            return self.inner(self)
        norms = [(d.float().T @ x.float()).pow(2).sum() for d, x in zip(self.output, self.input, strict=True)]
        return torch.stack(norms).double()

    def inner(self, other: Use) -> torch.Tensor:
        """(samples,) ⟨G, G'⟩ of two uses of one parameter."""
        if self.ids is None and self.input is None:
            return (self.output.double() * other.output.double()).sum(-1)
        if self.ids is not None and other.ids is None:
            return other.inner(self)
        if self.input is not None and other.ids is not None:  # δ_t[id_s] (x_t · δ'_s)
            ids = other.ids.clamp_min(0)[:, None, :].expand(-1, self.output.shape[1], -1)
            picked = self.output.float().gather(2, ids) * (other.ids >= 0)[:, None, :]
            return (picked * _gram(self.input, other.output)).double().sum((1, 2))
        gram = _gram(self.output, other.output)
        if self.ids is not None and other.ids is not None:
            same = (self.ids[:, :, None] == other.ids[:, None, :]) & (self.ids >= 0)[:, :, None]
            return (gram * same).double().sum((1, 2))
        assert self.input is not None and other.input is not None
        return (gram * _gram(self.input, other.input)).double().sum((1, 2))


def _gram(one: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
    """(samples, time, time') inner products of (samples, time, width) and (samples, time', width)."""
    return one.float() @ other.float().transpose(1, 2)


class GradientNorms:
    """Collects squared gradient norms while its `collecting` block runs forward and backward."""

    def __init__(self, model: nn.Module) -> None:
        """``model`` in evaluation mode; raises `ModelError` for parameters of an unknown kind."""
        self.model = model
        self.squares: dict[str, torch.Tensor] = {}
        """(samples,) float64 by parameter name, after the backward pass"""
        self.sizes: dict[str, int] = {}
        """Elements of each parameter"""
        self._names: dict[int, str] = {id(p): name for name, p in model.named_parameters()}
        self._expected: dict[str, int] = {}
        self._arrived: dict[str, list[Use]] = {}
        self._samples = 0
        self._modules = [(n, m) for n, m in model.named_modules() if _is_known(n, m)]
        for _, module in self._modules:
            self._measure(module)
        for name in self._names.values():
            if name not in self.sizes:
                raise ModelError(
                    f"the Fisher information of {name} cannot be taken.",
                    remedy="Only linear layers, embeddings and norms are known; please report the model's name.",
                )

    def _measure(self, module: nn.Module) -> None:
        for part, weight in module.named_parameters(recurse=False):
            size = weight.numel()
            if part == "weight" and isinstance(module, nn.Linear):
                size = module.in_features * module.out_features  # 4-bit weights are packed
            self.sizes[self._names[id(weight)]] = size

    @contextmanager
    def collecting(self, samples: int) -> Iterator[GradientNorms]:
        """Inside, one forward pass over ``samples`` samples and one backward pass of the sum of their losses."""
        self._samples, self.squares = samples, {}
        self._expected, self._arrived = {}, {}
        asked = {name: p.requires_grad for name, p in self.model.named_parameters()}
        handles = []
        try:
            for p in self.model.parameters():
                if p.is_floating_point():
                    p.requires_grad_(False)
            for name, module in self._modules:
                handles += self._hooks(name, module)
            yield self
            missing = [name for name, count in self._expected.items() if count]
            if missing:
                raise ModelError(f"no gradient reached {missing[0]}.", remedy="Is it behind a no_grad block?")
        finally:
            for handle in handles:
                handle.remove()
            for _, module in self._modules:
                module.__dict__.pop("weight", None)
            for name, p in self.model.named_parameters():
                p.requires_grad_(asked[name])

    def _hooks(self, name: str, module: nn.Module) -> list[Any]:
        if isinstance(module, nn.Embedding):
            return [module.register_forward_hook(self._embedding)]
        if is_linear(module):
            return [module.register_forward_hook(self._linear)]
        if isinstance(module, nn.LayerNorm):
            return [module.register_forward_hook(self._layer_norm)]
        return [module.register_forward_pre_hook(self._widen), module.register_forward_hook(self._narrow)]

    def _expect(self, weight: torch.Tensor | None) -> str | None:
        if weight is None:
            return None
        name = self._names[id(weight)]
        self._expected[name] = self._expected.get(name, 0) + 1
        return name

    def _arrive(self, name: str | None, use: Use) -> None:
        """A gradient came back; the norm is computed when all uses of the parameter have theirs."""
        if name is None:
            return
        uses = self._arrived.setdefault(name, [])
        uses.append(use)
        self._expected[name] -= 1
        if self._expected[name]:
            return
        total = torch.stack([one.with_itself() for one in uses]).sum(0, dtype=torch.float64)
        for one, other in combinations(uses, 2):
            total = total + 2 * one.inner(other)
        self.squares[name] = total.clamp_min(0.0)
        del self._arrived[name]

    def _sequence(self, tensor: torch.Tensor, name: str | None) -> torch.Tensor:
        """(samples, positions, width) of a tensor whose first dimension is the samples."""
        if tensor.shape[0] != self._samples:
            raise ModelError(f"the batch of {name} is not one of {self._samples} samples, but of {tensor.shape[0]}.")
        return tensor.reshape(self._samples, -1, tensor.shape[-1])

    def _linear(self, module: nn.Module, inputs: tuple[torch.Tensor, ...], output: torch.Tensor) -> None:
        if not output.requires_grad:
            raise ModelError("an input of the model is not connected to its embeddings.")
        weight, bias = self._expect(module.weight), self._expect(getattr(module, "bias", None))  # type: ignore[arg-type]
        x = self._sequence(inputs[0].detach(), weight)

        def came(gradient: torch.Tensor) -> None:
            delta = self._sequence(gradient, weight)
            transposed = not isinstance(module, nn.Linear)  # GPT-2's Conv1D: the weight is (in, out)
            use = Use(x, delta) if transposed else Use(delta, x)
            self._arrive(weight, use)
            self._arrive(bias, Use(delta.double().sum(1)))

        output.register_hook(came)  # type: ignore[no-untyped-call]

    def _embedding(self, module: nn.Embedding, inputs: tuple[Any, ...], output: torch.Tensor) -> torch.Tensor:
        name = self._names[id(module.weight)]
        if output.ndim < 3 or output.shape[0] not in (1, self._samples):
            return output  # relative position biases have no samples
        self._expect(module.weight)
        wide = output.detach().expand(self._samples, *output.shape[1:]).clone().requires_grad_(True)
        scale = float(getattr(module, "embed_scale", 1.0) or 1.0)
        ids = _ids(module, inputs, wide)

        def came(gradient: torch.Tensor) -> None:
            self._arrive(name, Use(gradient.detach() * scale, ids=ids))

        wide.register_hook(came)  # type: ignore[no-untyped-call]
        return wide

    def _layer_norm(self, module: nn.LayerNorm, inputs: tuple[torch.Tensor, ...], output: torch.Tensor) -> None:
        weight, bias = self._expect(module.weight), self._expect(module.bias)
        normal = layer_norm(inputs[0].detach(), module.normalized_shape, eps=module.eps)

        def came(gradient: torch.Tensor) -> None:
            self._arrive(weight, Use(self._sequence(gradient * normal, weight).double().sum(1)))
            self._arrive(bias, Use(self._sequence(gradient, bias).double().sum(1)))

        output.register_hook(came)  # type: ignore[no-untyped-call]

    def _widen(self, module: nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
        """A norm of its own kind gets one copy of its weight for every sample, in place of the shared one."""
        weight = module._parameters["weight"]
        assert weight is not None
        name = self._expect(weight)
        shape = (self._samples, *(1 for _ in range(inputs[0].ndim - 2)), weight.shape[-1])
        if inputs[0].shape[0] != self._samples:
            raise ModelError(f"the batch of {name} is not one of {self._samples} samples.")
        wide = weight.detach().expand(shape).clone().requires_grad_(True)

        def came(gradient: torch.Tensor) -> None:
            self._arrive(name, Use(gradient.detach().reshape(self._samples, -1).double()))

        wide.register_hook(came)  # type: ignore[no-untyped-call]
        module.__dict__["weight"] = wide

    def _narrow(self, module: nn.Module, inputs: Any, output: Any) -> None:
        module.__dict__.pop("weight", None)


def _is_known(name: str, module: nn.Module) -> bool:
    """Whether a module with parameters of its own is of a kind whose gradient is known."""
    parts = {part for part, _ in module.named_parameters(recurse=False)}
    if isinstance(module, nn.Embedding | nn.LayerNorm) or is_linear(module):
        return bool(parts) and parts <= {"weight", "bias"}
    return parts == {"weight"} and role_of(name, module) == "norm"


def _ids(module: nn.Embedding, inputs: tuple[Any, ...], wide: torch.Tensor) -> torch.Tensor:
    """(samples, time) the row of the table at every position; -1 for the padding row, which gets no gradient."""
    samples, time = wide.shape[:2]
    given = inputs[0] if inputs and isinstance(inputs[0], torch.Tensor) else None
    plain = type(module).forward is nn.Embedding.forward or hasattr(module, "embed_scale")
    if given is None or not plain or given.shape[-1] != time:  # learnt positions: every one is another row
        return torch.arange(time, device=wide.device).expand(samples, time)
    ids = given.expand(samples, time)
    return ids if module.padding_idx is None else ids.masked_fill(ids == module.padding_idx, -1)


LossOf = Callable[[nn.Module], torch.Tensor]
"""Runs the model and returns (samples,) float32 losses."""


def squared_norms(norms: GradientNorms, loss: LossOf, samples: int) -> dict[str, torch.Tensor]:
    """(samples,) squared gradient norms of every parameter for one batch."""
    with torch.enable_grad(), norms.collecting(samples):
        losses = loss(norms.model)
        losses.sum().backward()  # type: ignore[no-untyped-call]
    return norms.squares
