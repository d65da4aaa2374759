"""Training speed: Foretune's loop against ``trl.SFTTrainer``, in target tokens per second of processor time.

    python benchmarks/throughput.py [--quick] [--parity] [--data foldoc] [--updates 8] [--repeats 5]

Same model, same rows in the same updates, same target tokens, same LoRA (r = 16, all linear layers, the same first
weights), same learning rate, schedule, optimizer and clipping. TRL runs twice: as it comes on a processor, and with
its fastest settings that keep the loss exact (`contestant.VARIANTS`; without ``--quick`` all are tried first).

Each contestant is a process of its own; they take turns update by update, in an order that rotates, so that a change
of the machine's speed meets all alike. Warm-up updates do not count; every repeat starts fresh processes. The ratio
of a repeat is that of processor times for the same updates; the median over repeats is reported. Losses are compared
update by update: within `BF16_TOLERANCE` in bf16, and within `FLOAT32_TOLERANCE` under ``--parity`` (float32).
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from common import FOLDER, finish, median, model_folder, parser, record
from contestant import DEFAULT, FORETUNE, VARIANTS

from foretune.data.corpora import locate
from foretune.data.example import Example
from foretune.data.read import read
from foretune.fit.prepare import write_split
from foretune.seeding import generator

BF16_TOLERANCE = 0.1
"""Largest difference of an update's loss in bf16, in nats: rounding of 30 layers, averaged over some 25 target tokens
of loss 6. Whether both compute the same is what ``--parity`` answers."""
FLOAT32_TOLERANCE = 1e-4
FASTEST_EXACT = "padding-free-2"
"""The fastest exact variant of the last search (``results/throughput.json``); ``--quick`` takes it as given."""
SEARCH_UPDATES = 3
FINALISTS = 2
"""The search's fastest variants that all repeats are run with: one pass apart from the others decides little."""
PARITY_UPDATES = 3
PARITY_LAYOUTS = (DEFAULT, "four-lengths", "padding-free")
"""One variant of every layout of rows: in float32 the others are the same computation."""


@dataclass(frozen=True)
class Turn:
    """What a contestant says of one update."""

    cpu_s: float
    wall_s: float
    loss: float


