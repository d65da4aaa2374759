"""Operations by hand, rates, placement, corrections, and the forecast as a whole."""

import math
from dataclasses import replace

import pytest

from foretune.cost.correction import Correction, Outcome, correction
from foretune.cost.forecast import DEFAULT_RUN_SHARE, SEARCH_PHASES, forecast
from foretune.cost.interval import Interval
from foretune.cost.machine import Machine
from foretune.cost.memory import Layout, peak
from foretune.cost.operations import RowTokens, head_copies, row_operations, scoring_operations, shares_head
from foretune.cost.phases import unit_times
from foretune.cost.placement import Freedom, place, refuse_if_too_large
from foretune.cost.rates import Throughput, from_accelerator, from_history, from_matmul, seconds
from foretune.cost.request import Budget, DataSize, EvaluationSettings, ForecastRequest, Measured, RunSettings
from foretune.cost.shapes import ModelShapes
from foretune.errors import BudgetError

SMOLLM2 = ModelShapes.from_config(
    {"model_type": "llama", "hidden_size": 576, "intermediate_size": 1536, "num_hidden_layers": 30,
     "num_attention_heads": 9, "num_key_value_heads": 3, "vocab_size": 49152, "tie_word_embeddings": True}
)  # fmt: skip
ENCODER = ModelShapes.from_config(
    {"model_type": "bert", "vocab_size": 96, "hidden_size": 96, "num_hidden_layers": 2, "num_attention_heads": 3,
     "intermediate_size": 256}
)  # fmt: skip
LORA = 4_884_480
QUIET_CORES = 2.39e11  # NumPy float32 operations/s of the machine on which the anchors were measured
SHORT = RowTokens(45, 26, 71.0**2, 120)
MACHINE = Machine("test", 2, 2, 8 * 2**30, 6 * 2**30, True)


def _request(**changes):
    fields = {
        "shapes": SMOLLM2, "machine": MACHINE, "rates": from_matmul(QUIET_CORES, "bfloat16"),
        "data": DataSize(1000, 100, 100, SHORT), "layout": Layout(longest_row=120), "run": RunSettings(LORA),
        "budget": Budget("time", 1800.0),
    }  # fmt: skip
    return ForecastRequest(**{**fields, **changes})


def _forecast(request):
    run = request.run
    return forecast(request, place(SMOLLM2, request.layout, 8e9, trainable=run.trainable, full=run.full))


def test_memory_after_the_probe_adds_what_the_method_takes_beyond_the_first_run():
    """A probe trains the default LoRA; a method that keeps a copy of every weight takes so much more."""
    copies = Layout(longest_row=120, weight_copies=1.0)
    changes = {"measured": Measured(200.0, 800.0, 2**30), "baseline": RunSettings(LORA)}
    plain, dear = (_forecast(_request(layout=each, **changes)) for each in (Layout(longest_row=120), copies))
    assert plain.memory_bytes.value == pytest.approx(2**30)
    linears = 2 * sum(linear.weights for linear in SMOLLM2.linears)
    more = dear.memory_bytes.value - 2**30
    assert linears < more < 1.6 * linears, "and the heap's share of it"
    assert dear.memory_bytes.low == pytest.approx(plain.memory_bytes.low), "it was measured to take that"
    assert dear.memory_bytes.high > dear.memory_bytes.value + more * 0.1


def test_a_dearer_method_makes_steps_dearer_and_scores_no_row_later():
    plain, dear = (unit_times(_request(run=RunSettings(LORA, step_factor=each))) for each in (1.0, 2.0))
    assert 1.9 < dear.step.value / plain.step.value <= 2.0, "the optimiser's part stays"
    assert dear.score_row == plain.score_row
    run = RunSettings(LORA, step_factor=2.0)
    after = _request(run=run, baseline=RunSettings(LORA), measured=Measured(200.0, 800.0))
    assert unit_times(after).step.value == pytest.approx(
        dear.step.value / plain.step.value * unit_times(after, after.first_run).step.value
    ), "a probe trains the default LoRA"


