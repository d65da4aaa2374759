"""A task list as it is written down: which tasks, under which model, how much of the design, how long a run.

`load_list` reads the YAML, refuses unknown keys, and gives a `TaskList`; the shipped ones are in ``presets/``.
Rows are read and split as in `foretune study`, whose grid a list becomes for that (`grid`).
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, model_validator

from foretune.collect.blocks import BLOCKS
from foretune.collect.design import Draw, draws
from foretune.config.load import nearest
from foretune.config.spec import Count, Section
from foretune.errors import UsageError
from foretune.study.grid import GridSpec, TaskSettings
from foretune.study.grid_file import beside, load_spec

PRESETS = Path(__file__).parent / "presets"
MOST_TOKENS = 20_000
"""Training tokens of a run when nothing is said: what a processor core trains in minutes."""


class CollectedRows(Section):
    """What is measured."""

    validation_rows: Annotated[Count, Field(ge=2)] = 64
    """Validation rows scored at every rung."""
    test_rows: Annotated[Count, Field(ge=2)] = 128
    """Test rows scored at the end, with the weights of the lowest validation loss."""
    answered_rows: Annotated[Count, Field(ge=0)] = 16
    """Validation rows that are answered at the last two rungs, where the metric needs written answers."""
    max_answer_tokens: Annotated[Count, Field(ge=1)] = 48
    """Longest generated answer."""


class TaskList(Section):
    """Tasks to be run through the shared design."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._+-]{0,31}$")]
    """The study's name in the experience."""
    about: str = ""
    model: str
    """The base model."""
    design: dict[str, Annotated[Count, Field(ge=1)] | None] = Field(min_length=1)
    """Blocks of the shared design in the order in which they are trained, with how many of each; a list means all."""
    stretch: Annotated[Count, Field(ge=1)] = 8
    """Configurations trained on a task before the next task has its turn."""
    tokens: Annotated[Count, Field(ge=1)] = MOST_TOKENS
    """Training tokens of a run."""
    rows_per_update: Annotated[Count, Field(ge=1)] = 16
    """Rows of an update; the design varies it by factors."""
    raised_rates: bool = True
    """Whether the rule's rates rise in an encoder's short runs; not in a list begun before the rule said so."""
    evaluation: CollectedRows = CollectedRows()
    """What is measured."""
    tasks: dict[str, TaskSettings] = Field(min_length=1)
    """Tasks by name."""

    @model_validator(mode="before")
    @classmethod
    def _short_forms(cls, value: Any) -> Any:
        """``film: film-sentiment`` stands for ``film: {path: film-sentiment}``, a list of blocks for all of each."""
        if isinstance(value, dict) and isinstance(value.get("design"), list):
            if len(set(map(str, value["design"]))) != len(value["design"]):
                raise ValueError("design: a block is given twice")
            value = {**value, "design": dict.fromkeys(value["design"])}
        if isinstance(value, dict) and isinstance(value.get("tasks"), dict):
            tasks = {name: {"path": item} if isinstance(item, str) else item for name, item in value["tasks"].items()}
            return {**value, "tasks": tasks}
        return value

    @model_validator(mode="after")
    def _known(self) -> TaskList:
        for block in self.design:
            if block not in BLOCKS:
                raise ValueError(f"design: there is no block {block!r}. {nearest(block, tuple(BLOCKS))}")
        return self

    def draws(self) -> tuple[Draw, ...]:
        """The configurations of the design that this list trains."""
        return draws({BLOCKS[block]: most for block, most in self.design.items()})

    def grid(self) -> GridSpec:
        """The list as a study's grid, from which its tasks are prepared."""
        rows = self.evaluation
        return GridSpec.model_validate(
            {
                "name": self.name,
                "model": self.model,
                "tasks": {name: task.model_dump() for name, task in self.tasks.items()},
                "arms": {"lora": {}, "full": {"method": "full"}},
                "control": "lora",
                "seeds": 1,
                "horizon": {"epochs": 1},
                "primary": "metric",
                "evaluation": {
                    "validation_rows": rows.validation_rows,
                    "test_rows": rows.test_rows,
                    "max_answer_tokens": rows.max_answer_tokens,
                },
            }
        )


def presets() -> dict[str, Path]:
    """The shipped task lists by name."""
    return {path.stem: path for path in sorted(PRESETS.glob("*.yaml"))}


def load_list(source: str | Path) -> TaskList:
    """The task list in a YAML file, or the shipped one of that name. Raises `UsageError`."""
    path = Path(source).expanduser()
    if not path.is_file():
        known = presets()
        if str(source) not in known:
            raise UsageError(
                f"there is no task list {str(source)!r}: no such file, and not among those shipped.",
                remedy=f"{nearest(str(source), tuple(known))} Or give the path of a YAML file.",
            )
        path = known[str(source)]
    listed = load_spec(TaskList, path, "a task list")
    return listed.model_copy(update={"tasks": {name: beside(t, path.parent) for name, t in listed.tasks.items()}})
