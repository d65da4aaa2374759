"""``foretune regularize probe KIND SYSTEM [DATA]``: what fine-tuning did beside the task."""

from __future__ import annotations

import json
from typing import Annotated, Any

import typer

from foretune.cli.options import AsJson


def probe(
    kind: Annotated[str, typer.Argument(help="inversion, ranks, fresh-blocks, landscape or forgetting.")],
    system: Annotated[str, typer.Argument(help="A run, an adapter, a model, or a trial's folder of checkpoints.")],
    data: Annotated[str, typer.Argument(help="Rows with answers; forgetting has its own text.")] = "facts",
    base: Annotated[str | None, typer.Option(help="The base model, if not found.")] = None,
    rows: Annotated[int, typer.Option(min=2, help="Rows to look at.")] = 64,
    ranks: Annotated[str, typer.Option(help="Ranks to cut the update to, like 1,4,16 [0, 1, 2, 4, …].")] = "",
    norm: Annotated[float, typer.Option(help="Norm of the landscape's direction, relative to the weights.")] = 0.05,
    seed: Annotated[int, typer.Option(help="Seed of what is drawn.")] = 0,
    as_json: AsJson = False,
) -> None:
    """Probe a system beside its base.

    inversion: does it still believe a note that contradicts its memory? ranks: how far from the base is the update cut
    to its first directions? fresh-blocks: how much does each block matter? landscape: how steep is the loss around it,
    along one direction of equal norm for all? forgetting: what did it lose on general text?
    """
    from foretune.data.corpora import locate
    from foretune.data.read import read
    from foretune.execution.orders import subset
    from foretune.fit.probing import probe as run

    found = read(locate(data))
    examples = [row for row in found.examples if row.split == "test"] or list(found.examples)
    chosen = [examples[i] for i in subset(min(rows, len(examples)), len(examples), seed)]
    wanted = [int(part) for part in ranks.split(",") if part.strip()] or None
    findings = run(kind, system, chosen, found.task, base=base, ranks=wanted, norm=norm, seed=seed)
    if as_json:
        typer.echo(json.dumps(findings, ensure_ascii=False))
        return
    for finding in findings:
        typer.echo("  ".join(f"{key} {_shown(value)}" for key, value in finding.items()))


def _shown(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    return " ".join(f"{item:.4g}" for item in value) if isinstance(value, list) else str(value)
