"""Write docs/methods-study.md from the results folder of `foretune study run methods`.

    python scripts/methods_study.py STUDY [--docs]

The page says what was asked and fixed before the first run, what came out against LoRA with intervals, which arms are
as good as LoRA within the margin, how much of the gap to full tuning each closes, how open the gates stood, and which
learning rates were used. Every number is read from the folder; the sentences of the summary follow from the verdicts.
Without ``--docs`` the page is printed.
"""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from foretune.evaluation.paired import LEAST_REPETITIONS, paired_interval
from foretune.files import read_json, write_text
from foretune.report.text import markdown_table
from foretune.study import gates, margins
from foretune.study.gaps import outcome
from foretune.study.outputs import Material, Results, material_of, results_of
from foretune.study.summary import Summary
from foretune.study.tables import HEADING, remarks, tables

PAGE = Path(__file__).parents[1] / "docs" / "methods-study.md"
THIRD, EQUAL = "loratrf-third", "loratrf-equal"
QUESTIONS = (
    (THIRD, "LoRATRF with a third fewer parameters"),
    (EQUAL, "LoRATRF with LoRA's parameters"),
    ("lora-equal", "LoRA with loratrf-third's parameters"),
    ("no-gate", "The edit without its gate"),
    ("no-lora", "The edit without the LoRA branch"),
)
"""What the study was made to answer, in the order of the summary."""
COMPARED = (
    (THIRD, "lora-equal", "LoRATRF against LoRA, both with a third fewer parameters"),
    ("clamp-cos", EQUAL, "the public code's gate, clamp_cos, against cos_scaled"),
    ("mean-hidden", EQUAL, "task vectors from hidden states against drawn ones"),
    ("mean-hidden", "clamp-cos", "task vectors from hidden states against clamp_cos"),
    ("no-gate", EQUAL, "no gate against cos_scaled"),
    ("no-lora", EQUAL, "no LoRA branch against both"),
    ("lora-sum", EQUAL, "LoRA of both ranks together against LoRATRF"),
)
"""Arm, the arm that it is compared with, and why: what is asked beside the comparison with LoRA."""


def findings(summary: Summary, standings: Sequence[margins.Standing]) -> list[str]:
    """What it shows about the questions, a sentence each."""
    pooled = {difference.arm: difference for group in summary.pooled for difference in group.over_seeds}
    found = []
    for arm, words in QUESTIONS:
        if arm not in pooled:
            continue
        over = [one for one in standings if one.arm == arm and one.task in (margins.OVER_TASKS, "all")]
        within = "; ".join(
            f"{one.verdict} within {one.margin:.0%} of the gain over the {one.start} "
            f"({one.lost:+.1%}, {one.low:+.1%} to {one.high:+.1%})"
            for one in over
        )
        found.append(f"**{words}** (`{arm}`) against LoRA over all tasks: {pooled[arm].claim}. {within}.")
    return found


def compared(material: Material) -> list[list[str]]:
    """Rows of `COMPARED`: pairs of task and seed, with a 95 % interval (Student's); not corrected for their number."""
    losses = {
        (one["arm"], one["task"], one["seed"]): value for one in material.lines if (value := outcome(one)) is not None
    }
    rows = []
    for arm, other, words in COMPARED:
        units = [(task, seed) for name, task, seed in losses if name == arm and (other, task, seed) in losses]
        if len(units) >= LEAST_REPETITIONS:
            mean, low, high = paired_interval([losses[arm, *unit] - losses[other, *unit] for unit in units])
            rows.append([words, f"{arm} − {other}", str(len(units)), f"{mean:+.4f} ({low:+.4f} to {high:+.4f})"])
    return rows


def on_one_machine(material: Material) -> Material:
    """The same without runs whose control ran on another machine: what the same run gives there differs by rounding."""
    homes = {
        (one["model"], one["pair"]): one["machine"] for one in material.lines if one["arm"] == material.grid.control
    }
    kept = [one for one in material.lines if homes.get((one["model"], one["pair"])) == one["machine"]]
    return replace(material, lines=tuple(kept))


