"""The ``foretune`` command: registers every command, turns our errors into one paragraph and an exit code.

Command modules import only the standard library, typer and our torch-free ground at their top; what is heavy is
imported inside the command. A test holds ``foretune --help`` to that.
"""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from foretune import __version__
from foretune.cli import adapters, data, doctor, experience, methods, models, plan, regularize, study
from foretune.cli.chat import chat
from foretune.cli.evaluate import evaluate
from foretune.cli.export import export
from foretune.cli.fit import fit
from foretune.cli.predict import predict
from foretune.cli.rank_tasks import rank_tasks
from foretune.cli.report import report
from foretune.cli.runs import runs
from foretune.cli.select import select
from foretune.errors import ForetuneError, Interrupted

app = typer.Typer(
    name="foretune",
    help="AutoML for fine-tuning language models: an adapter, a report and an honest comparison inside a budget.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _show_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"foretune {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Print the version and leave.")
    ] = False,
) -> None:
    """Options that every command shares."""


app.command()(fit)
app.command()(plan.plan)
app.command()(select)
app.command()(rank_tasks)
app.command()(evaluate)
app.command()(predict)
app.command()(chat)
app.command()(report)
app.command()(runs)
app.command()(export)
app.add_typer(data.app)
app.add_typer(models.app)
app.add_typer(methods.app)
app.add_typer(adapters.app)
app.add_typer(experience.app, name="experience")
app.command()(doctor.doctor)
app.add_typer(study.app, name="study")
app.add_typer(regularize.app)


def _quiet_libraries() -> None:
    """Keep remarks of libraries about themselves off the terminal: they are no concern of the user's."""
    import logging
    import warnings

    warnings.filterwarnings("ignore", category=FutureWarning)
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)


def main() -> None:
    """Run the command line; every `ForetuneError` becomes one paragraph on stderr and its exit code."""
    _quiet_libraries()
    try:
        app()
    except ForetuneError as error:
        typer.echo(f"foretune: {error.paragraph()}", err=True)
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        typer.echo("foretune: interrupted.", err=True)
        sys.exit(Interrupted.exit_code)


if __name__ == "__main__":
    main()
