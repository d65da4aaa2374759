"""The masks of the default model's own tokenizer."""

from __future__ import annotations

import pytest

from foretune.data.coloured import coloured
from foretune.data.encode import encode_rows
from foretune.data.example import conversation
from foretune.data.layout import layout_of
from foretune.data.mask_check import check_encoding
from foretune.data.template import stop_ids

pytestmark = pytest.mark.model


def test_smollm2():
    from transformers import AutoTokenizer

    from foretune.models.load import locate

    tokenizer = AutoTokenizer.from_pretrained(str(locate("SmolLM2-135M-Instruct")))
    settings = {"kind": "causal", "task": "generation", "context_tokens": 64}
    examples = [conversation("What is 2+2?", "4"), conversation("word " * 90, "An answer.\n\nWith é and 🙂.")]
    rows = encode_rows(examples, tokenizer, **settings)
    report = check_encoding(examples, rows, tokenizer, **settings)
    assert report.truncated == 1 and report.cut_answers == 0 and layout_of(tokenizer).notes == ()
    assert rows[0].ids[-2:].tolist() == [tokenizer("4")["input_ids"][0], 2] and rows[0].targets == 2
    assert coloured(rows[0], tokenizer).endswith("<|im_start|>assistant↵\n[[4<|im_end|>]]")
    assert stop_ids(tokenizer) == (2,)
