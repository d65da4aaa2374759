"""``foretune evaluate``: scores of any adapter, run or model on any file, beside its base."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from foretune.fit.systems import Evaluation


def evaluate(
    system: Annotated[str, typer.Argument(help="A run, adapter or model folder, a hub id or a model's name.")],
    data: Annotated[str, typer.Argument(help="A file with answers, a folder, or a data set of the hub.")],
    metrics: Annotated[
        list[str] | None, typer.Option("--metric", help="Repeatable; by default the task's own and the loss.")
    ] = None,
    task: Annotated[str | None, typer.Option(help="What the rows are; found from them.")] = None,
    base: Annotated[Path | None, typer.Option(help="The base model's folder, if not found.")] = None,
    rows: Annotated[int | None, typer.Option(min=1, help="Only the first so many rows.")] = None,
    labels: Annotated[str, typer.Option(help="A classifier's classes in training order, comma-separated.")] = "",
    answer_tokens: Annotated[int, typer.Option(min=1, help="Longest generated answer.")] = 128,
    context: Annotated[int, typer.Option(min=2, help="Longest row in tokens.")] = 2048,
    plain: Annotated[bool, typer.Option("--plain", help="Without the chat template.")] = False,
    answers: Annotated[Path | None, typer.Option(help="Also write the answers here, one JSON line a row.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Score a system on rows with known answers; an adapter is compared with its base row by row."""
    from foretune.data.corpora import locate
    from foretune.data.read import read
    from foretune.evaluation.metrics import default_metric, metric
    from foretune.files import canonical_json, write_text
    from foretune.fit.systems import Settings, evaluate_rows

    for name in metrics or ():
        metric(name)
    found = read(locate(data), task=task)
    examples = found.examples[:rows]
    wanted = metrics or list(dict.fromkeys([default_metric(found.task, examples), "loss"]))
    settings = Settings(
        max_answer_tokens=answer_tokens, context_tokens=context, plain_template=plain,
        labels=tuple(name.strip() for name in labels.split(",") if name.strip()),
    )  # fmt: skip
    result = evaluate_rows(system, examples, found.task, list(dict.fromkeys(wanted)), base=base, settings=settings)
    if answers is not None:
        write_text(answers, "".join(canonical_json(row.to_json()) + "\n" for row in result.answers))
    if as_json:
        typer.echo(json.dumps(_as_json(result, found.task, len(examples)), ensure_ascii=False, indent=2))
        return
    typer.echo(f"{system} on {len(examples)} rows of {data} ({found.task})")
    for name, score in result.scores.items():
        typer.echo(f"  {name:18} {score.value:.4g} ± {score.standard_error:.2g} {metric(name).unit}")
        if name in result.comparisons:
            typer.echo(f"  {'':18} {_sentence(result, name)}")


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
