"""Classification and calibration: right labels, fair to rare classes, and honest probabilities.

Classes are compared as written, white space at the ends aside. A language model that answers in a sentence has named
the class that stands in it, where only one does (`read_class`), so that an untouched model is not wrong for its
manners. Sentences are not understood: "not positive" names positive.

Calibration is of the predicted class, the only probability an `Answer` holds: expected calibration error with
equal-width bins (Guo et al. 2017, equation 3, 15 bins as there), the top-label Brier score (mean squared difference
between that probability and being right), and the log-loss of the true class where it was measured.
"""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from foretune.data.choices import Choices
from foretune.data.label_sets import SEPARATOR, named_in
from foretune.errors import DataError
from foretune.evaluation.base import SHARE, Answer, Direction, MetricResult
from foretune.evaluation.metrics.rows import from_rows, mean_of, prediction_of, require_rows

CALIBRATION_BINS = 15
_IN_SENTENCES, _OUTSIDE = "read_in_sentences", "predicted_outside"


def same_class(prediction: str, reference: str) -> float:
    """1 when the predicted class is the reference's."""
    return float(prediction.strip() == reference.strip())


def read_class(prediction: str, classes: Collection[str]) -> str:
    """The class that an answer names: all of it, or the only one of ``classes`` that stands in it, in any case of
    letters; the answer itself where none or several do."""
    said = prediction.strip()
    if said in classes:
        return said
    found = mentioned(said, classes)
    return found[0] if len(found) == 1 else said


def mentioned(text: str, names: Collection[str]) -> list[str]:
    """Those of ``names`` that stand in ``text`` as words, the longest first; within a longer one none stands alone."""
    found = []
    for name in sorted(names, key=lambda name: (-len(name), name)):
        words = re.compile(rf"(?<!\w){re.escape(name)}(?!\w)", re.IGNORECASE)
        if name and words.search(text):
            found.append(name)
            text = words.sub(" ", text)
    return found


def reading_note(score: MetricResult) -> str:
    """How many answers said more than the class or choice that they name, or named none; empty where none did."""
    found, rows = score.details or {}, len(score.per_row)
    more, none = found.get(_IN_SENTENCES, 0), found.get(_OUTSIDE, 0)
    said = [f"{more} of {rows} answers say more than their class"] if more else []
    return ", ".join([*said, *([f"{none} of {rows} name none that these rows have"] if none else [])])


def _details(said: Sequence[str], read: Sequence[str], known: Sequence[Collection[str]]) -> dict[str, Any]:
    """How many answers name one of those ``known`` for their row in more words than it, and how many name none."""
    named = [one in names for one, names in zip(read, known, strict=True)]
    more = sum(text.strip() != one for text, one, known in zip(said, read, named, strict=True) if known)
    return {_IN_SENTENCES: more, _OUTSIDE: named.count(False)}


def read_choice(prediction: str, choices: Choices) -> str:
    """The label of the choice that an answer means: the label first or alone ("B", "(b) Paris"), behind "answer is", or
    the text of one choice; the answer itself where it means none, or says the choices again."""
    said = prediction.strip()
    label = "|".join(re.escape(label) for label in sorted(choices.labels, key=len, reverse=True))
    if len(set(re.findall(rf"^\W*({label})[.):]", said, re.MULTILINE))) > 1:
        return said
    alone = re.match(rf"[\W_]*({label})[\W_]*(?:$|(?<=[.):,*\n]))", said, re.IGNORECASE)
    behind = re.search(rf"\b(?i:answer|choice|option)\b\W*(?:is\W+)?(?:(?:option|choice)\W+)?({label})(?!\w)", said)
    for found in (alone, behind):
        if found:
            return next(each for each in choices.labels if each.casefold() == found[1].casefold())
    named = mentioned(said, choices.texts)
    return choices.labels[choices.texts.index(named[0])] if len(named) == 1 else said


