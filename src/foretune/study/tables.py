"""A study's summary as Markdown and as plain text: one table a block, one over tasks, and what qualifies them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any

from foretune.report.text import aligned, markdown_cell, markdown_table, printable
from foretune.study.costs import HEADING as COSTS
from foretune.study.costs import cost_rows
from foretune.study.gaps import gaps, reference_arm
from foretune.study.grid import GridSpec
from foretune.study.results import Line
from foretune.study.statistics import Difference
from foretune.study.summary import BlockResult, Summary
from foretune.units import format_duration

HEADING = ["arm", "pairs", "mean", "minus control", "95 % over seeds", "95 % over rows", "wins–losses", "p (Holm)",
           "verdict"]  # fmt: skip
SMALLEST_P = 0.001
Table = tuple[str, list[list[str]]]
"""(caption, rows under `HEADING`)"""


def _number(value: float | None, *, signed: bool = False) -> str:
    if value is None:
        return "–"
    return f"{value:+.4g}" if signed else f"{value:.4g}"


def _interval(low: float | None, high: float | None) -> str:
    return "–" if low is None or high is None else f"{low:+.3g} to {high:+.3g}"


def _row(found: Difference) -> list[str]:
    pairs = str(found.pairs) if not found.dropped else f"{found.pairs} of {found.pairs + found.dropped}"
    p_value = "–" if found.low is None else "<0.001" if found.p_holm < SMALLEST_P else f"{found.p_holm:.3f}"
    return [
        found.arm,
        pairs,
        _number(found.arm_mean),
        _number(found.mean, signed=True),
        _interval(found.low, found.high),
        "–" if found.rows is None else _interval(found.rows.low, found.rows.high),
        f"{found.wins}–{found.losses}",
        p_value,
        found.claim,
    ]


def _control_row(name: str, mean: float | None, runs: int) -> list[str]:
    return [f"{name} (control)", str(runs), _number(mean), *[""] * (len(HEADING) - 3)]


def _where(summary: Summary, block: BlockResult) -> str:
    """A block in words: which model and task, how many rows, tested on what."""
    where = f"{block.model} · {block.task}" if len(summary.models) > 1 else block.task
    rows = "all rows" if block.size == "all" else f"{block.size} rows"
    return f"{where}, {rows}{tested(block.tested_on)}{_against(summary, block.control)}"


def _against(summary: Summary, control: str) -> str:
    """Words for a control that is not the one of all arms."""
    return "" if control == summary.control else f", against {control}"


def tested(name: str) -> str:
    """Words for a test set that is not the task's own."""
    return f", tested on {name}" if name else ""


def _block_table(summary: Summary, block: BlockResult) -> Table:
    caption = f"{_where(summary, block)}: {block.primary} ({block.direction} is better) on {block.test_rows} test rows"
    base = [["untouched base", "", _number(block.base), *[""] * (len(HEADING) - 3)]] if block.base is not None else []
    control = _control_row(block.control, block.control_mean, block.control_runs)
    return caption, [*base, control, *map(_row, block.differences)]


def tables(summary: Summary) -> list[Table]:
    """Every table of a summary."""
    found = [_block_table(summary, block) for block in summary.blocks]
    for pooled in summary.pooled:
        where = f"over all tasks{tested(pooled.tested_on)}{_against(summary, pooled.control)}"
        found.append((f"{where}: {summary.primary}", [_row(difference) for difference in pooled.over_seeds]))
        if pooled.over_tasks:
            caption = f"{where}, tasks as repetitions: {summary.primary}"
            found.append((caption, [_row(difference) for difference in pooled.over_tasks]))
    return found


def beside_tables(summary: Summary) -> list[tuple[str, list[str], list[list[str]]]]:
    """(caption, heading, rows) of every block that was measured otherwise too: mean (difference ± half its interval).

    One column a metric, the verdict of its own comparison behind it where there is one.
    """
    found = []
    for block in summary.blocks:
        if not block.beside:
            continue
        arms = [difference.arm for difference in block.differences]
        by_arm = {(metric, d.arm): d for metric, differences in block.beside.items() for d in differences}
        control = [_control_mean(differences) for differences in block.beside.values()]
        rows = [[f"{block.control} (control)", *control]]
        rows += [[arm, *(_beside(by_arm[metric, arm]) for metric in block.beside)] for arm in arms]
        caption = f"{_where(summary, block)}: mean (minus control ± half of its 95 % interval) of other metrics"
        found.append((caption, ["arm", *block.beside], rows))
    return found


def _control_mean(differences: Sequence[Difference]) -> str:
    return _number(next((d.control_mean for d in differences if d.control_mean is not None), None))


def _beside(found: Difference) -> str:
    if found.mean is None:
        return "–"
    half = "" if found.high is None else f" ± {found.high - found.mean:.2g}"
    verdict = "" if found.verdict == "not resolved" else f" {found.verdict}"
    return f"{_number(found.arm_mean)} ({_number(found.mean, signed=True)}{half}){verdict}"


