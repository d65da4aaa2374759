"""``foretune data``: the group of commands about data; each command's function is in its own file."""

from __future__ import annotations

import typer

from foretune.cli.data_check import check

app = typer.Typer(help="Look at data before training on it.", no_args_is_help=True)
app.command("check")(check)
