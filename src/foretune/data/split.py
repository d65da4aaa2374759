"""Train, validation and test: given splits are respected, the rest is dealt out without leaks.

What was given wins: files for validation or test, or a split column. What is missing is taken from training, whole
units at a time (one group, one cluster of duplicates), balanced by label. Rows of one given split that are in
another are reported and removed from training (and from validation, when test has them). A validation split always
exists. Which rows go where depends on their content and the seed, not on the order of the file; within a split rows
keep the order of the file.

Small data: below `FEWEST_ROWS` rows nothing can be learned and measured, which is an error. Up to fifty rows or so,
a fifth is taken; the report says what the sizes can detect and recommends cross-validation (`folds`).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from foretune.data.assign import Unit, deal, deal_folds, units_of
from foretune.data.deduplicate import NEAR, Clusters, find
from foretune.data.example import Example
from foretune.data.leakage import leaks
from foretune.data.split_report import SplitReport, report
from foretune.errors import DataError, UsageError

SPLITS = ("train", "validation", "test")
FEWEST_ROWS = 10
"""Fewer rows cannot be split into something to learn from and something to measure."""
SMALL_SPLIT_ROWS = 10
"""A split is at least this large, as far as `SMALL_SPLIT_SHARE` of the rows allows."""
SMALL_SPLIT_SHARE = 0.2
MOST_ROWS = 1000
"""Taken at most: 1,000 rows detect about 3 points, and scoring more costs time at every rung."""
_LARGEST_SHARE = 0.5


@dataclass(frozen=True)
class Splits:
    """The three splits and how they came about. ``test`` is empty only if no test share was wanted."""

    train: tuple[Example, ...]
    validation: tuple[Example, ...]
    test: tuple[Example, ...]
    report: SplitReport

    def of(self, name: str) -> tuple[Example, ...]:
        """The rows of ``train``, ``validation`` or ``test``."""
        return {"train": self.train, "validation": self.validation, "test": self.test}[name]


def split(
    examples: Sequence[Example],
    *,
    seed: int = 0,
    validation_share: float = 0.1,
    test_share: float = 0.1,
    given: Mapping[str, Sequence[Example]] | None = None,
    near: float | None = NEAR,
    remove_leaks: bool = True,
    most_rows: int = MOST_ROWS,
) -> Splits:
    """Split ``examples``; their ``split`` and ``group`` are respected.

    ``given``: rows of explicit files for ``validation`` or ``test``; they replace what a split column says. Shares
    are of all rows of ``examples`` and say how much to take of splits that are not given (``test_share=0``: no test).
    ``near``: similarity of near-duplicates, None for exact ones only. Raises `DataError` when there are too few
    rows, `UsageError` for shares that cannot be.
    """
    _check_shares(validation_share, test_share, given)
    rows = _with_given(examples, given or {})
    if len(rows) < FEWEST_ROWS:
        raise DataError(
            f"there are only {len(rows)} rows; at least {FEWEST_ROWS} are needed to learn and to measure.",
            remedy="Add rows, or use them as examples in the prompt instead of fine-tuning.",
        )
    duplicates = find(rows, near=near, seed=seed)
    assigned = [row.split or "train" for row in rows]
    given_splits = {name for name in SPLITS if any(row.split == name for row in rows)}
    found = leaks(rows, assigned, duplicates.cluster)
    removed = {leak.row for leak in found} if remove_leaks else set()
    pool = [row for row, name in enumerate(assigned) if name == "train" and row not in removed]
    if not pool:
        raise DataError(
            "no rows are left to train on.",
            remedy="All rows are validation or test rows, or the same as those; add training rows.",
        )
    left = {name for row, name in enumerate(assigned) if row not in removed}
    wanted = _wanted(len(pool), {"test": test_share, "validation": validation_share}, left, most_rows)
    _deal_into(assigned, rows, pool, duplicates.cluster, wanted, seed)
    parts = {
        name: tuple(
            rows[row].with_split(name) for row in range(len(rows)) if assigned[row] == name and row not in removed
        )
        for name in SPLITS
    }
    return Splits(
        **parts,
        report=report(
            parts,
            rows=rows,
            duplicates=duplicates,
            leaks=found,
            removed=remove_leaks,
            taken=wanted,
            capped=most_rows,
            given=given_splits,
        ),
    )


def folds(
    examples: Sequence[Example], k: int, *, seed: int = 0, near: float | None = NEAR
) -> tuple[tuple[int, ...], ...]:
    """The held-out rows (indices, ascending) of each of ``k`` folds for cross-validation.

    Every row is held out once; groups and clusters of duplicates stay in one fold; labels are balanced. Raises
    `DataError` when there are fewer units than folds.
    """
    if k < 2:
        raise UsageError(f"{k} folds are not possible.", remedy="Use 2 or more, usually 5.")
    units = units_of(examples, find(examples, near=near, seed=seed).cluster, seed=seed)
    if len(units) < k:
        raise DataError(
            f"there are {len(units)} groups of rows that must stay together, fewer than the {k} folds.",
            remedy="Use fewer folds or add rows.",
        )
    return tuple(tuple(sorted(row for unit in fold for row in unit.rows)) for fold in deal_folds(units, k))


def _check_shares(validation: float, test: float, given: Mapping[str, object] | None) -> None:
    if not 0 < validation <= _LARGEST_SHARE or not 0 <= test <= _LARGEST_SHARE or validation + test >= 1:
        raise UsageError(
            f"a validation share of {validation:g} and a test share of {test:g} cannot be.",
            remedy=f"Validation: above 0 and at most {_LARGEST_SHARE:g}; test: 0 to {_LARGEST_SHARE:g}.",
        )
    unknown = set(given or {}) - {"validation", "test"}
    if unknown:
        raise UsageError(f"rows cannot be given for {sorted(unknown)[0]!r}.", remedy="Use validation or test.")


def _with_given(examples: Sequence[Example], given: Mapping[str, Sequence[Example]]) -> list[Example]:
    """One list of all rows with their given splits; a split that has its own file is not also taken from the column."""
    rows = [replace(row, split=None) if row.split in given else row for row in examples]
    for name, extra in given.items():
        rows += [row.with_split(name) for row in extra]
    return rows


def _wanted(pool: int, shares: Mapping[str, float], given: set[str], most: int) -> dict[str, int]:
    """Rows to take from ``pool`` training rows for each split that is not given."""
    wanted = {}
    for name, share in shares.items():
        if name in given or share == 0:
            continue
        least = min(SMALL_SPLIT_ROWS, int(SMALL_SPLIT_SHARE * pool))
        wanted[name] = max(1, min(max(round(share * pool), least), most))
    return wanted


def _deal_into(
    assigned: list[str],
    rows: Sequence[Example],
    pool: Sequence[int],
    cluster: Clusters,
    wanted: Mapping[str, int],
    seed: int,
) -> None:
    """Move rows of the pool to the splits that are wanted; every wanted split gets at least one unit."""
    if not wanted:
        return
    units = units_of([rows[row] for row in pool], cluster[list(pool)], seed=seed)
    dealt = deal(units, wanted)
    for name in wanted:
        if not dealt[name]:
            dealt[name].append(_smallest(dealt["train"], len(pool)))
    for name, members in dealt.items():
        for unit in members:
            for row in unit.rows:
                assigned[pool[row]] = name


def _smallest(units: list[Unit], rows: int) -> Unit:
    """Take the smallest unit out of training, where more than one is left; if it can be, one with common labels."""
    if len(units) < 2:
        raise DataError(
            f"the {rows} training rows belong together (one group, or repetitions of one row) and cannot be split.",
            remedy="Give a --validation file, or a group column with more than one value.",
        )
    having = Counter(label for unit in units for label in unit.strata)
    unit = min(units, key=lambda unit: (any(having[label] == 1 for label in unit.strata), len(unit.rows), unit.key))
    units.remove(unit)
    return unit
