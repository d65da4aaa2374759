"""What a trial is told, and which rows a count means: torch-free, so that the coordinator stays light."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from foretune.search.types import Lease
from foretune.seeding import generator


@dataclass(frozen=True)
class FinalTest:
    """What to do with the test rows when a run reaches the end of its lease."""

    output: str
    """The file of the answers, written whole: ``{"step", "wanted", "answers", "further", "statistics"}``."""
    rows: int
    """The first so many rows of the test split."""
    generation: bool
    """Whether answers are written, not only scored."""
    checkpoint: Literal["best", "last"] = "best"
    """Answer with the evaluated checkpoint of lowest validation loss, or with the last."""
    further: Mapping[str, int] = field(default_factory=dict)
    """Further splits to answer, with the number of rows of each."""

    def to_json(self) -> dict[str, Any]:
        """A JSON form; ``FinalTest(**value)`` reads it back."""
        return asdict(self)


@dataclass(frozen=True)
class InitialWeights:
    """Trained weights that a run begins at, in place of fresh ones: a checkpoint of another run."""

    folder: str
    """That run's folder of checkpoints"""
    step: int

    def to_json(self) -> dict[str, Any]:
        """A JSON form; ``InitialWeights(**value)`` reads it back."""
        return asdict(self)


@dataclass(frozen=True)
class TrialOrder:
    """A lease with what the trial needs beside it."""

    lease: Lease
    folder: Path
    """The run's own folder: checkpoints live here."""
    evaluation_rows: Mapping[int, tuple[int, ...]]
    """Validation rows to score at each rung."""
    metric_rows: Mapping[int, tuple[int, ...]]
    """Validation rows to answer for the primary metric at a rung; absent rungs measure the loss alone."""
    train_rows: tuple[int, ...] | None = None
    """The rows to train on, or None for all."""
    test: FinalTest | None = None
    """Test rows to answer when the lease's last step is reached; None for none."""
    checkpoints: bool = True
    """Whether checkpoints are written. Without, a run that is stopped begins anew: for short runs that nobody
    continues, where writing would cost more than training."""
    selection_seed: int = 0
    """The seed of the selection, where the configuration has one."""
    pause_at: int | None = None
    """The step after which to pause with a checkpoint, as if told to; its seconds are told again by who goes on."""
    initial_weights: InitialWeights | None = None
    """The weights that the run begins at; None for fresh ones."""

    def to_json(self) -> dict[str, Any]:
        """A JSON form that `from_json` reads back."""
        return {
            "lease": self.lease.to_json(),
            "folder": str(self.folder),
            "evaluation_rows": {str(step): list(rows) for step, rows in self.evaluation_rows.items()},
            "metric_rows": {str(step): list(rows) for step, rows in self.metric_rows.items()},
            "train_rows": None if self.train_rows is None else list(self.train_rows),
            "test": None if self.test is None else self.test.to_json(),
            "checkpoints": self.checkpoints,
            "selection_seed": self.selection_seed,
            "pause_at": self.pause_at,
            "initial_weights": None if self.initial_weights is None else self.initial_weights.to_json(),
        }

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> TrialOrder:
        """The inverse of `to_json`."""
        return cls(
            lease=Lease.from_json(value["lease"]),
            folder=Path(value["folder"]),
            evaluation_rows={int(step): tuple(rows) for step, rows in value["evaluation_rows"].items()},
            metric_rows={int(step): tuple(rows) for step, rows in value["metric_rows"].items()},
            train_rows=None if value["train_rows"] is None else tuple(value["train_rows"]),
            test=None if value["test"] is None else FinalTest(**value["test"]),
            checkpoints=bool(value.get("checkpoints", True)),
            selection_seed=int(value.get("selection_seed", 0)),
            pause_at=value.get("pause_at"),
            initial_weights=InitialWeights(**value["initial_weights"]) if value.get("initial_weights") else None,
        )


def subset(count: int, size: int, seed: int) -> tuple[int, ...]:
    """``count`` of ``size`` rows, drawn from the stream "subset"; smaller subsets are contained in larger ones."""
    order = generator(seed, "subset").permutation(size)
    return tuple(sorted(int(i) for i in order[:count]))
