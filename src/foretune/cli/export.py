"""``foretune export``: a merged model or a GGUF file from a finished run, checked to answer as it was evaluated."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Literal

import typer

from foretune.cli.options import Plugins
from foretune.errors import UsageError


def export(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="A run folder, or an adapter or model folder.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="Where to write; must not exist yet.")],
    merge: Annotated[
        bool, typer.Option("--merge", help="A whole Hugging Face model with the adapter folded in.")
    ] = False,
    gguf: Annotated[bool, typer.Option("--gguf", help="One file for llama.cpp (Llama architecture).")] = False,
    approximate: Annotated[
        bool,
        typer.Option(
            "--approximate", help="LoRATRF as a plain LoRA with mean gates; alone, or with --merge or --gguf."
        ),
    ] = False,
    most_kl: Annotated[float, typer.Option(help="Largest KL divergence, in nats, that --approximate may cost.")] = 0.05,
    dtype: Annotated[
        str, typer.Option(help="auto (as the base model), float32, float16 or bfloat16.", show_default=True)
    ] = "auto",
    base: Annotated[
        Path | None, typer.Option(help="The base model's folder, where the run's record does not know it.")
    ] = None,
    plugin: Plugins = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
) -> None:
    """Export a finished run as merged weights, as GGUF, or a gated adapter as a plain LoRA.

    The export is loaded again and must give the same greedy tokens and top logits on test prompts, through the chat
    template; otherwise it is removed and the command fails.
    """
    if (merge and gguf) or not (merge or gguf or approximate):
        raise UsageError("say what to export.", remedy="Use --merge or --gguf, or --approximate.")
    from transformers.utils import logging

    from foretune.export.job import export_plain_lora, export_run
    from foretune.plugins import load as load_plugins

    load_plugins(plugin or ())
    logging.disable_progress_bar()
    logging.set_verbosity_error()
    form: Literal["gguf", "merged"] = "gguf" if gguf else "merged"
    if approximate:
        near, check = export_plain_lora(folder, output, form if merge or gguf else None, dtype, base, most_kl)
        path = output
        if not as_json:
            typer.echo(f"{near.detail}.")
    else:
        path, check = export_run(folder, output, form, dtype=dtype, base=base)
    if as_json:
        checked = {"probes": check.probes, "tokens": check.tokens, "ties": check.ties, "largest": check.largest}
        lost = {"kl": near.kl, "top1": near.top1, "positions": near.positions} if approximate else None
        typer.echo(json.dumps({"path": str(path), "verified": True, "check": checked, "approximate": lost}))
        return
    typer.echo(f"{path}\nIt answers as evaluated: {check.detail}.")
