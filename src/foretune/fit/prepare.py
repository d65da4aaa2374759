"""From a plan to a prepared task: rows read, split and written to the run folder; the model fetched if need be.

Everything here happens once per run. What workers need is the returned `TaskSpec` and the files under ``task/``.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from foretune.catalogue.languages import parse_pair
from foretune.catalogue.models import ModelReference
from foretune.config.spec import FitSpec
from foretune.data.example import Example
from foretune.data.instruction import instructed
from foretune.data.profile import profile
from foretune.data.split import Splits, split
from foretune.data.tasks import task_names
from foretune.errors import DataError, Place
from foretune.evaluation.metrics import default_metric, try_out
from foretune.execution.types import PREFIX_CACHE_BYTES, SPLITS, TaskSpec
from foretune.files import write_json, write_text
from foretune.fit.folder import RunFolder
from foretune.fit.plan import Plan, context_tokens
from foretune.fit.planned_rows import instruction_of
from foretune.fit.rows import Found, read_all
from foretune.fit.selected import write_others
from foretune.models.load import locate
from foretune.packages import Progress

FACTS = "facts.json"


@dataclass(frozen=True)
class Prepared:
    """A task ready for workers, and the facts about its data."""

    task: TaskSpec
    rows: Mapping[str, int]
    """Rows of each split, and of a target and previous rows where there are such"""
    facts: Mapping[str, Any]
    """What was read and how it was split, as JSON for the report"""

    def to_json(self) -> dict[str, Any]:
        """A JSON form that `from_json` reads back."""
        return {"task": self.task.to_json(), "rows": dict(self.rows), "facts": dict(self.facts)}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Prepared:
        """The inverse of `to_json`."""
        return cls(TaskSpec.from_json(value["task"]), value["rows"], value["facts"])


def prepare(plan: Plan, folder: RunFolder, progress: Progress) -> Prepared:
    """Read, split and write the task of ``plan`` under ``folder``; raises `DataError`, `ModelError`, `OutputError`."""
    spec = plan.resolution.spec
    found, splits = read_and_split(spec, folder.root / "quarantine.jsonl")
    data = found.data
    if not splits.test:
        raise DataError(
            "there are no test rows for the final comparison.",
            place=Place(str(spec.data.path)),
            remedy="Leave data.test_share above 0, or give --test FILE.",
        )
    kind = plan.model.shapes.kind
    languages = None if spec.data.languages is None else parse_pair(spec.data.languages)
    prefix = instruction_of(spec, plan.model)
    name = spec.data.metric or default_metric(data.task, splits.train, translation=bool(languages), format=data.format)
    try_out(name, splits.validation)
    labels = sorted({str(row.label) for row in splits.train}) if data.task == "classification" else []
    if data.task == "classification" and len(labels) < 2:
        raise DataError(
            f"all training rows have the label {labels[0]!r}.",
            place=Place(str(spec.data.path)),
            remedy="Classification needs at least two classes; check --label-column.",
        )
    tasks = task_names(splits.train)
    for part in ("validation", "test"):
        check_learnt(splits.of(part), part, labels, tasks)
    layout = plan.placement.layout
    task = TaskSpec(
        folder=str(folder.task.resolve()),
        task=data.task,
        model=ModelReference(
            source=str(locate(spec.model.source, progress=progress)),
            kind=kind,
            dtype=spec.model.dtype,
            quantize="4bit" if layout.quantize == "4bit" else "none",
            trust_remote_code=spec.model.trust_remote_code,
            revision=spec.model.revision,
            languages=languages,
        ),
        metric=name,
        labels=tuple(labels),
        tasks=tasks,
        context_tokens=context_tokens(spec, plan.model.shapes),
        seed=spec.search.seed,
        device=spec.device,
        micro_batch_tokens=layout.micro_batch_tokens,
        gradient_checkpointing=layout.gradient_checkpointing,
        prefix_cache_bytes=PREFIX_CACHE_BYTES if spec.memory.prefix_cache is None else spec.memory.prefix_cache,
        max_answer_tokens=spec.evaluation.max_answer_tokens,
        plain_template=spec.model.plain_template,
    )
    for split_name in SPLITS:
        write_split(folder.task / f"{split_name}.jsonl", instructed(splits.of(split_name), prefix))
    others = write_others(spec, data, splits, folder.task, prefix)
    asked = _as_asked(splits, prefix) if spec.data.instruction else splits
    facts = {**_facts(spec, found, asked), "instruction": prefix}
    write_json(folder.task / FACTS, facts)
    return Prepared(task, {**{name: len(splits.of(name)) for name in SPLITS}, **others}, facts)


def check_learnt(rows: Sequence[Example], name: str, labels: Sequence[str], tasks: Sequence[str]) -> None:
    """Raise `DataError` for ``name`` rows of a label or task that no training row has; none is learnt: any will do."""
    checks: list[tuple[str, Callable[[Example], str], Sequence[str]]] = [
        ("label", lambda row: str(row.label), labels),
        ("task", lambda row: row.task or "", tasks),
    ]
    for what, of, learnt in checks:
        unknown = [row for row in rows if of(row) not in learnt] if learnt else []
        if unknown:
            first = unknown[0]
            rest = f" (and {len(unknown) - 1} more {name} rows have such)" if len(unknown) > 1 else ""
            raise DataError(
                f"the {what} {of(first)!r} of this {name} row is in no training row{rest}.",
                place=first.place,
                remedy="What was not learnt cannot be predicted: leave such rows out, or add training rows.",
            )


def read_and_split(spec: FitSpec, quarantine: Path | None = None) -> tuple[Found, Splits]:
    """The rows of a specification, read as one task, and split.

    See `fit.rows.read_all`.
    """
    settings, found = spec.data, read_all(spec, quarantine)
    splits = split(
        found.data.examples,
        seed=spec.search.seed,
        validation_share=settings.validation_share,
        test_share=settings.test_share,
        given={name: part.examples for name, part in found.given.items()},
    )
    return found, splits


def write_split(path: Path, examples: Sequence[Example]) -> None:
    """One example in JSON a line."""
    write_text(path, "".join(json.dumps(row.to_json(), ensure_ascii=False) + "\n" for row in examples))


def _as_asked(splits: Splits, prefix: str) -> Splits:
    """The rows behind an instruction, which makes them another task to the experience."""
    train, validation, test = (instructed(splits.of(name), prefix) for name in ("train", "validation", "test"))
    return replace(splits, train=train, validation=validation, test=test)


def _facts(spec: FitSpec, found: Found, splits: Splits) -> dict[str, Any]:
    data = found.data
    return {
        "name": Path(str(spec.data.path)).name,
        "sha256": data.sha256,
        "format": data.format,
        "task": data.task,
        "read": data.rows_read,
        "quarantined": sum(part.quarantined for part in found.all),
        "problems": [f"{problem.place}: {problem.what}" for part in found.all for problem in part.problems][:5],
        "notes": list(data.notes),
        "split": list(splits.report.notes),
        "reasoning": sum(row.reasons for row in splits.train) / max(1, len(splits.train)),
        "profile": profile(splits).to_json(),
    }
