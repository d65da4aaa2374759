"""Computing a utility kernel: one example a block, kept on disk, resumed, and spread over processes.

A block is one example with some of the rows asked behind it: one file, written whole, with a digest. Its folder
hashes what decides its numbers (weights, adapter, dtype, tokenizer, template, settings), its name the example and the
rows. So a killed run goes on with the next block and ends with the same bytes, whatever process computes which block
(with the same number of threads each); a grown data set computes new examples and, behind old ones, new rows only;
another model or template finds nothing. The block *none* holds the rows without an example.

What a block took lies beside it (`foretune.selection.took`). Working memory is that of one forward pass, whatever the
number of pairs.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from foretune.data.encode import EncodedRow
from foretune.data.example import Example, Turn
from foretune.data.layout import layout_of, render
from foretune.data.token_cache import tokenizer_identity
from foretune.data.update import chunks
from foretune.errors import UsageError
from foretune.files import canonical_json, claimed, fingerprint, lives, read_lines, write_text
from foretune.selection import kept_blocks
from foretune.selection.base import BlockMap, Workbench
from foretune.selection.took import Stopwatch, Tally, Took
from foretune.selection.utility.kernel import NONE, NONE_KEY, SelfPairs, Utility, keys_of, read
from foretune.selection.utility.prompts import TEMPLATES, Ids, Prompts, Template, Writer, parted
from foretune.selection.utility.scorer import PACK_TOKENS, Scorer

FORMAT = 1
"""Raised whenever the numbers or the files change for the same input."""
BLOCK_ROWS = 512
"""Rows asked in one block: what a kill can cost, and how long a worker is silent: half a minute for short rows of a
small model on one core. The example goes through the model again for each block, a hundredth of the work."""
OnProgress = Callable[[str, int, int], None]
Files = dict[str, tuple[Path, ...]]
Group = tuple[Ids, list[EncodedRow], list[int]]


def setting_of(bench: Workbench, writer: Writer, adapter: str | None = None) -> dict[str, Any]:
    """What decides the numbers beside rows and examples; its fingerprint names the folder of blocks."""
    model = bench.network.model
    begins = ""
    if writer.template != "delift-ref":
        layout = layout_of(writer.tokenizer, plain=writer.template == "plain")
        if layout.style == "chat":  # a template that writes the date gives other tokens on another day
            begins = render(writer.tokenizer, [Turn("user", "")], layout, prompt=True)
    return {
        "format": FORMAT,
        "weights": bench.weights_hash,
        "adapter": adapter,
        "dtype": str(model.dtype),
        "device": model.device.type,
        "tokenizer": tokenizer_identity(writer.tokenizer),
        "template": writer.template,
        "begins": begins,
        "task": writer.task,
        "labels": list(writer.labels),
        "context_tokens": int(bench.task.context_tokens),
        "pack_tokens": PACK_TOKENS,
    }


def writer_of(bench: Workbench, template: str) -> Writer:
    """The writer of a template for the bench's task; ``auto`` is the model's own layout. Raises `UsageError`."""
    if template == "auto":
        template = "plain" if bench.task.plain_template else "chat"
    if template not in TEMPLATES:
        raise UsageError(f"unknown template {template!r}.", remedy=f"Known: auto, {', '.join(TEMPLATES)}.")
    known = next(one for one in TEMPLATES if one == template)
    return Writer(bench.tokenizer, known, bench.task.task, tuple(bench.task.labels))


def compute(
    bench: Workbench,
    rows: Sequence[Example],
    examples: Sequence[Example],
    folder: Path,
    *,
    blocks: BlockMap,
    template: str = "auto",
    self_pairs: SelfPairs = "drop",
    model: str | None = None,
    adapter: str | None = None,
    pairs: Sequence[Sequence[int]] | None = None,
    on_progress: OnProgress = lambda what, done, total: None,
    check_stopped: Callable[[], None] = lambda: None,
    tally: Tally | None = None,
) -> Utility:
    """The kernel of ``rows`` (asked) by ``examples`` (shown), its blocks in a folder of its setting below ``folder``.

    ``pairs[j]`` lists the rows to ask behind example j (default: all). ``model`` lets another, smaller one measure (a
    name or folder) in the place of the bench's own. ``adapter`` names the adapter that the bench's
    network carries, if any. Raises `DataError` for a row without an answer, `UsageError` for plain text or a model
    that writes no continuation, and what ``check_stopped`` raises, between two blocks.
    """
    check_stopped()
    used = bench if model is None else bench.with_model(model)
    writer = writer_of(used, template)
    place = folder / f"utility-{fingerprint(setting_of(used, writer, adapter))}"
    asked, shown = [row.id for row in rows], [example.id for example in examples]
    found = _files(place)
    tally = tally or Tally()
    todo = _missing(asked, shown, pairs, found, tally)
    material = place / f"rows-{fingerprint([asked, shown])}-{os.getpid()}.jsonl"  # others may be at the same kernel
    _remove_material_of_the_dead(place)
    if todo:
        lines = [canonical_json(row.to_json()) for row in (*rows, *examples)]
        write_text(material, "".join(line + "\n" for line in lines))
    work = partial(
        compute_block, bench=bench, model=model, material=str(material), rows=len(rows), template=writer.template
    )
    tokens = 0
    done, left = 0, todo
    try:
        while left:
            claimed_by_others = []
            for block, told in zip(left, blocks.map(work, left), strict=True):
                if told is None:
                    claimed_by_others.append(block)
                    continue
                key = told["file"].partition("-")[0]
                found[key] = tuple(sorted({*found.get(key, ()), place / told["file"]}))
                tokens += told["tokens"]
                _account(tally, place / told["file"], told)
                done += 1
                on_progress("utility", done, len(todo))
                if done < len(todo):
                    check_stopped()
            left = claimed_by_others
            if left:
                time.sleep(kept_blocks.WAIT_S)
    finally:
        _opened.cache_clear()
    material.unlink(missing_ok=True)
    count = sum(len(block["rows"]) for block in todo if block["example"] != NONE)
    return Utility(tuple(asked), tuple(shown), found, self_pairs, count, tokens)


def _remove_material_of_the_dead(place: Path) -> None:
    for path in place.glob("rows-*.jsonl"):
        process = path.stem.rpartition("-")[2]
        if not (process.isdigit() and lives(int(process))):
            path.unlink(missing_ok=True)


def _account(tally: Tally, path: Path, told: Mapping[str, Any]) -> None:
    if told["took"] is None:
        tally.add_reused(path)
    else:
        tally.add_computed(path.name, Took(**told["took"]) if told["process"] != os.getpid() else None)


def _files(place: Path) -> Files:
    """The undamaged files of every example; damaged ones are left to be written again."""
    found: Files = {}
    for path in sorted(place.glob("*.safetensors")):
        if kept_blocks.read(path) is not None:
            key = path.name.partition("-")[0]
            found[key] = (*found.get(key, ()), path)
    return found


def _missing(
    asked: Sequence[str],
    shown: Sequence[str],
    pairs: Sequence[Sequence[int]] | None,
    found: Files,
    tally: Tally,
) -> list[dict[str, Any]]:
    """The blocks still to compute: an example and the rows that no file has; equal rows and examples once.

    What files have is told to the ``tally``, in proportion to the rows that are wanted of each.
    """
    first: dict[str, int] = {}
    for place, row in enumerate(asked):
        first.setdefault(row, place)
    wanted: dict[str, tuple[int, list[int]]] = {NONE_KEY: (NONE, list(range(len(asked))))}
    for number, key in enumerate(shown):
        behind = range(len(asked)) if pairs is None else pairs[number]
        kept = wanted.setdefault(key, (number, []))
        kept[1].extend(behind)
    todo = []
    for key, (example, rows) in wanted.items():
        wanted_keys = {int(asked[row], 16) for row in rows}
        there: set[int] = set()
        for path in found.get(key, ()):
            inside = {int(row) for row in read(path)["rows"]}
            if used := len(inside & wanted_keys - there):
                tally.add_reused(path, used / len(inside))
            there |= inside
        left = sorted({first[asked[row]] for row in rows if int(asked[row], 16) not in there})
        for part in chunks(len(left), BLOCK_ROWS):
            todo.append({"example": example, "key": key, "rows": left[part]})
    return todo


def compute_block(
    block: Mapping[str, Any], *, bench: Workbench, model: str | None, material: str, rows: int, template: Template
) -> dict[str, Any] | None:
    """Measure the rows of a block behind its example and write its file; its name, and what it took.

    None where another process is at it; without ``took`` where one has just written it.
    """
    prompts, scorer = _opened(bench, model, material, rows, template)  # type: ignore[arg-type]  # hashable by identity
    asked = [int(row) for row in block["rows"]]
    keys = [prompts.keys[row] for row in asked]
    path = Path(material).parent / f"{block['key']}-{fingerprint(keys)}.safetensors"
    told = {"file": path.name, "tokens": 0, "took": None, "process": os.getpid()}
    with claimed(path) as mine:
        if not mine:
            return None
        if kept_blocks.read(path) is not None:
            return told
        watch = Stopwatch()
        arrays, tokens = _measured(bench, prompts, scorer, int(block["example"]), asked)
        took = watch.took()
        kept_blocks.write(path, {"rows": keys_of(keys), **arrays}, took)
    return {**told, "tokens": tokens, "took": vars(took)}


def _measured(
    bench: Workbench, prompts: Prompts, scorer: Scorer, example: int, asked: Sequence[int]
) -> tuple[dict[str, npt.NDArray[Any]], int]:
    """The arrays of the rows ``asked`` behind ``example``, and the tokens that went through the model."""
    limit = int(bench.task.context_tokens)
    size = len(asked)
    d, mean_log = np.zeros(size, np.float32), np.zeros(size, np.float32)
    too_long, tokens = np.zeros(size, np.bool_), np.zeros(size, np.int64)
    passed = 0
    for head, encoded, places in _groups(prompts, example, asked):
        places_there = np.asarray(places)
        fits = np.asarray([len(head) + len(row.ids) <= limit for row in encoded])
        too_long[places_there[~fits]] = True
        tails = [row for row, fit in zip(encoded, fits, strict=True) if fit]
        if tails:
            where = places_there[fits]
            measured = scorer.score(head, tails)
            passed += len(head) + sum(len(row.ids) for row in tails)
            d[where], mean_log[where], tokens[where] = measured.d, measured.l, [row.targets for row in tails]
    arrays: dict[str, npt.NDArray[Any]] = {
        "d": d,
        "l": mean_log,
        "too_long": too_long.astype(np.uint8),
        "tokens": tokens,
    }
    return arrays, passed


def _groups(prompts: Prompts, example: int, asked: Sequence[int]) -> list[Group]:
    """(head, tails, their places in the block) for every system turn, and for the pairs that cannot be cut."""
    nothing: Ids = np.empty(0, np.int32)
    if example == NONE:
        rows = [prompts.alone[row] for row in asked]
        head, tails = parted(rows)
        return [(head, tails, list(range(len(asked))))]
    by_system: dict[str, tuple[list[EncodedRow], list[int]]] = {}
    whole: Group = (nothing, [], [])
    for at, row in enumerate(asked):
        tail = prompts.tails[row]
        if tail is None:
            whole[1].append(prompts.whole(row, example))
            whole[2].append(at)
        else:
            tails, places = by_system.setdefault(prompts.systems[row], ([], []))
            tails.append(tail)
            places.append(at)
    cut = [(prompts.head(example, system), *group) for system, group in by_system.items()]
    return [*cut, whole] if whole[2] else cut


@lru_cache(maxsize=1)
def _opened(
    bench: Workbench, model: str | None, material: str, rows: int, template: Template
) -> tuple[Prompts, Scorer]:
    """Tokens and scorer of one order, made once in every process that works on it."""
    used = bench if model is None else bench.with_model(model)
    examples = [Example.from_json(value) for value in read_lines(Path(material))]
    prompts = Prompts(writer_of(used, template), examples[:rows], examples[rows:])
    return prompts, Scorer(used.network, pad_id=used.pad_id)
