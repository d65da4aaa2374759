"""``foretune data …``: look at data without training on it."""

from __future__ import annotations

import typer

from foretune.cli.data_show import show

app = typer.Typer(no_args_is_help=True, help="Look at data: rows with their target mask, splits, duplicates.")
app.command("show")(show)
