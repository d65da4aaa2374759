"""What a worker can do: train a lease, probe the machine, evaluate a system, export the winner.

Each handler takes the bench, the job's payload and two callbacks, and returns a JSON result. Long results go to a
file named in the payload, written whole.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import numpy as np

from foretune.data.update import Epochs
from foretune.errors import DataError
from foretune.evaluation.base import Answer
from foretune.evaluation.forgetting import general_text
from foretune.evaluation.retrieval import retrieve
from foretune.execution.bench import Bench
from foretune.execution.blocks import carry_out
from foretune.execution.final import restored
from foretune.execution.kept import kept
from foretune.execution.memory import forget_peak, peak_memory_bytes
from foretune.execution.orders import TrialOrder, subset
from foretune.execution.trial import Trial, loop_settings, loss_of
from foretune.export.adapter import export_adapter
from foretune.export.verify import DEFAULT_PROBES, answer_probes, verify
from foretune.files import write_json
from foretune.methods.base import Attachment
from foretune.models.fetch import folder_of
from foretune.search.types import Lease
from foretune.selection.base import SelectionStopped
from foretune.training.forward import Network
from foretune.training.loop import StepReport, Training
from foretune.training.ranks import ranks_of

Report = Callable[[str, Mapping[str, Any]], None]
Stopped = Callable[[], bool]

PROBE_UPDATES = 3
"""Updates that the probe times; the first warms up and is not counted."""
PROBE_S = 6.0
"""Seconds of timed updates that are enough: on a slow machine one update is a sizeable part of a small budget."""
PROBE_ANSWERS = 16
"""Answers that the probe times: a batch, as the evaluation writes them."""
OBSERVED_ROWS = 32
"""Validation rows that a method's statistics (the gates of LoRATRF) are counted on."""
NOT_VERIFIED = "encoder\u2013decoders and 4-bit bases are not loaded again to compare"


def train(bench: Bench, payload: Mapping[str, Any], report: Report, stopped: Stopped) -> dict[str, Any]:
    """Carry out a `TrialOrder`; the result is the final observation."""
    return Trial(bench, TrialOrder.from_json(payload), report=report, stopped=stopped).run().to_json()


def probe(bench: Bench, payload: Mapping[str, Any], report: Report, stopped: Stopped) -> dict[str, Any]:
    """Measure the base loss and the speed of training, scoring and answering under ``payload["config"]``."""
    started = time.perf_counter()
    forget_peak()
    validation = bench.split("validation").rows
    count = min(int(payload["rows"]), len(validation))
    chosen = subset(count, len(validation), bench.task.seed)
    bench.score(bench.network, "validation", chosen[:2])  # the first pass warms up
    scoring = time.perf_counter()
    scores = bench.score(bench.network, "validation", chosen)
    score_s = time.perf_counter() - scoring
    report("beat", {})
    steps: list[StepReport] = []
    config = payload["config"]
    lease = Lease("probe", 0, "probe", config, 0, PROBE_UPDATES, 0.0, horizon=PROBE_UPDATES)
    rows = bench.split("train").rows
    with bench.attached(config, 0) as (attachment, network):
        source = Epochs(len(rows), int(config["rows_per_update"]), 0)
        training = Training(
            network, attachment, rows, source, loop_settings(lease, bench), backward=bench.accelerator.backward,
            ranks=ranks_of(bench.accelerator),
        )  # fmt: skip

        def unsure(step: StepReport) -> bool:
            steps.append(step)
            return sum(timed.seconds for timed in steps[1:]) < PROBE_S

        training.run(PROBE_UPDATES, on_step=unsure)
        trained = [i for step in range(1, len(steps)) for i in source.rows(step)]
        trainable = attachment.statistics()["trainable_parameters"]
    report("beat", {})
    answering = time.perf_counter()
    generated = 0
    if payload["generation"] and bench.kind != "encoder":
        answers = bench.answers(bench.network, "validation", chosen[:PROBE_ANSWERS], generation=True)
        generated = len(answers)
    answer_s = time.perf_counter() - answering
    row_tokens = [_row_tokens(row) for row in rows]
    encoded, remarks = bench.encoding_report(("train", "validation"))
    return {
        "base_loss": loss_of(scores).value,
        "score_rows_per_s": count / score_s,
        "score_tokens_per_s": sum(_row_tokens(validation[i]) for i in chosen) / score_s,
        "train_rows_per_s": len(trained) / sum(step.seconds for step in steps[1:]),
        "train_tokens_per_s": sum(row_tokens[i] for i in trained) / sum(step.seconds for step in steps[1:]),
        "answer_s": answer_s / generated if generated else 0.0,
        "mean_row_tokens": float(np.mean(row_tokens)),
        "trainable_parameters": int(trainable),
        "peak_bytes": peak_memory_bytes(bench.accelerator.device),
        "packed": bench.network.packs,
        "weights_hash": bench.weights_hash,
        "encoding": encoded,
        "template": remarks,
        "seconds": time.perf_counter() - started,
    }


def select(bench: Bench, payload: Mapping[str, Any], report: Report, stopped: Stopped) -> dict[str, Any]:
    """Rank the training rows for ``payload["config"]``, so that trials find the ranking; the result is what it took.

    ``rows`` limits the pool, ``seed`` is the selection's. ``complete`` is false when told to stop: what was scored is
    kept.
    """

    def on_progress(what: str, done: int, total: int) -> None:
        report("beat", {"selecting": what, "done": done, "of": total})

    try:
        found = kept(
            bench,
            payload["config"],
            pool=payload.get("rows"),
            seed=int(payload["seed"]),
            stopped=stopped,
            on_progress=on_progress,
        )
    except SelectionStopped:
        return {"complete": False}
    return {"complete": True, **found.to_json()}


