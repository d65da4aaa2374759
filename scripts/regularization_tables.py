"""Every arm of a regularization study against the uniform dropout rate that validation prefers.

    python scripts/regularization_tables.py STUDY… [--docs]

A study's own table compares with a fixed control. Here the control of a block (model, task, size) is the best of its
arms ``uniform-…`` by mean validation loss over the seeds: what somebody would get who tuned one rate and knew nothing
of Fisher information. Loss, accuracy, Brier score and calibration error on every test set; paired over seeds, with
Student's 95 % interval, Holm's correction over the arms of a block and outcome, and the smallest effect that so many
pairs find with probability 0.8. "Helps" needs an interval without 0 that holds after Holm. With ``--docs`` the
tables go into docs/regularization.md.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from foretune.evaluation.metrics import METRICS
from foretune.files import write_text
from foretune.study.results import block_of, read_results, views
from foretune.study.statistics import Block, Difference, compare_arms
from foretune.study.tables import tested

UNIFORM = "uniform-"
OUTCOMES = ("loss", "accuracy", "brier", "calibration_error", "exact_match")
PAGE = Path(__file__).parents[1] / "docs" / "regularization.md"
START, END = "<!-- study:start -->", "<!-- study:end -->"
Line = dict[str, Any]


def blocks(lines: Sequence[Line]) -> Iterator[tuple[Block, list[Line]]]:
    """The lines of every (model, task, size, test set)."""
    found: dict[Block, list[Line]] = {}
    for line in views(lines):
        found.setdefault(block_of(line), []).append(line)
    yield from found.items()


def best_uniform(lines: Sequence[Line]) -> str:
    """The uniform arm with the lowest mean validation loss; raises ValueError where there is none."""
    losses: dict[str, list[float]] = {}
    for line in lines:
        score = line["scores"].get("validation", {}).get("loss")
        if line["arm"].startswith(UNIFORM) and score is not None:
            losses.setdefault(line["arm"], []).append(float(score[0]))
    if not losses:
        raise ValueError("the study has no arm uniform-… with a validation loss")
    return min(losses, key=lambda arm: (fmean(losses[arm]), arm))


def differences(lines: Sequence[Line], control: str, outcome: str) -> tuple[Difference, ...]:
    """Every arm against ``control`` in ``outcome``, paired by seed."""
    values: dict[str, dict[Any, float]] = {}
    for line in lines:
        score = line["scores"].get("test", {}).get(outcome)
        if score is not None:
            values.setdefault(line["arm"], {})[line["seed"]] = float(score[0])
    if len(values) < 2 or control not in values:
        return ()
    seeds = {line["seed"] for line in lines}
    return compare_arms(values, control, METRICS[outcome].direction, expected=len(seeds))


def table(lines: Sequence[Line], block: Block) -> list[str]:
    """The Markdown of one block."""
    model, task, size, tested_on = block
    control = best_uniform(lines)
    where = f"{model}, {task}, {size} rows{tested(tested_on)}"
    out = [f"**{where}.** Control: `{control}`, the best uniform rate on validation.", ""]
    out += ["| outcome | arm | pairs | arm − control | 95 % interval | p (Holm) | smallest detectable | verdict |",
            "|---|---|---|---|---|---|---|---|"]  # fmt: skip
    for outcome in OUTCOMES:
        for found in differences(lines, control, outcome):
            interval = "–" if found.low is None else f"{found.low:+.4f} to {found.high:+.4f}"
            least = "–" if found.detectable is None else f"{found.detectable:.4f}"
            mean = "–" if found.mean is None else f"{found.mean:+.4f}"
            out.append(
                f"| {outcome} | {found.arm} | {found.pairs} | {mean} | {interval} | {found.p_holm:.3f} | {least} | "
                f"{found.verdict} |"
            )
    return [*out, ""]


def main() -> int:
    """Print the tables, or put them into the page."""
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("studies", nargs="+", type=Path, help="folders of studies")
    parser.add_argument("--docs", action="store_true", help=f"write into {PAGE.name}")
    arguments = parser.parse_args()
    lines = [line for folder in arguments.studies for line in read_results(folder / "results.jsonl")]
    text = "\n".join(row for block, own in blocks(lines) for row in table(own, block))
    if not arguments.docs:
        print(text)
        return 0
    page = PAGE.read_text(encoding="utf-8")
    made = re.sub(f"{START}.*?{END}", lambda _: f"{START}\n\n{text}\n{END}", page, flags=re.DOTALL)
    write_text(PAGE, made)
    return 0


if __name__ == "__main__":
    sys.exit(main())