@dataclass(frozen=True)
class ChoiceAccuracy:
    """The share of multiple-choice rows whose right choice is meant (`read_choice`), by the choices in the prompt."""

    name: str = "choice"
    unit: str = SHARE
    direction: Direction = "higher"
    needs_generation: bool = True

    def score(self, rows: Sequence[Answer]) -> MetricResult:
        """The share with its standard error. Raises `DataError` for no rows or a row without prediction."""
        require_rows(rows, self.name)
        said = [prediction_of(row, self.name) for row in rows]
        asked = [Choices.asked_in(row.prompt) for row in rows]
        read = [one if of is None else read_choice(one, of) for one, of in zip(said, asked, strict=True)]
        per_row = tuple(same_class(one, row.reference) for one, row in zip(read, rows, strict=True))
        known = [{row.reference} if of is None else of.labels for row, of in zip(rows, asked, strict=True)]
        return mean_of(per_row, details=_details(said, read, known))


def _classes(rows: Sequence[Answer]) -> list[str]:
    return sorted({row.reference.strip() for row in rows})


def _read_classes(rows: Sequence[Answer], said: Sequence[str], classes: Collection[str]) -> list[str]:
    """The class of each row; a head, which gives it a probability, says nothing but its class."""
    return [
        one.strip() if row.probability is not None else read_class(one, classes)
        for row, one in zip(rows, said, strict=True)
    ]


@dataclass(frozen=True)
class Accuracy:
    """The share of rows whose class is named, among the classes that the references hold."""

    name: str = "accuracy"
    unit: str = SHARE
    direction: Direction = "higher"
    needs_generation: bool = True

    def score(self, rows: Sequence[Answer]) -> MetricResult:
        """The share with its standard error. Raises `DataError` for no rows or a row without prediction."""
        require_rows(rows, self.name)
        classes = _classes(rows)
        said = [prediction_of(row, self.name) for row in rows]
        read = _read_classes(rows, said, classes)
        per_row = tuple(same_class(one, row.reference) for one, row in zip(read, rows, strict=True))
        return mean_of(per_row, details=_details(said, read, [classes] * len(rows)))


@dataclass(frozen=True)
class LabelF1:
    """The mean over rows of the F1 of the labels named against those that hold, in any order (`data.label_sets`).

    A sentence that names none where labels should stand has named those of all rows' labels that stand in it.
    """

    name: str = "label_f1"
    unit: str = SHARE
    direction: Direction = "higher"
    needs_generation: bool = True

    def score(self, rows: Sequence[Answer]) -> MetricResult:
        """The mean with its standard error. Raises `DataError` for no rows or a row without prediction."""
        require_rows(rows, self.name)
        wanted = [named_in(row.reference) for row in rows]
        known = frozenset[str]().union(*wanted)
        said = [_labels_in(prediction_of(row, self.name), row.reference, known) for row in rows]
        per_row = tuple(2 * len(a & b) / max(1, len(a) + len(b)) for a, b in zip(said, wanted, strict=True))
        return mean_of(per_row)


def _labels_in(prediction: str, reference: str, known: Collection[str]) -> frozenset[str]:
    """The labels that an answer names; commas and line breaks may stand between them unless the labels have some."""
    separators = SEPARATOR + "".join(mark for mark in ",\n" if mark not in reference)
    said = named_in(prediction, separators)
    return said if any(name in known for name in said) else frozenset(mentioned(prediction, known)) or said


@dataclass(frozen=True)
class ClassMetric:
    """A metric of the confusion matrix, over the classes that the references hold."""

    name: str
    unit: str = SHARE
    direction: Direction = "higher"
    needs_generation: bool = True

    def score(self, rows: Sequence[Answer]) -> MetricResult:
        """The metric with its bootstrap error; ``per_row`` is right or wrong. Raises `DataError`."""
        require_rows(rows, self.name)
        classes = _classes(rows)
        said = [prediction_of(row, self.name) for row in rows]
        read = _read_classes(rows, said, classes)
        pairs = [(row.reference.strip(), one) for row, one in zip(rows, read, strict=True)]
        numbers = {name: float(i) for i, name in enumerate(classes)}
        nowhere = float(len(classes))  # predicted, but no row's class
        statistics = tuple((numbers[reference], numbers.get(one, nowhere)) for reference, one in pairs)
        per_row = tuple(float(reference == one) for reference, one in pairs)
        details = {"classes": classes, **_details(said, read, [classes] * len(rows))}
        return from_rows(self.name, statistics, per_row, scale=1.0, details=details)


