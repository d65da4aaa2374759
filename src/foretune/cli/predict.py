"""``foretune predict``: answers of any adapter, run or model to the prompts of a file."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from foretune.catalogue.languages import parse_pair
from foretune.cli.options import Instruction, Plugins
from foretune.errors import UsageError

if TYPE_CHECKING:
    from foretune.fit.systems import Prediction


def predict(
    system: Annotated[str, typer.Argument(help="A run, adapter or model folder, a hub id or a model's name.")],
    file: Annotated[Path, typer.Argument(help="Prompts: JSONL, JSON, CSV, TSV or Parquet; .txt has one a line.")],
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Where to write JSONL: prompt and answer.")
    ] = None,
    prompt_column: Annotated[
        str | None, typer.Option(help="The column that holds the prompt; found when not given.")
    ] = None,
    pair_column: Annotated[
        str | None, typer.Option(help="The column of a second text, for a classifier of pairs.")
    ] = None,
    task: Annotated[str | None, typer.Option(help="The task of every prompt, for an adapter of several.")] = None,
    task_column: Annotated[str | None, typer.Option(help="The column that names each prompt's task.")] = None,
    base: Annotated[str | None, typer.Option(help="The base model's folder or name, if not found.")] = None,
    untouched: Annotated[bool, typer.Option("--base-only", help="Switch the adapter off.")] = False,
    labels: Annotated[
        str,
        typer.Option(help="A classifier's classes in training order, or those that answers may name; comma-separated."),
    ] = "",
    languages: Annotated[
        str | None, typer.Option(help="Source and target of a translator, like en-de, if no run record says it.")
    ] = None,
    instruction: Instruction = None,
    answer_tokens: Annotated[
        int | None, typer.Option(min=1, help="Longest generated answer; as in the run, at least 128.")
    ] = None,
    context: Annotated[int | None, typer.Option(min=2, help="Longest row in tokens; as in the run, or 2048.")] = None,
    plain: Annotated[
        bool | None, typer.Option("--plain/--no-plain", help="Without the chat template; as in the run.")
    ] = None,
    plugin: Plugins = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object with all answers.")] = False,
) -> None:
    """Answer every prompt of a file with a trained system; a classifier names the class and its probability."""
    from foretune.data.prompts import read_prompts
    from foretune.files import canonical_json, check_output, write_text
    from foretune.fit.systems import Settings, predict_rows
    from foretune.plugins import load as load_plugins

    load_plugins(plugin or ())
    if output is None and not as_json:
        raise UsageError("say where the answers go.", remedy="Use --output FILE, --json, or both.")
    if output is not None:
        check_output(output, {"prompts": file})
    settings = Settings(
        max_answer_tokens=answer_tokens, context_tokens=context, plain_template=plain,
        languages=None if languages is None else parse_pair(languages), instruction=instruction,
        labels=tuple(name.strip() for name in labels.split(",") if name.strip()),
    )  # fmt: skip
    if task is not None and task_column is not None:
        raise UsageError("both --task and --task-column are given.", remedy="Name one of them.")
    prompts = read_prompts(file, prompt=prompt_column, pair=pair_column, task=task_column)
    tasks = [row.task or "" for row in prompts] if task_column is not None else [task] * len(prompts) if task else []
    said = predict_rows(system, prompts, base=base, untouched=untouched, settings=settings, tasks=tasks)
    rows = [_row(one) for one in said]
    if output is not None:
        write_text(output, "".join(canonical_json(row) + "\n" for row in rows))
    if as_json:
        typer.echo(json.dumps({"system": system, "answers": rows}, ensure_ascii=False, indent=2))
    else:
        typer.echo(f"{len(rows)} answers in {output}")


def _row(prediction: Prediction) -> dict[str, Any]:
    """Prompt and answer, and the probability where there is one."""
    return {key: value for key, value in asdict(prediction).items() if value is not None}
