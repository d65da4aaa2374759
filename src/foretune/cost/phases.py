"""How long each phase of a fit takes, as intervals: the parts that `forecast` adds up.

A step costs its operations at the machine's rate, a fixed cost for every layer and micro-batch (the time Python and
the kernels' launch take, which dominates for small models) and the optimiser's pass over the trained parameters.
What packed rows share is computed once per micro-batch (see `operations`). Generation reads all weights once a token,
so it is bound by memory traffic at small batches. The time budget pays for everything but the download of a model.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from foretune.cost.interval import ZERO, Interval
from foretune.cost.memory import weight_bytes
from foretune.cost.operations import (
    decoding_operations,
    head_copies,
    row_operations,
    rows_per_micro_batch,
    scoring_operations,
    shares_head,
)
from foretune.cost.rates import PROBE_FACTOR, seconds
from foretune.cost.request import ForecastRequest, RunSettings, SelectionWork

RUN_SECONDS = "run_seconds"
"""The quantity under which a run's forecast after the probe and its truth are remembered."""

# Seconds of dispatch for one layer and one micro-batch, forward and backward with adapters, or forward only.
_DISPATCH_S = {"cpu": (1.5e-3, 0.4e-3), "cuda": (0.9e-3, 0.25e-3)}
# The optimiser reads and writes masters, moments and gradients of every trained parameter once an update.
_UPDATE_BYTES = 40
_UPDATE_FACTOR = 2.0
COMPARISONS_PER_S = 1e9
"""Multiplications of comparing rows with each other, on two quiet cores."""
_COMPARISONS_FACTOR = 3.0
_IMPORT_S = Interval(2.0, 4.0, 9.0)  # torch, transformers and peft in a fresh worker
_LOAD_BYTES_PER_S = Interval(1e8, 4e8, 2e9)
_FETCH_BYTES_PER_S = Interval(1e6, 8e6, 6e7)
_TOKENISED_PER_S = Interval(1e5, 4e5, 1.5e6)  # tokens, chat template included
_READ_S = 0.5
_PROBE_STEPS = 3
_PROBE_ROWS = 64
_PROBE_ANSWERS = 16
_SCORED_TOGETHER = 64  # rows that are laid out at once when scoring
_TRAFFIC_BYTES_PER_S = {"cpu": Interval(5e9, 1.5e10, 5e10), "cuda": Interval(3e11, 8e11, 2.5e12)}
_DECODE_BATCH = 64  # rows that are answered together, on average over a batch whose rows end one by one
_CANDIDATES = 2  # best configurations whose loss is taken again on all validation rows
_COMPARED = 3  # base, default LoRA, winner
_GENERAL_ROWS = 128  # rows of general text, before and after: what was forgotten
_EXPORT_BYTES_PER_S = Interval(5e7, 2e8, 1e9)
_EXPORT_S = 1.0  # the files of the adapter
_VERIFIED_ANSWERS = 32  # a few answers, one after another
_ANSWER_LIMIT_FACTOR = 4.0  # the longest training answer, doubled, in mean answers
_ANSWER_FACTOR = 1.6  # one batch of a probe is few and short


@dataclass(frozen=True)
class Phase:
    """A part of the fit and its seconds; ``in_budget`` when the time budget pays for it."""

    name: str
    seconds: Interval
    in_budget: bool = True


@dataclass(frozen=True)
class UnitTimes:
    """Seconds of the grains everything is made of."""

    step: Interval
    """One optimiser step"""
    score_row: Interval
    generate_row: Interval
    train_tokens_per_s: Interval
    score_tokens_per_s: Interval


def unit_times(request: ForecastRequest, run: RunSettings | None = None) -> UnitTimes:
    """Seconds per step of ``run`` (the advised one if None) and per evaluated row, from rates or a probe."""
    row, run = request.data.row, run or request.run
    if request.measured is not None:
        train_token = Interval.around(1.0 / request.measured.train_tokens_per_s, PROBE_FACTOR)
        score_token = Interval.around(1.0 / request.measured.score_tokens_per_s, PROBE_FACTOR)
        train_token = train_token.times(_relative_cost(request, run))
    else:
        train_token, score_token = _token_times(request, run)
    step = train_token.times(run.rows_per_update * row.total)
    score_row = score_token.times(row.total)
    return UnitTimes(
        step=step,
        score_row=score_row,
        generate_row=_generation(request, score_token),
        train_tokens_per_s=_inverse(train_token),
        score_tokens_per_s=_inverse(score_token),
    )


