"""Which of several data sets would help most with a target: rank source tasks, not rows.

insta        (Lee et al. 2024, 2404.16418)  by instructions alone: mean over pairs of the cosine of their embeddings,
                 score(S, T) = mean_{q ∈ S, q' ∈ T} cos(e(q), e(q'))
esm-logme    (Schulte et al. 2024, 2410.15148)  for each source an embedding space map, the linear map W that takes base
             embeddings to those of a model tuned on the source (ridge regression); the target's embeddings through W
             are scored by how well labels follow from them: LogME (You et al. 2021, 2102.11005), the largest log
             evidence per row of a Bayesian linear regression y ~ N(F w, 1/β), w ~ N(0, 1/α)

Labels are class indicators, numbers, or, for answers in words, the leading principal components of the answers' own
embeddings; evidences are averaged over label columns. INSTA costs one pass over the questions; ESM-LogME a short
training of a LoRA on each source.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np

from foretune.catalogue.methods import resolve
from foretune.data.example import Example, Turn
from foretune.data.update import Epochs
from foretune.errors import DataError, UsageError
from foretune.seeding import derive, generator
from foretune.selection.base import Request, Workbench
from foretune.selection.declared import Floats
from foretune.selection.embeddings import Vectors, embed
from foretune.training.loop import LoopSettings, Training
from foretune.training.optimizer import OptimizerSettings

TaskMethod = Literal["insta", "esm-logme"]
METHODS: tuple[TaskMethod, ...] = ("insta", "esm-logme")
MOST_ROWS = 256
"""Rows of a source and of the target that are looked at, drawn once: means move little beyond."""
ANSWER_COMPONENTS = 8
RIDGE = 1.0
ROWS_PER_UPDATE = 16
ITERATIONS = 100
_SMALL = 1e-10


@dataclass(frozen=True)
class TaskScore:
    """A source with its score; higher is more helpful."""

    name: str
    score: float
    rows: int
    """Rows of it that were looked at"""


def rank_tasks(
    target: Sequence[Example],
    sources: Mapping[str, Sequence[Example]],
    *,
    bench: Workbench,
    method: TaskMethod = "insta",
    seed: int = 0,
    epochs: float = 1.0,
    learning_rate: float = 2e-4,
    request: Request | None = None,
) -> list[TaskScore]:
    """The sources from the most to the least helpful for ``target``; ties in the order given.

    ``request`` carries folder, progress and stop. Raises `UsageError` for an unknown method, `DataError` for no rows.
    """
    if method not in METHODS:
        raise UsageError(f"unknown way of ranking tasks: {method!r}.", remedy=f"Known: {', '.join(METHODS)}.")
    if not target or not all(sources.values()):
        empty = next((name for name, rows in sources.items() if not rows), "the target")
        raise DataError(f"{empty} has no rows.", remedy="Give data sets with rows.")
    base = request or Request((), 0, seed=seed, bench=bench)
    wanted = _drawn(target, seed, "target")
    found = []
    for name, rows in sources.items():
        base.check_stopped()
        here = _drawn(rows, seed, "source")
        if method == "insta":
            score = instruction_similarity(base, bench, here, wanted)
        else:
            score = _evidence_after(base, bench, here, wanted, seed, epochs, learning_rate)
        found.append(TaskScore(name, score, len(here)))
        base.on_progress("tasks", len(found), len(sources))
    return sorted(found, key=lambda one: -one.score)


def _drawn(rows: Sequence[Example], seed: int, what: str) -> list[Example]:
    if len(rows) <= MOST_ROWS:
        return list(rows)
    order = generator(seed, "tasks", what).permutation(len(rows))[:MOST_ROWS]
    return [rows[int(i)] for i in np.sort(order)]


def instruction_similarity(
    request: Request, bench: Workbench, source: Sequence[Example], target: Sequence[Example]
) -> float:
    """INSTA: the mean cosine between instructions of two tasks."""
    one, other = (
        embed(request, [_instruction(row) for row in rows], bench=bench, what="instructions")
        for rows in (source, target)
    )
    return float(one.mean(axis=0) @ other.mean(axis=0))  # the mean over pairs of cosines of unit vectors


def _instruction(row: Example) -> Example:
    """The question as a text of its own."""
    return Example((Turn("text", row.prompt),), targets=(0,))


def _evidence_after(
    request: Request,
    bench: Workbench,
    source: Sequence[Example],
    target: Sequence[Example],
    seed: int,
    epochs: float,
    learning_rate: float,
) -> float:
    before = embed(request, source, bench=bench, unit=False, what="source-embeddings")
    goal = embed(request, target, bench=bench, unit=False, what="target-embeddings")
    after = _tuned_embeddings(request, bench, source, seed, epochs, learning_rate)
    mapped = through_map(before, after, goal)
    labels = labels_of(request, bench, target)
    return float(np.mean([log_evidence(mapped, labels[:, column]) for column in range(labels.shape[1])]))


def _tuned_embeddings(
    request: Request, bench: Workbench, source: Sequence[Example], seed: int, epochs: float, learning_rate: float
) -> Vectors:
    """Embeddings of the source's rows by a LoRA trained on them."""
    config = resolve({"method": "lora", "lora.rank": 8, "lora.alpha": 16.0, "lora.dropout": 0.0})
    rows = bench.encode(source)
    with bench.attached(config, derive(seed, "tasks", "tuned")) as (attachment, network):
        plan = Epochs(len(rows), ROWS_PER_UPDATE, seed)
        steps = max(1, round(epochs * plan.updates_per_epoch))
        loop = LoopSettings(
            OptimizerSettings(learning_rate, steps), seed, bench.task.micro_batch_tokens, pad_id=bench.pad_id,
            decoder_start_id=bench.decoder_start_id,
        )  # fmt: skip
        training = Training(network, attachment, rows, plan, loop, backward=bench.accelerator.backward)
        training.run(steps, on_step=lambda report: not request.stopped())
        request.check_stopped()
        return embed(request, source, bench=bench, unit=False, network=network, what="tuned-embeddings")


