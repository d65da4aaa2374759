"""Several processes that train one model together, through accelerate: who does which part of an update.

Every process lays the whole update out alike and computes its own share of the micro-batches; gradients and losses are
then added up. So an update means what it means in one process: its rows, its denominators (over all of its rows) and
its noise (which follows from seed and step) are the same, and the sums differ by rounding only. All processes take the
same optimiser step, so weights are never sent.

What it does not do: shard weights or moments, or overlap the addition with the backward pass. Every process holds the
whole model, and what a process is out of memory for is halved in all of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import torch


class Ranks(Protocol):
    """The processes of one training."""

    @property
    def rank(self) -> int:
        """This process's number, from 0; process 0 writes files and reports."""
        ...

    @property
    def count(self) -> int:
        """How many there are."""
        ...

    def any(self, flag: bool) -> bool:
        """Whether ``flag`` holds in any process; all of them get the same answer."""
        ...

    def add(self, masters: Sequence[torch.Tensor], loss: float) -> float:
        """Add up the gradients of all processes on the ``masters`` of each, and return the sum of the losses."""
        ...


class Alone:
    """One process."""

    rank = 0
    count = 1

    def any(self, flag: bool) -> bool:
        """The flag."""
        return flag

    def add(self, masters: Sequence[torch.Tensor], loss: float) -> float:
        """Nothing to add."""
        return loss


class Together:
    """The processes that accelerate was launched with."""

    def __init__(self, accelerator: Any) -> None:
        self._accelerator = accelerator
        self.rank = int(accelerator.process_index)
        self.count = int(accelerator.num_processes)

    def any(self, flag: bool) -> bool:
        """Whether any process says so."""
        return bool(self._sum(torch.tensor([float(flag)], device=self._accelerator.device))[0] > 0)

    def add(self, masters: Sequence[torch.Tensor], loss: float) -> float:
        """One addition for everything: gradients, which of them there are, and the loss.

        A tensor without a gradient in any process keeps none: a gradient of zero would make the optimiser decay it.
        """
        present = torch.tensor([float(master.grad is not None) for master in masters])
        gradients = [torch.zeros_like(m) if m.grad is None else m.grad for m in masters]
        parts = [torch.tensor([loss]), present, *(gradient.detach().flatten() for gradient in gradients)]
        summed = self._sum(torch.cat([part.to(self._accelerator.device, torch.float32) for part in parts]))
        start = 1 + len(masters)
        for number, master in enumerate(masters):
            end = start + master.numel()
            if summed[1 + number] > 0:
                master.grad = summed[start:end].view_as(master).to(master.device, master.dtype)
            start = end
        return float(summed[0])

    def _sum(self, tensor: torch.Tensor) -> torch.Tensor:
        summed: torch.Tensor = self._accelerator.reduce(tensor, reduction="sum")
        return summed


def ranks_of(accelerator: Any) -> Ranks:
    """The processes that ``accelerator`` belongs to."""
    return Together(accelerator) if accelerator.num_processes > 1 else Alone()
