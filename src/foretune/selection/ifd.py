"""Instruction-following difficulty: how much the question helps the model with the answer.

    IFD(x, y) = ppl(y | x) / ppl(y) = exp( L(y | x) − L(y) ),   L = mean negative log-likelihood of the answer's tokens

(Li et al. 2023, 2308.12032, whose code divides mean losses instead: ``ratio: loss``; Li et al. 2024, 2402.00530,
show that a much smaller model gives nearly the same order: ``scorer``.) The same tokens are scored in both terms; in
L(y) they stand behind the beginning-of-text token alone. A value of 1 or more means that the question does not help:
such rows, usually wrong or unrelated answers, come after all others; below 1 the highest come first, because there the
model still has most to learn.
"""

from __future__ import annotations

import numpy as np

from foretune.selection.base import BlockMap, Request, Selection, Workbench
from foretune.selection.declared import Declared, Floats
from foretune.selection.likelihoods import answers_alone, likelihoods, start_token

UNHELPFUL = 1.0
"""The question does not make the answer more likely."""


def scoring_bench(request: Request, scorer: str) -> Workbench:
    """The request's own model, or the one called ``scorer``."""
    return request.model if scorer == "self" else request.model.with_model(scorer)


def difficulty(request: Request, bench: Workbench, *, ratio: str = "perplexity") -> Floats:
    """(rows,) float64: IFD of every row; NaN for rows without a scored token."""
    rows = bench.encode(request.examples)
    asked = likelihoods(request, rows, "answer-losses", bench=bench).loss
    alone = likelihoods(request, answers_alone(rows, start_token(bench)), "lone-answer-losses", bench=bench).loss
    if ratio == "loss":
        result: Floats = np.divide(asked, alone, out=np.full(len(asked), np.nan), where=alone > 0)
        return result
    return np.exp(asked - alone)


def difficult_first(values: Floats) -> Floats:
    """Scores that put the highest value below 1 first, and values of 1 and more behind all of those."""
    return np.where(values < UNHELPFUL, values, -values)


class Ifd(Declared):
    """Highest IFD below one first."""

    name = "ifd"

    def select(self, request: Request, *, blocks: BlockMap) -> Selection:
        """``n_positive`` counts the rows below one among the chosen; the manifest holds how many are in the pool."""
        settings = request.settings(self.name)
        values = difficulty(request, scoring_bench(request, settings["scorer"]), ratio=settings["ratio"])
        helped = int((values < UNHELPFUL).sum())
        chosen = self.by_score(request, difficult_first(values), manifest={"below_one": helped, "rows": len(values)})
        shown = tuple(float(values[i]) if np.isfinite(values[i]) else -np.inf for i in chosen.indices)
        return _with_values(chosen, shown, min(helped, len(chosen.indices)))


def _with_values(chosen: Selection, values: tuple[float, ...], helped: int) -> Selection:
    """The selection with IFD itself as the score, which is what people want to read."""
    from dataclasses import replace

    return replace(chosen, scores=values, n_positive=helped)
