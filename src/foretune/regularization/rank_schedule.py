"""AdaLoRA's schedule (Zhang et al. 2023, 2303.10512, sections 3.2 and 3.3): the ranks that matter least go.

Every entry w of a triplet (P column, λ, Q row) has a smoothed sensitivity Ī = β Ī + (1−β)|w·∂L/∂w| and a smoothed
uncertainty Ū = β Ū + (1−β)|I − Ī|; its importance is Ī·Ū. A triplet's is that of λ plus the means over its P and Q.
Between ``start`` and ``end`` of the run the number of triplets that stay falls, over all layers together, as

    b(t) = b_T + (b_0 − b_T)(1 − (t − t_start)/(t_end − t_start))³,    b_T = ⌈keep · b_0⌉

and every ``every`` updates the λ of those with the least importance are set to 0; they may come back until ``end``,
from where on what is gone stays gone. Works with ``adalora``; without it that method keeps all of its ranks. The
paper's pull towards orthogonal P and Q is not here.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from foretune.regularization.base import Context, Plan, Regularizer

BETA = 0.85
"""β of both smoothings, as in the paper"""
PARTS = (".lora_E.", ".lora_A.", ".lora_B.")


class RankSchedule(Regularizer):
    """Scores triplets by sensitivity and uncertainty, and lets the least of them go."""

    name = "rank-schedule"

    def __init__(self, keep: float = 0.5, start: float = 0.1, end: float = 0.7, every: int = 10) -> None:
        self.keep, self.start, self.end, self.every = keep, start, end, every
        self._triplets: list[tuple[int, int, int]] = []
        """Places of λ, Q and P among the trained tensors, layer by layer"""
        self._sensitivity: dict[int, torch.Tensor] = {}
        self._uncertainty: dict[int, torch.Tensor] = {}
        self._there: list[torch.Tensor] = []
        """(rank,) of every layer: the triplets that stay"""
        self._total = self._step = 0

    def check(self, context: Context) -> Plan:
        """Needs AdaLoRA's triplets, and a run with room between start and end."""
        found = _triplets(context.names)
        if not found:
            return Plan(self.name, refusal="there are no ranks with values of their own; use method adalora.")
        if self.end <= self.start:
            return Plan(self.name, refusal="rank-schedule.end is not behind rank-schedule.start.")
        ranks = sum(len(context.masters[e]) for e, _, _ in found)
        return Plan(f"{math.ceil(self.keep * ranks)} of {ranks} ranks stay at {self.end:.0%} of the run")

    def setup(self, context: Context) -> None:
        """Nothing is known of any entry yet, and every rank is there."""
        self._triplets = _triplets(context.names)
        self._total = context.total_steps
        places = [place for triplet in self._triplets for place in triplet]
        self._sensitivity = {place: torch.zeros_like(context.masters[place]) for place in places}
        self._uncertainty = {place: torch.zeros_like(context.masters[place]) for place in places}
        self._there = [torch.ones(len(context.masters[e]), dtype=torch.bool) for e, _, _ in self._triplets]

    def pre_forward(self, step: int, batch: Any, generator: torch.Generator) -> None:
        """Remember the step."""
        self._step = step

    def budget(self, step: int) -> int:
        """Triplets that stay after ``step`` updates."""
        whole = sum(map(len, self._there))
        first, last = self.start * self._total, self.end * self._total
        left = min(1.0, max(0.0, 1 - (step - first) / (last - first)))
        target = math.ceil(self.keep * whole)
        return target + int((whole - target) * left**3)

    def post_step(self, params: Sequence[torch.Tensor], learning_rate: float) -> None:
        """Smooth what this update asked of every entry; at its time, let the least important triplets go."""
        done, last = self._step + 1, round(self.end * self._total)
        with torch.no_grad():
            if done <= last:
                self._score(params)
            if done == last or (self.start * self._total < done < last and done % self.every == 0):
                self._choose(self.budget(done))
            if done >= self.start * self._total:
                for (e, _, _), there in zip(self._triplets, self._there, strict=True):
                    gone = ~there.to(params[e].device)
                    if done >= last or done % self.every == 0:
                        params[e].masked_fill_(gone[:, None], 0.0)

    def _score(self, params: Sequence[torch.Tensor]) -> None:
        for place, sensitivity in self._sensitivity.items():
            gradient = params[place].grad
            if gradient is None:
                continue
            now = (params[place] * gradient).abs()
            sensitivity.lerp_(now, 1 - BETA)
            self._uncertainty[place].lerp_((now - sensitivity).abs(), 1 - BETA)

    def importance(self) -> list[torch.Tensor]:
        """(rank,) of every layer."""
        score = {place: value * self._uncertainty[place] for place, value in self._sensitivity.items()}
        return [(score[e][:, 0] + score[a].mean(1) + score[b].mean(0)).cpu() for e, a, b in self._triplets]

    def _choose(self, budget: int) -> None:
        scores = self.importance()
        kept = torch.zeros(sum(map(len, scores)), dtype=torch.bool)
        kept[torch.cat(scores).argsort(descending=True, stable=True)[:budget]] = True
        self._there = list(torch.split(kept, list(map(len, scores))))

    def state_dict(self) -> dict[str, torch.Tensor]:
        """What is known of every entry, and which triplets stay."""
        known = {f"sensitivity/{place}": value for place, value in self._sensitivity.items()}
        known |= {f"uncertainty/{place}": value for place, value in self._uncertainty.items()}
        return known | {f"there/{i}": there for i, there in enumerate(self._there)}

    def load_state_dict(self, state: Mapping[str, torch.Tensor]) -> None:
        """Put back `state_dict`."""
        for place, value in self._sensitivity.items():
            value.copy_(state[f"sensitivity/{place}"])
            self._uncertainty[place].copy_(state[f"uncertainty/{place}"])
        self._there = [state[f"there/{i}"].clone().cpu().bool() for i in range(len(self._there))]

    def report(self) -> dict[str, float]:
        """How many ranks are left."""
        return {"ranks_left": float(sum(int(there.sum()) for there in self._there))}


def _triplets(names: Sequence[str]) -> list[tuple[int, int, int]]:
    """Places of λ, Q and P of every adapted layer."""
    where = {name: place for place, name in enumerate(names)}
    value, row, column = PARTS
    found = [name for name in names if value in name]
    return [(where[name], where[name.replace(value, row)], where[name.replace(value, column)]) for name in found]
