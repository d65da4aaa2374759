"""The rows as a plan sees them: format, task, how many in each split, how long."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Any

from foretune.catalogue.languages import parse_pair
from foretune.config.spec import FitSpec
from foretune.data.instruction import before_texts, instructed
from foretune.data.read import ReadResult
from foretune.data.translation import prefix_for
from foretune.errors import DataError, Place
from foretune.fit.find_model import ModelFacts
from foretune.fit.row_tokens import RowCount, count_tokens
from foretune.fit.rows import read_all

_FEW_ROWS = 50
_VALIDATION_NAMES = frozenset({"validation", "valid", "val", "dev"})


@dataclass(frozen=True)
class PlannedRows:
    """A data set's size."""

    path: str
    format: str
    task: str
    train: int
    validation: int
    test: int
    quarantined: int
    count: RowCount
    notes: tuple[str, ...] = ()
    result: ReadResult | None = None
    """The rows themselves, for a probe"""

    def to_json(self) -> dict[str, Any]:
        """A JSON form without the rows."""
        row = self.count.row
        return {
            "path": self.path,
            "format": self.format,
            "task": self.task,
            "rows": {"train": self.train, "validation": self.validation, "test": self.test},
            "quarantined": self.quarantined,
            "tokens_per_row": {
                "prompt": row.prompt,
                "answer": row.answer,
                "longest": row.longest,
                "exact": row.exact,
                "sampled_rows": self.count.sampled,
            },
        }


def planned_rows(spec: FitSpec, facts: ModelFacts, context_tokens: int) -> PlannedRows:
    """Read the data of ``spec`` and count it. Raises `DataError`, `UsageError`, `ModelError`."""
    settings = spec.data
    if not settings.path:
        raise DataError("no data was given.", place=Place("data.path"), remedy="Name a file: foretune plan DATA.")
    found = read_all(spec)
    result, extra = found.data, {name: len(part.examples) for name, part in found.given.items()}
    train, validation, test = _splits(spec, result, extra)
    if not train:
        raise DataError("no rows are left to train on.", place=Place(settings.path), remedy="Give more rows.")
    count = count_tokens(
        instructed(result.examples, instruction_of(spec, facts)),
        kind=facts.shapes.kind,
        tokenizer=facts.tokenizer,
        context_tokens=context_tokens,
        seed=spec.search.seed,
    )
    return PlannedRows(
        path=settings.path, format=result.format, task=result.task, train=train, validation=validation, test=test,
        quarantined=result.quarantined, count=count, notes=_notes(result, train), result=result,
    )  # fmt: skip


def instruction_of(spec: FitSpec, model: ModelFacts) -> str:
    """What is written before every text: the user's words, or what a translator is told; empty where nothing is."""
    shapes = model.shapes
    languages = None if spec.data.languages is None else parse_pair(spec.data.languages)
    told = "" if languages is None else prefix_for(languages, shapes.kind, shapes.architecture, model.folder)
    return before_texts(spec.data.instruction, told, replaces=shapes.kind == "causal")


def _splits(spec: FitSpec, result: ReadResult, extra: dict[str, int]) -> tuple[int, int, int]:
    """(training, validation, test) rows: given splits and files first, shares of the rest for what is missing."""
    named = Counter(_split_name(example.split) for example in result.examples)
    train = named["train"]
    validation = extra.get("validation", 0) + named["validation"]
    test = extra.get("test", 0) + named["test"]
    whole = train
    if not validation:
        validation = max(1, round(spec.data.validation_share * whole))
        train -= validation
    if not test and spec.data.test_share > 0:
        test = max(1, round(spec.data.test_share * whole))
        train -= test
    return max(0, train), validation, test


def _split_name(name: str | None) -> str:
    if name in _VALIDATION_NAMES:
        return "validation"
    return "test" if name == "test" else "train"


def _notes(result: ReadResult, train: int) -> tuple[str, ...]:
    notes = list(result.notes)
    if result.quarantined:
        notes.append(f"{result.quarantined} of {result.rows_read} rows cannot be read and are set aside")
    if train < _FEW_ROWS:
        notes.append(f"{train} training rows are few: expect wide intervals in the final comparison")
    return tuple(notes)
