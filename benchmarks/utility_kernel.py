"""The utility kernel: Foretune's shared-prefix engine against the plain procedure, one whole prompt for each pair.

    python benchmarks/utility_kernel.py [--quick] [--rows 48] [--examples 16] [--repeats 3] [--batch 16]

Rows are real dictionary entries (foldoc, fetched when missing), in two lengths: *dictionary*, as they come, and *long*,
text of the same entries cut to examples of about 120 tokens, questions of 60 and answers of 65. Plain: for every pair
the example, the question and the answer are tokenised and run whole, in right-padded batches, as the procedure of
DELIFT (Agarwal et al. 2024) does; logits of all positions, softmax in float32 where the answer stands. Both in one
process on one model in bf16, with the same prompts, in turns whose order alternates; each time everything from texts to
distances (and our files) counts, in processor seconds, but for the rows without an example, which both need once and
which are no pairs. The ratio is that of pairs for each processor second, median over repeats.

In bf16 the two differ by rounding; `max_abs_difference` is the largest difference of a distance in float32, over a
few pairs of both lengths. Memory is the rise of the process's peak over what it held before, here and with twice as
many pairs.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from common import finish, median, model_folder, parser, record

from foretune.catalogue.models import ModelReference
from foretune.data.corpora import fetch
from foretune.data.encode import EncodedRow
from foretune.data.example import Example, conversation
from foretune.data.layout import encode_texts
from foretune.data.read import read
from foretune.execution.bench import Bench
from foretune.execution.memory import forget_peak, give_back_memory, peak_memory_bytes
from foretune.execution.types import TaskSpec
from foretune.seeding import generator
from foretune.selection.blocks import SerialBlocks
from foretune.selection.utility.blocks import compute, writer_of
from foretune.selection.utility.kernel import NONE

QUESTION_TOKENS, ANSWER_TOKENS = 60, 65
"""Of the long setting; template included, an example comes to about 120 + 10."""
LONGEST_DICTIONARY_TOKENS = 160
"""Entries of more tokens are another setting's business."""
PARITY_ROWS, PARITY_EXAMPLES = 3, 1


@dataclass(frozen=True)
class Setting:
    """Rows to ask and examples to show."""

    name: str
    asked: Sequence[Example]
    shown: Sequence[Example]


def settings_of(bench: Bench, rows: int, examples: int, seed: int) -> list[Setting]:
    """Both settings, drawn from the dictionary."""
    entries = [row for row in read(str(fetch("foldoc"))).examples if row.answer.strip()]
    order = generator(seed, "benchmark", "utility").permutation(len(entries))
    short: list[Example] = []
    long: list[Example] = []
    for place in order:
        entry = entries[int(place)]
        ids = encode_texts(bench.tokenizer, [entry.prompt + " " + entry.answer])[0]
        if len(ids) <= LONGEST_DICTIONARY_TOKENS and len(short) < rows + examples:
            short.append(entry)
        if len(ids) >= QUESTION_TOKENS + ANSWER_TOKENS and len(long) < rows + examples:
            question, answer = ids[:QUESTION_TOKENS], ids[QUESTION_TOKENS : QUESTION_TOKENS + ANSWER_TOKENS]
            long.append(conversation(bench.tokenizer.decode(question), bench.tokenizer.decode(answer).strip()))
        if len(short) == len(long) == rows + examples:
            break
    return [Setting(name, made[:rows], made[rows:]) for name, made in (("dictionary", short), ("long", long))]


def ours(bench: Bench, setting: Setting, folder: Path) -> np.ndarray:
    """(examples, rows) distances by the product's own way; blocks that are in ``folder`` are not computed again."""
    found = compute(bench, setting.asked, setting.shown, folder, blocks=SerialBlocks(), self_pairs="keep")
    return np.stack([found.column(j).d for j in [*range(len(setting.shown)), NONE]])[: len(setting.shown) or 1]


def plain(bench: Bench, setting: Setting, batch: int) -> np.ndarray:
    """The same, pair by pair."""
    writer = writer_of(bench, "auto")
    pairs = [[(row, shown) for row in setting.asked] for shown in setting.shown]
    return np.stack([_whole(bench, writer.behind(part), batch) for part in pairs])


@torch.no_grad()
def _whole(bench: Bench, rows: Sequence[EncodedRow], batch: int) -> np.ndarray:
    distances = []
    with bench.network.mode(packing=False, training=False):
        for start in range(0, len(rows), batch):
            part = rows[start : start + batch]
            width = max(len(row.ids) for row in part)
            ids = torch.full((len(part), width), bench.pad_id)
            mask = torch.zeros_like(ids)
            for line, row in enumerate(part):
                ids[line, : len(row.ids)] = torch.as_tensor(row.ids)
                mask[line, : len(row.ids)] = 1
            logits = bench.network.model(input_ids=ids, attention_mask=mask, use_cache=False).logits
            for line, row in enumerate(part):
                at = torch.as_tensor(np.flatnonzero(row.target_mask))
                logs = torch.log_softmax(logits[line, at - 1].float(), dim=-1)
                p = logs.gather(1, ids[line, at][:, None]).squeeze(1).exp()
                distances.append(float((1 - p).square().mean().sqrt()))
    return np.asarray(distances)


