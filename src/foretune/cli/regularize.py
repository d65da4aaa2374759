"""``foretune regularize list | rates | show | probe``: regularizers, and the dropout rates of a base model."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from foretune.catalogue.models import DEFAULT_MODEL, ModelReference
from foretune.cli.options import AsJson
from foretune.cli.probe import probe

if TYPE_CHECKING:
    from foretune.regularization.places.rates import RatesFile

app = typer.Typer(name="regularize", help="Regularizers: what there is, dropout rates, probes.", no_args_is_help=True)
app.command("probe")(probe)
BAR = 24
"""Characters of the longest bar."""


@app.command("list")
def list_regularizers(as_json: AsJson = False) -> None:
    """List the regularizers, their settings and where they come from."""
    from foretune.catalogue.regularizers import REGULARIZERS

    if as_json:
        rows = [
            {
                "name": declared.name,
                "about": declared.about,
                "source": declared.source,
                "strength": f"{declared.name}.{declared.strength}",
                "settings": {p.name: p.default for p in declared.space.parameters},
                "methods": list(declared.methods),
                "needs_base": declared.needs_base,
                "kinds": list(declared.kinds),
            }
            for declared in REGULARIZERS.values()
        ]
        typer.echo(json.dumps(rows, indent=2, ensure_ascii=False))
        return
    for declared in REGULARIZERS.values():
        default = declared.space[f"{declared.name}.{declared.strength}"].default
        shown = f"{default:g}" if isinstance(default, float | int) else str(default)
        typer.echo(f"{declared.name}:{shown}  ({declared.source})")
        typer.echo(f"    {declared.about}")


@app.command("rates")
def rates(
    model: Annotated[str, typer.Option(help="A folder, a .gguf file, a hub id or a name of the catalogue.")] = (
        DEFAULT_MODEL
    ),
    text: Annotated[Path | None, typer.Option(help="Plain text, passages apart by empty lines [general text].")] = None,
    output: Annotated[Path, typer.Option(help="The rates file to write.")] = Path("rates.json"),
    schedule: Annotated[str, typer.Option(help="How rates follow the ranking.")] = "linear",
    high: Annotated[float, typer.Option(help="Rate of the least informative place.")] = 0.1,
    low: Annotated[float, typer.Option(help="Rate of the most informative place.")] = 0.0,
    aggregation: Annotated[str, typer.Option(help="mean_of_means, parameter_mean or sum.")] = "mean_of_means",
    label_sampled: Annotated[
        bool, typer.Option("--label-sampled", help="Draw labels from the model's own predictions.")
    ] = False,
    samples: Annotated[int | None, typer.Option(help="Most passages to use [all].")] = None,
    context_tokens: Annotated[int, typer.Option(help="Longest piece of text in tokens.")] = 128,
    quantize: Annotated[str, typer.Option(help="none or 4bit.")] = "none",
    trust_remote_code: Annotated[bool, typer.Option(help="Run code that comes with the model.")] = False,
    as_json: AsJson = False,
) -> None:
    """Rank a base model's places by Fisher information and write its dropout rates, with a picture beside them.

    Computed once per base model and shared across tasks: `foretune fit DATA --regularize guided-dropout --set
    training.guided-dropout.rates=rates.json`, or without a path for the catalogue's models, whose rates ship.
    """
    from foretune.files import write_text
    from foretune.regularization.fisher.model_rates import load_for_fisher, model_rates
    from foretune.regularization.places.rates import save
    from foretune.report.places import page

    _check(schedule, aggregation, high, low, quantize)
    passages, name = _passages(text)
    reference = ModelReference(
        model, quantize="4bit" if quantize == "4bit" else "none", trust_remote_code=trust_remote_code
    )
    loaded, variant = load_for_fisher(
        reference, variant="label-sampled" if label_sampled else None, say=lambda line: typer.echo(line, err=True)
    )
    found = model_rates(
        loaded, variant, passages, text_name=name, high=high, low=low, schedule=schedule, aggregation=aggregation,
        most_samples=samples, context_tokens=context_tokens, progress=_said,
    )  # fmt: skip
    save(output, found)
    write_text(output.with_suffix(".html"), page(found))
    if as_json:
        typer.echo(json.dumps({**found.to_json(), "file": str(output)}, ensure_ascii=False))
        return
    _show(found)
    typer.echo(f"\n{output} holds the rates, {output.with_suffix('.html')} the picture.")


@app.command("show")
def show(
    file: Annotated[str, typer.Argument(help="A rates file, or the name of a catalogue's model.")],
    as_json: AsJson = False,
) -> None:
    """Show the dropout rates of a model as a table, layer by layer."""
    from foretune.regularization.places.rates import read, shipped

    known = {name.lower(): rates for name, rates in shipped().items()}
    found = known[file.lower()] if file.lower() in known and not Path(file).exists() else read(Path(file))
    if as_json:
        typer.echo(json.dumps(found.to_json(), ensure_ascii=False))
    else:
        _show(found)


def _check(schedule: str, aggregation: str, high: float, low: float, quantize: str) -> None:
    from foretune.catalogue.regularizers import GUIDED_DROPOUT, check
    from foretune.errors import UsageError

    settings = {"schedule": schedule, "aggregation": aggregation, "high": high, "low": low}
    for field, value in settings.items():
        GUIDED_DROPOUT.space[f"guided-dropout.{field}"].check(value)
    check({f"guided-dropout.{field}": value for field, value in settings.items()})
    if quantize not in ("none", "4bit"):
        raise UsageError(f"--quantize is none or 4bit, not {quantize}.")


def _passages(text: Path | None) -> tuple[Sequence[str], str]:
    """Passages of a text file, or of the general sample that forgetting is measured on."""
    from foretune.errors import DataError, Place
    from foretune.evaluation.forgetting import SAMPLE, general_text

    if text is None:
        return [example.turns[0].content for example in general_text()], SAMPLE
    if not text.is_file():
        raise DataError("there is no such text.", place=Place(text), remedy="Check --text.")
    found = [part.strip() for part in text.read_text(encoding="utf-8", errors="replace").split("\n\n") if part.strip()]
    return found, text.name


def _said(done: int, of: int) -> None:
    typer.echo(f"Fisher information: {done} of {of} samples", err=True)


def _show(found: RatesFile) -> None:
    """The rates as a table with bars, layer by layer."""
    from foretune.report.text import aligned

    typer.echo(f"{found.model}: {found.variant}, {found.samples} samples of {found.text}")
    typer.echo(f"{found.schedule} from {found.high:g} to {found.low:g} by {found.aggregation}\n")
    rows: list[list[str]] = []
    most = max(place.rate for place in found.places) or 1.0
    for place in found.places:
        where = " ".join(filter(None, (place.stack, "" if place.layer is None else f"layer {place.layer}")))
        bar = "█" * round(BAR * place.rate / most)
        rows.append([where or "-", place.kind, f"{place.scores[found.aggregation]:.3g}", f"{place.rate:.4f}", bar])
    typer.echo(aligned(["where", "place", "Fisher", "rate", ""], rows))
