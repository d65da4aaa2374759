"""LoRA's forward and backward pass in fewer steps, for peft's own layers, where the result is the same.

For projections that read one input x (query, key and value; gate and up) peft computes, each on its own,
``W x + s·B(A x)``: a scaled copy and a sum of full width, and as much again backward. Here the A of the group are
stacked (one product gives every A x), the update is added into W x in place, s goes onto the narrow A x, and backward
the gradient of x is summed in place. Kept for the backward pass beside x, which its maker keeps anyway: A x alone.

peft's layers stay what they are: `fuse` changes their class to a subclass whose forward looks at each call whether
the shorter way is exact, and else does what peft does. It is not exact, and not taken, with dropout in training, hooks
inside the layer, a quantised or transposed base, several active adapters, LoRA variants, a trained base weight, mixed
number types or autocast.

Rule of use: wherever it is exact. It does strictly less arithmetic and fewer passes over memory; measured with
``benchmarks/fused_lora.py`` it was faster at every shape of SmolLM2 in float32 and bfloat16. The choice is by rule and
not by a measurement at run time, so that a resumed run takes the same path and stays bit for bit the same.

Results agree with peft's to rounding (float32: 1e-5 relative). Second derivatives are refused by autograd, not wrong.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Protocol

import torch
from peft.tuners.lora.layer import Linear as PeftLinear
from torch import nn
from torch.autograd.function import once_differentiable

from foretune.models.modules import role_of

STACKS = (
    ("attention.q", "attention.k", "attention.v"),
    ("cross_attention.k", "cross_attention.v"),
    ("mlp.gate", "mlp.up"),
)
"""Roles that read the same input within one parent module. Whether they do is checked at every call."""


class _StackedLora(torch.autograd.Function):
    """Outputs W_j x + b_j + s_j B_j A_j x of n projections of one x."""

    @staticmethod
    def forward(
        ctx: Any, x: torch.Tensor, scales: tuple[float, ...], biases: tuple[Any, ...], *weights: torch.Tensor
    ) -> tuple[torch.Tensor, ...]:
        """x: (..., in); ``weights``: n of W (out, in), n of A (rank, in), n of B (out, rank). Returns n (..., out)."""
        count = len(scales)
        bases, downs, ups = weights[:count], weights[count : 2 * count], weights[2 * count :]
        flat = x.reshape(-1, x.shape[-1])
        down = torch.cat(downs) if count > 1 else downs[0]
        ranks = [up.shape[1] for up in ups]
        inner = flat @ down.t()
        scale_parts(inner, scales, ranks)
        outputs = []
        for base, bias, up, part in zip(bases, biases, ups, _columns(inner, ranks), strict=True):
            output = nn.functional.linear(flat, base, bias).addmm_(part, up.t())
            outputs.append(output.resize_(*x.shape[:-1], output.shape[-1]))  # a view could not be changed by the model
        ctx.save_for_backward(flat, inner, down, *bases, *ups)
        ctx.scales, ctx.shape = scales, x.shape
        ctx.set_materialize_grads(False)
        return tuple(outputs)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: torch.Tensor | None) -> tuple[Any, ...]:
        """gradients: n (..., out), None for outputs that nobody used. Gradients of x, A and B; W and b are frozen."""
        flat, inner, down, *rest = ctx.saved_tensors
        count = len(ctx.scales)
        bases, ups = rest[:count], rest[count:]
        ranks = [up.shape[1] for up in ups]
        for_x: torch.Tensor | None = None
        for_inner: list[torch.Tensor] = []
        for_ups: list[torch.Tensor | None] = []
        for given, base, up, part in zip(gradients, bases, ups, _columns(inner, ranks), strict=True):
            if given is None:
                for_inner.append(part.new_zeros(part.shape))
                for_ups.append(None)
                continue
            gradient = given.reshape(-1, given.shape[-1])
            if ctx.needs_input_grad[0]:
                for_x = gradient @ base if for_x is None else for_x.addmm_(gradient, base)
            for_inner.append(gradient @ up)
            for_ups.append(gradient.t() @ part)
        stacked = torch.cat(for_inner, dim=1) if count > 1 else for_inner[0]
        scale_parts(stacked, ctx.scales, ranks)
        if for_x is not None:
            for_x = for_x.addmm_(stacked, down).view(ctx.shape)
        for_downs = torch.split(stacked.t() @ flat, ranks)
        return (for_x, None, None, *([None] * count), *for_downs, *for_ups)


def scale_parts(inner: torch.Tensor, scales: Sequence[float], ranks: Sequence[int]) -> None:
    """Multiply the columns of every projection by its scale, in place. inner: (tokens, sum of ranks)."""
    if len(set(scales)) == 1:
        inner.mul_(scales[0])
        return
    for part, scale in zip(_columns(inner, ranks), scales, strict=True):
        part.mul_(scale)


def _columns(inner: torch.Tensor, ranks: Sequence[int]) -> tuple[torch.Tensor, ...]:
    """(tokens, sum of ranks) to views of (tokens, rank) for every projection."""
    return torch.split(inner, list(ranks), dim=1)


class Member(Protocol):
    """A layer of a stack."""

    def exact_for(self, x: torch.Tensor) -> bool:
        """Whether the shorter way gives the layer's own result for this input in its present state."""
        ...


