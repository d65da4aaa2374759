"""``foretune data``: the group of commands about data."""

from __future__ import annotations

import typer

from foretune.cli import data_fetch, data_show

app = typer.Typer(name="data", help="Data sets: check, show, fetch, purge.", no_args_is_help=True)
app.command("list")(data_fetch.list_data)
app.command("fetch")(data_fetch.fetch_data)
app.command("purge")(data_fetch.purge)
app.command("show")(data_show.show)
