"""What one run leaves behind, as values: ``result.json`` in its folder. Everything shown to people is made from it.

`foretune fit` fills a `RunRecord` once, at the end; the report, the model card and the terminal summary are pure
functions of it, so ``foretune report DIR`` renders again without loading a model. A number that was not measured
is None, never NaN. This module holds no presentation and imports no torch.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from foretune import files
from foretune.errors import Place, StoreError
from foretune.report import codec
from foretune.report.selection_info import SelectionInfo
from foretune.search.types import FAILURES, Status

RESULT = "result.json"
VERSION = 1
"""Raised when a field changes its meaning; new optional fields do not raise it."""

Role = Literal["base", "examples", "default", "winner"]
Direction = Literal["higher", "lower"]
Verdict = Literal["better", "worse", "no evidence"]


@dataclass(frozen=True)
class Measure:
    """A value with its standard error over ``n`` rows; finite by construction."""

    value: float
    standard_error: float | None = None
    n: int = 0

    def __post_init__(self) -> None:
        if not math.isfinite(self.value) or not math.isfinite(self.standard_error or 0.0):
            raise ValueError(f"a measure must be finite, not {self.value} ± {self.standard_error}")


@dataclass(frozen=True)
class MetricInfo:
    """How a metric is named and shown. ``share``: values lie in [0, 1] and are shown as per cent."""

    name: str
    label: str
    direction: Direction = "higher"
    share: bool = False
    unit: str = ""


@dataclass(frozen=True)
class ModelInfo:
    """The base model. ``folder`` is where its Hugging Face folder lay during the run."""

    source: str
    kind: str
    parameters: int
    dtype: str
    weights_sha256: str = ""
    license: str | None = None
    folder: str | None = None
    context_tokens: int | None = None
    quantize: str = "none"


@dataclass(frozen=True)
class DataInfo:
    """The data file, what was read from it, and how it was split."""

    name: str
    sha256: str
    fingerprint: str
    format: str
    task: str
    rows: Mapping[str, int]
    """Rows per split, after selection; ``read`` and ``quarantined`` stand beside them."""
    read: int = 0
    quarantined: int = 0
    problems: tuple[str, ...] = ()
    split_report: tuple[str, ...] = ()
    encoding: tuple[str, ...] = ()
    """How rows became tokens: lengths, what was cut."""
    template: tuple[str, ...] = ()
    """What the chat template does to rows, and what serving has to do as well."""
    profile: Mapping[str, Any] = field(default_factory=dict)
    languages: tuple[str, ...] = ()
    labels: tuple[str, ...] = ()
    """Class names in their fixed order, for classification."""
    translation: str = ""
    """Source and target of a translation, like ``en-de``."""
    reasoning: float = 0.0
    """Share of the training rows that reason before they answer."""
    answer_tokens: int = 0
    """Most tokens of an answer that was written for comparison; 0 where it is not known."""
    instruction: str = ""
    """What stands before every question or text; empty where nothing does, or where it is not known."""


@dataclass(frozen=True)
class Phase:
    """A part of the run and the seconds it took (charged to a time budget)."""

    name: str
    seconds: float


@dataclass(frozen=True)
class BudgetInfo:
    """The budget: ``total`` and ``used`` in seconds, trials or steps as ``kind`` says; the phases in seconds."""

    kind: Literal["time", "trials", "steps", "cost"]
    total: float
    used: float
    phases: tuple[Phase, ...] = ()
    price_per_hour: float | None = None
    currency: str = "$"


@dataclass(frozen=True)
class ForecastRow:
    """One forecast quantity and its truth. ``unit`` is ``s``, ``bytes``, ``tokens/s`` or words."""

    quantity: str
    unit: str
    low: float
    value: float
    high: float
    measured: float | None = None


@dataclass(frozen=True)
class CurvePoint:
    """A trial as seen at one step on the validation rows; ``rows`` is how many of them were scored."""

    step: int
    tokens: int
    seconds: float
    loss: Measure | None = None
    metric: Measure | None = None
    rows: int = 0


@dataclass(frozen=True)
class Trial:
    """One configuration that was trained, with its learning curve and how it ended."""

    run: str
    config: Mapping[str, Any]
    why: str
    status: Status
    horizon: int
    curve: tuple[CurvePoint, ...] = ()
    best_step: int | None = None
    trainable_parameters: int | None = None
    is_default: bool = False
    is_winner: bool = False
    detail: str = ""

    @property
    def failed(self) -> bool:
        """Whether it ended without a usable result."""
        return self.status in FAILURES

    @property
    def best(self) -> CurvePoint | None:
        """The point of ``best_step``, else the one with the lowest validation loss; None when nothing was scored."""
        scored = [point for point in self.curve if point.loss is not None]
        for point in scored:
            if point.step == self.best_step:
                return point
        return min(scored, key=lambda point: point.loss.value if point.loss else math.inf, default=None)


@dataclass(frozen=True)
class Candidate:
    """A finalist evaluated again on all validation rows; ``score`` is what it was chosen by."""

    run: str
    score: Measure
    chosen: bool = False
    loss: Measure | None = None
    metric: str = "loss"
    """The name of the metric that ``score`` is."""


@dataclass(frozen=True)
class Difference:
    """A paired difference of a metric against another system, in the metric's own unit (value minus the other's).

    ``low`` and ``high`` bound the 95 % interval; ``verdict`` takes the metric's direction into account.
    """

    metric: str
    against: Role
    value: float
    low: float
    high: float
    verdict: Verdict
    p: float | None = None
    method: str = ""


@dataclass(frozen=True)
class Bin:
    """A calibration bin: mean confidence, share correct, rows."""

    confidence: float
    accuracy: float
    rows: int


@dataclass(frozen=True)
class Calibration:
    """Expected calibration error (0 is perfect) with its bins."""

    error: float
    bins: tuple[Bin, ...] = ()


@dataclass(frozen=True)
class SystemResult:
    """One system on the test rows: the metrics by name, and its paired differences."""

    role: Role
    name: str
    metrics: Mapping[str, Measure]
    differences: tuple[Difference, ...] = ()
    calibration: Calibration | None = None
    about: str = ""

    def difference(self, metric: str, against: Role) -> Difference | None:
        """The difference of ``metric`` against a system, or None when it was not computed."""
        for item in self.differences:
            if item.metric == metric and item.against == against:
                return item
        return None


@dataclass(frozen=True)
class Transitions:
    """Test rows by what fine-tuning did to them: counts over all test rows, not only the ones shown."""

    improved: int
    worsened: int
    both_right: int
    both_wrong: int


@dataclass(frozen=True)
class Comparison:
    """All systems on the same rows. ``seeds`` is how many training seeds stand behind it (one in a ``fit``)."""

    split: str
    rows: int
    metric: str
    """The primary metric."""
    metrics: tuple[MetricInfo, ...]
    systems: tuple[SystemResult, ...]
    seeds: int = 1
    transitions: Transitions | None = None

    def system(self, role: Role) -> SystemResult | None:
        """The system with that role, or None."""
        return next((system for system in self.systems if system.role == role), None)

    def info(self, name: str) -> MetricInfo:
        """How to show the metric ``name``; a metric nobody described is shown under its own name."""
        return next((info for info in self.metrics if info.name == name), MetricInfo(name, name))


@dataclass(frozen=True)
class Forgetting:
    """Loss on general text or on earlier rows, before and after: nats per token, the paired difference's interval."""

    sample: str
    before: float
    after: float
    difference: float
    low: float
    high: float
    rows: int = 0