@dataclass(frozen=True)
class BrierMetric:
    """The top-label Brier score: mean squared difference between the predicted class's probability and being right."""

    name: str = "brier"
    unit: str = "squared probability"
    direction: Direction = "lower"
    needs_generation: bool = True

    def score(self, rows: Sequence[Answer]) -> MetricResult:
        """The mean with its standard error. Raises `DataError` for a row without prediction or probability."""
        require_rows(rows, self.name)
        per_row = tuple(
            (_probability(row) - same_class(prediction_of(row, self.name), row.reference)) ** 2 for row in rows
        )
        return mean_of(per_row)


@dataclass(frozen=True)
class CalibrationMetric:
    """The expected calibration error with `CALIBRATION_BINS` bins of equal width (Guo et al. 2017, equation 3).

    Its value is biased upwards on few rows, equally for what is compared on the same rows.
    """

    name: str = "calibration_error"
    unit: str = SHARE
    direction: Direction = "lower"
    needs_generation: bool = True

    def score(self, rows: Sequence[Answer]) -> MetricResult:
        """The error with its bootstrap error; ``per_row`` is right minus probability. Raises `DataError`."""
        require_rows(rows, self.name)
        sure = [_probability(row) for row in rows]
        missed = tuple(
            same_class(prediction_of(row, self.name), row.reference) - p for row, p in zip(rows, sure, strict=True)
        )
        statistics = tuple((float(_bin(p, CALIBRATION_BINS)), gap) for p, gap in zip(sure, missed, strict=True))
        return from_rows(self.name, statistics, missed, scale=1.0, details={"bins": CALIBRATION_BINS})


@dataclass(frozen=True)
class CalibrationBin:
    """Rows whose probability lies in (low, high]."""

    low: float
    high: float
    rows: int
    confidence: float
    """Mean probability of the predicted class"""
    accuracy: float


@dataclass(frozen=True)
class Calibration:
    """How far probabilities can be believed; every number is better when lower."""

    expected_error: float
    brier: float
    log_loss: float | None
    """Nats; None where a row lacks the likelihood of its true class"""
    bins: tuple[CalibrationBin, ...]
    """The bins that hold rows"""
    n: int

    def to_json(self) -> dict[str, Any]:
        """A JSON form."""
        return asdict(self)


def calibration(rows: Sequence[Answer], *, bins: int = CALIBRATION_BINS) -> Calibration:
    """Calibration of predicted classes. Raises `DataError` for a row without probability or outside [0, 1]."""
    require_rows(rows, "calibration")
    right = [same_class(prediction_of(row, "calibration"), row.reference) for row in rows]
    sure = [_probability(row) for row in rows]
    members: list[list[int]] = [[] for _ in range(bins)]
    for i, probability in enumerate(sure):
        members[_bin(probability, bins)].append(i)
    filled = tuple(
        CalibrationBin(
            b / bins, (b + 1) / bins, len(held),
            math.fsum(sure[i] for i in held) / len(held), math.fsum(right[i] for i in held) / len(held),
        )
        for b, held in enumerate(members) if held
    )  # fmt: skip
    expected = math.fsum(b.rows * abs(b.accuracy - b.confidence) for b in filled) / len(rows)
    brier = math.fsum((p - hit) ** 2 for p, hit in zip(sure, right, strict=True)) / len(rows)
    losses = [row.nll for row in rows if row.nll is not None]
    log_loss = math.fsum(losses) / len(losses) if len(losses) == len(rows) else None
    return Calibration(expected, brier, log_loss, filled, len(rows))


def _bin(probability: float, bins: int) -> int:
    """The bin (low, high] that holds a probability; 0 lies in the first."""
    return max(0, math.ceil(probability * bins) - 1)


def _probability(row: Answer) -> float:
    if row.probability is None or not 0.0 <= row.probability <= 1.0:
        raise DataError(
            f"row {row.row} has no probability in 0 to 1 for its class ({row.probability}).",
            remedy="Only a head for labels gives one: use an encoder, or choose another --metric.",
        )
    return row.probability
