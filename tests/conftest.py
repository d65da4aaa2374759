"""What all tests share: no network, a cache of their own, tiny models with random weights."""

from __future__ import annotations

import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("OMP_NUM_THREADS", "1")  # sums are equal to the last bit only with equally many threads

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import setuptools  # noqa: F401  (torch's extension loader, which BOFT asks, refuses to come after distutils)


@pytest.fixture
def tiny_llama() -> Callable[..., Any]:
    """A function that builds a tiny Llama with seeded random weights large enough to matter."""

    def build(seed: int = 0, dtype: str = "float32", **fields: Any) -> Any:
        import torch
        from transformers import LlamaConfig, LlamaForCausalLM

        settings = {
            "vocab_size": 97,
            "hidden_size": 32,
            "intermediate_size": 48,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "max_position_embeddings": 128,
            "initializer_range": 0.2,
            "tie_word_embeddings": True,
        }
        torch.manual_seed(seed)
        return LlamaForCausalLM(LlamaConfig(**{**settings, **fields})).to(getattr(torch, dtype))

    return build


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """Fixed threads, so that equality bit for bit is a fair demand."""
    import sys

    torch = sys.modules.get("torch")
    before = torch.get_num_threads() if torch is not None else None
    if torch is not None:
        torch.set_num_threads(1)
    yield
    if torch is not None and before is not None:
        torch.set_num_threads(before)
