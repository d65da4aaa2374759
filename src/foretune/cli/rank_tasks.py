"""``foretune rank-tasks TARGET SOURCE…``: which data sets would help most with a target."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from foretune.cli.options import AsJson
from foretune.errors import UsageError


def rank_tasks(
    target: Annotated[str, typer.Argument(help="A file or data set: rows like those to be good at.")],
    sources: Annotated[list[str], typer.Argument(help="Data sets to rank.")],
    method: Annotated[str, typer.Option(help="insta: by questions; esm-logme: after a short training.")] = "insta",
    model: Annotated[str | None, typer.Option(help="The model that embeds [default: the catalogue's].")] = None,
    seed: Annotated[int, typer.Option(min=0, help="Seed of every random choice.")] = 0,
    context: Annotated[int, typer.Option(min=8, help="Longest row in tokens.")] = 512,
    epochs: Annotated[float, typer.Option(min=0.01, help="Epochs of the short training of esm-logme.")] = 1.0,
    as_json: AsJson = False,
) -> None:
    """Rank data sets by how much training on them should help with TARGET, before training on any."""
    if len(set(sources)) < 2:
        raise UsageError("there is nothing to rank.", remedy="Name at least two different sources.")
    from foretune.fit.select import rank_sources
    from foretune.report.text import aligned
    from foretune.selection.task_ranking import as_json as scores_json

    found = rank_sources(target, sources, method=method, model=model, seed=seed, context_tokens=context, epochs=epochs)
    if as_json:
        typer.echo(json.dumps(scores_json(found), ensure_ascii=False))
        return
    rows = [[str(place), Path(one.name).name, f"{one.score:.4f}"] for place, one in enumerate(found, 1)]
    typer.echo(aligned(["place", "source", method], rows))
