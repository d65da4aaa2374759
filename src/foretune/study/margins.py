"""Whether an arm is as good as the control, up to a margin fixed before, and how much of a gap it closes.

"Not resolved" is no proof of equality. An arm is *as good* here when the whole 95 % interval of what it loses stays
below the margin, a share of what the control gains (`GridSpec.margin`); it *loses more* when the whole interval lies
above. Losses are written in shares of the control's mean gain, so that tasks can be averaged. Gains are measured from
two places:

- the untouched base model. Where the base does not know the form of the answers, nearly all of this gain is form;
- the frequencies of the answers, for tasks of few different answers: the loss of somebody who knows how answers are
  written and how often each is right, and does not look at the question. What is gained over that is content.

*Closed* is the share of the gap between the control and the reference arm (full tuning) that an arm closes, with
Fieller's interval; it is left open where the gap itself is not resolved.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any, Literal

import numpy as np

from foretune.evaluation.base import Answer
from foretune.evaluation.paired import LEAST_REPETITIONS, paired_interval
from foretune.study.effects import ratio_of_means
from foretune.study.gaps import outcome, reference_arm
from foretune.study.outputs import Material
from foretune.study.results import Line, read_answers
from foretune.study.test_sets import OWN

MOST_ANSWERS = 20
"""Tasks with more different answers have no frequencies to speak of."""
OVER_TASKS = "all tasks"
Start = Literal["base", "frequencies"]
Outcomes = Mapping[str, Mapping[Any, float]]
"""The outcome by arm and seed; larger is worse."""


@dataclass(frozen=True)
class Standing:
    """What an arm loses against the control, in shares of the control's gain."""

    task: str
    arm: str
    start: Start
    """What the gain is measured from"""
    gain: float | None
    """Of the control, in the outcome's unit; None over tasks"""
    margin: float
    pairs: int
    lost: float
    low: float
    high: float
    closed: tuple[float, float, float] | None = None
    """(share, low, high) of the gap to the reference that is closed; None where the gap is not resolved"""

    @property
    def verdict(self) -> str:
        """In words."""
        if self.high <= self.margin:
            return "as good"
        return "loses more" if self.low > self.margin else "not resolved"


def frequencies_loss(answers: Sequence[Answer]) -> float | None:
    """Nats a token of always answering with the frequencies of these ``answers``; None where most are different."""
    counts = Counter(answer.reference for answer in answers)
    tokens = sum(answer.tokens for answer in answers)
    if len(counts) > MOST_ANSWERS or not tokens:
        return None
    return -sum(count * math.log(count / len(answers)) for count in counts.values()) / tokens


def standings(material: Material) -> list[Standing]:
    """Every arm in every block and over tasks, from both starts; empty where the grid fixes no margin."""
    grid = material.grid
    if grid.margin is None:
        return []
    found: list[Standing] = []
    for start in ("base", "frequencies"):
        shares: dict[str, dict[Any, list[float]]] = {}
        """By arm and (task, seed): sizes and models repeat nothing independently, so they are averaged"""
        for (model, task, size), outcomes in _blocks(material.lines):
            control = outcomes.get(grid.control, {})
            zero = _start(material, model, task, start, outcomes)
            if zero is None or len(control) < LEAST_REPETITIONS or (gain := zero - fmean(control.values())) <= 0:
                continue
            name = task if size == "all" else f"{task}, {size} rows"
            for arm, values in outcomes.items():
                lost = {seed: (value - control[seed]) / gain for seed, value in values.items() if seed in control}
                if arm == grid.control or len(lost) < LEAST_REPETITIONS:
                    continue
                for seed, value in lost.items():
                    shares.setdefault(arm, {}).setdefault((task, seed), []).append(value)
                closed = _closed(outcomes, arm, grid.control, reference_arm(grid))
                found.append(_standing(name, arm, start, gain, grid.margin, lost, closed))
        if len({task for every in shares.values() for task, _ in every}) > 1:
            for arm, every in shares.items():
                averaged = {unit: fmean(values) for unit, values in every.items()}
                found.append(_standing(OVER_TASKS, arm, start, None, grid.margin, averaged))
    return found


def _standing(
    task: str, arm: str, start: Any, gain: float | None, margin: float, lost: Mapping[Any, float], closed: Any = None
) -> Standing:
    return Standing(task, arm, start, gain, margin, len(lost), *paired_interval(list(lost.values())), closed)


def _blocks(lines: Sequence[Line]) -> Iterator[tuple[tuple[str, str, str], Outcomes]]:
    """Outcomes by block (model, task, size), turned so that larger is worse."""
    blocks: dict[tuple[str, str, str], dict[str, dict[Any, float]]] = {}
    for entry in lines:
        value = outcome(entry)
        if value is not None:
            sign = 1.0 if entry["direction"] == "lower" else -1.0
            arms = blocks.setdefault((entry["model"], entry["task"], entry["size"]), {})
            arms.setdefault(entry["arm"], {})[entry["seed"]] = sign * value
    yield from blocks.items()


def _start(material: Material, model: str, task: str, start: str, outcomes: Outcomes) -> float | None:
    """The outcome without any training, larger is worse."""
    prepared = material.tasks[model, task]
    if start == "base":
        score = material.base.get(OWN, {}).get((model, task), {}).get(prepared.primary)
        lower = next(e["direction"] for e in material.lines if e["task"] == task) == "lower"
        return None if score is None else float(score[0]) * (1.0 if lower else -1.0)
    answered = material.folder.task(model, task).root / "base-answers.json"
    if prepared.primary != "loss" or not answered.is_file():
        return None
    return frequencies_loss(read_answers(answered)[1])


def _closed(outcomes: Outcomes, arm: str, control: str, reference: str) -> tuple[float, float, float] | None:
    if reference in (arm, control):
        return None
    arms = (outcomes[arm], outcomes[control], outcomes.get(reference, {}))
    seeds = sorted(set.intersection(*(set(values) for values in arms)))
    if len(seeds) < LEAST_REPETITIONS:
        return None
    own, at_control, at_reference = (np.asarray([values[seed] for seed in seeds]) for values in arms)
    gap = at_control - at_reference
    return ratio_of_means(at_control - own, gap) if gap.mean() > 0 else None


HEADING = ["task", "arm", "pairs", "lost, share of the control's gain", "95 %", "verdict", "gap closed"]


def standing_tables(found: Sequence[Standing]) -> list[tuple[str, list[list[str]]]]:
    """(caption, rows under `HEADING`) for every start."""
    tables = []
    for start, words in (("base", "the untouched base"), ("frequencies", "the answers' frequencies")):
        own = [one for one in found if one.start == start]
        if own:
            gains = "; ".join(dict.fromkeys(f"{one.task} {one.gain:.3g}" for one in own if one.gain is not None))
            caption = f"as good as the control within {own[0].margin:.0%} of its gain over {words} (gains: {gains})"
            tables.append((caption, [_row(one) for one in own]))
    return tables


def _row(one: Standing) -> list[str]:
    closed = "–" if one.closed is None else "{:.0%} ({:.0%} to {:.0%})".format(*one.closed)
    return [one.task, one.arm, str(one.pairs), f"{one.lost:+.2%}", f"{one.low:+.2%} to {one.high:+.2%}",
            one.verdict, closed]  # fmt: skip
