"""``foretune data check``: reads a data set as ``fit`` would and says what it holds, what is wrong and how it splits.

Nothing is trained, no model is loaded and nothing is written but the quarantine file that was asked for.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from foretune.cli.options import (
    AnswerColumn,
    AsJson,
    LabelColumn,
    PairColumn,
    PromptColumn,
    RowFormat,
    SystemColumn,
    TextColumn,
)

if TYPE_CHECKING:
    from foretune.data.columns import Columns
    from foretune.data.profile import Lengths, Profile
    from foretune.data.read import ReadResult
    from foretune.data.split import Splits

_SHOWN = 12
"""Lines of a long list (labels, languages) that are shown."""
_NARROW_SHARE = 0.005
"""Smaller shares of scripts and languages are left out of the display (never of ``--json``)."""


def check(
    source: Annotated[
        str, typer.Argument(metavar="DATA", help="A file, a folder, a hub id, or the name of a data set.")
    ],
    format: RowFormat = None,
    task: Annotated[str | None, typer.Option(help="Task, if the guess is wrong: generation, classification, …")] = None,
    prompt_column: PromptColumn = None,
    answer_column: AnswerColumn = None,
    label_column: LabelColumn = None,
    text_column: TextColumn = None,
    pair_column: PairColumn = None,
    system_column: SystemColumn = None,
    group_column: Annotated[str | None, typer.Option(help="Rows with the same value stay in one split.")] = None,
    split_column: Annotated[str | None, typer.Option(help="Column that says train, validation or test.")] = None,
    task_column: Annotated[str | None, typer.Option(help="Column that names the task of a row.")] = None,
    validation: Annotated[Path | None, typer.Option(help="File of validation rows.")] = None,
    test: Annotated[Path | None, typer.Option(help="File of test rows.")] = None,
    on_bad_row: Annotated[
        Literal["error", "quarantine"], typer.Option(help="Stop at bad rows, or set them aside.")
    ] = "error",
    quarantine: Annotated[Path | None, typer.Option(help="Where bad rows go.")] = None,
    seed: Annotated[int, typer.Option(help="Seed of the split.")] = 0,
    as_json: AsJson = False,
) -> None:
    """Read DATA as fit would: format, lengths, languages, duplicates, leaks, labels, splits, problems."""
    from foretune.data.columns import Columns

    columns = Columns(
        prompt=prompt_column, answer=answer_column, label=label_column, text=text_column,
        pair=pair_column, task=task_column, group=group_column, split=split_column, system=system_column,
    )  # fmt: skip
    files = {"validation": validation, "test": test}
    results = _read_all(source, files, format, columns, task, on_bad_row, quarantine)
    summary = _summarised(results, seed)
    if as_json:
        typer.echo(json.dumps(summary.to_json(), indent=2, ensure_ascii=False, allow_nan=False))
    elif sys.stdout.isatty():
        summary.show_tables()
    else:
        for line in summary.lines():
            typer.echo(line)


def _read_all(
    source: str,
    files: Mapping[str, Path | None],
    format: str | None,
    columns: Columns,
    task: str | None,
    on_bad_row: Literal["error", "quarantine"],
    quarantine: Path | None,
) -> dict[str, ReadResult]:
    """The main data under ``data`` and what was given for validation and test, read as the same task."""
    from dataclasses import replace

    from foretune.data import corpora
    from foretune.data.read import read

    options: dict[str, Any] = {"format": format, "on_bad_row": on_bad_row}
    results = {"data": read(corpora.locate(source), columns=columns, task=task, quarantine=quarantine, **options)}
    main = results["data"]
    for name, path in files.items():
        if path is not None:
            aside = None if quarantine is None else quarantine.with_name(f"{name}-{quarantine.name}")
            # a split column says nothing about a file that is a split
            results[name] = read(
                path, columns=replace(columns, split=None), task=main.task, quarantine=aside, **options
            )
    return results


def _summarised(results: Mapping[str, ReadResult], seed: int) -> _Summary:
    from foretune.data.profile import profile
    from foretune.data.split import split

    given = {name: result.examples for name, result in results.items() if name != "data"}
    splits = split(results["data"].examples, seed=seed, given=given)
    return _Summary(results, splits, profile(splits))


class _Summary:
    """All that the command knows, and its three forms: JSON, plain lines, tables."""

    def __init__(self, results: Mapping[str, ReadResult], splits: Splits, profile: Profile) -> None:
        self.results = results
        self.splits = splits
        self.profile = profile

    def to_json(self) -> dict[str, Any]:
        """Everything, unabridged."""
        return {
            "sources": {
                name: {
                    "files": [str(path) for path in result.files],
                    "sha256": result.sha256,
                    "format": result.format,
                    "task": result.task,
                    "rows_read": result.rows_read,
                    "rows_kept": len(result.examples),
                    "rows_quarantined": result.quarantined,
                    "quarantine": None if result.quarantine is None else str(result.quarantine),
                    "problems": [problem.to_json() for problem in result.problems],
                    "notes": list(result.notes),
                }
                for name, result in self.results.items()
            },
            "profile": self.profile.to_json(),
            "splits": self.splits.report.to_json(),
        }

    def sections(self) -> dict[str, list[tuple[str, str]]]:
        """Titles with their (name, value) lines; empty sections are left out."""
        labels = self.splits.report.labels
        sections = {
            "Data": [line for name, result in self.results.items() for line in _source_lines(name, result)],
            "Content": self._content(),
            "Labels": [(label, _per_split(label, labels)) for label in list(self.profile.labels)[:_SHOWN]],
            "Splits": [
                (name, f"{rows:,} rows, {self.splits.report.origin.get(name, 'none')}")
                for name, rows in self.splits.report.rows.items()
            ],
        }
        hidden = len(self.profile.labels) - _SHOWN
        if hidden > 0:
            sections["Labels"].append(("…", f"{hidden} more labels"))
        return {title: lines for title, lines in sections.items() if lines}

    def remarks(self) -> list[str]:
        """What was decided and what to know, in sentences."""
        reading = [note for result in self.results.values() for note in result.notes]
        return [*dict.fromkeys(reading), *self.splits.report.notes]

    def problems(self) -> list[str]:
        """The first problems with their places, when bad rows were set aside."""
        from foretune.data.problems import PROBLEMS_SHOWN

        lines = []
        for result in self.results.values():
            lines += [str(problem) for problem in result.problems[:PROBLEMS_SHOWN]]
            if len(result.problems) > PROBLEMS_SHOWN:
                lines.append(f"… and {len(result.problems) - PROBLEMS_SHOWN:,} more")
            if result.quarantine is not None:
                lines.append(f"set aside in {result.quarantine}")
        return lines

    def _content(self) -> list[tuple[str, str]]:
        known, report = self.profile, self.splits.report
        unit = "tokens (estimated)" if known.tokens_estimated else "tokens"
        lines = [
            (f"prompt {unit}", _length(known.prompt_tokens)),
            (f"answer {unit}", _length(known.answer_tokens)),
            ("languages", _listed(known.languages)),
            ("scripts", _listed(known.scripts)),
            ("code", _percent(known.code_share)),
            ("duplicates", f"{report.duplicates:,} exact, {report.near_duplicates:,} near"),
            ("different answers", _percent(known.unique_answers)),
        ]
        if known.prompt_tokens.mean == 0:
            del lines[0]
        if report.conflicts:
            lines.append(("conflicts", f"{len(report.conflicts):,} texts with contradicting labels"))
        if report.leaks:
            lines.append(("leaks", ", ".join(f"{count:,} {pair}" for pair, count in report.leaks.items())))
        return lines

    def lines(self) -> list[str]:
        """Plain lines for pipes and logs: ``section: name: value``."""
        lines = [f"{title.lower()}: {name}: {value}" for title, part in self.sections().items() for name, value in part]
        lines += [f"note: {remark}" for remark in self.remarks()]
        return [_printable(line) for line in lines + [f"problem: {problem}" for problem in self.problems()]]

    def show_tables(self) -> None:
        """Tables for a terminal."""
        from rich.console import Console
        from rich.table import Table
        from rich.text import Text

        console = Console()
        for title, lines in self.sections().items():
            table = Table(title=title, title_justify="left", title_style="bold", show_header=False, box=None)
            table.add_column(style="cyan", no_wrap=True)
            table.add_column()
            for name, value in lines:
                table.add_row(Text(f"  {_printable(name)}"), Text(_printable(value)))
            console.print(table)
        for title, sentences in (("Notes", self.remarks()), ("Problems", self.problems())):
            if sentences:
                console.print(Text(title, style="bold"))
                for sentence in sentences:
                    console.print(Text(f"  {_printable(sentence)}"))


def _source_lines(name: str, result: ReadResult) -> list[tuple[str, str]]:
    files = [str(path) for path in result.files]
    rows = f"{len(result.examples):,} rows"
    if result.quarantined:
        rows += f" of {result.rows_read:,}; {result.quarantined:,} bad rows set aside"
    what = f"{rows}, {result.format}, {result.task}"
    where = ", ".join(files[:3]) + (f" … ({len(files)} files)" if len(files) > 3 else "")
    return [(name, what), ("read from", where)] if where else [(name, what)]


def _per_split(label: str, labels: Mapping[str, Mapping[str, int]]) -> str:
    train = labels["train"]
    others = ", ".join(f"{name} {counts.get(label, 0):,}" for name, counts in labels.items() if name != "train")
    return f"{train[label]:,} ({_percent(train[label] / sum(train.values()))} of training); {others}"


def _length(lengths: Lengths) -> str:
    return f"mean {lengths.mean:.0f}, 95 % up to {lengths.p95:.0f}"


def _listed(shares: Mapping[str, float]) -> str:
    shown = [f"{name} {_percent(share)}" for name, share in shares.items() if share >= _NARROW_SHARE][:_SHOWN]
    return ", ".join(shown) or "none"


def _percent(share: float) -> str:
    return f"{100 * share:.0f} %"


def _printable(text: str) -> str:
    """Control characters escaped: a label may not move the cursor or colour the terminal."""
    return "".join(letter if letter.isprintable() else repr(letter)[1:-1] for letter in text)