def turn(name: str, bench: Bench, setting: Setting, batch: int) -> tuple[np.ndarray, float]:
    """The distances of all pairs by one of the two, and its processor seconds."""
    with TemporaryDirectory() as folder:
        if name == "foretune":
            ours(bench, Setting("", setting.asked, ()), Path(folder))  # the rows without an example
        started = time.process_time()
        found = ours(bench, setting, Path(folder)) if name == "foretune" else plain(bench, setting, batch)
        return found, time.process_time() - started


def extra_memory_mb(bench: Bench, setting: Setting) -> float:
    """How far the process's peak rises above what it held before."""
    give_back_memory()
    forget_peak()
    before = peak_memory_bytes(torch.device("cpu"))
    with TemporaryDirectory() as folder:
        ours(bench, setting, Path(folder))
    return (peak_memory_bytes(torch.device("cpu")) - before) / 2**20


def bench_of(folder: str, dtype: str) -> Bench:
    """The model on a bench without data."""
    reference = ModelReference(folder, dtype=dtype)
    return Bench(TaskSpec("", "generation", reference, "loss", device="cpu"))


def parity(folder: str, arguments: argparse.Namespace) -> float:
    """The largest difference of a distance in float32."""
    bench = bench_of(folder, "float32")
    worst = 0.0
    for setting in settings_of(bench, PARITY_ROWS, PARITY_EXAMPLES, arguments.seed):
        with TemporaryDirectory() as folder:
            found = ours(bench, setting, Path(folder))
        worst = max(worst, float(np.abs(found - plain(bench, setting, arguments.batch)).max()))
    bench.unload()
    return worst


def arguments_of() -> argparse.Namespace:
    """The command line, with what ``--quick`` shortens."""
    made = parser(__doc__)
    made.add_argument("--rows", type=int, default=48)
    made.add_argument("--examples", type=int, default=16)
    made.add_argument("--repeats", type=int, default=3)
    made.add_argument("--batch", type=int, default=16, help="pairs of a batch of the plain procedure")
    arguments = made.parse_args()
    if arguments.quick:
        arguments.rows, arguments.examples, arguments.repeats = 16, 2, 1
    return arguments


def main() -> None:
    """Run both in turns and print one JSON object."""
    arguments = arguments_of()
    torch.set_num_threads(arguments.threads)
    folder = model_folder(arguments.model)
    summary: dict[str, Any] = {"max_abs_difference": parity(folder, arguments)}
    bench = bench_of(folder, "bfloat16")
    details: dict[str, Any] = {"cpu_s": {}, "range": {}, "mean_tokens": {}}
    for setting in settings_of(bench, arguments.rows, arguments.examples, arguments.seed):
        half = Setting(setting.name, setting.asked[: arguments.rows // 2], setting.shown)
        memory = [
            extra_memory_mb(bench, one) for one in ((half,) if arguments.quick else (half, setting))
        ]  # and warm up
        plain(bench, Setting("", setting.asked[:2], setting.shown[:1]), arguments.batch)
        cpu: dict[str, list[float]] = {"foretune": [], "plain": []}
        worst = 0.0
        for repeat in range(arguments.repeats):
            found: dict[str, np.ndarray] = {}
            for name in ("foretune", "plain")[:: 1 if repeat % 2 == 0 else -1]:
                found[name], cpu_s = turn(name, bench, setting, arguments.batch)
                cpu[name].append(cpu_s)
                print(f"{setting.name}, repeat {repeat + 1}, {name}: {cpu_s:.1f} CPU s", file=sys.stderr)
            worst = max(worst, float(np.abs(found["foretune"] - found["plain"]).max()))
        ratios = [slow / fast for slow, fast in zip(cpu["plain"], cpu["foretune"], strict=True)]
        pairs = arguments.rows * arguments.examples
        ending = "" if setting.name == "dictionary" else "_long"
        summary |= {
            f"ratio{ending}": median(ratios),
            f"max_abs_difference_bf16{ending}": worst,
            f"extra_memory_mb{ending}": max(memory),
            f"extra_memory_mb_half_the_rows{ending}": memory[0],
            f"foretune_pairs_per_cpu_s{ending}": pairs / median(cpu["foretune"]),
            f"plain_pairs_per_cpu_s{ending}": pairs / median(cpu["plain"]),
        }
        details["cpu_s"][setting.name], details["range"][setting.name] = cpu, [min(ratios), max(ratios)]
        details["mean_tokens"][setting.name] = lengths(bench, setting)
    summary |= {key: vars(arguments)[key] for key in ("rows", "examples", "repeats", "batch")}
    finish(arguments, "utility_kernel", summary, record(arguments, **details))


def lengths(bench: Bench, setting: Setting) -> dict[str, float]:
    """Mean tokens of examples with template, of questions, and of answers."""
    writer = writer_of(bench, "auto")
    alone = writer.alone(setting.asked)
    behind = writer.behind([(setting.asked[0], shown) for shown in setting.shown])
    return {
        "example": float(np.mean([len(row.ids) for row in behind]) - len(alone[0].ids)),
        "question": float(np.mean([row.prompt_length for row in alone])),
        "answer": float(np.mean([row.targets for row in alone])),
    }


if __name__ == "__main__":
    main()
