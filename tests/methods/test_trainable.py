"""Shares become settings: figures of the specification, closeness, infeasible shares, and speed on a 7B model."""

from __future__ import annotations

import subprocess
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from foretune.catalogue.methods import METHODS
from foretune.cost.shapes import ModelShapes
from foretune.errors import UsageError
from foretune.fit.find_model import CATALOGUE_CONFIGS
from foretune.methods.base import Infeasible, KnobChoice
from foretune.methods.share import Sized, settings_for, size, with_share
from foretune.methods.trainable import count, knob_for

SMOL = ModelShapes.from_config(CATALOGUE_CONFIGS["SmolLM2-135M-Instruct"])
MBART_50 = {
    "model_type": "mbart", "vocab_size": 250054, "d_model": 1024, "encoder_layers": 12, "decoder_layers": 12,
    "encoder_attention_heads": 16, "decoder_attention_heads": 16, "encoder_ffn_dim": 4096, "decoder_ffn_dim": 4096,
    "max_position_embeddings": 1024,
}  # fmt: skip
SEVEN_BILLION = {
    "model_type": "llama", "hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32,
    "num_attention_heads": 32, "vocab_size": 32000, "max_position_embeddings": 4096,
}  # fmt: skip


def test_the_cells_of_the_specification():
    def loratrf(rank, edit):
        return count(SMOL, {"method": "loratrf", "loratrf.rank": rank, "loratrf.trf_rank": edit})

    lora = count(SMOL, {"method": "lora", "lora.rank": 16})
    assert lora == 4_884_480
    assert loratrf(7, 3) == 3_225_600 and 1 - 3_225_600 / lora == pytest.approx(0.3396, abs=5e-5)
    assert loratrf(10, 5) == 4_763_520 and 1 - 4_763_520 / lora == pytest.approx(0.025, abs=5e-4)
    assert count(SMOL, {"method": "lora", "lora.rank": 1}) / SMOL.parameters == pytest.approx(0.00227, abs=5e-6)


def test_the_figures_of_mbart_50():
    """Üstün & Cooper Stickland 2022 (2205.11277) on mBART-50: 611 M parameters, and what each selection trains."""
    mbart = ModelShapes.from_config(MBART_50)
    assert round(mbart.parameters / 1e6) == 611
    assert count(mbart, {"method": "bitfit"}) == 331_776  # 0.332 M
    assert count(mbart, {"method": "layernorm"}) == 122_880  # 0.123 M
    assert count(mbart, {"method": "crossattention"}) == 50_405_376  # 50.41 M
    adapter = 24 * (1024 * (2 * 1024 + 1) + 3 * 1024)  # L(m(2d+1) + 3d), m = 1024: 50.43 M, 8.26 %
    assert adapter == 50_429_952 and round(100 * adapter / mbart.parameters, 2) == 8.26
    settings = {"method": "bottleneck", "bottleneck.width": 1024, "bottleneck.norm": "yes"}
    assert count(mbart, settings) == adapter


def test_layers_and_targets_enter_the_count():
    everything = count(SMOL, {"method": "lora", "lora.rank": 4})
    assert count(SMOL, {"method": "lora", "lora.rank": 4, "layers": "last:10"}) * 3 == everything
    parts = [count(SMOL, {"method": "lora", "lora.rank": 4, "lora.targets": which}) for which in ("attention", "mlp")]
    assert sum(parts) == everything
    with pytest.raises(UsageError, match="picks none"):
        count(SMOL, {"method": "lora", "lora.rank": 4, "layers": "layers>=30"})


@pytest.mark.parametrize("method", [name for name, item in METHODS.items() if item.fills])
@pytest.mark.parametrize("share", [0.005, 0.02, 0.08])
def test_a_share_is_used_to_99_percent_where_targets_can_be_raised(method, share):
    found = knob_for(METHODS[method], SMOL, share, {})
    if isinstance(found, Infeasible):
        assert found.alternatives and found.why
        return
    assert found.parameters <= share * SMOL.parameters
    assert found.parameters == count(SMOL, {**found.fields, "method": method})
    low, _ = METHODS[method].knob_range
    if found.fields[f"{method}.{METHODS[method].knob}"] > low or METHODS[method].fills:
        assert found.parameters >= 0.99 * share * SMOL.parameters


