"""``foretune models retrain``: a new base, trained on several tasks so that adapters on further tasks do well.

The rows' tasks are read from a column; rates are the rules' (`catalogue.priors`) for full fine-tuning and for the
tasks' pairs. What is done is in `training.adaptable`. The result is a model folder that every other command takes.

What it does not do: split off test rows or judge the result. A fit on a task that was left out, from the old base and
from the new one, shows whether it paid.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from foretune.catalogue.models import ModelReference
from foretune.catalogue.priors import learning_rate
from foretune.data.columns import Columns
from foretune.data.tasks import task_names, with_tasks
from foretune.errors import OutputError, Place, UsageError
from foretune.models.kinds import infer_kind

if TYPE_CHECKING:
    from foretune.training.loop import StepReport

RANK = 16
STEPS = 200
ROWS_PER_UPDATE = 16
CONTEXT_TOKENS = 1024


def retrain(
    data: str,
    output: Path,
    *,
    columns: Columns,
    model: str,
    steps: int = STEPS,
    rank: int = RANK,
    rows_per_update: int = ROWS_PER_UPDATE,
    context_tokens: int = CONTEXT_TOKENS,
    seed: int = 0,
    format: str | None = None,
    on_step: Callable[[StepReport], bool] = lambda report: True,
) -> tuple[str, ...]:
    """Write the retrained base to ``output``; returns the names of the tasks. ``columns`` must name the task's.

    Raises what `data.read`, `models.load` and `training.adaptable` do, and `OutputError` where ``output`` exists.
    """
    from accelerate import Accelerator

    from foretune.data.encode import encode_rows
    from foretune.data.read import read
    from foretune.export.merge import write_model
    from foretune.models.load import bring, load, read_config
    from foretune.training.adaptable import AdaptableSettings, make_adaptable

    if output.exists():
        raise OutputError("this folder exists.", place=Place(output), remedy="Give --output a new one.")
    found = read(data, columns=columns, format=format)
    names = task_names(found.examples)
    if not names:
        raise UsageError("no row names its task.", remedy="Say which column does with --task-column.")
    where = bring(model)
    device = str(Accelerator().device)
    loaded = load(ModelReference(model, infer_kind(read_config(where))), device=device)
    width = int(loaded.model.get_input_embeddings().weight.shape[1])
    pad = int(loaded.tokenizer.pad_token_id or 0)
    start = getattr(loaded.model.config, "decoder_start_token_id", None)
    rows = encode_rows(
        found.examples, loaded.tokenizer, kind=loaded.kind, task=found.task, context_tokens=context_tokens
    )
    base_rate, adapter_rate = (
        learning_rate(method, width=width, kind=loaded.kind, rows_per_update=rows_per_update, steps=steps)
        for method in ("full", "contextpeft")
    )
    settings = AdaptableSettings(
        steps, base_rate, adapter_rate, rank, rows_per_update, seed, pad_id=pad,
        decoder_start_id=pad if start is None else int(start),
    )  # fmt: skip
    base = make_adaptable(loaded.model, with_tasks(rows, found.examples, names), loaded.kind, settings, on_step=on_step)
    write_model(base, loaded.tokenizer, output, str(base.dtype).removeprefix("torch."))
    return names
