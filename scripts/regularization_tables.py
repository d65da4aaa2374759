"""Every arm of a regularization study against the uniform dropout rate that validation prefers.

    python scripts/regularization_tables.py STUDY… [--docs]

A study's own table compares with a fixed control. Here the control of a block (model, task, size) is the best of its
arms ``uniform-…`` by mean validation loss over the seeds: what somebody would get who tuned one rate and knew nothing
of Fisher information. Loss, accuracy, Brier score and calibration error on every test set; paired over seeds, with
Student's 95 % interval, Holm's correction over the arms of a block and outcome, and the smallest effect that so many
pairs find with probability 0.8; and guided dropout against the arms of its mean rate, which differ in the ranking
alone. "Better" needs an interval without 0 that holds after Holm. A study may be under way: blocks whose runs have
not all ended are named and left out. With ``--docs`` the tables go into docs/regularization.md.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean, median
from typing import Any

from foretune.evaluation.metrics import METRICS
from foretune.files import write_text
from foretune.report.text import markdown_table
from foretune.study.folder import saved_grid
from foretune.study.grid import GridSpec
from foretune.study.results import block_of, outcomes, read_results, views
from foretune.study.statistics import Block, Difference, compare_arms
from foretune.study.tables import tested
from foretune.units import format_duration

UNIFORM = "uniform-"
GUIDED = "guided"
RANKINGS = ("uniform-0.05", "type-only", "random", "reversed")
OUTCOMES = ("loss", "accuracy", "brier", "calibration_error", "exact_match")
PAGE = Path(__file__).parents[1] / "docs" / "regularization.md"
START, END = "<!-- study:start -->", "<!-- study:end -->"
Line = dict[str, Any]
Found = dict[str, tuple[Difference, ...]]
"""The comparisons of a block by outcome"""


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
    """Every arm of a block against ``control`` in ``outcome``, paired by seed; empty where it was not measured."""
    (values,) = outcomes(lines, outcome).values()
    measured = {arm: found for arm, found in values.items() if found}
    if len(measured) < 2 or control not in measured:
        return ()
    seeds = {line["seed"] for line in lines}
    return compare_arms(measured, control, METRICS[outcome].direction, expected=len(seeds))


def compared(lines: Sequence[Line], control: str) -> Found:
    """The comparisons of a block in every outcome that was measured."""
    return {outcome: found for outcome in OUTCOMES if (found := differences(lines, control, outcome))}


def table(block: Block, control: str, found: Found) -> list[str]:
    """The Markdown of one block: an arm a row, an outcome a column."""
    model, task, size, tested_on = block
    means = ", ".join(f"{name} {values[0].control_mean:.3f}" for name, values in found.items())
    about = (
        f"**{model}, {task}, {size} rows{tested(tested_on)}.** Against `{control}`, the best uniform rate on "
        f"validation ({means})."
    )
    rows = []
    by_arm = {(name, one.arm): one for name, values in found.items() for one in values}
    for arm in dict.fromkeys(arm for _, arm in by_arm):
        cells = [_cell(by_arm.get((name, arm))) for name in found]
        pairs = max(one.pairs for (_, own), one in by_arm.items() if own == arm)
        rows.append([arm, str(pairs), *cells])
    least = [
        f"{median(sizes):.4f}" if (sizes := [one.detectable for one in values if one.detectable is not None]) else "–"
        for values in found.values()
    ]
    rows.append(["smallest effect found in 4 of 5 such studies, median", "", *least])
    return [about, "", markdown_table(["arm", "pairs", *found], rows), ""]


def _cell(one: Difference | None) -> str:
    if one is None or one.mean is None:
        return "–"
    interval = "" if one.low is None else f" [{one.low:+.4f}, {one.high:+.4f}]"
    return f"{one.mean:+.4f}{interval}" + ("" if one.verdict == "not resolved" else f" **{one.verdict}**")


def verdicts(found: Sequence[Found]) -> list[str]:
    """For every arm and outcome: in how many blocks it is better, worse, not resolved."""
    counts: dict[str, dict[str, Counter[str]]] = {}
    for block in found:
        for name, values in block.items():
            for one in values:
                counts.setdefault(one.arm, {}).setdefault(name, Counter())[one.verdict] += 1
    names = [name for name in OUTCOMES if any(name in own for own in counts.values())]
    rows = []
    for arm, own in counts.items():
        cells = [" / ".join(str(own.get(n, Counter())[v]) for v in ("better", "worse", "not resolved")) for n in names]
        rows.append([arm, *cells])
    about = "Blocks in which an arm is better / worse / not resolved against the best uniform rate:"
    return [about, "", markdown_table(["arm", *names], rows), ""]


def ranking(groups: Mapping[Block, Sequence[Line]]) -> list[str]:
    """The guided arm minus those that differ from it in the ranking alone, in loss; empty where there are none."""
    found = {}
    for (_, task, size, tested_on), lines in groups.items():
        minus = {one: d for one in RANKINGS for d in differences(lines, one, "loss") if d.arm == GUIDED}
        if minus:
            found[f"{task}, {size} rows{tested(tested_on)}"] = minus
    names = [name for name in RANKINGS if any(name in own for own in found.values())]
    rows = [[where, *(_cell(own.get(name)) for name in names)] for where, own in found.items()]
    about = f"`{GUIDED}` minus arms of its mean rate, in loss (Holm over all arms of the block):"
    return [about, "", markdown_table(["block", *names], rows), ""] if rows else []


def study(grid: GridSpec, lines: Sequence[Line]) -> list[str]:
    """The Markdown of one study, from its whole blocks."""
    ended = Counter(block_of(line)[:3] for line in lines)
    whole = {key for key, runs in ended.items() if runs == len(grid.arms) * len(grid.seeds)}
    blocks = len(grid.model) * len(grid.tasks) * len(grid.sizes)
    seconds = sum(line["train_s"] + line["eval_s"] for line in lines)
    total = blocks * len(grid.arms) * len(grid.seeds)
    failed = sum(line["status"] != "finished" for line in lines)
    out = [f"### {grid.name}", "",
           f"{grid.about}. {len(lines)} of {total} runs, {len(whole)} of {blocks} blocks (model, task, size) whole, "
           f"{failed} runs failed, {format_duration(seconds)} of training and testing.", ""]  # fmt: skip
    groups: dict[Block, list[Line]] = {}
    for line in views(lines):
        if block_of(line)[:3] in whole:
            groups.setdefault(block_of(line), []).append(line)
    controls = {block: best_uniform(own) for block, own in groups.items()}
    found = {block: compared(own, controls[block]) for block, own in groups.items()}
    if found:
        out += verdicts(list(found.values()))
        out += ranking(groups)
    for block, own in found.items():
        out += table(block, controls[block], own)
    return out


def main() -> int:
    """Print the tables, or put them into the page."""
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("studies", nargs="+", type=Path, help="folders of studies")
    parser.add_argument("--docs", action="store_true", help=f"write into {PAGE.name}")
    arguments = parser.parse_args()
    rows = [row for f in arguments.studies for row in study(saved_grid(f), read_results(f / "results.jsonl"))]
    text = "\n".join(rows)
    if not arguments.docs:
        print(text)
        return 0
    page = PAGE.read_text(encoding="utf-8")
    made = re.sub(f"{START}.*?{END}", lambda _: f"{START}\n\n{text}\n{END}", page, flags=re.DOTALL)
    write_text(PAGE, made)
    return 0


if __name__ == "__main__":
    sys.exit(main())
