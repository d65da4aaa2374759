"""Carrying out a selection: rows without an answer set aside, stages one after the other, the result checked.

    chain   a:60%+b    b chooses among what a leaves
    fuse    a&b        mean of the ranks under a and b (Borda count); both rank the whole pool

What cannot be trained on (no answer), what was cut to fit the context and what the selectors themselves counted is in
the manifest. A budget in answer tokens takes rows in order while they fit (a row that does not fit is passed over); a
selector that ranks nothing is asked for as many as it holds of the mean row.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from foretune.catalogue.selection import Keep, Stage, declaration, needed, parse
from foretune.data.example import Example
from foretune.data.reasoning import reasoned_answer
from foretune.errors import DataError, UsageError
from foretune.selection.base import BlockMap, Cost, Request, Selection
from foretune.selection.blocks import SerialBlocks
from foretune.selection.declared import Floats
from foretune.selection.registry import get
from foretune.selection.took import Stopwatch, Tally


@dataclass(frozen=True)
class Usable:
    """Which rows can be selected, and why others cannot."""

    rows: tuple[int, ...]
    without_answer: tuple[int, ...]


def usable(examples: Sequence[Example]) -> Usable:
    """Rows with something to learn: an answer, a label or a text."""
    empty = tuple(i for i, row in enumerate(examples) if not _said(row))
    gone = set(empty)
    return Usable(tuple(i for i in range(len(examples)) if i not in gone), empty)


def _said(row: Example) -> bool:
    if row.turns and row.turns[0].role == "text":
        return bool(row.turns[0].content.strip())
    return bool(row.answer.strip())


def check_request(text: str, request: Request) -> None:
    """Refuse what cannot be carried out: no rows, a missing model or target, a selector that only trains.

    Raises `UsageError` and `DataError`.
    """
    stages = parse(text)
    if not request.examples:
        raise DataError("there are no rows to select from.", remedy="Give a data set with rows.")
    names = [name for stage in stages for name in stage.names]
    model, target = needed(names)
    if model and request.bench is None:
        raise UsageError(f"{text} needs a model.", remedy="Give --model.")
    if target and not request.target:
        raise UsageError(
            f"{text} needs to know what the rows are for.", remedy="Give --target FILE: rows like those to be good at."
        )


def select(request: Request, text: str, keep: Keep | None = None, *, blocks: BlockMap | None = None) -> Selection:
    """The rows that the selection ``text`` keeps, as indices into ``request.examples``, best first.

    ``keep`` replaces ``request.count``. The counted facts are in the manifest. Raises what `check_request` raises,
    `SelectionStopped` when told to stop, and what selectors raise.
    """
    watch, request = Stopwatch(), replace(request, tally=Tally())
    check_request(text, request)
    able = usable(request.examples)
    tokens = answer_tokens(request) if keep is not None and keep.kind == "tokens" else None
    wanted = request.count if keep is None else keep.rows(len(request.examples))
    wanted = min(wanted, len(able.rows))
    inner = request.narrowed(able.rows, wanted)
    if tokens is not None and keep is not None:
        inner = replace(inner, costs=[tokens[i] for i in able.rows], budget_tokens=int(keep.amount))
    chosen = _stages(inner, parse(text), blocks or SerialBlocks()) if wanted else Selection((), text, scores=())
    chosen = replace(chosen, indices=tuple(able.rows[i] for i in chosen.indices), method=text)
    if tokens is not None and keep is not None:
        chosen = within(chosen, tokens, int(keep.amount))
    manifest = {
        **chosen.manifest,
        "rows": len(request.examples),
        "kept": len(chosen.indices),
        "without_answer": len(able.without_answer),
        **request.tally.facts(),
    }
    took = request.tally.whole(watch.took())
    cost = replace(chosen.cost, seconds=took.seconds, cpu_seconds=took.cpu_seconds)
    return replace(chosen, manifest=manifest, cost=cost)


def answer_tokens(request: Request) -> list[int]:
    """Trained tokens of every row; estimated from characters where no model is loaded."""
    from foretune.selection.declared import CHARACTERS_PER_TOKEN

    if request.bench is None:
        return [max(1, round(len(reasoned_answer(row)) / CHARACTERS_PER_TOKEN)) for row in request.examples]
    able = usable(request.examples)
    encoded = request.bench.encode([request.examples[i] for i in able.rows])
    counted = dict(zip(able.rows, (row.targets for row in encoded), strict=True))
    return [counted.get(i, 0) for i in range(len(request.examples))]


def within(selection: Selection, tokens: Sequence[int], budget: int) -> Selection:
    """The rows in order while their tokens fit into ``budget``; one that does not fit is passed over."""
    kept, left = [], budget
    for place, row in enumerate(selection.indices):
        if tokens[row] <= left:
            kept.append(place)
            left -= tokens[row]

    def pick(values: tuple[float, ...] | None) -> tuple[float, ...] | None:
        return None if values is None else tuple(values[place] for place in kept)

    return replace(
        selection,
        indices=tuple(selection.indices[place] for place in kept),
        scores=pick(selection.scores),
        gains=pick(selection.gains),
        nested=False,
        manifest={**selection.manifest, "answer_tokens": budget - left, "budget_tokens": budget},
    )


def _stages(request: Request, stages: Sequence[Stage], blocks: BlockMap) -> Selection:
    rows: Sequence[int] = range(len(request.examples))
    told: dict[str, Any] = {}
    cost = Cost()
    for number, stage in enumerate(stages, 1):
        last = number == len(stages)
        count = request.count if stage.keep is None else stage.keep.rows(len(rows))
        if request.budget_tokens is None:
            count = max(request.count, count)
        part = request.narrowed(rows, min(count, len(rows)))
        if not last:
            part = replace(part, budget_tokens=None)
        found = _stage(part, stage, blocks)
        _check(found, len(part.examples), part.count)
        told.update({f"{'&'.join(stage.names)}": dict(found.manifest)} if found.manifest else {})
        cost = _sum(cost, found.cost)
        found = replace(found, indices=tuple(rows[i] for i in found.indices))
        rows = found.indices
    nested = found.nested and len(stages) == 1
    return replace(found, nested=nested, cost=cost, manifest=told)


def _sum(one: Cost, other: Cost) -> Cost:
    return Cost(
        one.tokens + other.tokens,
        one.operations + other.operations,
        max(one.memory_bytes, other.memory_bytes),
        one.disk_bytes + other.disk_bytes,
    )


def _stage(request: Request, stage: Stage, blocks: BlockMap) -> Selection:
    if len(stage.names) == 1:
        return get(stage.names[0]).select(_sized(request, stage.names[0]), blocks=blocks)
    whole = replace(request, count=len(request.examples), budget_tokens=None)
    parts = [get(name).select(whole, blocks=blocks) for name in stage.names]
    return fused(parts, len(request.examples), request.count, "&".join(stage.names))


def _sized(request: Request, name: str) -> Request:
    """The request with as many rows as a token budget holds of their mean length, for a selector whose choice of many
    does not begin with its choice of few; as it is for others, of whose ranking the budget takes what fits."""
    if request.budget_tokens is None or declaration(name).nested:
        return request
    holds = math.ceil(request.budget_tokens * len(request.costs) / max(1, sum(request.costs)))
    return replace(request, count=min(request.count, holds))


def fused(parts: Sequence[Selection], rows: int, count: int, name: str) -> Selection:
    """The ``count`` rows of lowest mean rank over ``parts``; a row that a part left out has its last rank.

    The score is minus the mean rank, counted from 0; ties go to the lower index.
    """
    ranks: Floats = np.zeros((len(parts), rows))
    for number, part in enumerate(parts):
        ranks[number] = rows - 1
        ranks[number, list(part.indices)] = np.arange(len(part.indices))
    mean = ranks.mean(axis=0)
    order = np.argsort(mean, kind="stable")[:count]
    manifest = {part.method: dict(part.manifest) for part in parts if part.manifest}
    scores = tuple(-float(mean[i]) for i in order)
    return Selection(tuple(int(i) for i in order), name, scores=scores, manifest=manifest)


def _check(chosen: Selection, rows: int, wanted: int) -> None:
    """What every selector promises; a broken promise of a third party's is said, not trained on."""
    indices = chosen.indices
    wrong = ""
    if len(set(indices)) != len(indices):
        wrong = "names a row twice"
    elif any(not 0 <= i < rows for i in indices):
        wrong = f"names a row outside 0 … {rows - 1}"
    elif len(indices) > wanted:
        wrong = f"gives {len(indices)} rows where {wanted} were wanted"
    elif chosen.scores is not None and any(np.isnan(score) for score in chosen.scores):
        wrong = "gives NaN as a score"
    if wrong:
        raise UsageError(f"the selector {chosen.method} {wrong}.", remedy="This is a defect of the selector.")
