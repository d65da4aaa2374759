"""The row source of a trial: plain epochs over the kept rows, or what the selection decides while training."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from foretune.catalogue.selection import NONE, Keep, declaration, names_in, with_defaults
from foretune.data.example import Example
from foretune.data.update import Epochs, RowSource
from foretune.execution.bench import Bench
from foretune.execution.kept import Kept
from foretune.search.types import Lease
from foretune.selection.base import Request
from foretune.selection.iterative import added
from foretune.selection.row_sources import FilteredFirst, FreshSubsets, Growing
from foretune.training.forward import Network


def row_source(bench: Bench, lease: Lease, chosen: Kept, network: Network) -> RowSource:
    """Positions in the list of ``chosen.rows`` in the order of the split, update after update."""
    config = lease.config
    rows = sorted(chosen.rows)
    rows_per_update = int(config["rows_per_update"])
    names = names_in(str(config.get("selection", NONE)))
    moment = declaration(names[0]).moment if len(names) == 1 else "before"
    if moment == "before":
        return Epochs(len(rows), rows_per_update, lease.seed)
    name = names[0]
    settings = with_defaults(name, {key: value for key, value in config.items() if "." in key})
    count = max(1, Keep("share", float(config.get("keep", 1.0))).rows(len(rows)))
    if moment == "filter":
        place = {row: position for position, row in enumerate(rows)}
        first = tuple(sorted(place[row] for row in chosen.first))
        until = round(float(settings["filtered_share"]) * lease.horizon)
        return FilteredFirst(first, len(rows), until, rows_per_update, lease.seed)
    if name == "rs2":
        return FreshSubsets(len(rows), count, rows_per_update, lease.seed)
    examples = [bench.split("train").examples[i] for i in rows]
    return _growing(bench, lease, examples, count, name, settings, network)


def _growing(
    bench: Bench,
    lease: Lease,
    examples: Sequence[Example],
    count: int,
    name: str,
    settings: Mapping[str, Any],
    network: Network,
) -> Growing:
    request = Request(examples, count, seed=lease.seed, bench=bench)
    how = str(settings.get("score", "k-centre"))

    def add(rows: Sequence[int], more: int) -> list[int]:
        return added(request, network, rows, more, how)

    return Growing(
        len(examples), count, int(settings["rounds"]), lease.horizon, int(lease.config["rows_per_update"]),
        lease.seed, add,
    )  # fmt: skip
