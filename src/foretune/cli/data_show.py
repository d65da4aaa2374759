"""``foretune data show FILE``: rows as the model gets them, trained tokens coloured, and the mask report.

Everything is read, encoded and checked exactly as ``fit`` does it before training; nothing is trained or written.
"""

from __future__ import annotations

import json
import os
import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast, get_args

import typer

from foretune.catalogue.models import DEFAULT_MODEL, ModelKind
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
from foretune.errors import ModelError, UsageError
from foretune.files import read_json

if TYPE_CHECKING:
    from foretune.data.encode import EncodedRow
    from foretune.data.example import Example
    from foretune.data.mask_check import MaskReport

_ROWS_SHOWN = 3


def show(
    file: Annotated[str, typer.Argument(help="A data file, a folder, or a data set of the hub.")],
    model: Annotated[str, typer.Option("--model", "-m", help="Whose tokenizer: a folder, GGUF, name or hub id.")] = (
        DEFAULT_MODEL
    ),
    row: Annotated[int | None, typer.Option("--row", min=1, help="Show this row only, counted from 1.")] = None,
    rows: Annotated[int, typer.Option("--rows", min=0, help="How many rows to show.")] = _ROWS_SHOWN,
    context: Annotated[int, typer.Option("--context", min=2, help="Longest row in tokens.")] = 2048,
    kind: Annotated[str | None, typer.Option("--kind", help="causal, seq2seq or encoder; from the model.")] = None,
    task: Annotated[str | None, typer.Option("--task", help="What to train for; found from the rows.")] = None,
    format: RowFormat = None,
    prompt_column: PromptColumn = None,
    answer_column: AnswerColumn = None,
    label_column: LabelColumn = None,
    text_column: TextColumn = None,
    pair_column: PairColumn = None,
    system_column: SystemColumn = None,
    instruction: Annotated[str | None, typer.Option(help="What stands before every question or text.")] = None,
    plain: Annotated[bool, typer.Option("--plain", help="Without the chat template.")] = False,
    as_json: AsJson = False,
) -> None:
    """Show rows with their trained tokens marked, and check the target mask of all of them."""
    from foretune.data import corpora
    from foretune.data.columns import Columns
    from foretune.data.encode import encode_rows
    from foretune.data.instruction import before_texts, instructed
    from foretune.data.mask_check import check_encoding
    from foretune.data.read import read

    columns = Columns(
        prompt=prompt_column, answer=answer_column, label=label_column, text=text_column, pair=pair_column,
        system=system_column,
    )  # fmt: skip
    found = read(corpora.locate(file), format=format, columns=columns, task=task)
    examples = list(instructed(found.examples, before_texts(instruction, "", replaces=True)))
    if row is not None and row > len(examples):
        raise UsageError(f"there is no row {row}: {file} has {len(examples)}.")
    tokenizer, chosen = _tokenizer(model, kind)
    names = {str(example.label) for example in examples if example.label is not None}
    settings: dict[str, Any] = {
        "kind": chosen,
        "task": found.task,
        "labels": sorted(names) if found.task == "classification" else (),
        "context_tokens": context,
        "plain": plain,
    }
    encoded = encode_rows(examples, tokenizer, **settings)
    report = check_encoding(examples, encoded, tokenizer, **settings)
    shown = range(min(rows, len(examples))) if row is None else range(row - 1, row)
    if as_json:
        _print_json(examples, encoded, shown, tokenizer, report)
    else:
        _print_text(examples, encoded, shown, tokenizer, report)


def _tokenizer(model: str, kind: str | None) -> tuple[Any, ModelKind]:
    """The tokenizer of ``model``, and the kind of model: as said, else as its ``config.json`` says, else causal."""
    from transformers import AutoTokenizer

    from foretune.models.kinds import infer_kind
    from foretune.models.load import locate

    if kind is not None and kind not in get_args(ModelKind):
        raise UsageError(f"{kind!r} is not a kind of model.", remedy=f"Choose {', '.join(get_args(ModelKind))}.")
    where = locate(model)
    try:
        tokenizer = AutoTokenizer.from_pretrained(str(where))
    except (OSError, ValueError, KeyError) as error:
        raise ModelError(f"the tokenizer of {model} cannot be loaded: {error}") from error
    config = Path(where) / "config.json"
    if kind is None:
        kind = infer_kind(read_json(config)) if config.is_file() else "causal"
    return tokenizer, cast(ModelKind, kind)


def _print_json(
    examples: list[Example], encoded: list[EncodedRow], shown: range, tokenizer: Any, report: MaskReport
) -> None:
    from foretune.data.coloured import coloured

    def fields(index: int) -> dict[str, Any]:
        row = encoded[index]
        values = asdict(row)
        values |= {
            "row": index + 1,
            "place": None if examples[index].place is None else str(examples[index].place),
            "ids": row.ids.tolist(),
            "target_mask": row.target_mask.tolist(),
            "decoder_ids": None if row.decoder_ids is None else row.decoder_ids.tolist(),
            "text": coloured(row, tokenizer),
        }
        return values

    value = {"report": report.to_json(), "rows": [fields(index) for index in shown]}
    typer.echo(json.dumps(value, ensure_ascii=False, allow_nan=False, indent=2))


def _print_text(
    examples: list[Example], encoded: list[EncodedRow], shown: range, tokenizer: Any, report: MaskReport
) -> None:
    from foretune.data.coloured import coloured
    from foretune.data.row_label import where

    colour = sys.stdout.isatty() and not os.environ.get("NO_COLOR")
    for index in shown:
        row = encoded[index]
        label = "" if row.label is None else f", label {row.label}"
        typer.echo(f"── {where(examples[index], index)} ── {len(row.ids)} tokens, {row.targets} trained{label}")
        typer.echo(f"{coloured(row, tokenizer, colour=colour)}\n", color=colour or None)
    for line in report.lines():
        typer.echo(line)