def _inverse(interval: Interval) -> Interval:
    return Interval(1 / interval.high, 1 / interval.value, 1 / interval.low)


def _relative_cost(request: ForecastRequest, run: RunSettings) -> float:
    """How much longer a token of ``run`` takes than one of the first run, which is what a probe measures."""
    if run == request.first_run:
        return 1.0
    return _token_times(request, run)[0].value / _token_times(request, request.first_run)[0].value


def train_copies(request: ForecastRequest, run: RunSettings) -> float:
    """How often a row of an update of ``run`` pays for the head that packed rows share."""
    layout, shapes = request.layout, request.shapes
    noisy = shapes.dropout or shapes.attention_dropout or layout.adapter_dropout
    shared = shares_head(shapes, noisy=noisy)
    return head_copies(request.data.row, run.rows_per_update, layout.micro_batch_tokens, shared=shared)


def score_copies(request: ForecastRequest) -> float:
    """The same for a row that is scored: dropout is off there."""
    shared = shares_head(request.shapes, noisy=False)
    return head_copies(request.data.row, _SCORED_TOGETHER, request.layout.micro_batch_tokens, shared=shared)


def _token_times(request: ForecastRequest, run: RunSettings) -> tuple[Interval, Interval]:
    """Seconds per real token of training and of scoring, before anything was measured."""
    shapes, row, layout = request.shapes, request.data.row, request.layout
    operations = row_operations(
        shapes, row, trainable=run.trainable, full=run.full, checkpointing=layout.gradient_checkpointing,
        copies=train_copies(request, run),
    )  # fmt: skip
    train = seconds(operations.training / row.total, request.rates.train)
    score = seconds(scoring_operations(shapes, row, copies=score_copies(request)) / row.total, request.rates.score)
    shared = shares_head(shapes, noisy=False)
    dispatch = [
        Interval.around(
            one * shapes.total_layers
            / (rows_per_micro_batch(row, rows, layout.micro_batch_tokens, shared=shared) * row.total),
            2.0,
        )
        for one, rows in zip(_DISPATCH_S[layout.device], (run.rows_per_update, _SCORED_TOGETHER), strict=True)
    ]  # fmt: skip
    optimiser = seconds(_UPDATE_BYTES * run.trainable, _TRAFFIC_BYTES_PER_S[layout.device])
    passes = (train + dispatch[0]).times(run.step_factor)
    return passes + optimiser.times(1 / (run.rows_per_update * row.total)), score + dispatch[1]


def _generation(request: ForecastRequest, score_token: Interval) -> Interval:
    """Seconds to read one prompt and generate its answer, within a batch; its loss is not included."""
    if request.measured is not None and request.measured.answer_s > 0:
        return Interval.around(request.measured.answer_s, _ANSWER_FACTOR)
    shapes, layout, settings = request.shapes, request.layout, request.evaluation
    answer = min(float(settings.max_answer_tokens), request.data.row.answer)
    dispatch = Interval.around(_DISPATCH_S[layout.device][1] * shapes.total_layers, 2.0)
    one_pass = seconds(weight_bytes(shapes, layout), _TRAFFIC_BYTES_PER_S[layout.device]) + dispatch
    per_token = one_pass.times(1 / _DECODE_BATCH) + seconds(decoding_operations(shapes), request.rates.score)
    # a batch waits for its longest answer, which may be twice the longest of the training rows or the limit
    limit = min(float(settings.max_answer_tokens), _ANSWER_LIMIT_FACTOR * max(answer, 1.0))
    longest = Interval(answer, max(answer, min(1.5 * answer, limit)), max(answer, limit))
    spread = Interval(per_token.low * longest.low, per_token.value * longest.value, per_token.high * longest.high)
    return score_token.times(request.data.row.prompt) + spread


def evaluation_seconds(request: ForecastRequest, units: UnitTimes, rows: int, *, generate: bool) -> Interval:
    """Seconds to evaluate ``rows`` rows: their likelihood, and their generated answers where asked."""
    scored = units.score_row.times(rows)
    return scored + units.generate_row.times(rows) if generate and request.evaluation.generation else scored


def _retrieval_seconds(request: ForecastRequest, units: UnitTimes, rows: int) -> Interval:
    """The base with examples in its prompt: each adds a row's length to the prompt."""
    examples = request.evaluation.retrieved_examples
    if not examples or not request.evaluation.generation:
        return ZERO
    return evaluation_seconds(request, units, rows, generate=True).times(1 + examples)