def test_operations_by_hand():
    tiny = ModelShapes.from_config(
        {"model_type": "gpt2", "vocab_size": 10, "n_embd": 4, "n_layer": 1, "n_head": 2, "n_positions": 8}
    )
    row = RowTokens(prompt=3, answer=2, mean_square=25, longest=5)
    weights = 4 * 12 + 4 * 4 + 4 * 16 + 16 * 4  # fused attention, output, up, down: 192
    linear, head = 2 * weights * 5, 2 * 4 * 10 * 2
    attention = 4 * 4 * 25 / 2  # half of the 25 pairs, width 4, scores and sum
    assert scoring_operations(tiny, row) == linear + head + attention
    full = row_operations(tiny, row, trainable=0, full=True)
    assert full.forward == linear + head + attention
    assert full.backward == 2 * (linear + head + attention)
    adapter = 2 * 7 * 5
    lora = row_operations(tiny, row, trainable=7)
    assert lora.forward == linear + head + attention + adapter
    assert lora.backward == linear + head + 2 * attention + 2 * adapter
    again = row_operations(tiny, row, trainable=7, checkpointing=True)
    assert again.backward - lora.backward == linear + attention + adapter


def test_encoder_decoders_run_the_prompt_through_the_encoder_only():
    bart = ModelShapes.from_config(
        {"model_type": "bart", "vocab_size": 10, "d_model": 4, "encoder_layers": 1, "decoder_layers": 1,
         "encoder_ffn_dim": 8, "decoder_ffn_dim": 8, "encoder_attention_heads": 2, "decoder_attention_heads": 2}
    )  # fmt: skip
    row = RowTokens(prompt=6, answer=3, mean_square=81, longest=9)
    attention, ffn = 4 * 16, 2 * 32
    linear = 2 * (6 * (attention + ffn + 32) + 3 * (attention + ffn + 32))  # memory keys and values; query and output
    pairs = 4 * 4 * (36 + 9 / 2 + 18)
    assert scoring_operations(bart, row) == linear + pairs + 2 * 4 * 10 * 3


ANCHORS = {  # rows, and real tokens per second of two quiet threads (twice those of one second of processor time)
    "whole": (RowTokens(27, 26, 53.0**2, 60), 590, None),
    "shared": (RowTokens(27, 26, 53.0**2, 60, head=33), 1200, None),
    "facts": (RowTokens(41.3, 3.6, 2050, 53, head=24), 1160, 3600),
    "foldoc": (RowTokens(37.9, 50.5, 8765, 189, head=24), 545, 2170),
}


@pytest.mark.parametrize(("row", "trained", "scored"), ANCHORS.values(), ids=ANCHORS)
def test_the_anchors_are_met(row, trained, scored):
    data = DataSize(1000, 100, 100, row)
    units = unit_times(_request(data=data, layout=Layout(longest_row=row.longest, row=row)))
    assert units.train_tokens_per_s.value == pytest.approx(trained, rel=0.25)
    assert units.train_tokens_per_s.holds(trained)
    if scored is not None:
        assert units.score_tokens_per_s.value == pytest.approx(scored, rel=0.25)
        assert units.score_tokens_per_s.holds(scored)
    slow = unit_times(_request(data=data, rates=from_matmul(QUIET_CORES, "float32")))
    assert slow.train_tokens_per_s.value == pytest.approx(trained / 3, rel=0.3)


def test_the_head_is_computed_once_per_micro_batch_where_that_is_exact():
    row = RowTokens(prompt=40, answer=10, mean_square=2500, longest=50, head=20)
    assert row.computed(1.0) == 50
    assert head_copies(row, 16, 512, shared=True) == 1 / 16  # 20 + 16 * 30 = 500
    assert head_copies(row, 16, 200, shared=True) == 3 / 16  # six rows a micro-batch
    assert head_copies(row, 16, 512, shared=False) == 1.0
    fast, slow = (
        unit_times(_request(data=DataSize(1000, 100, 100, changed), layout=layout)).step.value
        for changed, layout in ((row, Layout()), (row, Layout(adapter_dropout=True)))
    )
    assert slow > 1.4 * fast  # dropout would share its noise with the head
    whole = scoring_operations(SMOLLM2, row)
    assert scoring_operations(SMOLLM2, row, copies=0.0) < 0.7 * whole
    assert shares_head(SMOLLM2, noisy=False)
    assert not shares_head(SMOLLM2, noisy=True)
    assert not shares_head(ENCODER, noisy=False)


def test_padded_rows_pay_for_their_neighbours_and_packed_ones_do_not():
    even, spread = RowTokens(19, 1, 400, 20), RowTokens(19, 1, 800, 60)
    linear = 2 * 2 * (4 * 96 * 96 + 2 * 96 * 256)
    attention = 4 * 96 * 2
    padded = replace(ENCODER, architecture="gemma2")
    assert scoring_operations(padded, even) == linear * 20 + attention * 400
    assert scoring_operations(padded, spread) == linear * 40 + attention * 800
    assert scoring_operations(ENCODER, spread) == linear * 20 + attention * 800