@dataclass(frozen=True)
class AnswerPair:
    """The answers to one test prompt before and after. ``None`` marks what was not judged."""

    prompt: str
    reference: str
    before: str
    after: str
    correct_before: bool | None = None
    correct_after: bool | None = None
    score_before: float | None = None
    score_after: float | None = None


@dataclass(frozen=True)
class Setting:
    """A resolved setting: its value and where that came from (``origin`` with the ``evidence`` for it)."""

    key: str
    value: Any
    origin: str
    evidence: str = ""


@dataclass(frozen=True)
class ExportInfo:
    """What was exported, relative to the run folder, and how its check went."""

    kind: Literal["adapter", "merged", "gguf", "full"]
    folder: str
    verified: bool | None = None
    detail: str = ""


@dataclass(frozen=True)
class RunRecord:
    """Everything that is worth telling about a finished run."""

    id: str
    foretune_version: str
    started: str
    """ISO 8601 with time zone."""
    finished: str
    command: str
    model: ModelInfo
    data: DataInfo
    budget: BudgetInfo
    forecast: tuple[ForecastRow, ...] = ()
    trials: tuple[Trial, ...] = ()
    candidates: tuple[Candidate, ...] = ()
    comparison: Comparison | None = None
    forgetting: Forgetting | None = None
    examples: tuple[AnswerPair, ...] = ()
    settings: tuple[Setting, ...] = ()
    exports: tuple[ExportInfo, ...] = ()
    notes: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()
    seeds: Mapping[str, int] = field(default_factory=dict)
    environment: Mapping[str, Any] = field(default_factory=dict)
    base_validation: CurvePoint | None = None
    """The untouched base model on the validation rows, the line every curve starts from."""
    selection: SelectionInfo | None = None
    """Which rows were trained on, where not all"""
    forgetting_previous: Forgetting | None = None
    """On rows that the model was trained on before, where such were given"""
    version: int = VERSION

    @property
    def winner(self) -> Trial | None:
        """The trial that was handed out, or None when none was usable."""
        return next((trial for trial in self.trials if trial.is_winner), None)

    def to_json(self) -> dict[str, Any]:
        """A JSON form that `from_json` reads back exactly."""
        value: dict[str, Any] = codec.to_json(self)
        return value

    @classmethod
    def from_json(cls, value: Any) -> RunRecord:
        """The inverse of `to_json`. Raises `StoreError` for a damaged or newer record."""
        version = value.get("version") if isinstance(value, Mapping) else None
        if isinstance(version, int) and version > VERSION:
            raise StoreError(
                f"this result was written by a newer Foretune (record version {version}).", remedy="Update Foretune."
            )
        return codec.from_json(cls, value)


def write_record(folder: Path, record: RunRecord) -> Path:
    """Store ``record`` as ``result.json`` in the run folder; returns its path. Raises `OutputError`."""
    path = folder / RESULT
    files.write_json(path, record.to_json())
    return path


def read_record(folder: Path) -> RunRecord:
    """The record of a run folder (or of a ``result.json`` itself). Raises `StoreError` when missing or damaged."""
    path = folder if folder.is_file() else folder / RESULT
    try:
        return RunRecord.from_json(files.read_json(path))
    except (FileNotFoundError, NotADirectoryError):
        raise StoreError(
            f"there is no {RESULT} here: the run has not finished, or this is no run folder.",
            place=Place(folder),
            remedy="Run `foretune fit` on it again to resume, or list runs with `foretune runs`.",
        ) from None
    except (ValueError, RecursionError) as error:
        raise StoreError(f"this file is not valid JSON ({error}).", place=Place(path)) from error
    except StoreError as error:
        raise StoreError(error.what, place=Place(path), remedy=error.remedy) from error
