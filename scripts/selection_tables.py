"""The tables of docs/selection.md: what every selector did to the held-out loss, and what choosing cost.

    python scripts/selection_tables.py FOLDER… [--docs]

FOLDERs are those of `foretune study run selection` and its relatives, finished or under way. For every task and test
set, and every share of rows that is kept: each arm against random rows of the same number, paired over seeds, with
Student's 95 % interval, Holm's correction over the arms of the table, and the smallest effect that so many pairs find
with probability 0.8; beside it the seconds of choosing and of training. What is not finished is said. With ``--docs``
the tables go into the page.
"""

from __future__ import annotations

import argparse
import re
import sys
from pathlib import Path
from typing import Any

from foretune.files import write_text
from foretune.report.text import markdown_table
from foretune.study.outputs import material_of, results_of
from foretune.study.statistics import Difference
from foretune.study.summary import BlockResult, Summary
from foretune.study.tables import SMALLEST_P

PAGE = Path(__file__).parents[1] / "docs" / "selection.md"
START, END = "<!-- study:start -->", "<!-- study:end -->"
HEADING = ("arm", "pairs", "loss", "minus control", "95 % interval", "p (Holm)", "smallest detectable", "verdict",
           "choosing s", "training s", "both s")  # fmt: skip


def section(folder: Path) -> list[str]:
    """The Markdown of one study."""
    material = material_of(folder)
    whole = results_of(material).summary
    state = "" if whole.complete else f" **Not finished: {whole.runs} of {whole.expected} runs.**"
    failed = f" {len(whole.failed)} runs failed." if whole.failed else ""
    out = [f"### {whole.name}", "", f"{whole.about}. Learning rates: {whole.rates}.{state}{failed}", ""]
    for block in whole.blocks:
        if block.control_mean is not None:
            out += table(whole, block)
    return out


def table(summary: Summary, block: BlockResult) -> list[str]:
    """Every arm of one task and test set; the control first."""
    tested = f"tested on {block.tested_on or 'its own rows'} ({block.test_rows} rows)"
    where = f"{block.task}, {tested}, against {block.control}"
    base = "" if block.base is None else f" The untouched base has {block.base:.3f}."
    part = "" if block.complete else f" {block.runs} of {block.expected} runs."
    costs = {
        one["arm"]: one
        for one in summary.costs
        if (one["model"], one["task"], one["size"]) == (block.model, block.task, block.size)
    }
    control = [f"{block.control} (control)", str(block.control_runs), f"{block.control_mean:.4f}", *[""] * 5]
    rows = [control + cost_cells(costs.get(block.control))]
    rows += [row(found) + cost_cells(costs.get(found.arm)) for found in block.differences]
    clock = f" Seconds are {next(iter(costs.values()))['clock']} seconds." if costs else ""
    return [f"**{where}.**{base}{part}{clock}", "", markdown_table(HEADING, rows), ""]


def row(found: Difference) -> list[str]:
    """An arm against the control, without its cost."""
    interval = "–" if found.low is None else f"{found.low:+.4f} to {found.high:+.4f}"
    mean, least, arm = (
        "–" if value is None else f"{value:{form}}"
        for value, form in ((found.mean, "+.4f"), (found.detectable, ".4f"), (found.arm_mean, ".4f"))
    )
    p_holm = f"<{SMALLEST_P}" if found.p_holm < SMALLEST_P else f"{found.p_holm:.3f}"
    return [found.arm, str(found.pairs), arm, mean, interval, p_holm, least, found.claim.partition(" (")[0]]


def cost_cells(cost: dict[str, Any] | None) -> list[str]:
    """The last columns: seconds of choosing, training, both."""
    if cost is None:
        return ["", "", ""]
    return [f"{cost[part]:.0f}" for part in ("selection_s", "training_s", "total_s")]


def page(text: str, tables: str) -> str:
    """The page with the tables between the marks. Raises ValueError where the marks are missing."""
    if START not in text or END not in text:
        raise ValueError(f"{PAGE} has no place for the tables")
    return re.sub(f"{START}.*?{END}", lambda _: f"{START}\n{tables}\n{END}", text, flags=re.DOTALL)


def main() -> int:
    """Print the tables, or put them into the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("studies", nargs="+", type=Path, help="folders of studies")
    parser.add_argument("--docs", action="store_true", help=f"write into {PAGE.name}")
    arguments = parser.parse_args()
    tables = "\n".join(line for folder in arguments.studies for line in section(folder))
    if arguments.docs:
        write_text(PAGE, page(PAGE.read_text(encoding="utf-8"), tables.rstrip("\n")))
    else:
        print(tables)
    return 0


if __name__ == "__main__":
    sys.exit(main())