def run_seconds(request: ForecastRequest, units: UnitTimes, steps: float) -> Interval:
    """A run of ``steps`` steps with the evaluations on its way."""
    settings = request.evaluation
    every_rung = sum(min(request.data.validation_rows, rows) for rows in settings.rung_rows)
    scored = every_rung if settings.rung_scored is None else settings.rung_scored
    answered = settings.rung_answers
    plain = units.step.times(steps) + units.score_row.times(scored)
    plain = plain + (units.generate_row + units.score_row).times(answered) if answered else plain
    return request.correction.apply(RUN_SECONDS, plain)


def fixed_phases(request: ForecastRequest, units: UnitTimes) -> tuple[list[Phase], list[Phase]]:
    """The phases before and after the trials."""
    data, settings = request.data, request.evaluation
    validation = min(data.validation_rows, settings.max_rows)
    base = evaluation_seconds(request, units, validation, generate=False)
    if request.spent_s:
        before = [Phase("until the probe ended", Interval.exactly(request.spent_s))]
    else:
        before = _opening(request, units)
    before.append(Phase("base model", base))
    if request.selection is not None:
        before.append(Phase("selection", selection_seconds(request.selection, units)))
    test = min(data.test_rows, settings.max_rows)
    compared = evaluation_seconds(request, units, test, generate=True).times(_COMPARED)
    compared = compared + _retrieval_seconds(request, units, test)
    if request.shapes.kind == "causal":
        compared = compared + units.score_row.times(_GENERAL_ROWS)
    after = [
        Phase("re-evaluation", base.times(_CANDIDATES)),
        Phase("comparison", compared),
        Phase("export", _export(request, units)),
    ]
    return before, after


def selection_seconds(work: SelectionWork, units: UnitTimes) -> Interval:
    """Seconds that choosing the rows takes."""
    scored = seconds_of_tokens(work.scored_tokens, units.score_tokens_per_s)
    trained = seconds_of_tokens(work.trained_tokens, units.train_tokens_per_s)
    return scored + trained + Interval.around(work.comparisons / COMPARISONS_PER_S, _COMPARISONS_FACTOR)


def seconds_of_tokens(tokens: float, per_s: Interval) -> Interval:
    """Seconds for ``tokens`` at a speed."""
    return Interval(tokens / per_s.high, tokens / per_s.value, tokens / per_s.low)


def _opening(request: ForecastRequest, units: UnitTimes) -> list[Phase]:
    """What happens until the probe has ended."""
    data = request.data
    tokens = (data.train_rows + data.validation_rows + data.test_rows) * data.row.total
    phases = [Phase("read and tokenise", seconds(tokens, _TOKENISED_PER_S) + Interval.exactly(_READ_S))]
    if request.fetch_bytes:
        phases.append(Phase("fetch the model", seconds(request.fetch_bytes, _FETCH_BYTES_PER_S), False))
    probe = unit_times(request, request.first_run).step.times(_PROBE_STEPS) + units.score_row.times(_PROBE_ROWS)
    if request.evaluation.generation:
        probe = probe + (units.generate_row + units.score_row).times(_PROBE_ANSWERS)
    return [*phases, Phase("load the model", _loading(request)), Phase("probe", probe)]


def _loading(request: ForecastRequest) -> Interval:
    if request.measured is not None and request.measured.load_s > 0:
        return Interval.around(request.measured.load_s, PROBE_FACTOR)
    plain = replace(request.layout, quantize="none")
    return _IMPORT_S + seconds(weight_bytes(request.shapes, plain), _LOAD_BYTES_PER_S)


def _export(request: ForecastRequest, units: UnitTimes) -> Interval:
    """Writing, and loading what was written once more to see that it answers as here."""
    written = export_bytes(request)
    loaded = seconds(weight_bytes(request.shapes, request.layout), _LOAD_BYTES_PER_S)
    answers = units.generate_row.times(_VERIFIED_ANSWERS)
    return seconds(written, _EXPORT_BYTES_PER_S) + Interval.around(_EXPORT_S, 2.0) + loaded + answers


def export_bytes(request: ForecastRequest) -> float:
    """Bytes of what is handed over: the adapter, and the merged model where it is wanted."""
    width = request.layout.width_bytes
    adapter = 0.0 if request.run.full else float(request.run.trainable * 4)
    merged = request.shapes.parameters * width
    copies = {"adapter": 0, "merged": 1, "gguf": 2}[request.deploy]
    return adapter + merged * (max(1, copies) if request.run.full else copies)
