"""Tiny Llama, Gemma, BERT and BART models with random weights large enough to matter, and inputs for them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch

from foretune.catalogue.models import ModelKind
from foretune.cost.shapes import ModelShapes

_WIDTH, _FFN, _HEADS, _LAYERS, _VOCABULARY, _POSITIONS = 32, 48, 4, 2, 96, 64
_SPREAD = 0.2
"""Standard deviation of the weights: wide enough that an error of a part in a thousand shows in the logits."""
_CLASSES = 3
_ROWS, _TOKENS = 2, 9


@dataclass
class Specimen:
    """A base model with its shapes, an input and the answer to it."""

    architecture: str
    kind: ModelKind
    model: Any
    shapes: ModelShapes
    inputs: Mapping[str, torch.Tensor]
    before: Mapping[str, torch.Tensor]
    """The weights as they were built"""
    answers: torch.Tensor
    """The base's logits"""

    def logits(self, model: Any, **more: Any) -> torch.Tensor:
        """(rows, time, vocabulary) or (rows, classes): what ``model`` answers to the inputs."""
        with torch.no_grad():
            logits: torch.Tensor = model(**self.inputs, **more).logits
        return logits

    def loss(self, model: Any, **more: Any) -> torch.Tensor:
        """A scalar that depends on every logit."""
        logits = model(**self.inputs, **more).logits
        slope = torch.linspace(-1, 1, logits.numel(), device=logits.device).reshape(logits.shape)
        loss: torch.Tensor = (logits.float() * slope).mean() + (logits.float() ** 2).mean()
        return loss

    def twin(self, dtype: torch.dtype = torch.float32) -> Any:
        """Another base with the same weights and nothing attached."""
        with torch.random.fork_rng(devices=[]):
            model = ARCHITECTURES[self.architecture][1]()
        model.load_state_dict(self.before)
        return model.requires_grad_(False).to(dtype).eval()


def _llama() -> Any:
    from transformers import LlamaConfig, LlamaForCausalLM

    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=_VOCABULARY, hidden_size=_WIDTH, intermediate_size=_FFN, num_hidden_layers=_LAYERS,
            num_attention_heads=_HEADS, num_key_value_heads=2, max_position_embeddings=_POSITIONS,
            initializer_range=_SPREAD, tie_word_embeddings=True,
        )
    )  # fmt: skip


def _gemma() -> Any:
    from transformers import Gemma3ForCausalLM, Gemma3TextConfig

    return Gemma3ForCausalLM(
        Gemma3TextConfig(
            vocab_size=_VOCABULARY, hidden_size=_WIDTH, intermediate_size=_FFN, num_hidden_layers=_LAYERS,
            num_attention_heads=_HEADS, num_key_value_heads=2, head_dim=16, max_position_embeddings=_POSITIONS,
            initializer_range=_SPREAD, sliding_window=32, pad_token_id=0,
        )
    )  # fmt: skip


def _bert() -> Any:
    from transformers import BertConfig, BertForSequenceClassification

    return BertForSequenceClassification(
        BertConfig(
            vocab_size=_VOCABULARY, hidden_size=_WIDTH, intermediate_size=_FFN, num_hidden_layers=_LAYERS,
            num_attention_heads=_HEADS, max_position_embeddings=_POSITIONS, initializer_range=_SPREAD,
            num_labels=_CLASSES,
        )
    )  # fmt: skip


def _bart() -> Any:
    from transformers import BartConfig, BartForConditionalGeneration

    return BartForConditionalGeneration(
        BartConfig(
            vocab_size=_VOCABULARY, d_model=_WIDTH, encoder_layers=1, decoder_layers=1,
            encoder_attention_heads=_HEADS, decoder_attention_heads=_HEADS, encoder_ffn_dim=_FFN, decoder_ffn_dim=_FFN,
            max_position_embeddings=_POSITIONS, init_std=_SPREAD, pad_token_id=0, bos_token_id=1, eos_token_id=2,
            decoder_start_token_id=2, forced_eos_token_id=None,
        )
    )  # fmt: skip


ARCHITECTURES: Mapping[str, tuple[ModelKind, Callable[[], Any]]] = {
    "llama": ("causal", _llama),
    "gemma": ("causal", _gemma),
    "bert": ("encoder", _bert),
    "bart": ("seq2seq", _bart),
}


@lru_cache(maxsize=len(ARCHITECTURES))
def specimen(architecture: str) -> Specimen:
    """The base of that architecture: built once, in evaluation mode, with noise on biases and norms too."""
    kind, build = ARCHITECTURES[architecture]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(11)
        model = build().eval()
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.requires_grad_(False)
                if parameter.ndim == 1:
                    parameter.add_(0.1 * torch.randn_like(parameter))
        ids = torch.randint(3, _VOCABULARY, (_ROWS, _TOKENS))
        inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
        if kind == "seq2seq":
            inputs["decoder_input_ids"] = torch.randint(3, _VOCABULARY, (_ROWS, _TOKENS - 2))
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with torch.no_grad():
        answers = model(**inputs).logits
    shapes = ModelShapes.from_config(model.config.to_dict())
    return Specimen(architecture, kind, model, shapes, inputs, before, answers)
