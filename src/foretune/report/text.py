"""The end of a run on the terminal: the verdict, the comparison, where things are; plain text or a rich table.

Also how any table of ours looks as plain text (`aligned`) and in Markdown (`markdown_table`).
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from foretune.report.record import Comparison, RunRecord
from foretune.report.wording import (
    budget_text,
    difference_text,
    qualifications,
    status_word,
    value_text,
    verdict,
)

if TYPE_CHECKING:
    from rich.console import RenderableType

_GAP = "  "


def comparison_table(comparison: Comparison, *, error: bool = True) -> tuple[list[str], list[list[str]]]:
    """Heading and rows: a system a row, its metrics, and the fine-tuned model's paired difference from it.

    The primary metric comes first. Shared by the terminal and the model card.
    """
    measured = {name for system in comparison.systems for name in system.metrics}
    others = [info.name for info in comparison.metrics if info.name != comparison.metric]
    names = [name for name in (comparison.metric, *others) if name in measured]
    winner = comparison.system("winner")
    primary = comparison.info(comparison.metric)
    heading = ["system", *(comparison.info(name).label for name in names), f"fine-tuned minus it ({primary.label})", ""]
    rows = []
    for system in comparison.systems:
        cells = [value_text(comparison.info(name), system.metrics.get(name), error=error) for name in names]
        difference = winner.difference(comparison.metric, system.role) if winner else None
        shown = [difference_text(primary, difference), difference.verdict] if difference else ["", ""]
        rows.append([system.name, *cells, *shown])
    return heading, rows


def aligned(heading: list[str], rows: list[list[str]], *, left: Collection[int] = (0,)) -> str:
    """A table as plain text: the columns of numbers ``left`` (the first) to the left, the others to the right."""
    widths = [max(map(len, column)) for column in zip(heading, *rows, strict=True)]

    def line(cells: list[str]) -> str:
        first, *rest = (
            cell.ljust(width) if place in left else cell.rjust(width)
            for place, (cell, width) in enumerate(zip(cells, widths, strict=True))
        )
        return _GAP.join([first, *rest]).rstrip()

    rule = _GAP.join("─" * width for width in widths).rstrip()
    return "\n".join([line(heading), rule, *map(line, rows)])


def markdown_cell(text: str) -> str:
    """``text`` without bars that would end a cell."""
    return text.replace("|", "\\|")


def markdown_table(
    heading: Sequence[str],
    rows: Iterable[Sequence[str]],
    *,
    marks: Sequence[str] = (),
    cell: Callable[[str], str] = markdown_cell,
) -> str:
    """A table in Markdown; ``marks`` (such as ``--:``) align its columns, ``cell`` makes text safe inside it."""
    first, *rest = (f"| {' | '.join(map(cell, line))} |" for line in (heading, *rows))
    return "\n".join([first, f"|{'|'.join(marks or ['---'] * len(heading))}|", *rest])


def facts(record: RunRecord, folder: Path | None = None) -> list[tuple[str, str]]:
    """The lines under the table: budget, trials, what was exported, where the report lies."""
    failed = [trial for trial in record.trials if trial.failed]
    trials = f"{len(record.trials)}"
    if failed:
        trials += f", {len(failed)} failed ({', '.join(sorted({status_word(t.status) for t in failed}))})"
    lines = [("budget", budget_text(record.budget)), ("trials", trials)]
    if record.selection is not None:
        lines.append(("rows", record.selection.sentence()))
    for item in record.exports:
        place = str(folder / item.folder) if folder is not None else item.folder
        state = {True: "answers as evaluated", False: "check failed", None: "not checked"}[item.verified]
        lines.append((item.kind, f"{place} ({state})"))
    lines += [("warning", warning) for warning in record.warnings]
    return lines


def summary(record: RunRecord, folder: Path | None = None) -> str:
    """Everything as plain text, for pipes and logs. Control characters of the data never reach the terminal."""
    parts = ["\n".join([verdict(record), *qualifications(record)])]
    if record.comparison is not None:
        parts.append(aligned(*comparison_table(record.comparison)))
    lines = facts(record, folder)
    width = max(len(name) for name, _ in lines)
    parts.append("\n".join(f"{name.ljust(width)}{_GAP}{text}" for name, text in lines))
    return printable("\n\n".join(parts))


def printable(text: str) -> str:
    """``text`` without the characters that would steer a terminal."""
    return "".join(character if character.isprintable() or character in "\n\t" else "\ufffd" for character in text)


def rich_summary(record: RunRecord, folder: Path | None = None) -> RenderableType:
    """The same for a terminal with colours; nothing in it is read as rich markup."""
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    parts: list[RenderableType] = [Text(printable(verdict(record)), style="bold"), Text("")]
    parts += [Text(printable(sentence), style="dim") for sentence in qualifications(record)]
    if record.comparison is not None:
        heading, rows = comparison_table(record.comparison)
        table = Table(box=None, pad_edge=False, header_style="dim", padding=(0, 2, 0, 0))
        for place, title in enumerate(heading):
            table.add_column(Text(printable(title)), justify="left" if place in (0, len(heading) - 1) else "right")
        for system, cells in zip(record.comparison.systems, rows, strict=True):
            table.add_row(*(Text(printable(cell)) for cell in cells), style="bold" if system.role == "winner" else None)
        parts += [Text(""), table]
    grid = Table.grid(padding=(0, 2))
    for name, line in facts(record, folder):
        grid.add_row(Text(name, style="dim"), Text(printable(line)))
    return Group(*parts, Text(""), grid)
