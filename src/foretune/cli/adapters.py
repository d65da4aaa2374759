"""``foretune adapters combine | describe``: several stored LoRA adapters as one, weighted by hand or by likeness."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from foretune.cli.options import AsJson
from foretune.errors import UsageError

app = typer.Typer(name="adapters", help="Stored adapters: combine them, describe their rows.", no_args_is_help=True)


@app.command("combine")
def combine_adapters(
    adapters: Annotated[list[Path], typer.Argument(help="Folders of LoRA adapters on one base model.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="Where to write the combined adapter.")],
    weights: Annotated[str, typer.Option(help="A weight for each, like 0.7,0.3; equal ones when not given.")] = "",
    like: Annotated[
        str | None, typer.Option(help="Rows without labels: weigh the adapters by likeness of their own rows to these.")
    ] = None,
    weighting: Annotated[str, typer.Option(help="With --like: softmax or linear.")] = "softmax",
    temperature: Annotated[float, typer.Option(min=1e-3, help="With --like and softmax: lower is sharper.")] = 0.2,
    nearest: Annotated[int, typer.Option(min=0, help="With --like: the so many most alike; 0 for all.")] = 0,
    base: Annotated[str | None, typer.Option(help="With --like: the base model, if not found.")] = None,
    as_json: AsJson = False,
) -> None:
    """Write the weighted sum of several LoRA adapters as one adapter, exactly, by concatenation.

    The result has the sum of their ranks and loads wherever LoRA loads. With --like the weights come from how alike the
    rows are that the adapters were described with (`foretune adapters describe`) and the rows given.
    """
    from foretune.export.ensemble import combine
    from foretune.files import check_free

    if like is not None and weights:
        raise UsageError("the weights are given twice.", remedy="Use either --weights or --like.")
    check_free(output)
    near: list[float] | None = None
    if like is not None:
        from foretune.fit.adapters import weights_like

        chosen, near = weights_like(
            adapters, like, base=base, weighting=weighting, temperature=temperature, nearest=nearest
        )
    else:
        chosen = _numbers(weights, len(adapters))
    used = [(folder, weight) for folder, weight in zip(adapters, chosen, strict=True) if weight != 0]
    combine([folder for folder, _ in used], [weight for _, weight in used], output)
    parts = [
        {"adapter": str(folder), "weight": weight, **({} if near is None else {"likeness": near[i]})}
        for i, (folder, weight) in enumerate(zip(adapters, chosen, strict=True))
    ]
    if as_json:
        typer.echo(json.dumps({"path": str(output), "parts": parts}))
        return
    for part in parts:
        alike = f"  likeness {part['likeness']:.3f}" if near is not None else ""
        typer.echo(f"{part['weight']:8.4f}  {part['adapter']}{alike}")
    typer.echo(str(output))


def _numbers(words: str, count: int) -> list[float]:
    if not words:
        return [1 / count] * count
    try:
        weights = [float(word) for word in words.split(",")]
    except ValueError:
        raise UsageError(f"--weights {words!r} are no numbers.", remedy="Write them like 0.7,0.3.") from None
    if len(weights) != count:
        raise UsageError(f"--weights has {len(weights)} for {count} adapters.", remedy="Give one for each.")
    return weights


@app.command("describe")
def describe_adapter(
    adapter: Annotated[Path, typer.Argument(help="The folder of an adapter.")],
    data: Annotated[str, typer.Argument(help="The rows it was trained on, or rows like them.")],
    base: Annotated[str | None, typer.Option(help="The base model's folder or name, if not found.")] = None,
) -> None:
    """Write down what an adapter's rows look like to its base model, so that `combine --like` can compare them."""
    from foretune.fit.adapters import describe

    typer.echo(str(describe(adapter, data, base=base)))