class Contestant:
    """A trainer in another process; see `contestant`."""

    def __init__(self, name: str, order: Path, threads: int) -> None:
        self.name = name
        self.log = order.parent / f"{name}.log"
        environment = {**os.environ, "OMP_NUM_THREADS": str(threads), "TOKENIZERS_PARALLELISM": "false"}
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                [sys.executable, str(FOLDER / "contestant.py"), name, str(order)],
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, env=environment, text=True,
            )  # fmt: skip
        self.facts: dict[str, Any] = {}
        self.turns: list[Turn] = []

    def __enter__(self) -> Contestant:
        return self

    def __exit__(self, *_: object) -> None:
        assert self.process.stdin is not None and self.process.stdout is not None
        self.process.stdin.close()
        self.process.wait()
        self.process.stdout.close()

    def prepare(self) -> None:
        """Wait until everything is loaded."""
        self.facts = self._answer()

    def update(self) -> None:
        """Have one update done."""
        assert self.process.stdin is not None
        self.process.stdin.write("go\n")
        self.process.stdin.flush()
        self.turns.append(Turn(**self._answer()))

    def _answer(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            raise SystemExit(f"{self.name} ended early:\n{self.log.read_text()[-3000:]}")
        return dict(json.loads(line))


def compete(order: Mapping[str, Any], names: Sequence[str]) -> dict[str, Contestant]:
    """Every contestant of ``names`` through all updates of ``order``, taking turns; ended processes with results."""
    folder = Path(order["folder"])
    path = folder / "order.json"
    path.write_text(json.dumps(order))
    with ExitStack() as stack:
        contestants = [stack.enter_context(Contestant(name, path, order["threads"])) for name in names]
        for contestant in contestants:
            contestant.prepare()
        for number in range(len(order["updates"])):
            first = number % len(contestants)
            for contestant in contestants[first:] + contestants[:first]:
                contestant.update()
    for fact in ("fingerprint", "trainable"):
        if len({contestant.facts[fact] for contestant in contestants}) > 1:
            raise SystemExit(f"the contestants differ in {fact}: this would be no comparison.")
    return {contestant.name: contestant for contestant in contestants}


def largest_difference(one: Contestant, other: Contestant) -> float:
    """The largest difference of an update's loss."""
    return max(abs(a.loss - b.loss) for a, b in zip(one.turns, other.turns, strict=True))


def cpu_s(contestant: Contestant, order: Mapping[str, Any]) -> float:
    """Processor seconds of the updates that count."""
    return sum(turn.cpu_s for turn in contestant.turns[order["warm_up"] :])


def speeds(contestant: Contestant, order: Mapping[str, Any], rows: Sequence[Sequence[int]]) -> dict[str, float]:
    """Tokens a second of one repeat; ``rows`` holds (tokens, target tokens) of each row."""
    chosen = [row for update in order["updates"][order["warm_up"] :] for row in update]
    tokens, targets = (sum(rows[row][part] for row in chosen) for part in (0, 1))
    cpu = cpu_s(contestant, order)
    wall = sum(turn.wall_s for turn in contestant.turns[order["warm_up"] :])
    return {
        "target_tokens_per_cpu_s": targets / cpu,
        "real_tokens_per_cpu_s": tokens / cpu,
        "real_tokens_per_s": tokens / wall,
    }


def single_turns(source: str, count: int, seed: int) -> list[Example]:
    """``count`` training rows of a data set (question and answer), drawn from ``seed``."""
    found = read(locate(source))
    training = [row for row in found.examples if row.split in (None, "train")]
    usable = [row for row in training if [turn.role for turn in row.turns] == ["user", "assistant"]]
    if len(usable) < count:
        raise SystemExit(f"{source} has {len(usable)} rows of one question and one answer; {count} are needed.")
    drawn = generator(seed, "throughput").permutation(len(usable))[:count]
    return [usable[int(i)] for i in drawn]


def order_of(arguments: argparse.Namespace, folder: Path, updates: int, *, float32: bool = False) -> dict[str, Any]:
    """The order for ``updates`` updates, the first ``arguments.warm_up`` of which do not count."""
    per_update = arguments.rows_per_update
    examples = single_turns(arguments.data, updates * per_update, arguments.seed)
    write_split(folder / "train.jsonl", examples)
    return {
        "folder": str(folder),
        "model": model_folder(arguments.model),
        "updates": [list(range(k * per_update, (k + 1) * per_update)) for k in range(updates)],
        "conversations": [
            {
                "prompt": [{"role": "user", "content": row.turns[0].content}],
                "completion": [{"role": "assistant", "content": row.turns[1].content}],
            }
            for row in examples
        ],
        "learning_rate": arguments.learning_rate,
        "seed": arguments.seed,
        "threads": arguments.threads,
        "warm_up": arguments.warm_up,
        "float32": float32,
    }


def search(arguments: argparse.Namespace, folder: Path) -> tuple[list[str], list[dict[str, Any]]]:
    """The fastest variants of TRL whose losses are those of its defaults, and what was tried."""
    order = order_of(arguments, folder, arguments.warm_up + SEARCH_UPDATES)
    tried = []
    reference = None
    for name, variant in VARIANTS.items():
        contestant = compete(order, [name])[name]
        reference = reference or contestant
        difference = largest_difference(contestant, reference)
        tried.append({
            "variant": name, "about": variant.about, "cpu_s": cpu_s(contestant, order),
            "largest_loss_difference": difference, "exact": difference <= BF16_TOLERANCE,
        })  # fmt: skip
        print(f"{name:22} {tried[-1]['cpu_s']:7.2f} CPU s, losses differ by {difference:.4f}", flush=True)
    exact = sorted((row for row in tried if row["exact"]), key=lambda row: row["cpu_s"])
    return [str(row["variant"]) for row in exact if row["variant"] != DEFAULT][:FINALISTS], tried


def parity(arguments: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Losses in float32 against every layout of TRL, on a few updates."""
    order = order_of(arguments, folder, PARITY_UPDATES, float32=True)
    done = compete(order, [FORETUNE, *PARITY_LAYOUTS])
    differences = {name: largest_difference(done[FORETUNE], done[name]) for name in PARITY_LAYOUTS}
    losses = {name: [turn.loss for turn in contestant.turns] for name, contestant in done.items()}
    for name, values in losses.items():
        print(f"{name:22} " + " ".join(f"{value:.6f}" for value in values), flush=True)
    return {"losses": losses, "differences": differences, "tolerance": FLOAT32_TOLERANCE, "updates": PARITY_UPDATES}


def race(
    arguments: argparse.Namespace, folder: Path, finalists: Sequence[str]
) -> tuple[dict[str, Any], dict[str, Any]]:
    """All repeats: the summary for the last line, and the details for the file.

    TRL's best is the finalist that needed least processor time in the median repeat.
    """
    order = order_of(arguments, folder, arguments.warm_up + arguments.updates)
    names = [FORETUNE, *dict.fromkeys([DEFAULT, *finalists])]
    repeats = [compete(order, names) for _ in range(arguments.repeats)]
    rows = repeats[0][FORETUNE].facts["rows"]
    spent = {name: [cpu_s(repeat[name], order) for repeat in repeats] for name in names}
    best = min(finalists, key=lambda name: median(spent[name]))
    each = {name: [speeds(repeat[name], order, rows) for repeat in repeats] for name in names}
    middle = {
        name: {unit: median([speed[unit] for speed in values]) for unit in values[0]} for name, values in each.items()
    }
    show(repeats[0], middle)
    against = {"default": DEFAULT, "best": best}
    ratios = {
        f"ratio_vs_trl_{key}": [theirs / ours for theirs, ours in zip(spent[name], spent[FORETUNE], strict=True)]
        for key, name in against.items()
    }
    differences = [largest_difference(repeat[FORETUNE], repeat[name]) for repeat in repeats for name in names[1:]]
    summary = {
        **{key: median(values) for key, values in ratios.items()},
        "max_loss_difference": max(differences),
        "loss_tolerance": BF16_TOLERANCE,
        "trl_best": best,
        **{key: vars(arguments)[key] for key in ("repeats", "updates", "rows_per_update", "data")},
        "real_tokens_per_row": median([tokens for tokens, _ in rows]),
        "target_tokens_per_row": median([targets for _, targets in rows]),
        **{f"{key}_target_tokens_per_cpu_s": middle[name]["target_tokens_per_cpu_s"]
           for key, name in {FORETUNE: FORETUNE, "trl_default": DEFAULT, "trl_best": best}.items()},
    }  # fmt: skip
    return summary, {
        "ranges": {key: [min(values), max(values)] for key, values in ratios.items()},
        "settings": {name: repeats[0][name].facts["about"] for name in names},
        "medians": middle,
        "each_repeat": [{name: [vars(turn) for turn in repeat[name].turns] for name in names} for repeat in repeats],
    }


def show(repeat: Mapping[str, Contestant], speeds: Mapping[str, Mapping[str, float]]) -> None:
    """Print what each contestant is, its speeds, and its losses in one repeat."""
    for name, values in speeds.items():
        print(f"{name}: " + ", ".join(f"{value:.1f} {unit}" for unit, value in values.items()))
        print(f"  {repeat[name].facts['about']}")
        print("  losses " + " ".join(f"{turn.loss:.4f}" for turn in repeat[name].turns), flush=True)


def arguments_of() -> argparse.Namespace:
    """The command line, with what ``--quick`` shortens."""
    made = parser(__doc__)
    made.add_argument("--data", default="facts", help="a data set's name or file: questions with one answer")
    made.add_argument("--updates", type=int, default=8, help="updates that count, of each repeat")
    made.add_argument("--warm-up", type=int, default=2, help="updates before them")
    made.add_argument("--repeats", type=int, default=5)
    made.add_argument("--rows-per-update", type=int, default=8, help="TRL's default batch; a multiple of 4")
    made.add_argument("--learning-rate", type=float, default=2e-4)
    made.add_argument("--best", choices=sorted(VARIANTS), help="TRL's best variant, instead of a search")
    made.add_argument("--parity", action="store_true", help="only compare losses, in float32")
    arguments = made.parse_args()
    if arguments.rows_per_update % 4 or arguments.rows_per_update < 4:
        made.error("--rows-per-update must be a multiple of 4: it is cut into up to four micro-batches")
    if arguments.quick:
        arguments.updates, arguments.warm_up, arguments.repeats = 2, 1, 1
        arguments.best = arguments.best or FASTEST_EXACT
    return arguments


def main() -> None:
    """Run the comparison; the exit status says whether the losses agree."""
    arguments = arguments_of()
    with TemporaryDirectory(prefix="foretune-throughput-") as name:
        folder = Path(name)
        if arguments.parity:
            checked = parity(arguments, folder)
            largest = max(checked["differences"].values())
            agree = largest <= FLOAT32_TOLERANCE
            summary = {"max_loss_difference": largest, "tolerance": FLOAT32_TOLERANCE, "equal": agree}
            finish(arguments, "throughput-parity", summary, record(arguments, parity=checked))
        else:
            finalists, tried = ([arguments.best], []) if arguments.best else search(arguments, folder)
            summary, details = race(arguments, folder, finalists)
            agree = summary["max_loss_difference"] <= BF16_TOLERANCE
            finish(arguments, "throughput", summary, record(arguments, search=tried, **details))
    if not agree:
        raise SystemExit("the losses differ by more than rounding: this is no comparison of speeds.")


if __name__ == "__main__":
    main()
