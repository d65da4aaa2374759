"""``foretune models list | fetch | retrain``: the models that can be had by name, and a new base from one."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Annotated

import typer

from foretune.cli.models_retrain import retrain
from foretune.cli.options import AsJson

app = typer.Typer(name="models", help="Models by name, and new bases from them.", no_args_is_help=True)
app.command("retrain")(retrain)


@app.command("list")
def list_models(
    as_json: AsJson = False,
) -> None:
    """List the models of the catalogue and whether they are here already."""
    from foretune.catalogue.models import MODELS
    from foretune.models.fetch import fetched
    from foretune.units import format_count

    here = {name: fetched(name) for name in MODELS}
    if as_json:
        rows = [
            {
                **{key: value for key, value in asdict(model).items() if key not in ("keep", "gguf", "folder")},
                "folder": None if here[name] is None else str(here[name]),
            }
            for name, model in MODELS.items()
        ]
        typer.echo(json.dumps(rows, indent=2, ensure_ascii=False))
        return
    for name, model in MODELS.items():
        state = "fetched" if here[name] else "has terms to accept" if model.terms else "not fetched"
        typer.echo(f"{name}  ({model.kind}, {format_count(model.parameters)} parameters, {model.license}; {state})")
        typer.echo(f"    {model.about}")


@app.command("fetch")
def fetch_model(
    name: Annotated[str, typer.Argument(help="A name from `foretune models list`.")],
    accept_terms: Annotated[
        bool, typer.Option("--accept-terms", help="Accept the terms the model comes with.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Download a model, verify it and convert it to a folder that transformers loads."""
    from foretune.catalogue.models import known_model
    from foretune.models.fetch import fetch

    def say(line: str) -> None:
        typer.echo(line, err=True)

    known = known_model(name)
    if known is not None and known.terms and accept_terms:
        say(f"{known.name}: {known.terms}")
    folder = fetch(name, accept_terms=accept_terms, progress=say)
    typer.echo(json.dumps({"name": folder.name, "folder": str(folder)}) if as_json else str(folder))
