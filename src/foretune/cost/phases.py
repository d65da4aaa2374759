"""How long each phase of a fit takes, as intervals: the parts that `forecast` adds up.

A step costs its operations at the machine's rate plus a fixed cost for every layer and micro-batch (the time Python
and the kernels' launch take, which dominates for small models). Generation reads all weights once a token, so it is
bound by memory traffic at small batches. What is counted in the time budget follows `interfaces.md`: probe, base
evaluation, trials, re-evaluation and comparison; loading, tokenising and the export are not.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from foretune.cost.interval import Interval
from foretune.cost.memory import weight_bytes
from foretune.cost.operations import decoding_operations, row_operations, scoring_operations
from foretune.cost.rates import PROBE_FACTOR, seconds
from foretune.cost.request import ForecastRequest

# Seconds of dispatch for one layer and one micro-batch, forward and backward with adapters, or forward only.
_DISPATCH_S = {"cpu": (1.5e-3, 0.4e-3), "cuda": (0.9e-3, 0.25e-3)}
_IMPORT_S = Interval(2.0, 4.0, 9.0)  # torch, transformers and peft in a fresh worker
_LOAD_BYTES_PER_S = Interval(1e8, 4e8, 2e9)
_FETCH_BYTES_PER_S = Interval(1e6, 8e6, 6e7)
_TOKENISED_PER_S = Interval(1e5, 4e5, 1.5e6)  # tokens, chat template included
_READ_S = 0.5
_PROBE_STEPS = 3
_PROBE_ROWS = 16
_TRAFFIC_BYTES_PER_S = {"cpu": Interval(5e9, 1.5e10, 5e10), "cuda": Interval(3e11, 8e11, 2.5e12)}
_DECODE_BATCH = {"cpu": 8, "cuda": 64}
_CANDIDATES = 3  # best configurations that are evaluated again
_COMPARED = 3  # base, default LoRA, winner
_EXPORT_BYTES_PER_S = Interval(5e7, 2e8, 1e9)
_EXPORT_S = 1.0  # the files of the adapter and their check


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


def unit_times(request: ForecastRequest) -> UnitTimes:
    """Seconds per step and per evaluated row, from the rates or from what a probe measured."""
    row, run = request.data.row, request.run
    if request.measured is not None:
        train_token = Interval.around(1.0 / request.measured.train_tokens_per_s, PROBE_FACTOR)
        score_token = Interval.around(1.0 / request.measured.score_tokens_per_s, PROBE_FACTOR)
    else:
        train_token, score_token = _token_times(request)
    train_token = request.correction.apply("seconds_per_token", train_token)
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


def _token_times(request: ForecastRequest) -> tuple[Interval, Interval]:
    """Seconds per real token of training and of scoring, before anything was measured."""
    shapes, row, layout = request.shapes, request.data.row, request.layout
    operations = row_operations(
        shapes, row, trainable=request.run.trainable, full=request.run.full,
        checkpointing=layout.gradient_checkpointing,
    )  # fmt: skip
    train = seconds(operations.training / row.total, request.rates.train)
    score = seconds(scoring_operations(shapes, row) / row.total, request.rates.score)
    train_dispatch, score_dispatch = _DISPATCH_S[layout.device]
    per_micro_batch = max(1.0, min(layout.micro_batch_tokens, request.run.rows_per_update * row.total))
    layers = shapes.total_layers
    return (
        train + Interval.around(train_dispatch * layers / per_micro_batch, 2.0),
        score + Interval.around(score_dispatch * layers / per_micro_batch, 2.0),
    )


def _generation(request: ForecastRequest, score_token: Interval) -> Interval:
    """Seconds to read one prompt and generate its answer, within a batch."""
    shapes, layout, settings = request.shapes, request.layout, request.evaluation
    batch = _DECODE_BATCH[layout.device]
    answer = min(float(settings.max_answer_tokens), request.data.row.answer)
    dispatch = Interval.around(_DISPATCH_S[layout.device][1] * shapes.total_layers, 2.0)
    one_pass = seconds(weight_bytes(shapes, layout), _TRAFFIC_BYTES_PER_S[layout.device]) + dispatch
    per_token = one_pass.times(1 / batch) + seconds(decoding_operations(shapes), request.rates.score)
    # a batch waits for its longest answer, which may run into the limit
    longest = Interval(answer, min(1.5 * answer, settings.max_answer_tokens), float(settings.max_answer_tokens))
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
        return Interval.exactly(0.0)
    longer = units.score_row.times(rows * examples)
    return longer + evaluation_seconds(request, units, rows, generate=True)


def default_run_seconds(request: ForecastRequest, units: UnitTimes) -> Interval:
    """One full run of the first configuration with the evaluations on its way (likelihood only)."""
    steps = request.run.steps(request.data.train_rows)
    rows = min(request.data.validation_rows, request.evaluation.max_rows)
    once = evaluation_seconds(request, units, rows, generate=False)
    return units.step.times(steps) + once.times(request.evaluation.rungs)


def fixed_phases(request: ForecastRequest, units: UnitTimes) -> tuple[list[Phase], list[Phase]]:
    """The phases before and after the trials."""
    data, settings = request.data, request.evaluation
    tokens = (data.train_rows + data.validation_rows + data.test_rows) * data.row.total
    validation = min(data.validation_rows, settings.max_rows)
    base = evaluation_seconds(request, units, validation, generate=True)
    base = base + _retrieval_seconds(request, units, validation)
    before = [Phase("read and tokenise", seconds(tokens, _TOKENISED_PER_S) + Interval.exactly(_READ_S), False)]
    if request.fetch_bytes:
        before.append(Phase("fetch the model", seconds(request.fetch_bytes, _FETCH_BYTES_PER_S), False))
    probe = units.step.times(_PROBE_STEPS) + units.score_row.times(_PROBE_ROWS)
    before += [Phase("load the model", _loading(request), False), Phase("probe", probe), Phase("base model", base)]
    again = evaluation_seconds(request, units, validation, generate=True).times(_CANDIDATES)
    test = min(data.test_rows, settings.max_rows)
    compared = evaluation_seconds(request, units, test, generate=True).times(_COMPARED)
    compared = compared + _retrieval_seconds(request, units, test)
    after = [
        Phase("re-evaluation", again),
        Phase("comparison", compared),
        Phase("export", _export(request, units), False),
    ]
    return before, after


def _loading(request: ForecastRequest) -> Interval:
    if request.measured is not None and request.measured.load_s > 0:
        return Interval.around(request.measured.load_s, PROBE_FACTOR)
    plain = replace(request.layout, quantize="none")
    return _IMPORT_S + seconds(weight_bytes(request.shapes, plain), _LOAD_BYTES_PER_S)


def _export(request: ForecastRequest, units: UnitTimes) -> Interval:
    written = export_bytes(request)
    return seconds(written, _EXPORT_BYTES_PER_S) + Interval.around(_EXPORT_S, 2.0) + units.generate_row.times(4)


def export_bytes(request: ForecastRequest) -> float:
    """Bytes of what is handed over: the adapter, and the merged model where it is wanted."""
    width = request.layout.width_bytes
    adapter = 0.0 if request.run.full else float(request.run.trainable * 4)
    merged = request.shapes.parameters * width
    copies = {"adapter": 0, "merged": 1, "gguf": 2}[request.deploy]
    return adapter + merged * (max(1, copies) if request.run.full else copies)
