"""Probes: they measure what they say, on tiny models, and leave them as they were."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model

from foretune.data.example import Example, Turn
from foretune.errors import DataError, UsageError
from foretune.evaluation.base import Answer
from foretune.evaluation.probes.fresh_blocks import by_block
from foretune.evaluation.probes.inversion import conflicts, margin
from foretune.evaluation.probes.landscape import _weights, slice_of
from foretune.evaluation.probes.ranks import by_rank, lora_factors
from foretune.fit.probing import KINDS, probe
from tests.regularization.models import assert_same, fingerprint, tiny
from tests.tiny import llama, questions

ROWS = [
    Example((Turn("user", row["question"]), Turn("assistant", row["answer"])), targets=(1,)) for row in questions(12)
]


def test_notes_contradict_the_answers_and_the_margin_is_by_hand() -> None:
    rows = conflicts(ROWS, seed=1)
    assert len(rows) == 24 and rows == conflicts(ROWS, seed=1) != conflicts(ROWS, seed=2)
    for (wrong, right), original in zip(zip(rows[::2], rows[1::2], strict=True), ROWS, strict=True):
        assert right.answer == original.answer != wrong.answer
        assert wrong.prompt == right.prompt and wrong.answer in wrong.prompt and original.prompt in wrong.prompt
    scored = [
        Answer(n, "", "", nll=nll, tokens=tokens) for n, (nll, tokens) in enumerate([(2, 2), (6, 3), (9, 3), (1, 1)])
    ]
    found = margin(scored)
    assert found.value == pytest.approx(((2 - 1) + (1 - 3)) / 2) and found.context_wins == 0.5
    with pytest.raises(DataError, match="same answer"):
        conflicts([ROWS[0], ROWS[0]])


def adapted() -> Any:
    torch.manual_seed(0)
    settings = LoraConfig(r=4, lora_alpha=8, target_modules="all-linear", init_lora_weights=False)
    return get_peft_model(tiny("llama"), settings).eval()


def test_an_update_cut_to_all_its_ranks_is_itself_and_to_none_is_the_base() -> None:
    model = adapted()
    ids = torch.arange(20)[None]
    base_model = model.get_base_model()

    @torch.no_grad()
    def divergence() -> float:
        own = base_model(ids).logits.log_softmax(-1)
        with model.disable_adapter():
            base = base_model(ids).logits.log_softmax(-1)
        return float((base.exp() * (base - own)).sum(-1).mean())

    before = fingerprint(base_model)
    whole = divergence()
    points = by_rank(base_model, None, divergence)
    assert [point.rank for point in points] == [0, 1, 2, 4]
    assert points[0].divergence == pytest.approx(0, abs=1e-6) and points[-1].divergence == pytest.approx(
        whole, rel=1e-3
    )
    shares = [point.share_of_update for point in points]
    assert shares == sorted(shares) and shares[0] == 0 and shares[-1] == pytest.approx(1)
    down, up = lora_factors(base_model)[0]
    left, values, right = torch.linalg.svd(up.detach() @ down.detach())
    expected = (left[:, :1] * values[:1]) @ right[:1]
    seen: list[torch.Tensor] = []
    by_rank(base_model, [1], lambda: seen.append((up @ down).detach().clone()) or 0.0)  # type: ignore[func-returns-value]
    assert torch.allclose(seen[0], expected, atol=1e-5)
    assert_same(before, fingerprint(base_model))
    with pytest.raises(UsageError, match="no LoRA layers"):
        by_rank(tiny("llama"), None, divergence)


def test_a_slice_moves_every_system_by_the_same_direction_of_the_stated_norm() -> None:
    plain, tuned = tiny("llama"), adapted().get_base_model()
    moved = []
    for model in (plain, tuned):
        before = fingerprint(model)
        start = [weight.detach().clone() for weight in _weights(model)]
        seen: list[list[torch.Tensor]] = []

        def look(model: Any = model, start: Any = start, seen: Any = seen) -> float:
            seen.append([w.detach() - s for w, s in zip(_weights(model), start, strict=True)])
            return float(len(seen))

        found = slice_of(model, look, norm=0.1, seed=3, positions=(-1.0, 0.0, 1.0))
        assert found.losses == (1.0, 2.0, 3.0) and found.rise == pytest.approx(0.0)
        assert_same(before, fingerprint(model))
        moved.append(seen)
        whole = sum(float(s.pow(2).sum()) for s in start) ** 0.5
        length = sum(float(m.pow(2).sum()) for m in seen[2]) ** 0.5
        assert length == pytest.approx(0.1 * whole, rel=1e-3)
        assert all(not bool(part.any()) for part in seen[1])
    for one, other in zip(*moved, strict=True):
        assert all(torch.allclose(a, b, atol=1e-6) for a, b in zip(one, other, strict=True))


def test_every_block_is_drawn_anew_in_turn_and_put_back() -> None:
    model = tiny("bert", num_hidden_layers=3)
    before = fingerprint(model)
    changed: list[list[str]] = []

    def look() -> float:
        now = model.state_dict()
        changed.append([name for name, tensor in before["tensors"].items() if not torch.equal(tensor, now[name])])
        return float(len(changed))

    points = by_block(model, look, seed=2)
    assert [(point.block, point.loss) for point in points] == [(0, 1.0), (1, 2.0), (2, 3.0)]
    assert all(names and all(f"layer.{n}." in name for name in names) for n, names in enumerate(changed))
    assert_same(before, fingerprint(model))


def test_probes_run_on_an_adapter_beside_its_base_and_on_checkpoints(tmp_path: Path) -> None:
    base = llama(tmp_path / "model")
    adapter = _adapter(base, tmp_path / "adapter")
    for kind in KINDS:
        found = probe(kind, str(adapter), ROWS, "generation", base=str(base), seed=1)
        names = {finding["system"] for finding in found}
        assert names == ({str(adapter)} if kind == "ranks" else {"base", str(adapter)}), kind
        json.dumps(found)
    ranks = probe("ranks", str(adapter), ROWS, "generation", base=str(base))
    assert ranks[0]["divergence"] == pytest.approx(0, abs=1e-5) and ranks[-1]["divergence"] > 0
    with pytest.raises(UsageError, match="there is no probe"):
        probe("sharpness", str(adapter), ROWS, "generation")
    trial = _trial(base, tmp_path / "trial")
    found = probe("inversion", str(trial), ROWS, "generation", base=str(base))
    assert [finding["system"] for finding in found] == ["base", "step 2", "step 4"]
    assert len({finding["value"] for finding in found}) == 3


def _adapter(base: Path, folder: Path) -> Path:
    from transformers import AutoModelForCausalLM

    torch.manual_seed(1)
    model = AutoModelForCausalLM.from_pretrained(base)
    settings = LoraConfig(r=2, target_modules="all-linear", init_lora_weights=False, task_type="CAUSAL_LM")
    get_peft_model(model, settings).save_pretrained(folder)
    return folder


def _trial(base: Path, folder: Path) -> Path:
    from foretune.catalogue.methods import resolve
    from foretune.catalogue.models import ModelReference
    from foretune.data.encode import encode_rows
    from foretune.data.update import Epochs
    from foretune.methods.registry import get
    from foretune.models.load import load
    from foretune.seeding import torch_generator
    from foretune.training import checkpoint
    from foretune.training.forward import Network
    from foretune.training.loop import LoopSettings, Training
    from foretune.training.optimizer import OptimizerSettings

    loaded = load(ModelReference(str(base)))
    config = resolve({"lora.rank": 2})
    attachment = get("lora").attach(loaded.model, config, generator=torch_generator(0, "init"))
    rows = encode_rows(ROWS, loaded.tokenizer, kind="causal", task="generation", context_tokens=128)
    settings = LoopSettings(OptimizerSettings(3e-2, 4, warmup_share=0.0), seed=0)
    run = Training(Network(attachment.model, "causal"), attachment, rows, Epochs(12, 4, 0), settings)
    for step in (2, 4):
        assert run.run(step) == "ok"
        tensors, facts = run.state()
        checkpoint.save(folder, step, tensors, {**facts, "config": dict(config), "seed": 0})
    return folder