def machines(material: Material, standings: Sequence[margins.Standing]) -> list[str]:
    """Where the runs were made on several machines: what is left when pairs lie on one; nothing where all did."""
    counted = Counter(one["machine"] for one in material.lines)
    if len(counted) < 2:
        return []
    single = on_one_machine(material)
    narrow = {(one.arm, one.start): one for one in margins.standings(single) if one.task == margins.OVER_TASKS}
    rows = []
    for one in standings:
        other = narrow.get((one.arm, one.start))
        if one.task == margins.OVER_TASKS and other is not None:
            both = [f"{each.lost:+.1%} ({each.low:+.1%} to {each.high:+.1%}), {each.verdict}" for each in (one, other)]
            rows.append([one.arm, one.start, f"{one.pairs}, {other.pairs}", *both])
    said = ", ".join(map(str, sorted(counted.values(), reverse=True)))
    return [
        "## Pairs on one machine",
        f"The runs were made on {len(counted)} machines ({said} runs). A run differs between machines by rounding, so "
        f"here are figures over all tasks beside those of the {len(single.lines)} runs whose control ran there too.",
        markdown_table(["arm", "gain over", "pairs, of one machine", "all pairs", "pairs on one machine"], rows),
    ]


def page(found: Results) -> str:
    """The whole page."""
    material, summary = found.material, found.summary
    standings = margins.standings(material)
    grid = material.grid
    design = read_json(material.folder.design) if material.folder.design.exists() else {}
    detectable = design.get("detectable_pooled")
    unit = summary.primary if design.get("sd") is not None else "standard deviations of a paired difference"
    tasks = ", ".join(f"{name} ({settings.path})" for name, settings in grid.tasks.items())
    parts = [
        "# Study: LoRATRF against LoRA and its controls",
        f"Written by `scripts/methods_study.py` from {summary.runs} of {summary.expected} runs of "
        f"`foretune study run methods`. {summary.about}.",
        f"Model: {', '.join(grid.model)}. Tasks: {tasks}. {len(grid.seeds)} seeds; {grid.horizon.steps} updates of "
        f"{grid.base.get('rows_per_update')} rows; {summary.primary} on {grid.evaluation.test_rows} test rows. "
        "LoRATRF is a reconstruction: the equations of Li et al. (2024, 2412.09827) could not be read.",
        "## Fixed before the first run",
        f"An arm is as good as LoRA when the 95 % interval of what it loses lies within {grid.margin:.0%} of what LoRA "
        "gains. The gain is taken from the untouched base, and, because most of that gain is the form of the answers, "
        "also from the loss of somebody who knows the frequencies of the answers and no question. "
        + ("" if detectable is None else f"Smallest difference detectable over all tasks: {detectable:.3g} {unit}. ")
        + f"Learning rates: {summary.rates}.",
        "## What it shows",
        "\n".join(f"- {line}" for line in findings(summary, standings)) or "Nothing yet: too few runs have ended.",
        "## As good as LoRA?",
        "The gap to full tuning is said to be closed only where full tuning is better than LoRA by an interval.",
    ]
    for caption, rows in margins.standing_tables(standings):
        parts += [f"**{caption}**", markdown_table(margins.HEADING, rows)]
    gated = gates.gate_rows(material.lines)
    if gated:
        parts += ["## How open the gates stood on the test rows", markdown_table(gates.HEADING, gated)]
    if between := compared(material):
        parts += ["## Between LoRATRF and its controls",
                  f"Differences in {summary.primary} over pairs of task and seed, less is better; these looks were not "
                  "planned one by one and are not corrected for their number. LoRATRF's default, cos_scaled with drawn "
                  "task vectors, gives way only to a gate that is better by an interval without zero.",
                  markdown_table(["question", "difference", "pairs", "mean, 95 %"], between)]  # fmt: skip
    parts += machines(material, standings)
    parts.append("## Every arm against LoRA")
    for caption, rows in tables(summary):
        parts += [f"**{caption}**", markdown_table(HEADING, rows)]
    parts.append("\n".join(f"- {line}" for line in remarks(summary)))
    return "\n\n".join(parts) + "\n"


def main() -> None:
    """Print the page, or write it."""
    parser = argparse.ArgumentParser(description="docs/methods-study.md from a study's folder")
    parser.add_argument("study", type=Path)
    parser.add_argument("--docs", action="store_true", help="write docs/methods-study.md")
    arguments = parser.parse_args()
    text = page(results_of(material_of(arguments.study)))
    if arguments.docs:
        write_text(PAGE, text)
    else:
        print(text)


if __name__ == "__main__":
    main()
