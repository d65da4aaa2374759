"""``foretune data``: the group of commands about data; each command's function is in its own file."""

from __future__ import annotations

import typer

from foretune.cli import data_check, data_fetch, data_show

app = typer.Typer(name="data", help="Data sets: check, show, fetch, purge.", no_args_is_help=True)
app.command("check")(data_check.check)
app.command("show")(data_show.show)
app.command("list")(data_fetch.list_data)
app.command("fetch")(data_fetch.fetch_data)
app.command("purge")(data_fetch.purge)