def cost_tables(summary: Summary) -> list[Table]:
    """What the arms of every block cost, where rows are selected; rows under `costs.HEADING`."""
    found = []
    for block in summary.blocks:
        if block.control != summary.control:
            continue  # its runs are in the table of all arms
        rows = cost_rows(summary.costs, block.model, block.task, block.size)
        if rows:
            unit = f"{summary.costs[0]['clock']} seconds, means over runs"
            found.append((f"{block.task}, {block.size} rows: what choosing and training took, {unit}", rows))
    return found


def every_table(summary: Summary) -> list[tuple[str, list[str], list[list[str]]]]:
    """(caption, heading, rows) of all tables: comparisons, other metrics, costs."""
    return [
        *((caption, HEADING, rows) for caption, rows in tables(summary)),
        *beside_tables(summary),
        *((caption, COSTS, rows) for caption, rows in cost_tables(summary)),
    ]


def remarks(summary: Summary) -> list[str]:
    """What a reader of the tables must know, a sentence each."""
    arms = "; ".join(f"{arm} {', '.join(f'{r:.3g}' for r in used)}" for arm, used in summary.arm_rates.items() if used)
    lines = [f"Learning rates: {summary.rates}." + (f" Used: {arms}." if arms else "")]
    if not summary.complete:
        lines.append(
            f"Unfinished: {summary.runs} of {summary.expected} runs have ended, and {summary.complete_blocks} of "
            f"{summary.expected_blocks} blocks (model, task, size) are complete; other tables may still change."
        )
    if summary.failed:
        shown = "; ".join(f"{f['arm']} on {f['pair']}: {f['status']} {f['detail']}".strip() for f in summary.failed[:5])
        more = f" and {len(summary.failed) - 5} more" if len(summary.failed) > 5 else ""
        lines.append(f"{len(summary.failed)} runs failed and have no score: {shown}{more}.")
    if summary.pooled_note:
        lines.append(summary.pooled_note)
    lines.append(
        "One pair is two runs with the same rows, order and seed. Intervals are Student's over pairs and speak of "
        "these test rows; a verdict needs the interval to exclude zero and p ≤ 0.05 after Holm's correction over arms. "
        "The interval over rows is a paired bootstrap of test rows, each with all its seeds: a verdict says `on these "
        "rows` where other rows may say otherwise."
    )
    lines += summary.notes
    hours = f"{summary.train_hours:.2g} run-hours, {format_duration(summary.used_s)} in all"
    return [*lines, f"{summary.runs} of {summary.expected} runs; {hours}."]


def _cell(text: str) -> str:
    """Text inside a Markdown table or line: no bars, no line breaks, no HTML."""
    flat = markdown_cell(" ".join(text.split()))
    return flat.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def markdown(summary: Summary) -> str:
    """The whole table.md."""
    parts = [f"# Study {_cell(summary.name)}"]
    if summary.about:
        parts.append(_cell(summary.about))
    for caption, heading, rows in every_table(summary):
        parts.append(f"## {_cell(caption)}")
        parts.append(markdown_table(heading, rows, cell=_cell))
    parts.append("\n".join(f"- {_cell(line)}" for line in remarks(summary)))
    return "\n\n".join(parts) + "\n"


def plain(summary: Summary) -> str:
    """The same for a terminal."""
    parts: list[str] = []
    for caption, heading, rows in every_table(summary):
        parts += [caption, aligned(heading, rows), ""]
    return printable("\n".join([*parts, *_wrapped(remarks(summary))]))


def _wrapped(lines: Sequence[str]) -> list[str]:
    import textwrap

    return [part for line in lines for part in textwrap.wrap(line, 110, subsequent_indent="  ")]


def relative(
    grid: GridSpec, lines: Sequence[Line], base: Mapping[tuple[str, str], Mapping[str, Any]]
) -> tuple[list[str], list[list[str]]]:
    """(heading, rows): for every arm and task the share of the reference arm's gain over the untouched base.

    Mean over models, sizes and seeds whose pairs are whole; empty where the base was not measured.
    """
    reference = reference_arm(grid)
    primary = {str(entry["task"]): str(entry["primary"]) for entry in lines}
    reached: dict[str, dict[str, list[float]]] = {}
    for gap in gaps(lines, reference):
        start = base.get((gap.model, gap.task), {}).get(primary[gap.task])
        gain = None if start is None else gap.reference - float(start[0])
        if start is not None and gain:
            reached.setdefault(gap.arm, {}).setdefault(gap.task, []).append((gap.score - float(start[0])) / gain)
    tasks = list(dict.fromkeys(task for own in reached.values() for task in own))
    rows = []
    for arm, own in reached.items():
        every = [value for values in own.values() for value in values]
        cells = [f"{100 * fmean(own[task]):.0f} %" if task in own else "–" for task in tasks]
        rows.append([arm, f"{100 * fmean(every):.0f} %", *cells])
    return ["arm", "mean", *tasks], rows
