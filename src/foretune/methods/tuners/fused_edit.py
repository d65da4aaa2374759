"""LoRATRF's forward and backward pass in fewer steps, as `foretune.methods.fused` has them for LoRA.

For projections that read one input x, with h = W x + b and the gate g(h) and edit of `foretune.methods.loratrf`:

    y = h + [s·A x, s_t·g·C h] [B; D]ᵀ

Step by step this takes a copy of h in float32 for the cosine and three more tensors of full width forward, and as many
again backward. Here ⟨h, t⟩ comes out of the product that gives C h, both branches go onto h in one product, and
backward all that reaches h is summed in two passes, dh = dy + [dCh, d⟨h,t⟩] [C; t] − (dcos·cos/‖h‖²) h. Kept for the
backward pass are x and y, which others mostly keep anyway, and numbers of rank width: where h is needed it is written
as y − [s·A x, s_t·g·C h] [B; D]ᵀ, which never has to be made. The cosine is float32 from the product on.

It is taken where it is the same up to rounding: both branches, a gate of `GATES`, all positions, no dropout in
training, nobody observing, and what `fused.FusedLinear` asks of the base. All else goes the long way.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.autograd.function import once_differentiable
from torch.nn.functional import linear

from foretune.methods.fused import scale_parts
from foretune.methods.tuners.task_edit import SMALLEST_NORM, opened, stretch

GATES = ("cos_scaled", "clamp_cos", "sigmoid")


@dataclass(frozen=True)
class Group:
    """What the projections of one input have beside tensors."""

    gate: str
    scales: tuple[float, ...]
    """s of every LoRA branch"""
    edit_scales: tuple[float, ...]
    """s_t of every edit"""
    biases: tuple[torch.Tensor | None, ...]


TENSORS = 6
"""Of a projection: W, A, B, C, D, t"""
KEPT = 3
"""Of a projection, for the backward pass: y, C h, both branches"""


class EditedLora(torch.autograd.Function):
    """The outputs of n projections of one x, each with its LoRA and its edit."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, group: Group, *tensors: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """x: (..., in); ``tensors``: W (out, in), A, B, C, D, t (out,) of every projection. Returns n of (..., out)."""
        flat = x.reshape(-1, x.shape[-1])
        bases, downs, ups, edit_downs, edit_ups, tasks = (tensors[place::TENSORS] for place in range(TENSORS))
        down = torch.cat(downs)
        ranks = [len(part) for part in downs]
        low = flat @ down.t()
        scale_parts(low, group.scales, ranks)
        hidden = [linear(flat, base, bias) for base, bias in zip(bases, group.biases, strict=True)]
        wide, readers = _joined(ups, edit_downs, edit_ups, tasks)
        read = [h @ reader.t() for h, reader in zip(hidden, readers, strict=True)]
        lengths = torch.stack([torch.linalg.vector_norm(h, dim=-1) for h in hidden], dim=1).float()
        lengths.clamp_min_(SMALLEST_NORM)
        cosines = torch.stack([part[:, -1] for part in read], dim=1).float() / lengths
        gates, slopes = opened(group.gate, cosines, cosines.new_tensor([stretch(group.gate, len(t)) for t in tasks]))
        scales = gates.new_tensor(group.edit_scales)
        passed, slopes = (gates * scales).to(x.dtype), slopes * scales
        outputs: list[torch.Tensor] = []
        kept: list[torch.Tensor] = []
        for place, (h, part, own) in enumerate(zip(hidden, read, torch.split(low, ranks, dim=1), strict=True)):
            inner = part[:, :-1]
            both = torch.cat([own, passed[:, place, None] * inner], dim=1)
            outputs.append(h.addmm_(both, wide[place].t()).view(*x.shape[:-1], h.shape[-1]))
            kept += [outputs[-1], inner, both]
        ctx.save_for_backward(flat, down, passed, slopes, cosines, lengths, *tensors, *kept)
        ctx.group, ctx.shape, ctx.ranks = group, x.shape, ranks
        ctx.set_materialize_grads(False)
        return tuple(outputs)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: torch.Tensor | None) -> tuple[Any, ...]:
        """gradients: n of (..., out), None for outputs that nobody used. Of x, A, B, C, D, t; W and b are frozen."""
        flat, down, passed, slopes, cosines, lengths, *rest = ctx.saved_tensors
        count = len(ctx.ranks)
        tensors, rest = rest[: count * TENSORS], rest[count * TENSORS :]
        bases, _, ups, edit_downs, edit_ups, tasks = (tensors[place::TENSORS] for place in range(TENSORS))
        ups, readers = _joined(ups, edit_downs, edit_ups, tasks)
        outputs, inner, both = (rest[place::KEPT] for place in range(KEPT))
        outputs = [output.reshape(len(flat), -1) for output in outputs]
        given = [
            torch.zeros_like(output) if gradient is None else gradient.reshape(output.shape)
            for output, gradient in zip(outputs, gradients, strict=True)
        ]
        for_both = [gradient @ up for gradient, up in zip(given, ups, strict=True)]
        for_edits = [part[:, rank:] for part, rank in zip(for_both, ctx.ranks, strict=True)]
        pulls = [(part * c).sum(-1, dtype=torch.float32) for part, c in zip(for_edits, inner, strict=True)]
        for_dot = torch.stack(pulls, dim=1) * slopes / lengths
        shrinks = (for_dot * cosines / lengths).to(flat.dtype)
        for_dot = for_dot.to(flat.dtype)
        for_x: torch.Tensor | None = None
        for_tensors: list[tuple[Any, ...]] = []
        for place, (gradient, y, reader, rank) in enumerate(zip(given, outputs, readers, ctx.ranks, strict=True)):
            toward = torch.cat([passed[:, place, None] * for_edits[place], for_dot[:, place, None]], dim=1)
            shrink, added, up = shrinks[:, place, None], both[place], ups[place].t()
            for_hidden = torch.addmm(gradient, torch.cat([toward, shrink * added], dim=1), torch.cat([reader, up]))
            for_hidden.addcmul_(y, shrink, value=-1)
            if ctx.needs_input_grad[0]:
                base = bases[place]
                for_x = for_hidden @ base if for_x is None else for_x.addmm_(for_hidden, base)
            for_up = gradient.t() @ added
            for_reader = torch.addmm(toward.t() @ y, toward.t() @ added, up, alpha=-1)
            turned, direction = for_reader[-1], reader[-1]
            for_task = (turned - direction * (direction @ turned)) / tasks[place].norm()
            for_tensors.append((for_up[:, :rank], for_reader[:-1], for_up[:, rank:], for_task))
        lows = [part[:, :rank] for part, rank in zip(for_both, ctx.ranks, strict=True)]
        for_low = torch.cat(lows, dim=1)
        scale_parts(for_low, ctx.group.scales, ctx.ranks)
        if for_x is not None:
            for_x = for_x.addmm_(for_low, down).view(ctx.shape)
        for_downs = torch.split(for_low.t() @ flat, ctx.ranks)
        each = [(None, a, *own) for a, own in zip(for_downs, for_tensors, strict=True)]
        return (for_x, None, *(gradient for own in each for gradient in own))


def _joined(
    ups: Sequence[torch.Tensor],
    edit_downs: Sequence[torch.Tensor],
    edit_ups: Sequence[torch.Tensor],
    tasks: Sequence[torch.Tensor],
) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    """[B D] (out, ranks) and [C; t/‖t‖] (edit rank + 1, out) of every projection."""
    wide = [torch.cat(pair, dim=1) for pair in zip(ups, edit_ups, strict=True)]
    return wide, [torch.cat([c, (t / t.norm())[None]]) for c, t in zip(edit_downs, tasks, strict=True)]
