"""``foretune models retrain``: a base trained on several tasks so that adapters on further tasks do well."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from foretune.catalogue.models import DEFAULT_MODEL
from foretune.cli.options import AnswerColumn, AsJson, PromptColumn

if TYPE_CHECKING:
    from foretune.training.loop import StepReport

LINE_S = 10.0
"""Between two progress lines."""


def retrain(
    data: Annotated[str, typer.Argument(help="Rows of several tasks: a file, a folder, or a data set's name.")],
    task_column: Annotated[str, typer.Option(help="Column that names the task of a row.")],
    output: Annotated[Path, typer.Option(help="Folder of the new base.")],
    model: Annotated[str, typer.Option(help="The base to start from.")] = DEFAULT_MODEL,
    steps: Annotated[int, typer.Option(min=1, help="Updates.")] = 200,
    rank: Annotated[int, typer.Option(min=1, help="Rank of the adapters that are to come.")] = 16,
    rows_per_update: Annotated[int, typer.Option(min=1, help="Rows of an update.")] = 16,
    context: Annotated[int, typer.Option(min=8, help="Longest row in tokens.")] = 1024,
    seed: Annotated[int, typer.Option(min=0, help="Seed of every random choice.")] = 0,
    format: Annotated[str | None, typer.Option(help="How rows are written; found when not given.")] = None,
    prompt_column: PromptColumn = None,
    answer_column: AnswerColumn = None,
    as_json: AsJson = False,
) -> None:
    """Train a base on several tasks so that an adapter on a further task does well (PEFT-aware meta-learning).

    Every task keeps an adapter of its own while the shared weights are trained; the adapters are thrown away. Needs
    the memory of full fine-tuning. `foretune fit NEW-TASK --model OUTPUT` then trains on the new base.
    """
    from foretune.data.columns import Columns
    from foretune.fit.retrain import retrain as carry_out

    said = time.monotonic()
    losses: list[float] = []

    def on_step(report: StepReport) -> bool:
        nonlocal said
        losses.append(report.loss)
        if not as_json and time.monotonic() - said > LINE_S:
            said = time.monotonic()
            typer.echo(f"update {report.step:,} of {steps:,}, loss {report.loss:.3f}", err=True)
        return True

    names = carry_out(
        data, output, columns=Columns(prompt=prompt_column, answer=answer_column, task=task_column), model=model,
        steps=steps, rank=rank, rows_per_update=rows_per_update, context_tokens=context, seed=seed, format=format,
        on_step=on_step,
    )  # fmt: skip
    if as_json:
        typer.echo(json.dumps({"folder": str(output), "tasks": names, "first_loss": losses[0], "loss": losses[-1]}))
        return
    typer.echo(f"{output} is a base for {', '.join(names)} and more of their kind: loss {losses[0]:.3f}, then "
               f"{losses[-1]:.3f} with each task's own adapter.")  # fmt: skip
