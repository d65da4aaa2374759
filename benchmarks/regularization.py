"""What regularizers cost a step, and what the norm form of the Fisher information saves, as ratios in one run.

    python benchmarks/regularization.py            # about twenty minutes on one quiet core
    python benchmarks/regularization.py --quick    # does it work

Step time: updates of plain dropout 0.1 and of each regularizer take turns on the same model, rows and seeds, in
processor time; a ratio is the median over pairs of neighbouring updates. R-Drop and KL to the base are taken over the
same dropout. KL to the base is measured twice: asking the base at every update, and with the base's states kept.
Flat-LoRA is measured at 32 rows an update, and beside that against no regularizer, where packed rows share their head
and fused layers are in use. Applying known rates: seconds from a rates file to a model whose every place drops, for
both models, and of the process ``foretune regularize show``. Fisher: a loop of single samples with all weight
gradients, against one pass of batches through activations, on the same texts; means have to agree.
"""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

from common import finish, median, parser, record

from foretune.catalogue.models import ModelReference

ENCODER = "all-MiniLM-L6-v2"
PLAIN = "dropout:0.1"
AGREEMENT = 1e-3
"""Largest relative difference of a tensor's mean: float32 sums in another order, over whole models."""

NOTHING = 1e-6
"""Means below this share of the largest are rounding."""


def rows_of(bench_rows: int, tokenizer: Any, kind: str) -> list[Any]:
    """Encoded rows: facts for a decoder, general passages with made-up classes for an encoder."""
    import json

    import numpy as np

    from foretune.data.corpora import FACTS
    from foretune.data.encode import EncodedRow, encode_rows
    from foretune.data.example import Example, Turn

    lines = [json.loads(line) for line in FACTS.read_text(encoding="utf-8").splitlines()[:bench_rows]]
    if kind == "causal":
        examples = [
            Example((Turn("user", row["question"]), Turn("assistant", row["answer"])), targets=(1,)) for row in lines
        ]
        return encode_rows(examples, tokenizer, kind="causal", task="generation", context_tokens=256)
    found = []
    for number, row in enumerate(lines):
        ids = np.array(tokenizer(row["question"] + " " + row["answer"])["input_ids"], dtype=np.int32)
        found.append(EncodedRow(ids, np.zeros(len(ids), dtype=bool), len(ids), 1, label=number % 2))
    return found


class Runner:
    """One configuration under training, one update at a time."""

    def __init__(
        self, loaded: Any, rows: Sequence[Any], config: dict[str, Any], rows_per_update: int, seed: int
    ) -> None:
        from foretune.catalogue.methods import resolve
        from foretune.data.update import Epochs
        from foretune.methods.registry import get
        from foretune.regularization.registry import build
        from foretune.seeding import torch_generator
        from foretune.training.forward import Network
        from foretune.training.loop import LoopSettings, Training
        from foretune.training.optimizer import OptimizerSettings

        complete = resolve(config)
        attached = get(str(complete["method"])).attach(loaded.model, complete, generator=torch_generator(seed, "init"))
        self.attached = attached
        settings = LoopSettings(
            OptimizerSettings(1e-5, 1000, warmup_share=0.0), seed, micro_batch_tokens=4096,
            base_hash=loaded.weights_hash, base_source=loaded.folder_or_id,
        )  # fmt: skip
        network = Network(attached.model, loaded.kind)
        self.training = Training(
            network, attached, rows, Epochs(len(rows), rows_per_update, seed), settings, build(complete)
        )

    def update(self) -> float:
        """Processor seconds of one update."""
        started = time.process_time()
        if self.training.run(self.training.step + 1) != "ok":
            raise RuntimeError("an update failed")
        return time.process_time() - started

    def close(self) -> None:
        """Leave the base as it was."""
        self.training.close()
        self.attached.detach()