def test_a_probe_narrows_and_is_believed():
    before, after = unit_times(_request()), unit_times(_request(measured=Measured(200.0, 800.0, 2**30)))
    assert after.train_tokens_per_s.value == pytest.approx(200)
    assert after.step.value == pytest.approx(16 * 71 / 200)
    assert after.step.high / after.step.low < before.step.high / before.step.low / 2
    measured = _forecast(_request(measured=Measured(200.0, 800.0, 2**30)))
    assert measured.memory_bytes.value == 2**30
    assert "probe" in measured.source


def test_what_the_time_budget_pays_for_never_exceeds_it():
    for minutes in (3, 10, 30, 300):
        answer = _forecast(_request(budget=Budget("time", 60.0 * minutes)))
        outside = sum(phase.seconds.value for phase in answer.phases if not phase.in_budget)
        assert answer.seconds.value <= 60.0 * minutes + outside + 1e-6
        default = next(phase for phase in answer.phases if phase.name == "default LoRA")
        assert default.seconds.value <= max(DEFAULT_RUN_SHARE * 60 * minutes, answer.units.step.value) + 1e-6


def test_a_longer_budget_buys_longer_runs_then_more_trials():
    answers = [_forecast(_request(budget=Budget("time", 60.0 * m))) for m in (10, 30, 120, 480)]
    shares = [answer.horizon_share for answer in answers]
    assert shares == sorted(shares)
    assert shares[0] < 1 == shares[-1]
    assert answers[-1].trials.value > answers[-2].trials.value > 1
    assert answers[-1].steps_per_run == 3 * math.ceil(1000 / 16)


def test_budgets_in_trials_and_steps():
    one, four = (_forecast(_request(budget=Budget("trials", n))) for n in (1, 4))
    assert one.trials == Interval.exactly(1.0)
    assert four.seconds.value > one.seconds.value
    two_workers = _forecast(_request(budget=Budget("trials", 4), workers=2))
    assert one.seconds.value < two_workers.seconds.value < four.seconds.value
    assert two_workers.memory_bytes.value == 2 * four.memory_bytes.value
    steps = _forecast(_request(budget=Budget("steps", 10)))
    assert steps.steps_per_run == 10 and steps.trials.value == 1
    shared = _forecast(_request(budget=Budget("steps", 100), horizon_steps=35))
    assert shared.steps_per_run == 35
    assert [p.name for p in one.phases if p.name in SEARCH_PHASES] == ["the one run", "other trials"]
    default, others = (p.seconds for p in shared.phases if p.name in SEARCH_PHASES)
    assert others.value == pytest.approx(default.value * 65 / 35, rel=0.02), "all steps are trained"
    assert (shared.trials.low, shared.trials.value, shared.trials.high) == (2, 4, 6)


@pytest.mark.parametrize("budget", [Budget("time", 0), Budget("time", 1.0), Budget("trials", 0), Budget("steps", 0)])
def test_a_budget_below_one_step_is_refused_with_the_least(budget):
    with pytest.raises(BudgetError) as caught:
        _forecast(_request(budget=budget))
    assert "at least" in caught.value.remedy
    if budget.kind == "time":
        from foretune.units import parse_duration

        named = parse_duration(caught.value.remedy.split("--time ")[1].split(";")[0])
        assert _forecast(_request(budget=Budget("time", named))).steps_per_run >= 1


def test_money_follows_time():
    answer = _forecast(_request(price_per_hour=2.0))
    assert answer.money.value == pytest.approx(answer.seconds.value / 1800)
    assert _forecast(_request()).money is None


def test_disk_grows_with_what_is_delivered_and_fetched():
    plain = _forecast(_request()).disk_bytes.value
    merged = _forecast(_request(deploy="merged")).disk_bytes.value
    assert merged - plain == pytest.approx(2 * SMOLLM2.parameters)
    assert _forecast(_request(fetch_bytes=10**8)).disk_bytes.value - plain > 10**8


def test_generation_costs_time():
    without = _forecast(_request(budget=Budget("trials", 1)))
    generating = EvaluationSettings(generation=True, retrieved_examples=3)
    assert _forecast(_request(budget=Budget("trials", 1), evaluation=generating)).seconds.value > without.seconds.value


def test_history_needs_both_kinds_and_this_machine():
    records = [Throughput("me", "cpu", "bfloat16", work, rate) for work, rate in
               (("train", 1e11), ("train", 1.2e11), ("train", 1.1e11), ("score", 3e11), ("score", 3.1e11))]  # fmt: skip
    rates = from_history(records, "me", "cpu", "bfloat16")
    assert rates.train.value == pytest.approx(1.1e11)
    assert rates.train.high / rates.train.value < 1.5
    assert from_history(records, "other", "cpu", "bfloat16") is None
    assert from_history(records, "me", "cpu", "float32") is None
    assert from_history(records[:3], "me", "cpu", "bfloat16") is None
    single = from_history([records[0], records[3]], "me", "cpu", "bfloat16")
    assert single.train.high / single.train.low > rates.train.high / rates.train.low


