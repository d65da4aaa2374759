"""Options that many commands have, said once."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]
RowFormat = Annotated[str | None, typer.Option("--format", help="Row format, if it is not found: messages, alpaca, …")]
PromptColumn = Annotated[str | None, typer.Option(help="Column of the question or instruction.")]
AnswerColumn = Annotated[str | None, typer.Option(help="Column of the answer.")]
LabelColumn = Annotated[str | None, typer.Option(help="Column of the class name or number.")]
TextColumn = Annotated[str | None, typer.Option(help="Column of the text to classify, or of plain text.")]
SystemColumn = Annotated[str | None, typer.Option(help="Column of the system message.")]
PairColumn = Annotated[str | None, typer.Option(help="Column of the second text, where a label is about two.")]
Plugins = Annotated[
    list[Path] | None, typer.Option("--plugin", help="A Python file that adds methods or metrics; repeatable.")
]
Instruction = Annotated[
    str | None, typer.Option(help="What stands before every question or text; as in the run when not given.")
]
