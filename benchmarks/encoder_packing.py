"""Texts of an encoder in one packed stream against padded batches, as other trainers make them.

    python benchmarks/encoder_packing.py [--quick] [--data film-sentiment] [--updates 12] [--rows-per-update 16]

Every update draws rows at random and is computed in all ways, in an order that rotates: ``packed`` (as Foretune
trains), ``padded`` (to the longest row of the update, as ``transformers`` does), and ``padded-fours`` (the rows sorted
by length and cut into micro-batches of four, so that little is padded). Laying out, forward and backward pass, all in
one process; full fine-tuning and LoRA. The ratio is that of processor times over all updates; losses are compared row
by row.
"""

from __future__ import annotations

import argparse
import time
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from common import finish, model_folder, parser, record
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from foretune.data.batches import lay_out
from foretune.data.corpora import locate
from foretune.data.encode import EncodedRow, encode_rows
from foretune.data.read import read
from foretune.models.modules import linear_targets
from foretune.seeding import generator
from foretune.training.forward import Network

WAYS: dict[str, dict[str, Any]] = {
    "packed": {"packing": True},
    "padded": {"packing": False},
    "padded-fours": {"packing": False, "padded_rows": 4},
}
LIMIT_TOKENS = 2**20
Losses = npt.NDArray[np.float64]
TOLERANCE = 1e-4
"""Largest difference of a row's loss, in nats: rounding in float32."""


def arguments_of() -> argparse.Namespace:
    """The command line, with what ``--quick`` shortens."""
    made = parser(__doc__)
    made.set_defaults(model="all-MiniLM-L6-v2")
    made.add_argument("--data", nargs="+", default=["film-sentiment", "interface-product-en"])
    made.add_argument("--updates", type=int, default=12, help="updates that count, after one that warms up")
    made.add_argument("--rows-per-update", type=int, default=16)
    made.add_argument("--rank", type=int, default=16)
    arguments = made.parse_args()
    if arguments.quick:
        arguments.updates, arguments.data = 3, arguments.data[:1]
    return arguments


def rows_of(source: str, folder: str, count: int, seed: int) -> tuple[list[EncodedRow], int]:
    """``count`` encoded training rows of a labelled data set, drawn from ``seed``, and the number of its labels."""
    examples = [row for row in read(locate(source)).examples if row.split in (None, "train")]
    labels = sorted({str(row.label) for row in examples})
    drawn = [examples[int(i)] for i in generator(seed, "encoder-packing").permutation(len(examples))[:count]]
    tokenizer = AutoTokenizer.from_pretrained(folder)
    rows = encode_rows(drawn, tokenizer, kind="encoder", task="classification", labels=labels, context_tokens=256)
    return rows, len(labels)


def model_of(folder: str, labels: int, method: str, arguments: argparse.Namespace) -> Any:
    """The encoder without dropout (the losses are compared), fully trained or with LoRA."""
    torch.manual_seed(arguments.seed)
    silent = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    model: Any = AutoModelForSequenceClassification.from_pretrained(folder, num_labels=labels, **silent)
    if method == "full":
        return model
    config = LoraConfig(r=arguments.rank, target_modules=linear_targets(model), modules_to_save=["classifier"])
    return get_peft_model(model, config).get_base_model()


def update(network: Network, rows: list[EncodedRow], chosen: list[int], way: dict[str, Any]) -> tuple[Losses, float]:
    """The loss of every row of one update, and the processor seconds of its forward and backward pass."""
    losses = np.zeros(len(chosen))
    started = time.process_time()
    with network.mode(packing=way["packing"], training=True):
        for batch in lay_out(rows, chosen, kind="encoder", limit_tokens=LIMIT_TOKENS, **way).micro_batches:
            loss = network.run(batch).nll()
            (loss.sum() / len(chosen)).backward()  # type: ignore[no-untyped-call]
            losses[batch.row.numpy()] = loss.detach().numpy()
    seconds = time.process_time() - started
    network.model.zero_grad(set_to_none=True)
    return losses, seconds


def compared(source: str, method: str, folder: str, arguments: argparse.Namespace) -> dict[str, Any]:
    """All ways on one data set with one method."""
    count = (arguments.updates + 1) * arguments.rows_per_update
    rows, labels = rows_of(source, folder, count, arguments.seed)
    network = Network(model_of(folder, labels, method, arguments), "encoder")
    if not network.packs:
        raise SystemExit(f"{arguments.model} does not pack.")
    seconds: dict[str, list[float]] = {name: [] for name in WAYS}
    largest = 0.0
    for number in range(arguments.updates + 1):
        chosen = list(range(number * arguments.rows_per_update, (number + 1) * arguments.rows_per_update))
        names = list(WAYS)[number % len(WAYS) :] + list(WAYS)[: number % len(WAYS)]
        losses = {}
        for name in names:
            losses[name], taken = update(network, rows, chosen, WAYS[name])
            if number:  # the first warms up
                seconds[name].append(taken)
        largest = max(largest, *(float(np.abs(found - losses["padded"]).max()) for found in losses.values()))
    if largest > TOLERANCE:
        raise SystemExit(f"losses differ by {largest:.2g}: this is no comparison of speeds.")
    spent = {name: sum(values) for name, values in seconds.items()}
    lengths = np.array([len(row.ids) for row in rows]).reshape(-1, arguments.rows_per_update)
    padded = lengths.max(axis=1).sum() * arguments.rows_per_update
    return {
        "data": source, "method": method, "seconds": seconds, "largest_loss_difference": largest,
        "mean_tokens": float(lengths.mean()), "longest_tokens": int(lengths.max()),
        "padded_tokens_ratio": float(padded / lengths.sum()),
        "padded_ratio": spent["padded"] / spent["packed"],
        "padded_fours_ratio": spent["padded-fours"] / spent["packed"],
    }  # fmt: skip


def main() -> None:
    """Compare, print and record."""
    arguments = arguments_of()
    torch.set_num_threads(arguments.threads)
    folder = model_folder(arguments.model)
    found = []
    for source in arguments.data:
        for method in ("full", "lora"):
            found.append(compared(source, method, folder, arguments))
            one = found[-1]
            print(f"{source}, {method}: padded {one['padded_ratio']:.2f}, sorted in fours "
                  f"{one['padded_fours_ratio']:.2f} times the packed stream's time", flush=True)  # fmt: skip
    summary = {
        **{f"{one['data']}-{one['method']}": one["padded_ratio"] for one in found},
        "least_over_fours": min(one["padded_fours_ratio"] for one in found),
        "max_loss_difference": max(one["largest_loss_difference"] for one in found),
        "updates": arguments.updates,
        "rows_per_update": arguments.rows_per_update,
    }
    finish(arguments, "encoder_packing", summary, record(arguments, compared=found))


if __name__ == "__main__":
    main()
