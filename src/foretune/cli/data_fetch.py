"""``foretune data list | fetch | purge``: data sets that can be had by name, and what the cache holds."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Annotated

import typer

from foretune.cli.options import AsJson


def list_data(
    as_json: AsJson = False,
) -> None:
    """List the data sets that can be had by name."""
    from foretune.catalogue.datasets import DATASETS, REASONING_PREFIX
    from foretune.data.corpora import fetched

    here = {name: fetched(name) for name in DATASETS}
    if as_json:
        rows = [
            {**asdict(dataset), "path": None if here[name] is None else str(here[name])}
            for name, dataset in DATASETS.items()
        ]
        typer.echo(json.dumps(rows, indent=2, ensure_ascii=False))
        return
    for name, dataset in DATASETS.items():
        state = "here" if here[name] else "not fetched"
        typer.echo(f"{name}  ({dataset.task}, {dataset.license}; {state})")
        typer.echo(f"    {dataset.about}")
    typer.echo(f"{REASONING_PREFIX}GENERATOR  (generation, Apache-2.0; generated)")
    typer.echo("    any generator of the package reasoning-gym, with --rows and --seed")


def fetch_data(
    name: Annotated[str, typer.Argument(help="A name from `foretune data list`.")],
    rows: Annotated[str | None, typer.Option(help="Rows to generate (reasoning-gym only), such as 500 or 2k.")] = None,
    seed: Annotated[int, typer.Option(help="Seed of the generator (reasoning-gym only).")] = 0,
    as_json: AsJson = False,
) -> None:
    """Download a data set, verify it and convert it to JSON lines."""
    from foretune.data.corpora import fetch
    from foretune.data.corpora.reasoning import ROWS
    from foretune.units import parse_count

    path = fetch(
        name,
        rows=ROWS if rows is None else parse_count(rows),
        seed=seed,
        progress=lambda line: typer.echo(line, err=True),
    )
    typer.echo(json.dumps({"name": name, "path": str(path)}) if as_json else str(path))


def purge(
    fetched: Annotated[bool, typer.Option("--fetched", help="Remove fetched data sets as well.")] = False,
    as_json: AsJson = False,
) -> None:
    """Remove cached tokens (your text) and scores of rows, and fetched data sets when asked; print what was freed."""
    from foretune.data.corpora import purge as remove
    from foretune.units import format_bytes

    freed = remove(fetched_data=fetched)
    if as_json:
        rows = [{"what": part.what, "folder": str(part.folder), "files": part.files, "bytes": part.bytes}
                for part in freed]  # fmt: skip
        typer.echo(json.dumps(rows, indent=2))
        return
    for part in freed:
        typer.echo(f"{part.what}: {part.files} files, {format_bytes(part.bytes)} freed ({part.folder})")
