"""``foretune methods``: every way of fine-tuning; sizes for a trainable share; the contract for one from outside."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Annotated, Any

import typer

from foretune.cli.options import AsJson, Plugins
from foretune.errors import UsageError
from foretune.units import format_count, format_share

if TYPE_CHECKING:
    from foretune.catalogue.methods import Declaration
    from foretune.cost.shapes import ModelShapes

app = typer.Typer(name="methods", help="Ways of fine-tuning: list, size for a share, check one of your own.")


@app.callback(invoke_without_command=True)
def methods(context: typer.Context, plugin: Plugins = None, as_json: AsJson = False) -> None:
    """List every method: knob, parameters, whether it merges, its learning rate, its evidence and source."""
    if context.invoked_subcommand is not None:
        return
    from foretune.catalogue.methods import METHODS
    from foretune.plugins import load

    load(plugin or ())
    if as_json:
        typer.echo(json.dumps([facts(item) for item in METHODS.values()], indent=2, ensure_ascii=False))
        return
    width = max(map(len, METHODS))
    for name, item in METHODS.items():
        knob = item.knob or "fixed"
        typer.echo(f"{name:<{width}}  {item.about}")
        merge = item.traits.merge.replace("_", " ")
        typer.echo(f"{'':<{width}}  {knob}; {item.formula}; merge {merge}; {item.rate_multiplier:g} × full's rate")


def facts(item: Declaration) -> dict[str, Any]:
    """What is known of a method, as JSON."""
    from dataclasses import asdict

    from foretune.methods.trainable import countable

    return {
        "name": item.name,
        "about": item.about,
        "family": item.family,
        "knob": item.knob or None,
        "formula": item.formula,
        "counted": "closed form" if countable(item) else "when attached",
        "kinds": list(item.kinds),
        "traits": asdict(item.traits),
        "rate_multiplier": item.rate_multiplier,
        "short_run_multiplier": item.short_run_multiplier,
        "evidence": item.evidence,
        "source": item.source,
        "settings": list(item.space.names()),
        "notes": list(item.notes),
    }


@app.command()
def size(
    model: Annotated[str, typer.Option(help="A folder with a config.json, or a name of the catalogue.")],
    trainable: Annotated[str, typer.Option(help="Share of all parameters, like 0.5%.")],
    method: Annotated[list[str] | None, typer.Option(help="Only this method (repeatable).")] = None,
    layers: Annotated[str, typer.Option(help="all, last:8, or an expression.")] = "all",
    plugin: Plugins = None,
    as_json: AsJson = False,
) -> None:
    """Say for each method which settings train that share of the model, and how close they come.

    Reads the model's configuration only; needs no weights.
    """
    from foretune.catalogue.methods import METHODS, declaration
    from foretune.fit.find_model import find_model
    from foretune.plugins import load
    from foretune.units import parse_share

    load(plugin or ())
    shapes = find_model(model).shapes
    wanted = parse_share(trainable)
    chosen = [declaration(name) for name in method] if method else list(METHODS.values())
    rows = [_sized(item, shapes, wanted, layers) for item in chosen]
    if as_json:
        body = {
            "model": model,
            "parameters": shapes.parameters,
            "non_embedding_parameters": shapes.non_embedding_parameters,
            "trainable": wanted,
            "methods": rows,
        }
        typer.echo(json.dumps(body, indent=2, ensure_ascii=False))
    else:
        share = wanted * shapes.parameters / shapes.non_embedding_parameters
        typer.echo(
            f"{model}: {format_share(wanted)} of {shapes.parameters:,} parameters is "
            f"{round(wanted * shapes.parameters):,} ({format_share(share)} of those outside the embeddings)"
        )
        for row in rows:
            typer.echo(_line(row))
    if len(rows) == 1 and not rows[0]["feasible"]:
        raise UsageError(rows[0]["why"], remedy="Run it without --method to see which methods can.")


def _sized(item: Declaration, shapes: ModelShapes, wanted: float, layers: str) -> dict[str, Any]:
    from foretune.methods.share import Missed
    from foretune.methods.share import size as size_one

    row: dict[str, Any] = {"method": item.name, "feasible": False}
    if shapes.kind not in item.kinds:
        return row | {"why": f"not for {shapes.kind} models"}
    fixed = {"layers": layers} if item.layerwise else {}
    try:
        found = size_one(item, shapes, wanted, fixed)
    except UsageError as error:
        return row | {"why": error.what}
    if isinstance(found, Missed):
        nearest = None if found.nearest is None else {"settings": dict(found.nearest.fields),
                                                      "parameters": found.nearest.parameters,
                                                      "share": found.nearest.share}  # fmt: skip
        return row | {"why": found.why, "nearest": nearest}
    return row | {
        "feasible": True,
        "settings": dict(found.settings),
        "parameters": found.parameters,
        "share": found.share,
        "changed": found.changed,
    }


def _line(row: dict[str, Any]) -> str:
    name = f"{row['method']:<24}"
    if not row["feasible"]:
        return f"  {name} —  {row['why']}"
    settings = " ".join(f"{key.removeprefix(row['method'] + '.')}={value}" for key, value in row["settings"].items())
    changed = f"  ({row['changed']})" if row["changed"] else ""
    count = format_count(row["parameters"])
    return f"  {name} {count:>8}  {format_share(row['share']):>9}  {settings or 'as it is'}{changed}"


@app.command("layers")
def score_layers(
    data: Annotated[str, typer.Argument(help="A file or data set: its training rows are looked at.")],
    model: Annotated[str | None, typer.Option(help="The base model [default: the catalogue's].")] = None,
    keep: Annotated[int, typer.Option(min=1, help="How many layers to choose.")] = 8,
    rows: Annotated[int, typer.Option(min=2, help="Most rows to look at.")] = 64,
    group: Annotated[int, typer.Option(min=2, help="Rows that are compared with each other.")] = 8,
    context: Annotated[int, typer.Option(min=8, help="Longest row in tokens.")] = 512,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the rows that are drawn.")] = 0,
    as_json: AsJson = False,
) -> None:
    """Score a base model's layers by how much alike they make a data set's rows, and say which to adapt.

    After federated partial prompt tuning (Che et al. 2023): the highest are those whose states tell rows apart least.
    """
    from foretune.evaluation.probes.layer_scores import expression, highest
    from foretune.fit.layers import score_layers as scores_of
    from foretune.report.text import aligned

    found = scores_of(data, model=model, rows=rows, group=group, seed=seed, context_tokens=context)
    chosen = highest(found, keep)
    if as_json:
        scores = [{"layer": one.layer, "score": one.score} for one in found]
        typer.echo(json.dumps({"scores": scores, "layers": chosen, "expression": expression(chosen)}))
        return
    typer.echo(aligned(["layer", "score", ""], [
        [str(one.layer), f"{one.score:.4g}", "chosen" if one.layer in chosen else ""] for one in found
    ]))  # fmt: skip
    typer.echo(f"\n--layers '{expression(chosen)}'")


@app.command()
def check(
    name: Annotated[str, typer.Argument(help="The method's name.")],
    plugin: Plugins = None,
    as_json: AsJson = False,
) -> None:
    """Run the contract of a method on tiny models; ends with exit code 2 when a point is not kept."""
    import warnings

    from foretune.catalogue.methods import declaration
    from foretune.methods.contract.checks import broken_points, case
    from foretune.methods.contract.models import ARCHITECTURES, specimen
    from foretune.methods.registry import get
    from foretune.plugins import load
    from foretune.training.packing_contract import packs

    load(plugin or ())
    declared, method = declaration(name), get(name)
    found: dict[str, dict[str, str]] = {}
    for architecture, (kind, _) in ARCHITECTURES.items():
        if kind in declared.kinds:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                found[architecture] = broken_points(case(method, declared, specimen(architecture)), (packs,))
    if as_json:
        typer.echo(json.dumps({"method": name, "kept": not any(found.values()), "broken": found}, indent=2))
    else:
        for architecture, broken in found.items():
            typer.echo(f"{architecture}: {'kept' if not broken else ''}".rstrip())
            for point, what in broken.items():
                typer.echo(f"    {point}: {what}")
    if any(found.values()):
        raise UsageError(f"{name} does not keep the contract.", remedy="The points above say what is missing.")
