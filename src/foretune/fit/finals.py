"""After the search: the best two on all validation rows, then every system once on the test rows.

Choosing is done on validation rows, reporting on test rows, which are touched here and nowhere else. All systems are
compared on the same rows; where time ends early, on those that all have answered. A system that answered too few of
them is left out, and the report says so.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from foretune.errors import Place, StoreError, TrainingError
from foretune.evaluation.base import Answer, MetricResult
from foretune.evaluation.compare import Comparison, compare
from foretune.evaluation.metrics import METRICS
from foretune.execution.drive import Watch, run_job
from foretune.execution.orders import subset
from foretune.execution.types import Executor, Job
from foretune.files import read_json
from foretune.fit.choice import Judged, remembering
from foretune.fit.folder import RunFolder
from foretune.fit.prepare import Prepared
from foretune.fit.schedule import FINALISTS, PREVIOUS_ROWS, End
from foretune.search.fidelity import first_rows
from foretune.search.ranking import Finalist
from foretune.training import checkpoint

FEWEST_COMPARED = 2
LEAST_SHARE = 0.5
"""A system that answered a smaller share of what base and winner did would cost their comparison more than it adds."""
LIKELIHOODS = ("loss", "loss_per_byte")


@dataclass(frozen=True)
class Evaluator:
    """Runs evaluation jobs and keeps their answers in the run folder: each system is scored once."""

    prepared: Prepared
    folder: RunFolder
    executor: Executor
    watch: Watch
    left: Callable[[], float | None]
    """Seconds left of the time budget, or None."""

    def rows(self, split: str, count: int) -> tuple[int, ...]:
        """``count`` rows of a split, drawn by the seed: a file may be sorted, its first rows are no sample.

        Those of the validation split contain the rows of every rung, so that the base's loss is known on each.
        """
        if split == "validation":
            return first_rows(self.prepared.rows[split], count, self.prepared.task.seed)
        return subset(count, self.prepared.rows[split], self.prepared.task.seed)

    def answers(self, name: str, payload: Mapping[str, Any]) -> dict[str, Any]:
        """The answers file of ``name``: ``answers``, ``wanted``, ``general``; with ``seconds`` where it was asked now.

        One that an interrupt or the end of the time left incomplete is answered again where time is left.
        """
        output = self.folder.answers / f"{name}.json"
        left = self.left()
        if not output.exists() or (not read_json(output)["complete"] and (left is None or left > 0)):
            settings = {"output": str(output.resolve()), **payload}
            job = Job(f"evaluate-{name}", "evaluate", self.prepared.task, settings, left)
            seconds = run_job(self.executor, job, self.watch)["seconds"]
            return {**read_json(output), "seconds": seconds}
        content: dict[str, Any] = read_json(output)
        return content

    def base_validation(self, count: int) -> dict[str, Any]:
        """The base's answers to ``count`` validation rows."""
        rows = list(self.rows("validation", count))
        return self.answers("validation-base", {"split": "validation", "rows": rows, "generation": False})


def _readable(evaluator: Evaluator, finalist: Finalist) -> bool:
    """Whether the checkpoint that speaks for a run is there and whole."""
    return checkpoint.read(evaluator.folder.trial(finalist.run.id), finalist.step) is not None


def _whole(evaluator: Evaluator, finalists: Sequence[Finalist]) -> tuple[list[Finalist], list[str]]:
    """The first finalists whose checkpoint can be read, and what is said of those before them that cannot."""
    found: list[Finalist] = []
    notes = []
    for finalist in finalists:
        if len(found) == FINALISTS:
            break
        if _readable(evaluator, finalist):
            found.append(finalist)
        else:
            notes.append(f"{finalist.run.id}, among the best, is left out: its checkpoint is missing or damaged.")
    if not found:
        raise StoreError(
            "no trained run can be read: every checkpoint is missing or damaged.",
            place=Place(evaluator.folder.trials),
            remedy="Check the disk, and start again in another --output.",
        )
    return found, notes