def ratio(
    load: Callable[[], Any], kind: str, regularizer: str, arguments: Any, *, method: str = "lora",
    rows_per_update: int = 16, more: dict[str, Any] | None = None, base: str = PLAIN, updates: int, rows: int,
) -> list[float]:  # fmt: skip
    """Step-time ratios of ``regularizer`` over ``base``, update by update in turn; both have warmed up."""
    pairs = []
    for text, extra in ((base, {}), (regularizer, more or {})):
        loaded = load()
        encoded = rows_of(rows, loaded.tokenizer, kind)
        config = {"method": method, "regularizer": text, **extra}
        pairs.append(Runner(loaded, encoded, config, rows_per_update, arguments.seed))
    warm_up = max(2, -(-rows // rows_per_update))  # one epoch: kept states are there afterwards
    for runner in pairs:
        for _ in range(warm_up):
            runner.update()
    found = []
    for number in range(updates):
        order = pairs if number % 2 else pairs[::-1]  # who goes first changes
        seconds = {id(runner): runner.update() for runner in order}
        found.append(seconds[id(pairs[1])] / seconds[id(pairs[0])])
    for runner in pairs:
        runner.close()
    return found


def fisher(name: str, samples: int, arguments: Any) -> dict[str, Any]:
    """Seconds of both forms on the same texts, and the largest relative difference of a tensor's mean."""
    from foretune.evaluation.forgetting import general_text
    from foretune.regularization.fisher.model_rates import load_for_fisher, source_of
    from foretune.regularization.fisher.per_sample import diagonal
    from foretune.regularization.fisher.scores import tensor_means

    loaded, variant = load_for_fisher(ModelReference(name))
    source = source_of(loaded, variant, context_tokens=64)
    chosen = source.of_texts([example.turns[0].content for example in general_text()])[:samples]
    tensor_means(loaded.model, source, chosen[:2], limit_tokens=512)  # warms up
    started = time.process_time()
    norms = tensor_means(loaded.model, source, chosen, limit_tokens=2048)
    middle = time.process_time()
    loaded.model.requires_grad_(True)
    batches = list(source.batches(chosen, 1))
    plain = diagonal(loaded.model, [batch.loss for batch in batches])
    ended = time.process_time()
    largest = max(norms.means.values())  # a key's bias has no gradient but rounding, which needs no agreement
    apart = max(
        abs(float(plain[key].mean()) - value) / max(float(plain[key].mean()), NOTHING * largest)
        for key, value in norms.means.items()
    )
    if apart > AGREEMENT:
        raise RuntimeError(f"the two forms differ by {apart:.2g}")
    return {"model": name, "samples": len(chosen), "norm_s": middle - started, "loop_s": ended - middle,
            "speedup": (ended - middle) / (middle - started), "largest_difference": apart}  # fmt: skip


def applied_s(loaded: Any, kind: str) -> float:
    """Seconds from the file of a base's rates to the model with a rate at every place: no data, no gradient."""
    from types import SimpleNamespace

    from foretune.regularization.guided_dropout import GuidedDropout
    from foretune.training.forward import Network

    context: Any = SimpleNamespace(
        model=loaded.model, base_hash=loaded.weights_hash, base_source=loaded.folder_or_id, seed=0,
        runner=Network(loaded.model, kind),
    )  # fmt: skip
    started = time.perf_counter()
    guided = GuidedDropout()
    plan = guided.check(context)
    if plan.refusal:
        raise RuntimeError(plan.refusal)
    guided.setup(context)
    took = time.perf_counter() - started
    guided.teardown()
    return took


def shown_s() -> float:
    """Seconds of a new process that shows the rates of a model, the better of two."""
    command = [sys.executable, "-m", "foretune", "regularize", "show", ENCODER]
    found = []
    for _ in range(2):
        started = time.perf_counter()
        subprocess.run(command, check=True, capture_output=True)
        found.append(time.perf_counter() - started)
    return min(found)


def main() -> int:
    """Measure, print, write."""
    options = parser(__doc__)
    options.add_argument("--updates", type=int, default=20, help="timed updates of each configuration")
    arguments = options.parse_args()
    import torch

    from foretune.models.load import load

    torch.set_num_threads(arguments.threads)
    quick = arguments.quick
    updates, rows = (1, 8) if quick else (arguments.updates, 64)
    decoder = arguments.model

    def decoder_model() -> Any:
        return load(ModelReference(decoder, dtype="auto"))

    def encoder_model() -> Any:
        return load(ModelReference(ENCODER, kind="encoder", dtype="float32"), labels=("a", "b"))

    common = {"updates": updates, "rows": rows}
    measured = {
        "guided": ratio(encoder_model, "encoder", "guided-dropout", arguments, method="full", **common),
        "r_drop": ratio(encoder_model, "encoder", f"{PLAIN},r-drop:1", arguments, method="full", **common),
    }
    if not quick:
        measured["guided_decoder"] = ratio(decoder_model, "causal", "guided-dropout", arguments, **common)
        measured["r_drop_decoder"] = ratio(decoder_model, "causal", f"{PLAIN},r-drop:1", arguments, **common)
    small = {"updates": updates, "rows": rows, "rows_per_update": 4 if quick else 16}
    measured["kl_to_base"] = ratio(
        decoder_model, "causal", f"{PLAIN},kl-to-base:0.1", arguments, more={"kl-to-base.cache_mib": 0}, **small
    )
    if not quick:
        measured["kl_to_base_kept"] = ratio(decoder_model, "causal", f"{PLAIN},kl-to-base:0.1", arguments, **small)
    large = {"updates": updates, "rows": rows, "rows_per_update": 4 if quick else 32}
    measured["flat_lora"] = ratio(decoder_model, "causal", "flat-lora", arguments, **large)
    if not quick:
        measured["flat_lora_to_none"] = ratio(decoder_model, "causal", "flat-lora", arguments, base="none", **large)
    applied = {"encoder": applied_s(encoder_model(), "encoder"), "decoder": applied_s(decoder_model(), "causal")}
    speed = fisher(ENCODER, 8 if quick else 60, arguments)
    summary = {name: round(median(values), 3) for name, values in measured.items()}
    summary["fisher_speedup"] = round(speed["speedup"], 2)
    summary["rates_applied_s"] = round(max(applied.values()), 3)
    summary["rates_shown_s"] = round(shown_s(), 3)
    details = record(arguments, decoder=decoder, encoder=ENCODER, updates=updates, rows=rows,
                     ratios=measured, fisher=speed, rates_applied_s=applied)  # fmt: skip
    finish(arguments, "regularization", summary, details)
    return 0


if __name__ == "__main__":
    sys.exit(main())