def test_accelerators_by_name():
    h100, t4 = (from_accelerator(name, "bfloat16").train.value for name in ("NVIDIA H100 80GB HBM3", "Tesla T4"))
    assert h100 / t4 == pytest.approx(989 / 65)
    laptop = from_accelerator("NVIDIA GeForce RTX 4090 Laptop GPU", "bfloat16")
    assert laptop.train.value == pytest.approx(0.25 * 165e12)
    unknown = from_accelerator("Frobnicator 9", "bfloat16")
    assert unknown.train.high / unknown.train.low > 10
    assert "guess" in unknown.source
    assert seconds(10.0, Interval(1, 2, 5)) == Interval(2, 5, 10)


def test_the_ladder_of_placement():
    layout = Layout(micro_batch_tokens=2048, longest_row=100)
    need = {step: peak(SMOLLM2, placed, trainable=LORA, full=False).total for step, placed in {
        "plain": layout, "checkpointed": replace(layout, gradient_checkpointing=True)}.items()}  # fmt: skip

    def placed(room, **fields):
        return place(SMOLLM2, layout, room / 0.92 + 1, trainable=LORA, full=False, **fields)

    assert placed(need["plain"]).changes == ()
    assert placed(need["checkpointed"]).changes == ("gradient checkpointing is on",)
    smaller = placed(need["checkpointed"] - 5e7)
    assert smaller.fits
    assert smaller.layout.micro_batch_tokens == 1024
    smallest = placed(need["checkpointed"] / 3)
    assert not smallest.fits
    assert [change.startswith("micro-batches hold 100 ") for change in smallest.changes].count(True) == 1
    fixed = placed(need["checkpointed"], freedom=Freedom(checkpointing=False))
    assert not fixed.layout.gradient_checkpointing
    assert fixed.fits


def test_a_base_that_is_too_large_is_tried_in_four_bits_first():
    big = ModelShapes.from_config(
        {"model_type": "llama", "hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32,
         "num_attention_heads": 32, "vocab_size": 32000}
    )  # fmt: skip
    lora = big.lora_parameters(16)
    placed = place(big, Layout(longest_row=128), 8 * 2**30, trainable=lora, full=False)
    assert placed.changes[0] == "the base model is loaded in 4 bits"
    assert placed.fits
    full = place(big, Layout(longest_row=128), 8 * 2**30, trainable=big.parameters, full=True)
    assert full.layout.quantize == "none"
    with pytest.raises(BudgetError, match="free"):
        refuse_if_too_large(full)


def test_corrections_are_shrunk_then_learnt():
    assert correction([]).apply("seconds", Interval(1, 2, 3)) == Interval(1, 2, 3)
    one = correction([Outcome("seconds", 10, 20)]).factors["seconds"]
    assert one.factor == pytest.approx(2 ** (1 / 3))
    assert one.spread is None
    many = correction([Outcome("seconds", 10, 20)] * 40).factors["seconds"]
    assert many.factor == pytest.approx(2, rel=0.05)
    corrected = correction([Outcome("seconds", 10, 20)] * 40).apply("seconds", Interval(50, 100, 200))
    assert corrected.value == pytest.approx(200, rel=0.05)
    assert corrected.high < 300
    absurd = correction([Outcome("seconds", 10, 1e6), Outcome("seconds", 0, 1), Outcome("seconds", 1, -1)])
    assert absurd.factors == {}


def test_a_learnt_correction_enters_the_next_forecast():
    learnt = correction([Outcome("run_seconds", 1, 1.5)] * 30 + [Outcome("memory_bytes", 1e9, 1.2e9)] * 30)
    before, after = (_forecast(_request(budget=Budget("trials", 2), correction=c)) for c in (Correction(), learnt))
    for name in ("default LoRA", "other trials"):
        plain, corrected = (next(p.seconds.value for p in f.phases if p.name == name) for f in (before, after))
        assert corrected / plain == pytest.approx(1.5, rel=0.05)
    assert after.memory_bytes.value / before.memory_bytes.value == pytest.approx(1.2, rel=0.05)


def test_an_interval_must_be_ordered():
    with pytest.raises(ValueError, match="ordered"):
        Interval(2, 1, 3)
    assert (Interval(1, 2, 3) + Interval.exactly(1)).to_json() == [2, 3, 4]
