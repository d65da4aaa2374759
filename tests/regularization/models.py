"""Tiny models of every family, with weights large enough to matter."""

from __future__ import annotations

from typing import Any

import torch

IDS = {"vocab_size": 97, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
PLAIN = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
         "initializer_range": 0.2, "max_position_embeddings": 128, **IDS}  # fmt: skip
SIDES = {"d_model": 32, "encoder_layers": 2, "decoder_layers": 2, "encoder_attention_heads": 4, "init_std": 0.2,
         "decoder_attention_heads": 4, "encoder_ffn_dim": 48, "decoder_ffn_dim": 48, **IDS,
         "decoder_start_token_id": 2, "forced_eos_token_id": None, "max_position_embeddings": 128}  # fmt: skip
FAMILIES = ("llama", "gemma3", "qwen3", "gpt2", "bert", "bert-mlm", "distilbert", "bart", "t5")
KINDS = {"bert": "encoder", "bert-mlm": "encoder", "distilbert": "encoder", "bart": "seq2seq", "t5": "seq2seq"}


def tiny(family: str, seed: int = 0, **fields: Any) -> Any:
    """A seeded model of a family, in evaluation mode."""
    import transformers as hf

    torch.manual_seed(seed)
    made = {
        "llama": lambda: hf.LlamaForCausalLM(
            hf.LlamaConfig(**{**PLAIN, "num_key_value_heads": 2, "tie_word_embeddings": True, **fields})
        ),
        "gemma3": lambda: hf.Gemma3ForCausalLM(
            hf.Gemma3TextConfig(**{**PLAIN, "num_key_value_heads": 2, "head_dim": 8, **fields})
        ),
        "qwen3": lambda: hf.Qwen3ForCausalLM(
            hf.Qwen3Config(**{**PLAIN, "num_key_value_heads": 2, "head_dim": 8, **fields})
        ),
        "gpt2": lambda: hf.GPT2LMHeadModel(
            hf.GPT2Config(**{**IDS, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 128, **fields})
        ),
        "bert": lambda: hf.BertForSequenceClassification(hf.BertConfig(**{**PLAIN, **fields})),
        "bert-mlm": lambda: hf.BertForMaskedLM(hf.BertConfig(**{**PLAIN, **fields})),
        "distilbert": lambda: hf.DistilBertForSequenceClassification(
            hf.DistilBertConfig(**{**IDS, "dim": 32, "hidden_dim": 48, "n_layers": 2, "n_heads": 4, **fields})
        ),
        "bart": lambda: hf.BartForConditionalGeneration(hf.BartConfig(**{**SIDES, **fields})),
        "t5": lambda: hf.T5ForConditionalGeneration(
            hf.T5Config(
                **{**IDS, "d_model": 32, "d_kv": 8, "d_ff": 48, "num_layers": 2, "num_heads": 4,
                   "decoder_start_token_id": 0, **fields}
            )
        ),
    }  # fmt: skip
    return made[family]().eval()


def fingerprint(model: Any) -> dict[str, Any]:
    """Everything a teardown has to put back: tensors, modules by identity, plain numbers and hooks."""
    return {
        "tensors": {name: tensor.clone() for name, tensor in model.state_dict().items()},
        "modules": [(name, id(module), type(module).__name__) for name, module in model.named_modules()],
        "numbers": [
            (name, key, value)
            for name, module in model.named_modules()
            for key, value in sorted(module.__dict__.items())
            if isinstance(value, int | float | str)
        ],
        "own": [(name, sorted(module.__dict__)) for name, module in model.named_modules()],
        "hooks": [
            (name, len(module._forward_hooks), len(module._forward_pre_hooks)) for name, module in model.named_modules()
        ],
        "gradients": [weight.requires_grad for weight in model.parameters()],
    }


def assert_same(before: dict[str, Any], after: dict[str, Any]) -> None:
    """Two fingerprints are equal, tensors bit for bit."""
    for part in ("modules", "numbers", "own", "hooks", "gradients"):
        assert before[part] == after[part], part
    assert set(before["tensors"]) == set(after["tensors"])
    assert all(torch.equal(tensor, after["tensors"][name]) for name, tensor in before["tensors"].items())
