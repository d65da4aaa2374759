"""The forward pass: target-only head, packing on several architectures, losses as transformers and trl compute them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from foretune.data.batches import lay_out
from foretune.data.encode import EncodedRow
from foretune.training.forward import Network
from tests.training.rows import random_rows


def architectures() -> dict[str, Any]:
    from transformers import (
        Gemma2Config,
        Gemma2ForCausalLM,
        Gemma3ForCausalLM,
        Gemma3TextConfig,
        GPT2Config,
        GPT2LMHeadModel,
        LlamaConfig,
        LlamaForCausalLM,
        Qwen2Config,
        Qwen2ForCausalLM,
    )

    small = {
        "vocab_size": 97,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "initializer_range": 0.2,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "pad_token_id": 0,
    }
    windows = {"head_dim": 8, "sliding_window": 5, "layer_types": ["sliding_attention", "full_attention"]}
    gpt = GPT2Config(
        vocab_size=97, n_embd=32, n_layer=2, n_head=4, initializer_range=0.2, bos_token_id=1, eos_token_id=2
    )
    return {
        "llama": (LlamaForCausalLM, LlamaConfig(**small)),
        "qwen2": (Qwen2ForCausalLM, Qwen2Config(**small)),
        "gemma3 with sliding windows": (Gemma3ForCausalLM, Gemma3TextConfig(**small, **windows)),
        "gemma2 with capped logits": (Gemma2ForCausalLM, Gemma2Config(**small, **windows)),
        "gpt2": (GPT2LMHeadModel, gpt),
    }


PACKS = {
    "llama": True,
    "qwen2": True,
    "gemma3 with sliding windows": True,
    "gemma2 with capped logits": False,
    "gpt2": True,
}


@pytest.mark.parametrize(
    ("name", "attention"),
    [
        (name, kind)
        for name in PACKS
        for kind in ("sdpa", "eager")
        if not (kind == "sdpa" and name.startswith("gemma2"))
    ],
)
def test_every_layout_gives_the_loss_of_separate_rows(name: str, attention: str) -> None:
    kind, config = architectures()[name]
    torch.manual_seed(0)
    config._attn_implementation = attention
    model = kind(config).eval()
    model.requires_grad_(False)
    network = Network(model, "causal")
    network.verify()
    assert network.packs is PACKS[name]
    rows = random_rows(6)
    expected = []
    for row in rows:
        labels = torch.tensor(np.where(row.target_mask, row.ids, -100), dtype=torch.long)[None]
        ids = torch.tensor(row.ids, dtype=torch.long)[None]
        expected.append(float(model(input_ids=ids, labels=labels).loss) * int(row.target_mask.sum()))
    for packing in {False, network.packs}:
        update = lay_out(rows, range(6), kind="causal", limit_tokens=60, packing=packing)
        sums = np.zeros(6)
        with torch.no_grad(), network.mode(packing=packing, training=False):
            for batch in update.micro_batches:
                scored = network.run(batch)
                np.add.at(sums, scored.row.numpy(), scored.nll().numpy())
        assert sums == pytest.approx(expected, rel=1e-4)


def test_packing_would_leak_without_the_document_boundaries() -> None:
    """The check behind ``packs`` can fail: a stream treated as one document gives other losses."""
    kind, config = architectures()["llama"]
    torch.manual_seed(0)
    network = Network(kind(config).eval(), "causal")
    rows = random_rows(4)
    whole = lay_out(rows, range(4), kind="causal", limit_tokens=1000, packing=True).micro_batches[0]
    with torch.no_grad(), network.mode(packing=False, training=False):
        leaking = network._hidden(whole.ids, None, torch.arange(whole.ids.shape[1])[None])
    with torch.no_grad(), network.mode(packing=True, training=False):
        exact = network.run(whole).hidden
    assert not torch.allclose(leaking[0, whole.target_index], exact, atol=0.1)


def test_frozen_head_loss_has_the_gradient_of_cross_entropy(tiny_llama: Any) -> None:
    model = tiny_llama()
    model.requires_grad_(False)
    network = Network(model, "causal")
    assert network.frozen_plain_head
    torch.manual_seed(1)
    hidden = torch.randn(300, 32, requires_grad=True)
    labels = torch.randint(0, 97, (300,))
    from foretune.training.forward import Scored

    weights = torch.rand(300)
    (Scored(hidden, labels, labels, network).nll() * weights).sum().backward()
    ours = hidden.grad
    hidden.grad = None
    plain = torch.nn.functional.cross_entropy(model.lm_head(hidden), labels, reduction="none")
    (plain * weights).sum().backward()
    assert ours is not None and torch.allclose(ours, hidden.grad, atol=1e-5)
    model.requires_grad_(True)
    assert not network.frozen_plain_head
    trained = Scored(hidden, labels, labels, network).nll()
    assert torch.allclose(trained, plain, atol=1e-5)


def test_capped_and_scaled_logits_are_never_taken_for_plain_ones(tiny_llama: Any) -> None:
    """A cap of 30 on logits of size 1 is below the rounding of bfloat16, which a trial has to allow."""
    kind, config = architectures()["gemma2 with capped logits"]
    model = kind(config).to(torch.bfloat16).eval().requires_grad_(False)
    assert not Network(model, "causal").frozen_plain_head
    for scaling, plain in ((1.0, True), (1.001, False)):
        scaled = tiny_llama().requires_grad_(False)
        scaled.config.logits_scaling = scaling
        assert Network(scaled, "causal").frozen_plain_head is plain


def test_losses_equal_trl_on_identical_batches(tiny_llama: Any, tmp_path: Any) -> None:
    from datasets import Dataset
    from tokenizers import Tokenizer, models
    from torch.utils.data import SequentialSampler
    from transformers import PreTrainedTokenizerFast
    from trl import SFTConfig, SFTTrainer

    from foretune.methods.full import FullAttachment
    from foretune.training.loop import LoopSettings, Training
    from foretune.training.optimizer import OptimizerSettings

    rows = random_rows(20)
    vocabulary = {f"t{i}": i for i in range(97)}
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(models.WordLevel(vocabulary, unk_token="t0")), pad_token="t0", eos_token="t2"
    )

    class InOrder(SFTTrainer):
        def _get_train_sampler(self, *args: Any, **kwargs: Any) -> Any:
            return SequentialSampler(self.train_dataset)

    data = Dataset.from_list(
        [{"input_ids": row.ids.tolist(), "labels": np.where(row.target_mask, row.ids, -100).tolist()} for row in rows]
    )
    settings = SFTConfig(
        output_dir=str(tmp_path),
        max_steps=5,
        per_device_train_batch_size=2,
        gradient_accumulation_steps=2,
        learning_rate=1e-2,
        lr_scheduler_type="linear",
        warmup_steps=1,
        max_grad_norm=1.0,
        weight_decay=0.0,
        logging_steps=1,
        report_to="none",
        save_strategy="no",
        use_cpu=True,
        bf16=False,
        gradient_checkpointing=False,
        dataset_kwargs={"skip_prepare_dataset": True},
        disable_tqdm=True,
        optim="adamw_torch",
    )
    reference = InOrder(model=tiny_llama(), args=settings, train_dataset=data, processing_class=tokenizer)
    reference.train()
    expected = [entry["loss"] for entry in reference.state.log_history if "loss" in entry]
    norms = [entry["grad_norm"] for entry in reference.state.log_history if "grad_norm" in entry]

    class InTurn:
        def rows(self, step: int) -> list[int]:
            return list(range(step * 4, step * 4 + 4))

    model = tiny_llama()
    run = Training(
        Network(model, "causal"),
        FullAttachment(model),
        rows,
        InTurn(),
        LoopSettings(OptimizerSettings(1e-2, 5, warmup_share=0.2), seed=0),
    )
    reports: list[Any] = []
    run.run(5, on_step=lambda report: reports.append(report) or True)
    assert len(expected) == 5
    assert [report.loss for report in reports] == pytest.approx(expected, abs=1e-4)
    assert [report.gradient_norm for report in reports] == pytest.approx(norms, rel=1e-3)


@pytest.mark.parametrize("packing", [False, True])
def test_classification_and_regression_losses_are_those_of_transformers(packing: bool) -> None:
    from transformers import BertConfig, BertForSequenceClassification

    small = {
        "vocab_size": 97,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "initializer_range": 0.2,
    }
    for labels, classes in (([0, 2, 1, 1], 3), ([0.5, -1.0, 2.0, 0.0], 1)):
        torch.manual_seed(0)
        model = BertForSequenceClassification(BertConfig(**small, num_labels=classes)).eval()
        rows = [
            EncodedRow(row.ids, np.zeros(len(row.ids), bool), 0, 0, label=label)
            for row, label in zip(random_rows(4), labels, strict=True)
        ]
        update = lay_out(rows, [3, 1, 0, 2], kind="encoder", limit_tokens=45, packing=packing)
        network = Network(model, "encoder")
        total = 0.0
        with torch.no_grad(), network.mode(packing=packing, training=False):
            for batch in update.micro_batches:
                total += float(network.run(batch).nll().sum())
        with torch.no_grad():
            expected = sum(
                float(model(torch.tensor(row.ids, dtype=torch.long)[None], labels=torch.tensor([row.label])).loss)
                for row in rows
            )
        assert len(update.micro_batches) > 1
        assert total == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("family", ["bart", "marian", "t5"])
def test_sequence_to_sequence_losses_are_those_of_transformers(family: str) -> None:
    from transformers import (
        BartConfig,
        BartForConditionalGeneration,
        MarianConfig,
        MarianMTModel,
        T5Config,
        T5ForConditionalGeneration,
    )

    tokens = {"pad_token_id": 0, "eos_token_id": 2, "decoder_start_token_id": 0}
    size = {
        "vocab_size": 97,
        "d_model": 32,
        "encoder_layers": 1,
        "decoder_layers": 1,
        "encoder_attention_heads": 4,
        "decoder_attention_heads": 4,
        "encoder_ffn_dim": 48,
        "decoder_ffn_dim": 48,
        "init_std": 0.2,
        "max_position_embeddings": 64,
    }
    torch.manual_seed(0)
    model: Any
    if family == "t5":
        model = T5ForConditionalGeneration(
            T5Config(vocab_size=97, d_model=32, d_kv=8, d_ff=48, num_layers=1, num_heads=4, **tokens)
        )
    elif family == "bart":
        model = BartForConditionalGeneration(BartConfig(**size, **tokens))
        model.final_logits_bias.normal_()
    else:
        model = MarianMTModel(MarianConfig(**size, **tokens))
    model.eval()
    network = Network(model, "seq2seq")
    network.verify()
    rows = [
        EncodedRow(row.ids, np.zeros(len(row.ids), bool), 0, 0, decoder_ids=np.append(row.ids[::-1][: 3 + i], 2))
        for i, row in enumerate(random_rows(4))
    ]
    update = lay_out(rows, range(4), kind="seq2seq", limit_tokens=1000, packing=True, pad_id=0, decoder_start_id=0)
    with torch.no_grad(), network.mode(packing=False, training=False):
        total = sum(float(network.run(batch).nll().sum()) for batch in update.micro_batches)
        expected = 0.0
        for row in rows:
            labels = torch.tensor(row.decoder_ids, dtype=torch.long)[None]
            expected += float(model(torch.tensor(row.ids, dtype=torch.long)[None], labels=labels).loss) * labels.numel()
    assert total == pytest.approx(expected, rel=1e-4)