def chosen_by_validation(evaluator: Evaluator, finalists: Sequence[Finalist], end: End) -> list[dict[str, Any]]:
    """The finalists with their loss on the validation rows, the chosen one first; it says so where it is not the best.

    Losses are compared on the rows that all have answered: all of them, or fewer where time ended before; one that has
    answered less than half of what another has does not count. Where
    validation cannot tell two apart, the one that forgot less is chosen (`fit.choice`). One whose checkpoint is damaged
    leaves its place to the next. Raises `StoreError` where none can be read.
    """
    judged: list[tuple[Finalist, Judged]] = []
    finalists, notes = _whole(evaluator, finalists)
    for finalist in finalists:
        payload = {**checkpoint_of(evaluator.folder, finalist.run, finalist.step), "split": "validation",
                   "rows": list(evaluator.rows("validation", end.validation_rows)), "generation": False,
                   "forgetting": end.general and len(finalists) > 1}  # fmt: skip
        content = evaluator.answers(f"validation-{finalist.run.id}", payload)
        answers = tuple(Answer(**value) for value in content["answers"])
        if len(answers) < FEWEST_COMPARED:
            continue
        general = general_answers(tuple((nll, tokens) for nll, tokens in content["general"] or ()))
        judged.append((finalist, Judged(finalist.run.id, answers, general)))
    if not judged:  # time ended before a single chunk: the rungs have to decide
        best = finalists[0]
        score = best.score
        loss = [score.value, score.standard_error, score.n]
        return [{"run": best.run.id, "step": best.step, "loss": loss, "why": " ".join(notes)}]
    most = max(len(each.answers) for _, each in judged)
    late = [finalist.run.id for finalist, each in judged if len(each.answers) < LEAST_SHARE * most]
    judged = [pair for pair in judged if pair[0].run.id not in late]
    notes = [*notes, *(f"Time ended before {run} had answered half of the validation rows." for run in late)]
    rows = _common_rows(each.answers for _, each in judged)
    table = [(_scored(finalist, each, rows), each) for finalist, each in judged]
    table.sort(key=lambda pair: pair[0]["loss"][0])
    lowest, *others = (each for _, each in table)
    chosen, why = remembering(lowest, others, seed=evaluator.prepared.task.seed)
    listed = [row for row, _ in sorted(table, key=lambda pair: pair[0]["run"] != chosen)]
    return [{**listed[0], "why": " ".join(filter(None, (*notes, why)))}, *listed[1:]]


def _common_rows(answered: Iterable[Sequence[Answer]]) -> set[int]:
    return set.intersection(*({answer.row for answer in answers} for answers in answered))


def _scored(finalist: Finalist, judged: Judged, rows: Collection[int]) -> dict[str, Any]:
    """A finalist with its loss on ``rows``, and on the general text where it was scored there."""
    result = METRICS["loss"].score([answer for answer in judged.answers if answer.row in rows])
    row = {"run": finalist.run.id, "step": finalist.step, "loss": [result.value, result.standard_error, len(rows)]}
    return {**row, "general_loss": METRICS["loss"].score(judged.general).value} if judged.general else row


def on_rows(answers: Sequence[Answer], rows: Sequence[int]) -> Sequence[Answer]:
    """The answers to ``rows``, or all where time ended before they were scored."""
    wanted = set(rows)
    return [answer for answer in answers if answer.row in wanted] or answers


def checkpoint_of(folder: RunFolder, run: Any, step: int) -> dict[str, Any]:
    """What a worker needs to load a run's checkpoint."""
    return {
        "run_folder": str(folder.trial(run.id).resolve()),
        "step": step,
        "config": dict(run.config),
        "seed": run.seed,
    }


@dataclass(frozen=True)
class System:
    """One compared system: its answers on the test rows and its losses on the general text."""

    role: str
    name: str
    answers: tuple[Answer, ...]
    general: tuple[tuple[float, float], ...] = ()
    previous: tuple[tuple[float, float], ...] = ()
    """Its losses on rows that the model was trained on before, where such were given"""
    previous_refused: str = ""
    """Why there are none, where this model cannot have them"""


