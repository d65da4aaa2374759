"""Beginning a trial at the weights of an earlier fit: which ones there are, which may be used, whether one helps.

`search.warm_start` names the folder of a finished run, or a folder of such folders. A run is refused, with the reason
in the report, where it could not be taken over (another base model, another task) or where the comparison would no
longer be honest: rows it was trained on, or was chosen by, must not be (nearly) the same as test rows of this fit, nor
those it was trained on the same as validation rows. What is left is asked validation rows as it stands. The one with
the lowest loss becomes a further run of the search, at half its learning rate, if the interval of its difference to the
base excludes zero.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from foretune.catalogue.methods import resolve
from foretune.catalogue.regularizers import NONE as NO_REGULARIZER
from foretune.catalogue.regularizers import SETTING as REGULARIZER
from foretune.catalogue.selection import NONE as NO_SELECTION
from foretune.data.deduplicate import find
from foretune.data.example import Example
from foretune.data.leakage import leaks
from foretune.errors import ForetuneError, Place, UsageError
from foretune.evaluation.base import Answer
from foretune.evaluation.compare import compare
from foretune.evaluation.metrics import METRICS
from foretune.execution.orders import InitialWeights
from foretune.files import read_json, read_lines
from foretune.fit.base import Base
from foretune.fit.finals import Evaluator
from foretune.fit.folder import RunFolder, finished_runs
from foretune.fit.prepare import Prepared
from foretune.report.record import read_record
from foretune.search.fidelity import first_rows
from foretune.search.menu import Menu, independent_of
from foretune.search.runs import Run
from foretune.search.warm_start import ARM
from foretune.training import checkpoint

MOST_ASKED = 4
"""Earlier runs that are looked at closely, the newest first: each costs comparing all rows and scoring `ASKED_ROWS`."""
ASKED_ROWS = 64
"""At first: more only where these leave it open"""
FEWEST = 2
SLOWER = 0.5
"""Of the learning rate that the earlier run had: its weights are no longer at the start."""
CHANGED = ("learning_rate", "epochs", REGULARIZER, "selection", "keep")
"""Settings that the further run does not take from the earlier one"""
SEEN = {"train": ("trained on", ("test", "validation")), "validation": ("chosen by", ("test",))}
"""What rows of an earlier split were for, and the splits in which they must not be now"""


@dataclass(frozen=True)
class Earlier:
    """A finished run, as far as another can begin at it."""

    folder: RunFolder
    prepared: Prepared
    weights: str
    """Hash of its base"""
    run: str
    config: Mapping[str, Any]
    seed: int
    step: int

    @property
    def initial_weights(self) -> InitialWeights:
        """Where its weights lie."""
        return InitialWeights(str(self.folder.trial(self.run).resolve()), self.step)


@dataclass(frozen=True)
class WarmStart:
    """The further run of a search."""

    config: Mapping[str, Any]
    seed: int
    initial_weights: InitialWeights
    why: str

    def to_json(self) -> dict[str, Any]:
        """A JSON form that `from_json` reads back."""
        return {**vars(self), "config": dict(self.config), "initial_weights": self.initial_weights.to_json()}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> WarmStart:
        """The inverse of `to_json`."""
        return cls(**{**value, "initial_weights": InitialWeights(**value["initial_weights"])})


def read_earlier(folder: RunFolder) -> Earlier:
    """A finished run. Raises `UsageError` or `StoreError` where it is no longer whole."""
    record = read_record(folder.root)
    winner = record.winner
    if winner is None or winner.best_step is None:
        raise UsageError("this run handed over nothing to begin at.", place=Place(folder.root))
    try:
        runs = {run["id"]: run for run in read_json(folder.root / "search.json")["runs"]}
        prepared = Prepared.from_json(read_json(folder.root / "prepared.json"))
        seed = int(runs[winner.run]["seed"])
    except (FileNotFoundError, ValueError, KeyError, TypeError) as error:
        raise UsageError(
            f"this run's folder is incomplete ({error}).", place=Place(folder.root), remedy="Name another."
        ) from error
    weights = record.model.weights_sha256
    return Earlier(folder, prepared, weights, winner.run, winner.config, seed, winner.best_step)


def why_not(earlier: Earlier, now: Prepared, weights: str, fixed: Mapping[str, Any], menu: Menu) -> str:
    """Why a run of this fit, prepared as ``now``, cannot begin at an earlier one; "" where it can."""
    then, task = earlier.prepared.task, now.task
    if earlier.weights != weights or then.model.quantize != task.model.quantize:
        return "its base model is another"
    if (then.task, then.labels, then.tasks) != (task.task, task.labels, task.tasks):
        return "its task, or its classes, are others"
    if then.plain_template != task.plain_template:
        return "it was taught with another template"
    try:
        resolve(earlier.config)
    except UsageError as error:
        return f"its settings are no longer known ({error.what})"
    for key, value in fixed.items():
        if key not in CHANGED and key in earlier.config and earlier.config[key] != value:
            return f"its {key} is not the one that was asked for"
    if not menu.offers({key: value for key, value in earlier.config.items() if key not in CHANGED}):
        return "its method, or a setting of it, is not on the menu"
    if checkpoint.read(earlier.folder.trial(earlier.run), earlier.step) is None:
        return "its weights are missing or damaged"
    return ""


def seen_before(then: RunFolder, now: RunFolder) -> str:
    """Which held-out rows of the fit in ``now`` the run in ``then`` has seen; "" for none."""
    try:
        seen = {name: _rows(then, name) for name in SEEN}
    except FileNotFoundError:
        return "the rows it was trained on are no longer there"
    held_out = {name: _rows(now, name) for name in ("test", "validation")}
    rows = [row for part in (*held_out.values(), *seen.values()) for row in part]
    own = sum(map(len, held_out.values()))
    names = [name for name, part in held_out.items() for _ in part] + ["train"] * (len(rows) - own)
    before = [name for name, part in seen.items() for _ in part]
    found = [(before[leak.row - own], leak.other) for leak in leaks(rows, names, find(rows).cluster) if leak.row >= own]
    for name, (what, splits) in SEEN.items():
        for split in splits:
            if count := found.count((name, split)):
                return f"{count} rows that it was {what} are {split} rows now"
    return ""


def _rows(folder: RunFolder, split: str) -> list[Example]:
    return [Example.from_json(value) for value in read_lines(folder.task / f"{split}.jsonl")]


def chosen(
    evaluator: Evaluator,
    weights: str,
    base: Base,
    where: Path,
    *,
    rows: int,
    baseline: Mapping[str, Any],
    fixed: Mapping[str, Any],
    menu: Menu,
) -> dict[str, Any]:
    """``{"start": WarmStart as JSON or None, "notes": [...]}``: the best earlier run in ``where``, what was refused.

    ``base`` has answered ``rows`` validation rows; ``baseline`` is the search's first configuration, ``menu``
    what it may choose from.
    """
    notes: list[str] = []
    best: tuple[float, WarmStart] | None = None
    number = 0
    for folder in finished_runs(where):
        name = folder.root.name
        if folder.root.resolve() == evaluator.folder.root.resolve():
            continue
        if number == MOST_ASKED:
            notes.append(f"Only the {MOST_ASKED} newest earlier runs in {where} were asked.")
            break
        try:
            earlier = read_earlier(folder)
            why = why_not(earlier, evaluator.prepared, weights, fixed, menu)
            if not why:
                number += 1
                why = seen_before(folder, evaluator.folder)
            if not why:
                loss, why, sentence = _asked(evaluator, earlier, number, base, rows)
        except ForetuneError as error:
            why = error.what.rstrip(".")
        if why:
            notes.append(f"The run {name} was not begun at: {why}.")
        elif best is None or loss < best[0]:
            words = f"begun at the weights of {name} ({earlier.run}, step {earlier.step}): {sentence}"
            config = settings(earlier, baseline, fixed)
            config = menu.nearest(config, fixed) or config
            best = loss, WarmStart(config, earlier.seed, earlier.initial_weights, words)
    return {"start": None if best is None else best[1].to_json(), "notes": notes}


def warm_start_notes(winner: Run, start: WarmStart | None) -> tuple[str, ...]:
    """What a report says of rows that a winner has learnt from and this fit does not hold; () for fresh weights."""
    if start is None or winner.arm != ARM:
        return ()
    return (f"What is handed over was {start.why.partition(':')[0]}: it has learnt from that fit's rows too.",)


def settings(earlier: Earlier, baseline: Mapping[str, Any], fixed: Mapping[str, Any]) -> dict[str, Any]:
    """The configuration of a run that begins at an earlier one: all rows, no regularizer, half its learning rate.

    It sees as many epochs as ``baseline``.

    Regularizers that hold weights near their start would measure from other weights than they were made for.
    """
    rate = SLOWER * float(earlier.config["learning_rate"])
    own = {REGULARIZER: NO_REGULARIZER, "selection": NO_SELECTION, "keep": 1.0, "learning_rate": rate,
           "epochs": baseline["epochs"]}  # fmt: skip
    known = independent_of(earlier.config, (REGULARIZER, "selection"))
    return resolve({**known, **own, **{key: fixed[key] for key in fixed if key in known}})


def _asked(evaluator: Evaluator, earlier: Earlier, number: int, base: Base, rows: int) -> tuple[float, str, str]:
    """(loss, why it is of no use or "", its loss and the base's in words) of an earlier run on validation rows.

    A few rows tell most; where they say only that it may be better, all are asked.
    """
    start, task = earlier.initial_weights, evaluator.prepared
    untouched = {answer.row: answer for answer in base.answers}
    for count in sorted({min(rows, ASKED_ROWS), rows}):
        payload = {
            "run_folder": start.folder, "step": start.step, "config": dict(earlier.config), "seed": earlier.seed,
            "split": "validation", "generation": False,
            "rows": list(first_rows(task.rows["validation"], count, task.task.seed)),
        }  # fmt: skip
        content = evaluator.answers(f"validation-earlier-{number}-{count}", payload)
        answers = [Answer(**value) for value in content["answers"] if value["row"] in untouched]
        if len(answers) < FEWEST:
            return 0.0, "time ended before it had answered", ""
        loss = METRICS["loss"]
        own, other = loss.score(answers), loss.score([untouched[answer.row] for answer in answers])
        found = compare(own, other, direction=loss.direction)
        words = f"loss {own.value:.3f}, the base {other.value:.3f}, on {len(answers)} validation rows"
        if found.verdict == "better":
            return own.value, "", words
        if found.difference >= 0:
            break
    return own.value, f"{words}, which shows no gain", words