Apply = Callable[[Sequence[Any], torch.Tensor], tuple[torch.Tensor, ...]]
"""(members, their one input) -> their outputs"""


class Stack:
    """Projections that read one input: the first that is called computes all, the others fetch their part."""

    def __init__(self, members: Sequence[Member], apply: Apply) -> None:
        """``members`` in the order in which the model calls them."""
        self.members = tuple(members)
        self._apply = apply
        self._input: torch.Tensor | None = None
        self._with_gradient = False
        self._waiting: dict[int, torch.Tensor] = {}

    def output(self, member: Member, x: torch.Tensor) -> torch.Tensor:
        """``member``'s output for x: (..., in) to (..., out)."""
        same = self._input is x and self._with_gradient == torch.is_grad_enabled()
        if not same or id(member) not in self._waiting:
            first = self.members.index(member)
            together = [other for other in self.members[first:] if other is member or other.exact_for(x)]
            self._input, self._with_gradient = x, torch.is_grad_enabled()
            self._waiting = dict(zip(map(id, together), self._apply(together, x), strict=True))
        output = self._waiting.pop(id(member))
        if not self._waiting:
            self._input = None
        return output


def stacked(names: Iterable[str]) -> list[list[str]]:
    """The names of linear layers in groups that read one input, each in the order in which the model calls them."""
    stacks: dict[tuple[str, int], list[str]] = defaultdict(list)
    for name in names:
        role = role_of(name)
        number = next((number for number, roles in enumerate(STACKS) if role in roles), None)
        stacks[(name, -1) if number is None else (name.rpartition(".")[0], number)].append(name)
    return [
        members if number < 0 else sorted(members, key=lambda name: STACKS[number].index(role_of(name)))
        for (_, number), members in stacks.items()
    ]


def _apply(members: Sequence[FusedLinear], x: torch.Tensor) -> tuple[torch.Tensor, ...]:
    names = [member.active_adapters[0] for member in members]
    pairs = list(zip(members, names, strict=True))
    return _StackedLora.apply(  # type: ignore[no-any-return, no-untyped-call]
        x,
        tuple(float(member.scaling[name]) for member, name in pairs),
        tuple(member.base_layer.bias for member in members),
        *(member.base_layer.weight for member in members),
        *(member.lora_A[name].weight for member, name in pairs),
        *(member.lora_B[name].weight for member, name in pairs),
    )


class FusedLinear(PeftLinear):  # type: ignore[misc]  # peft is untyped
    """peft's LoRA layer with the shorter way where that is exact."""

    stack: Stack

    def forward(self, x: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        """x: (..., in) to (..., out)."""
        if args or kwargs or not self.exact_for(x):
            return super().forward(x, *args, **kwargs)  # type: ignore[no-any-return]
        return self.stack.output(self, x)

    def exact_for(self, x: torch.Tensor) -> bool:
        """Whether the shorter way gives peft's own result for this input in the layer's present state."""
        active = self.active_adapters
        if self.disable_adapters or self.merged or len(active) != 1 or active[0] not in self.lora_A:
            return False
        name = active[0]
        if name in self.lora_variant or self.lora_bias[name] or torch.is_autocast_enabled(x.device.type):
            return False
        dropout = self.lora_dropout[name]
        if not isinstance(dropout, nn.Identity) and dropout.training:
            return False
        inner = (self.base_layer, self.lora_A[name], self.lora_B[name])
        if not all(plain(module) for module in inner) or self.base_layer.weight.requires_grad:
            return False
        return all(module.weight.dtype == x.dtype for module in inner)


def plain(module: nn.Module) -> bool:
    """A linear layer as torch made it: no subclass (quantised, parametrised), nothing hooked to it."""
    return type(module) is nn.Linear and unhooked(module)


def unhooked(module: nn.Module) -> bool:
    """A module without hooks and with the forward of its class: nobody would miss a call of it."""
    hooks = (module._forward_hooks, module._forward_pre_hooks, module._backward_hooks, module._backward_pre_hooks)
    return not any(hooks) and "forward" not in module.__dict__


def fuse(model: nn.Module) -> int:
    """Let peft's LoRA layers in ``model`` take the shorter way; the number of layers changed. `unfuse` undoes it."""
    layers = {name: module for name, module in model.named_modules() if type(module) is PeftLinear}
    for names in stacked(layers):
        members = [layers[name] for name in names]
        stack = Stack(members, lambda chosen, x: _apply(chosen, x))
        for member in members:
            member.__class__ = FusedLinear
            member.stack = stack
    return len(layers)


def unfuse(model: nn.Module) -> None:
    """Give peft's layers their own class back."""
    for module in model.modules():
        if type(module) is FusedLinear:
            del module.stack
            module.__class__ = PeftLinear
