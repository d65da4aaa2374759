"""Which layers to adapt, by scores of a base model's layers on a data set's rows; `foretune methods layers` is this."""

from __future__ import annotations

from pathlib import Path

from foretune.catalogue.selection import Keep
from foretune.data.batches import lay_out
from foretune.errors import DataError, Place
from foretune.evaluation.probes.layer_scores import LayerScore, by_layer
from foretune.fit.select import SelectionJob, open_bench, read_pool
from foretune.seeding import generator

ROWS, GROUP = 64, 8


def score_layers(
    data: str | Path,
    *,
    model: str | None = None,
    rows: int = ROWS,
    group: int = GROUP,
    seed: int = 0,
    context_tokens: int = 512,
) -> list[LayerScore]:
    """The score of every layer of a base model, over training rows of ``data`` drawn once.

    ``group``: how many rows are compared with each other; rows that fill no group are left out. ``model``: the
    catalogue's when None. Raises `DataError` for fewer rows than one group, `UsageError` for an encoder–decoder.
    """
    found, pool = read_pool(data)
    drawn = [pool[int(i)] for i in generator(seed, "layers").permutation(len(pool))[:rows]]
    whole = len(drawn) // group * group
    if not whole:
        raise DataError(
            f"{len(drawn)} rows fill no group of {group}.", place=Place(str(data)),
            remedy="Give more rows or a smaller --group.",
        )  # fmt: skip
    job = SelectionJob(
        tuple(drawn[:whole]), found.task, "random", Keep("rows", 0), model=model, seed=seed,
        context_tokens=context_tokens,
    )  # fmt: skip
    with open_bench(job) as bench:
        encoded = bench.encode(job.examples)
        groups = [
            lay_out(
                encoded, range(start, start + group), kind=bench.kind, limit_tokens=group * context_tokens,
                packing=False, pad_id=bench.pad_id,
            ).micro_batches[0]
            for start in range(0, whole, group)
        ]  # fmt: skip
        return by_layer(bench.network, groups)