def block(bench: Bench, payload: Mapping[str, Any], report: Report, stopped: Stopped) -> dict[str, Any]:
    """One block of a selection's work (see `execution.blocks`)."""
    return carry_out(bench, payload)


def _row_tokens(row: Any) -> int:
    return len(row.ids) + (0 if row.decoder_ids is None else len(row.decoder_ids))


def evaluate(bench: Bench, payload: Mapping[str, Any], report: Report, stopped: Stopped) -> dict[str, Any]:
    """Score one system on the ``rows`` (indices) of a split and write its answers to ``payload["output"]``.

    The system is the base, the base with ``shots`` retrieved examples in the prompt, or the checkpoint of a run.
    ``forgetting`` adds the losses on the general text sample, ``previous`` those on these of the earlier rows.
    """
    started = time.perf_counter()

    def on_chunk(done: int) -> bool:
        report("beat", {"evaluated": done})
        return not stopped()

    def measure(network: Any) -> dict[str, Any]:
        chosen = [int(row) for row in payload["rows"]]
        split = payload["split"]
        shots = None
        if payload.get("shots"):
            part = bench.split(split)
            found = retrieve(bench.split("train").examples, [part.examples[i] for i in chosen], int(payload["shots"]))
            shots = dict(zip(chosen, found, strict=True))
        answers = bench.answers(
            network, split, chosen, generation=bool(payload["generation"]), shots=shots, on_chunk=on_chunk
        )
        general = _general_losses(bench, network, on_chunk) if payload.get("forgetting") else None
        known, refused = _previous_losses(bench, network, payload.get("previous", ()), on_chunk)
        return {
            "answers": [answer.to_json() for answer in answers],
            "wanted": len(chosen),
            "general": general,
            "previous": known,
            "previous_refused": refused,
            "complete": not stopped(),
        }

    if payload.get("run_folder"):
        with _restored(bench, payload) as (_, network):
            result = measure(network)
    else:
        result = measure(bench.network)
    write_json(Path(payload["output"]), result)
    return {"output": payload["output"], "done": len(result["answers"]), "seconds": time.perf_counter() - started}


def _general_losses(bench: Bench, network: Any, on_chunk: Callable[[int], bool]) -> list[list[float]]:
    """[nll, tokens] of every paragraph of the general text sample; none where time ended before the last.

    What two systems scored of it in part could not be compared: the longest paragraphs come first.
    """

    if bench.kind != "causal":
        return []
    rows = bench.encode_texts(general_text())
    scores = bench.score_encoded(network, rows, range(len(rows)), on_chunk)
    return [[score.nll, float(score.tokens)] for score in scores] if len(scores) == len(rows) else []


def _previous_losses(
    bench: Bench, network: Any, rows: Sequence[int], on_chunk: Callable[[int], bool]
) -> tuple[list[list[float]], str]:
    """[nll, tokens] of rows that the model was trained on before, none where time ended; and why there can be none.

    They need not be rows of this task in every respect (labels of their own, say), which is no reason to end a fit.
    """
    if not rows:
        return [], ""
    try:
        found = bench.answers(network, "previous", [int(row) for row in rows], generation=False, on_chunk=on_chunk)
    except DataError as error:
        return [], error.paragraph()
    losses = [[one.nll, float(one.tokens)] for one in found if one.nll is not None]
    return losses if len(losses) == len(rows) else [], ""


def _restored(bench: Bench, payload: Mapping[str, Any]) -> AbstractContextManager[tuple[Attachment, Network]]:
    config, seed = payload["config"], int(payload["seed"])
    return restored(bench, config, seed, Path(payload["run_folder"]), int(payload["step"]))


def export(bench: Bench, payload: Mapping[str, Any], report: Report, stopped: Stopped) -> dict[str, Any]:
    """Write the adapter of a run's checkpoint to ``payload["output"]`` and check that it answers as here.

    The check loads what was written afresh; the bench lets go of its own model first, so that one fits where one fits.
    Raises `ModelError` (and leaves nothing) when the written folder answers differently.
    """
    output = Path(payload["output"])
    with _restored(bench, payload) as (attachment, network):
        export_adapter(attachment, output, tokenizer=bench.tokenizer, base_model=payload["base"])
        with attachment.observed():
            validation = len(bench.split("validation").rows)
            bench.score(network, "validation", subset(min(OBSERVED_ROWS, validation), validation, bench.task.seed))
        statistics = attachment.statistics()
        if bench.kind == "seq2seq" or bench.quantized:
            return {"output": str(output), "statistics": statistics, "verified": None, "detail": NOT_VERIFIED}
        reference = answer_probes(network.model, bench.tokenizer, DEFAULT_PROBES)
    report("beat", {})
    dtype = str(bench.model.dtype).removeprefix("torch.")
    base = folder_of(bench.folder_or_id, bench.task.model.revision)
    bench.unload()
    check = verify(reference, output, DEFAULT_PROBES, dtype=dtype, base=base, labels=bench.task.labels)
    return {"output": str(output), "statistics": statistics, "verified": True, "detail": check.detail}


Handler = Callable[[Bench, Mapping[str, Any], Report, Stopped], dict[str, Any]]
HANDLERS: dict[str, Handler] = {
    "train": train,
    "probe": probe,
    "select": select,
    "block": block,
    "evaluate": evaluate,
    "export": export,
}


def answers_from(path: Path) -> list[Answer]:
    """The answers that `evaluate` wrote."""
    from foretune.files import read_json

    return [Answer(**value) for value in read_json(path)["answers"]]
