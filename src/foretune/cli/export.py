"""``foretune export``: a merged model or a GGUF file from a finished run, checked to answer as it was evaluated."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from foretune.errors import UsageError


def export(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="A run folder, or an adapter or model folder.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="Where to write; must not exist yet.")],
    merge: Annotated[
        bool, typer.Option("--merge", help="A whole Hugging Face model with the adapter folded in.")
    ] = False,
    gguf: Annotated[bool, typer.Option("--gguf", help="One file for llama.cpp (Llama architecture).")] = False,
    dtype: Annotated[
        str, typer.Option(help="auto (as the base model), float32, float16 or bfloat16.", show_default=True)
    ] = "auto",
    base: Annotated[
        Path | None, typer.Option(help="The base model's folder, where the run's record does not know it.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
) -> None:
    """Export a finished run as merged weights or as GGUF.

    The export is loaded again and must give the same greedy tokens and top logits on test prompts, through the chat
    template; otherwise it is removed and the command fails.
    """
    if merge == gguf:
        raise UsageError("say what to export.", remedy="Use either --merge or --gguf.")
    from transformers.utils import logging

    from foretune.export.job import export_run

    logging.disable_progress_bar()
    logging.set_verbosity_error()
    path, check = export_run(folder, output, "gguf" if gguf else "merged", dtype=dtype, base=base)
    if as_json:
        checked = {"probes": check.probes, "tokens": check.tokens, "ties": check.ties, "largest": check.largest}
        typer.echo(json.dumps({"path": str(path), "verified": True, "check": checked}))
        return
    typer.echo(f"{path}\nIt answers as evaluated: {check.detail}.")