SIZED = [name for name, item in METHODS.items() if item.knob and item.count and "causal" in item.kinds]


@given(st.floats(1e-4, 0.5), st.sampled_from(SIZED))
@settings(max_examples=60, deadline=None)
def test_any_share_is_met_or_refused_with_the_nearest(share, method):
    found = knob_for(METHODS[method], SMOL, share, {})
    if isinstance(found, KnobChoice):
        step = _one_step(method, found)
        assert abs(found.parameters - share * SMOL.parameters) <= max(0.02 * share * SMOL.parameters, step)
    else:
        assert found.alternatives[0].parameters > 0


def _one_step(method, found):
    declared = METHODS[method]
    knob = f"{method}.{declared.knob}"
    low, high = declared.knob_range
    near = [k for k in (found.fields[knob] - 1, found.fields[knob] + 1) if low <= k <= high]
    return max(abs(count(SMOL, {**found.fields, "method": method, knob: k}) - found.parameters) for k in near)


def test_a_share_out_of_reach_changes_the_layers_and_says_so():
    sized = settings_for(SMOL, 0.001, {})
    assert (
        sized.method == "lora" and sized.settings["lora.targets"] == "attention" and "only attention" in sized.changed
    )
    assert sized.parameters == count(SMOL, sized.settings) and sized.share == pytest.approx(0.001, rel=0.01)
    fixed = size(METHODS["lora"], SMOL, 0.001, {"lora.targets": "all-linear", "layers": "last:30"})
    assert not isinstance(fixed, Sized)
    with pytest.raises(UsageError, match="rank 1 already trains") as refusal:
        settings_for(SMOL, 0.001, {"method": "lora", "lora.targets": "all-linear", "layers": "last:30"})
    assert "Methods that can" in str(refusal.value.remedy)


@pytest.mark.parametrize("own", [{}, {"lora.alpha": 7.0}])
@pytest.mark.parametrize("share", [0.005, 0.1])
def test_a_share_moves_the_rank_and_leaves_alpha_in_fits_and_in_studies(share, own):
    fixed = {"method": "lora", **own}
    fit = {**fixed, **settings_for(SMOL, share, fixed).settings}
    study = with_share({**fixed, "lora.rank": 16, "lora.raised": 5}, share, SMOL)
    lora = METHODS["lora"]
    assert lora.own(fit)["rank"] == lora.own(study)["rank"] != 16
    assert lora.own(fit)["alpha"] == lora.own(study)["alpha"] == own.get("lora.alpha", 32)
    assert count(SMOL, fit) == count(SMOL, study)


@pytest.mark.parametrize("share", [0.0, -0.1, 1.5])
def test_a_share_that_is_none_is_refused(share):
    with pytest.raises(UsageError, match="is none"):
        knob_for(METHODS["lora"], SMOL, share, {})


def test_full_tuning_is_a_share_of_one():
    assert isinstance(knob_for(METHODS["full"], SMOL, 1.0, {}), KnobChoice)
    assert isinstance(knob_for(METHODS["full"], SMOL, 0.5, {}), Infeasible)


def test_a_model_of_seven_billion_is_sized_in_seconds_without_torch(tmp_path):
    """Five seconds and a gigabyte are promised for every method together."""
    import json

    (tmp_path / "config.json").write_text(json.dumps(SEVEN_BILLION), encoding="utf-8")
    program = (
        "import sys; from foretune.cli.main import main; sys.argv = ['foretune', 'methods', 'size', '--model', "
        f"{str(tmp_path)!r}, '--trainable', '0.5%', '--json']\n"
        "try: main()\nexcept SystemExit: pass\n"
        "assert 'torch' not in sys.modules\n"
        "print(next(line for line in open('/proc/self/status') if line.startswith('VmHWM')), file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    answer = json.loads(done.stdout)
    assert answer["parameters"] == 6_738_415_616
    lora = next(row for row in answer["methods"] if row["method"] == "lora")
    assert lora["share"] == pytest.approx(0.005, rel=0.01)
    (peak,) = [line for line in done.stderr.splitlines() if line.startswith("VmHWM")]
    assert int(peak.split()[1]) < 2**20  # kilobytes of that process alone; rusage would count its parent's
