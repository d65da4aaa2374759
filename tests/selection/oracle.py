"""Facility location as its definitions say, by computing everything in every step."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

Objective = Callable[[Sequence[int]], float]


def objective(name: str, s: np.ndarray, *, previous=None, target_rows=None, target=None, nu=1.0, eta=1.0) -> Objective:
    """To be maximised. s: (rows, candidates), previous: (rows, E), target_rows: (rows, Q), target: (Q, candidates)."""

    def of(chosen: Sequence[int]) -> float:
        chosen = list(chosen)
        best = s[:, chosen].max(axis=1, initial=0.0)
        to_target = 0.0 if target is None else sum(max(target[q, j] for q in range(len(target))) for j in chosen)
        if name == "fl":
            return float(best.sum())
        if name == "flcg":
            return float(np.maximum(best - nu * previous.max(axis=1), 0).sum())
        if name == "flmi":
            return float(best.sum() + eta * to_target)
        if name == "fl1mi":
            return float(np.minimum(best, eta * target_rows.max(axis=1)).sum())
        if name == "fl2mi":
            return float(target[:, chosen].max(axis=1, initial=0.0).sum() + eta * to_target)
        if name == "flcmi":
            capped = np.minimum(best, eta * target_rows.max(axis=1))
            return float(np.maximum(capped - nu * previous.max(axis=1), 0).sum())
        raise KeyError(name)

    return of


def greedy(f: Objective, candidates: int, count: int) -> tuple[list[int], list[float]]:
    """The chosen and their gains, as long as something gains; the lowest index among (nearly) equal gains."""
    chosen: list[int] = []
    gains: list[float] = []
    value = f([])
    while len(chosen) < count:
        left = [j for j in range(candidates) if j not in chosen]
        more = {j: f([*chosen, j]) - value for j in left}
        best = max(more.values())
        if best <= 1e-12:
            break
        j = min(j for j in left if more[j] >= best - 1e-12)
        chosen.append(j)
        gains.append(more[j])
        value += more[j]
    return chosen, gains
