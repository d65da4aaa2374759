"""What every selector of ours shares: name, settings and cost come from its declaration in the catalogue.

Also the two ways in which a selector hands over: by scores (highest first, ties to the lower index), or in the order
in which it chose.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from foretune.catalogue.selection import Pool, SelectorDeclaration, Work
from foretune.catalogue.selectors import SELECTORS
from foretune.catalogue.space import Space
from foretune.data.reasoning import reasoned_answer
from foretune.selection.base import Cost, Request, Selection, Speeds

CHARACTERS_PER_TOKEN = 4.0
"""English under the usual vocabularies: an estimate is made before anything is tokenised."""

Floats = NDArray[np.float64]


class Declared:
    """A selector whose facts are in `catalogue.selectors`."""

    name = ""

    @property
    def declaration(self) -> SelectorDeclaration:
        """The entry of the catalogue."""
        return SELECTORS[self.name]

    def space(self) -> Space:
        """Its settings."""
        return self.declaration.space

    def estimate(self, request: Request) -> Cost:
        """What `select` will take, from the declared work and the request's speeds."""
        return cost_of(self.declaration.work(pool_of(request), request.settings(self.name)), request.speeds)

    def by_score(self, request: Request, scores: Floats | Sequence[float], **more: Any) -> Selection:
        """The rows of highest score; NaN, which no comparison orders, goes last and is counted."""
        values = np.asarray(scores, dtype=np.float64)
        unknown = np.isnan(values)
        order = np.argsort(np.where(unknown, np.inf, -values), kind="stable")[: request.count]
        manifest = {**more.pop("manifest", {})}
        if unknown.any():
            manifest["without_score"] = int(unknown.sum())
        ranked = tuple(float(v) if np.isfinite(v) else -np.inf for v in values[order])
        return Selection(tuple(int(i) for i in order), self.name, scores=ranked, manifest=manifest, **more)


def pool_of(request: Request) -> Pool:
    """The sizes of a request, with tokens estimated from characters."""
    rows = request.examples
    prompts = sum(len(row.prompt) for row in rows) / CHARACTERS_PER_TOKEN
    answers = sum(len(reasoned_answer(row)) for row in rows) / CHARACTERS_PER_TOKEN
    count = max(1, len(rows))
    width = 0
    if request.bench is not None:
        width = int(getattr(request.bench.network.model.config.get_text_config(), "hidden_size", 0))
    return Pool(
        rows=len(rows),
        count=request.count,
        prompt_tokens=prompts / count,
        answer_tokens=answers / count,
        target_rows=len(request.target),
        previous_rows=len(request.previous),
        width=width,
    )


def cost_of(work: Work, speeds: Speeds) -> Cost:
    """Work as tokens, operations, bytes and seconds."""
    seconds = (
        work.scored_tokens / speeds.score_tokens_per_s
        + work.trained_tokens / speeds.train_tokens_per_s
        + work.comparisons / speeds.comparisons_per_s
    )
    return Cost(
        tokens=round(work.scored_tokens + work.trained_tokens),
        operations=speeds.operations_per_token * (work.scored_tokens + 3 * work.trained_tokens) + 2 * work.comparisons,
        memory_bytes=round(work.memory_bytes),
        disk_bytes=round(work.disk_bytes),
        seconds=seconds,
    )