def through_map(before: Vectors, after: Vectors, goal: Vectors) -> Floats:
    """``goal`` through the ridge regression that takes ``before`` to ``after``: (rows, width) each.

    before and after are centred first; the map is shrunk towards the identity, that is, its difference from it is
    penalised, because a short training changes little.
    """
    x, y = before.astype(np.float64), after.astype(np.float64)
    mean = x.mean(axis=0)
    centred = x - mean
    change = (y - y.mean(axis=0)) - centred
    gram = centred.T @ centred
    penalty = RIDGE * np.trace(gram) / len(gram)
    weights = np.linalg.solve(gram + penalty * np.eye(len(gram)), centred.T @ change)
    moved = goal.astype(np.float64) - mean
    mapped: Floats = moved + moved @ weights + y.mean(axis=0)
    return mapped


def labels_of(request: Request, bench: Workbench, target: Sequence[Example]) -> Floats:
    """(rows, columns): class indicators, numbers, or principal components of the answers' embeddings."""
    labels = [row.label for row in target]
    if all(isinstance(label, int | float) for label in labels):
        return np.asarray(labels, dtype=np.float64)[:, None]
    if all(label is not None for label in labels):
        names = sorted({str(label) for label in labels})
        return np.asarray([[float(str(label) == name) for name in names] for label in labels])
    answers = [replace(_instruction(row), turns=(Turn("text", row.answer),)) for row in target]
    vectors = embed(request, answers, bench=bench, unit=False, what="answers").astype(np.float64)
    centred = vectors - vectors.mean(axis=0)
    left, scale, _ = np.linalg.svd(centred, full_matrices=False)
    columns = min(ANSWER_COMPONENTS, int((scale > _SMALL).sum()) or 1)
    components: Floats = left[:, :columns] * scale[:columns]
    return components


def log_evidence(features: Floats, label: Floats) -> float:
    """LogME of one label column: the largest log evidence per row over α and β.

    features: (n, d), label: (n,). With F = U S Vᵀ and σ = S², z = Uᵀy, the fixed point is (You et al. 2021, eq. 2 and
    algorithm 1) γ = Σ β σ_i / (α + β σ_i), α = γ / |m|², β = (n − γ) / |F m − y|², where m is the posterior mean. A
    label that does not vary has no evidence: 0 is returned.
    """
    count, width = len(label), int(features.shape[1])
    if np.ptp(label) < _SMALL:
        return 0.0
    left, scale, _ = np.linalg.svd(features, full_matrices=False)
    sigma = scale**2
    inside = left.T @ label
    outside = max(float(label @ label - inside @ inside), 0.0)  # the part that no weights can explain
    alpha, beta = 1.0, 1.0
    for _ in range(ITERATIONS):
        gamma = float((beta * sigma / (alpha + beta * sigma)).sum())
        weights = float((beta**2 * sigma * inside**2 / (alpha + beta * sigma) ** 2).sum())
        misfit = float((alpha**2 * inside**2 / (alpha + beta * sigma) ** 2).sum()) + outside
        newer = gamma / max(weights, _SMALL), (count - gamma) / max(misfit, _SMALL)
        settled = abs(newer[0] - alpha) <= 1e-6 * alpha and abs(newer[1] - beta) <= 1e-6 * beta
        alpha, beta = newer
        if settled:
            break
    return evidence_at(sigma, inside, outside, count, width, alpha, beta) / count


def evidence_at(
    sigma: Floats, inside: Floats, outside: float, count: int, width: int, alpha: float, beta: float
) -> float:
    """Log p(y | F, α, β) from the singular values squared and the label in the left singular vectors' frame."""
    weights = float((beta**2 * sigma * inside**2 / (alpha + beta * sigma) ** 2).sum())
    misfit = float((alpha**2 * inside**2 / (alpha + beta * sigma) ** 2).sum()) + outside
    determinant = float(np.log(alpha + beta * sigma).sum()) + (width - len(sigma)) * float(np.log(alpha))
    determinant += count * float(np.log(2 * np.pi))
    powers = width * float(np.log(alpha)) + count * float(np.log(beta))
    return 0.5 * (powers - beta * misfit - alpha * weights - determinant)


def as_json(scores: Sequence[TaskScore]) -> list[dict[str, Any]]:
    """Scores for ``--json``."""
    return [{"name": one.name, "score": one.score, "rows": one.rows} for one in scores]
