"""Tiny models with random weights, a tiny tokenizer and small data files: everything a whole fit needs in seconds."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
COLOURS = ("red", "green", "blue", "white", "black")
THINGS = ("stone", "river", "lamp", "house", "apple", "cloud", "horse", "chair", "boat", "tree", "coin", "glove")
POSITIONS = 128


def _seeded(seed: int) -> None:
    import torch
    from transformers.utils import logging

    logging.disable_progress_bar()
    torch.manual_seed(seed)


def tokenizer(*, chat: bool = True, encoder: bool = False) -> Any:
    """A byte-level tokenizer trained on the words of the data files."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    inner = Tokenizer(models.BPE())
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "[CLS]", "[SEP]", "[PAD]"]
    inner.train_from_iterator(
        [f"What colour is the {thing}? {colour} user assistant\n" for thing in THINGS for colour in COLOURS],
        trainers.BpeTrainer(
            vocab_size=400,
            special_tokens=special,
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        ),
    )
    names = {"bos_token": "<|endoftext|>", "eos_token": "<|im_end|>", "unk_token": "<|endoftext|>"}
    if encoder:
        inner.post_processor = processors.TemplateProcessing(
            single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 3), ("[SEP]", 4)]
        )
        names |= {"cls_token": "[CLS]", "sep_token": "[SEP]"}
    made = PreTrainedTokenizerFast(tokenizer_object=inner, pad_token="[PAD]", **names)
    if chat:
        made.chat_template = TEMPLATE
    return made


def llama(folder: Path, *, with_tokenizer: bool = True) -> Path:
    """A Llama of two layers, width 32."""
    from transformers import LlamaConfig, LlamaForCausalLM

    _seeded(3)
    LlamaForCausalLM(
        LlamaConfig(
            vocab_size=400, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
            num_key_value_heads=2, max_position_embeddings=POSITIONS, initializer_range=0.2, tie_word_embeddings=True,
            bos_token_id=0, eos_token_id=2, pad_token_id=5,
        )
    ).save_pretrained(folder)  # fmt: skip
    if with_tokenizer:
        tokenizer().save_pretrained(folder)
    return folder


def bert(folder: Path) -> Path:
    """A bare BERT encoder of two layers, width 32."""
    from transformers import BertConfig, BertModel

    _seeded(4)
    BertModel(
        BertConfig(
            vocab_size=400, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
            max_position_embeddings=POSITIONS, initializer_range=0.2, pad_token_id=5,
        )
    ).save_pretrained(folder)  # fmt: skip
    tokenizer(chat=False, encoder=True).save_pretrained(folder)
    return folder


def bart(folder: Path) -> Path:
    """A BART of two layers on each side, width 32."""
    from transformers import BartConfig, BartForConditionalGeneration

    _seeded(5)
    BartForConditionalGeneration(
        BartConfig(
            vocab_size=400, d_model=32, encoder_layers=2, decoder_layers=2, encoder_attention_heads=4,
            decoder_attention_heads=4, encoder_ffn_dim=64, decoder_ffn_dim=64, max_position_embeddings=POSITIONS,
            init_std=0.2, bos_token_id=0, eos_token_id=2, pad_token_id=5, decoder_start_token_id=2,
            forced_eos_token_id=None,
        )
    ).save_pretrained(folder)  # fmt: skip
    tokenizer(chat=False).save_pretrained(folder)
    return folder


def write_rows(path: Path, rows: Iterable[Mapping[str, Any]]) -> Path:
    """One JSON object a line."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def questions(count: int = 60) -> list[dict[str, Any]]:
    """Question-answer rows, all different."""
    return [
        {
            "question": f"What colour is the {THINGS[i % 12]} number {i}?",
            "answer": f"{COLOURS[(i * 7) % 5]} like {THINGS[(i * 5) % 12]}",
        }
        for i in range(count)
    ]
