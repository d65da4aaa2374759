"""What the splits are worth, in words and numbers: sizes, leaks, what they can detect, labels.

Everything here is derived from the splits; nothing is decided.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from foretune.data.deduplicate import Duplicates, asked_by
from foretune.data.example import Example, task_of
from foretune.data.leakage import Leak
from foretune.data.power import DISCORDANCE, detectable_difference, in_words

CROSS_VALIDATION_BELOW = 100
"""Below this many validation rows one split says little (they detect 9 points): cross-validation uses all rows."""
FOLDS = 5
_IMBALANCE = 10.0
"""From this ratio of the largest to the smallest class, accuracy alone misleads."""
_NAMED = 5
"""Labels named in a sentence."""


@dataclass(frozen=True)
class SplitReport:
    """How the splits came about and what they can show."""

    rows: Mapping[str, int]
    """Rows per split, after removals."""
    origin: Mapping[str, str]
    """For each split: given, or taken from training."""
    removed: tuple[tuple[Example, Leak], ...]
    """Rows that are in no split, each with its leak."""
    leaks: Mapping[str, int]
    """Leaked rows as ``"train in test"``: counted whether or not they were removed."""
    duplicates: int
    """Rows that repeat an earlier row exactly, over all splits."""
    near_duplicates: int
    conflicts: tuple[tuple[str, tuple[str, ...], int], ...]
    """Texts with contradicting labels: text, labels, rows."""
    labels: Mapping[str, Mapping[str, int]]
    """Classification: rows per label and split."""
    imbalance: float | None
    """Largest over smallest class in training; None without classes."""
    unseen: Mapping[str, tuple[str, ...]]
    """Labels of validation or test that training does not have."""
    detectable: Mapping[str, float | None]
    """The smallest difference of shares each evaluated split detects (0.05 = 5 points)."""
    cross_validation: bool
    """Whether cross-validation is recommended."""
    notes: tuple[str, ...]
    """The above in sentences."""

    def to_json(self) -> dict[str, Any]:
        """A JSON form; removed rows by place."""
        value = asdict(self)
        value["removed"] = [
            {"place": str(row.place), "split": leak.split, "also_in": leak.other, "because": leak.because}
            for row, leak in self.removed
        ]
        return value


def report(
    parts: Mapping[str, Sequence[Example]],
    *,
    rows: Sequence[Example],
    duplicates: Duplicates,
    leaks: Sequence[Leak],
    removed: bool,
    taken: Mapping[str, int],
    capped: int,
    given: set[str],
) -> SplitReport:
    """The report of ``parts`` (rows per split). ``taken``: rows asked of training for the splits not given."""
    sizes = {name: len(part) for name, part in parts.items()}
    origin = {name: "taken from training" if name in taken else "given" for name in sizes if sizes[name]}
    if "train" not in given:
        origin["train"] = "what is left"
    labels = _labels(parts)
    train_labels = labels.get("train", {})
    imbalance = max(train_labels.values()) / min(train_labels.values()) if train_labels else None
    unseen = {
        name: tuple(sorted(set(counts) - set(train_labels)))
        for name, counts in labels.items()
        if set(counts) - set(train_labels)
    }
    counted = task_of(rows) in ("generation", "classification")
    measured = [name for name in ("validation", "test") if sizes[name]]
    leaked = dict(Counter(f"{leak.split} in {leak.other}" for leak in leaks))
    notes = [
        *_origin_notes(origin, sizes, taken, capped),
        *_leak_notes(leaked, removed),
        *_asked_before_notes(parts),
        *_duplicate_notes(duplicates),
        *_label_notes(train_labels, imbalance, unseen),
        *(in_words(sizes[name], name, counted=counted) for name in measured),
    ]
    if counted and measured:
        notes.append(
            "(Two-sided test at 5 %, power 80 %; both models answer the same rows "
            f"and disagree on {100 * DISCORDANCE:.0f} % of them.)"
        )
    few = sizes["validation"] < CROSS_VALIDATION_BELOW
    if few:
        notes.append(f"So few validation rows say little: {FOLDS}-fold cross-validation would use every row.")
    return SplitReport(
        rows=sizes,
        origin=origin,
        removed=tuple((rows[leak.row], leak) for leak in leaks) if removed else (),
        leaks=leaked,
        duplicates=duplicates.exact,
        near_duplicates=duplicates.near,
        conflicts=tuple((conflict.text, conflict.labels, len(conflict.rows)) for conflict in duplicates.conflicts),
        labels=labels,
        imbalance=imbalance,
        unseen=unseen,
        detectable={name: detectable_difference(sizes[name]) for name in measured},
        cross_validation=few,
        notes=tuple(notes),
    )


def _labels(parts: Mapping[str, Sequence[Example]]) -> dict[str, dict[str, int]]:
    counts = {
        name: Counter(row.label for row in part if isinstance(row.label, str)) for name, part in parts.items() if part
    }
    return {name: dict(count.most_common()) for name, count in counts.items() if count}


def _origin_notes(
    origin: Mapping[str, str], sizes: Mapping[str, int], taken: Mapping[str, int], capped: int
) -> list[str]:
    notes = []
    for name, wanted in taken.items():
        why = f" (at most {capped:,}: more would cost time at every evaluation)" if wanted == capped else ""
        notes.append(f"{sizes[name]:,} rows were taken from training for {name}{why}.")
    notes += [f"{name} was given: {sizes[name]:,} rows." for name, how in origin.items() if how == "given"]
    return notes


def _leak_notes(leaked: Mapping[str, int], removed: bool) -> list[str]:
    done = "removed" if removed else "left in, so scores will be too good"
    return [
        f"{count:,} {_plural(count)} of {pair.replace(' in ', ' also in ')}: {done}." for pair, count in leaked.items()
    ]


def _asked_before_notes(parts: Mapping[str, Sequence[Example]]) -> list[str]:
    """How many measured rows ask what a training row asks; those with its answer too have been told as leaks."""
    trained = {asked_by(row) for row in parts.get("train", ())}
    again = {name: sum(asked_by(row) in trained for row in parts.get(name, ())) for name in ("validation", "test")}
    return [
        f"{count:,} of {len(parts[name]):,} {name} rows ask what a training row asks: where that makes the answer "
        "known, scores are too good; a --group-column keeps such rows together."
        for name, count in again.items()
        if count
    ]


def _plural(count: int) -> str:
    return "row" if count == 1 else "rows"


def _duplicate_notes(duplicates: Duplicates) -> list[str]:
    notes = []
    if duplicates.exact or duplicates.near:
        notes.append(
            f"{duplicates.exact:,} rows repeat another exactly and {duplicates.near:,} nearly; "
            "repetitions are kept in one split."
        )
    if duplicates.conflicts:
        example = duplicates.conflicts[0]
        notes.append(
            f"{len(duplicates.conflicts):,} texts have contradicting labels, "
            f"such as {example.text[:60]!r}: {', '.join(example.labels[:_NAMED])}."
        )
    return notes


def _label_notes(train: Mapping[str, int], imbalance: float | None, unseen: Mapping[str, tuple[str, ...]]) -> list[str]:
    notes = []
    if len(train) == 1:
        notes.append(f"all training rows have the label {next(iter(train))!r}: there is nothing to learn.")
    if imbalance is not None and imbalance >= _IMBALANCE:
        largest, smallest = max(train, key=lambda name: train[name]), min(train, key=lambda name: train[name])
        notes.append(
            f"the label {largest!r} is {imbalance:.0f} times as frequent as {smallest!r}: "
            "always answering it looks accurate."
        )
    for name, labels in unseen.items():
        named = ", ".join(map(repr, labels[:_NAMED])) + (" …" if len(labels) > _NAMED else "")
        notes.append(f"{name} has labels that training does not have: {named}.")
    return notes
