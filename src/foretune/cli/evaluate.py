"""``foretune evaluate``: scores of any adapter, run or model on any file, beside its base."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from foretune.catalogue.languages import parse_pair
from foretune.cli.options import (
    AnswerColumn,
    AsJson,
    Instruction,
    LabelColumn,
    PairColumn,
    Plugins,
    PromptColumn,
    TextColumn,
)
from foretune.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from foretune.data.example import Example
    from foretune.fit.systems import Evaluation


def evaluate(
    system: Annotated[str, typer.Argument(help="A run, adapter or model folder, a hub id or a model's name.")],
    data: Annotated[str, typer.Argument(help="A file with answers, a folder, or a data set of the hub.")],
    metrics: Annotated[
        list[str] | None, typer.Option("--metric", help="Repeatable; by default the task's own and the loss.")
    ] = None,
    task: Annotated[str | None, typer.Option(help="What the rows are; found from them.")] = None,
    base: Annotated[str | None, typer.Option(help="The base model's folder or name, if not found.")] = None,
    split: Annotated[
        str | None, typer.Option(help="Only the rows of this split; by default test, where rows say so.")
    ] = None,
    prompt_column: PromptColumn = None,
    answer_column: AnswerColumn = None,
    label_column: LabelColumn = None,
    text_column: TextColumn = None,
    pair_column: PairColumn = None,
    task_column: Annotated[
        str | None, typer.Option(help="Column that names each row's task, for an adapter of several.")
    ] = None,
    rows: Annotated[int | None, typer.Option(min=1, help="Only the first so many rows.")] = None,
    labels: Annotated[str, typer.Option(help="A classifier's classes in training order, comma-separated.")] = "",
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
    answers: Annotated[Path | None, typer.Option(help="Also write the answers here, one JSON line a row.")] = None,
    as_json: AsJson = False,
) -> None:
    """Score a system on rows with known answers; an adapter is compared with its base row by row."""
    from foretune.data.columns import Columns
    from foretune.data.corpora import locate
    from foretune.data.read import read
    from foretune.evaluation.metrics import default_metric, metric
    from foretune.files import canonical_json, check_output, write_text
    from foretune.fit.known import known_languages, known_task
    from foretune.fit.systems import Settings, evaluate_rows
    from foretune.plugins import load as load_plugins

    load_plugins(plugin or ())
    if answers is not None:
        check_output(answers, {"data": data})
    for name in metrics or ():
        metric(name)
    pair = known_languages(system) if languages is None else parse_pair(languages)
    columns = Columns(
        prompt=prompt_column, answer=answer_column, label=label_column, text=text_column, pair=pair_column,
        task=task_column, languages=pair,
    )  # fmt: skip
    found = read(locate(data), columns=columns, task=task or known_task(system))
    part, examples = _part(found.examples, split, data)
    examples = examples[:rows]
    wanted = metrics or list(
        dict.fromkeys([default_metric(found.task, examples, translation=pair is not None, format=found.format), "loss"])
    )
    settings = Settings(
        max_answer_tokens=answer_tokens, context_tokens=context, plain_template=plain,
        languages=pair if languages else None, instruction=instruction,
        labels=tuple(name.strip() for name in labels.split(",") if name.strip()),
    )  # fmt: skip
    result = evaluate_rows(system, examples, found.task, list(dict.fromkeys(wanted)), base=base, settings=settings)
    if answers is not None:
        write_text(answers, "".join(canonical_json(row.to_json()) + "\n" for row in result.answers))
    if as_json:
        typer.echo(json.dumps(_as_json(result, found.task, len(examples)), ensure_ascii=False, indent=2))
        return
    typer.echo(f"{system} on {len(examples)} {part}rows of {data} ({found.task})")
    _tell(result, found.task)


def _tell(result: Evaluation, task: str) -> None:
    """A line for each metric, with what was read into the answers and the difference to the base below it."""
    from foretune.evaluation.metrics import loss_unit, metric
    from foretune.evaluation.metrics.labels import reading_note

    for name, score in result.scores.items():
        unit = loss_unit(result.kind, task) if name == "loss" else metric(name).unit
        typer.echo(f"  {name:18} {score.value:.4g} ± {score.standard_error:.2g} {unit}")
        if note := reading_note(score):
            typer.echo(f"  {'':18} {note}")
        if name in result.comparisons:
            typer.echo(f"  {'':18} {_sentence(result, name)}")


def _part(examples: Sequence[Example], split: str | None, data: str) -> tuple[str, Sequence[Example]]:
    """The rows of a split, with its name as a word for the report; all where none is named and none is ``test``."""
    wanted = split or ("test" if any(row.split == "test" for row in examples) else None)
    if wanted is None:
        return "", examples
    chosen = [row for row in examples if row.split == wanted]
    if not chosen:
        known = sorted({row.split for row in examples if row.split is not None})
        raise UsageError(
            f"{data} has no rows of the split {wanted!r}.",
            remedy=f"Its splits: {', '.join(known)}." if known else "Its rows name no split.",
        )
    return f"{wanted} ", chosen


def _sentence(result: Evaluation, name: str) -> str:
    compared, base = result.comparisons[name], result.base[name]
    interval = "" if compared.low is None else f", 95 % interval {compared.low:+.3g} to {compared.high:+.3g}"
    difference = f"{compared.difference:+.3g}{interval}, p = {compared.p_value:.2g}"
    return f"the base has {base.value:.4g}: {compared.verdict} ({difference})"


def _as_json(result: Evaluation, task: str, rows: int) -> dict[str, Any]:
    def scores(of: Any) -> dict[str, Any]:
        return {
            name: {"value": score.value, "standard_error": score.standard_error, "details": score.details}
            for name, score in of.items()
        }

    comparisons = {name: compared.to_json() for name, compared in result.comparisons.items()}
    return {"task": task, "rows": rows, "scores": scores(result.scores), "base": scores(result.base),
            "comparisons": comparisons}  # fmt: skip