def answer_test_rows(
    evaluator: Evaluator, winner: Any, winner_step: int, default: Finalist | None, end: End, *, generation: bool
) -> tuple[list[System], list[str]]:
    """Base, base with retrieved examples, default LoRA and winner on the same test rows; what is said of one left out.

    The winner may be the default LoRA itself. Raises `TrainingError` when time left no rows that all answered.
    """
    common = {"split": "test", "rows": list(evaluator.rows("test", end.test_rows)), "generation": generation}
    tuned = checkpoint_of(evaluator.folder, winner, winner_step)
    elsewhere: dict[str, Any] = {"forgetting": end.general}
    if end.general and "previous" in evaluator.prepared.rows:
        elsewhere["previous"] = list(evaluator.rows("previous", PREVIOUS_ROWS))
    wanted: list[tuple[str, str, dict[str, Any]]] = [
        ("base", "untouched base model", {**common, **elsewhere}),
        ("winner", f"fine-tuned ({winner.id})", {**common, **tuned, **elsewhere}),
    ]
    if default is not None and default.run.id != winner.id and _readable(evaluator, default):
        trained = checkpoint_of(evaluator.folder, default.run, default.step)
        wanted.append(("default", "default LoRA", {**common, **trained}))
    if end.shots:
        wanted.append(("examples", f"base with {end.shots} retrieved examples", {**common, "shots": end.shots}))
    found = []
    for role, name, payload in wanted:
        content = evaluator.answers(f"test-{role}", payload)
        answers = tuple(Answer(**value) for value in content["answers"])
        complete = tuple(a for a in answers if a.prediction is not None) if generation else answers
        general, previous = (
            tuple((nll, tokens) for nll, tokens in content.get(part) or ()) for part in ("general", "previous")
        )
        found.append(System(role, name, complete, general, previous, content.get("previous_refused", "")))
    return _on_common_rows(found)


def _on_common_rows(systems: Sequence[System]) -> tuple[list[System], list[str]]:
    """The systems on the rows that all of them answered; one that answered too few is left out, and a note says so."""
    full = _common_rows(system.answers for system in systems if system.role in ("base", "winner"))
    if len(full) < FEWEST_COMPARED:
        raise TrainingError(
            "time ended before base and fine-tuned model had answered test rows.",
            remedy="Run `foretune fit --resume` with more --time to finish the comparison.",
        )
    kept, notes = [], []
    for system in systems:
        count = sum(answer.row in full for answer in system.answers)
        if count >= max(FEWEST_COMPARED, LEAST_SHARE * len(full)):
            kept.append(system)
        else:
            said = f"time ended when it had answered {count} of {len(full)} test rows."
            notes.append(f"The {system.name} is left out of the comparison: {said}")
    rows = _common_rows(system.answers for system in kept)
    return [replace(s, answers=tuple(answer for answer in s.answers if answer.row in rows)) for s in kept], notes


def metric_names(primary: str, kind: str, task: str) -> list[str]:
    """What is reported beside the primary metric."""
    names = [primary]
    if task == "classification" and primary != "accuracy":
        names.append("accuracy")
    beside = {"exact_match": "token_f1", "label_f1": "exact_match", "choice": "exact_match"}
    if task == "generation" and primary in beside:
        names.append(beside[primary])
    if task != "regression":
        names.append("loss")
    if kind != "encoder":
        names.append("loss_per_byte")
    return list(dict.fromkeys(names))


def results(systems: Sequence[System], names: Sequence[str]) -> dict[str, dict[str, MetricResult]]:
    """Metric results by role and name."""
    return {system.role: {name: METRICS[name].score(system.answers) for name in names} for system in systems}


def differences(
    scored: Mapping[str, Mapping[str, MetricResult]], names: Sequence[str]
) -> list[tuple[str, str, str, Comparison]]:
    """(role, against, metric, comparison) for every system against the base, and the winner against the others."""
    pairs = [(role, "base") for role in scored if role != "base"]
    pairs += [("winner", role) for role in ("default", "examples") if role in scored]
    return [
        (role, against, name, compare(scored[role][name], scored[against][name], direction=METRICS[name].direction))
        for role, against in pairs
        for name in names
    ]


def loss_elsewhere(losses: Sequence[tuple[float, float]]) -> MetricResult | None:
    """Loss on the general text sample or on earlier rows, or None where it was not measured."""
    return METRICS["loss"].score(general_answers(losses)) if losses else None


def general_answers(general: Sequence[tuple[float, float]]) -> tuple[Answer, ...]:
    """The losses on the passages of the general text as answers."""
    return tuple(Answer(i, "", "", nll=nll, tokens=int(tokens)) for i, (nll, tokens) in enumerate(general))
