"""``foretune data``: the group of commands about data."""

from __future__ import annotations

import typer

from foretune.cli import data_fetch

app = typer.Typer(name="data", help="Data sets: fetch, check, purge.", no_args_is_help=True)
app.command("list")(data_fetch.list_data)
app.command("fetch")(data_fetch.fetch_data)
app.command("purge")(data_fetch.purge)
