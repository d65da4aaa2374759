"""Labels about two texts: how they are found, what each kind of model reads, and that a BERT's types are kept."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from foretune.data.batches import lay_out
from foretune.data.columns import Columns
from foretune.data.encode import encode_rows, inference_ids
from foretune.data.example import Example, Turn, conversation
from foretune.data.mask_check import check_encoding
from foretune.data.read import read
from foretune.data.template import prompt_with_examples
from foretune.data.token_cache import load_rows, save_rows
from foretune.data.write import write_rows
from foretune.errors import DataError
from foretune.fit.systems import Settings, predict_rows
from foretune.training.forward import Network
from tests import tiny

LABELS = ("contradiction", "entailment")
PAIRS = [
    ("two red horses", "there are animals"),
    ("a boat", "no boat is here"),
    ("one tree and one tree more", "trees"),
]


def about(pair: tuple[str, str], label: str | None = "entailment") -> Example:
    return Example(tuple(Turn("user", text) for text in pair), label=label)


def word_pieces() -> Any:
    """A BERT tokenizer of single letters and words, with its own pair template and token types."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    words = dict.fromkeys(word for pair in PAIRS for text in pair for word in text.split())
    vocabulary = {word: number for number, word in enumerate(["[PAD]", "[CLS]", "[SEP]", "[UNK]", *words])}
    inner = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    inner.pre_tokenizer = pre_tokenizers.Whitespace()
    inner.post_processor = processors.BertProcessing(("[SEP]", 2), ("[CLS]", 1))
    return PreTrainedTokenizerFast(
        tokenizer_object=inner, pad_token="[PAD]", cls_token="[CLS]", sep_token="[SEP]", unk_token="[UNK]",
        model_input_names=["input_ids", "token_type_ids", "attention_mask"],
    )  # fmt: skip


def test_named_columns_and_their_errors(tmp_path: Path) -> None:
    path = tiny.write_rows(
        tmp_path / "rows.jsonl", [{"a": "t", "b": "u", "kind": "x"}, {"a": "v", "b": "", "kind": "y"}]
    )
    columns = Columns(text="a", pair="b", label="kind")
    with pytest.raises(DataError, match=r"rows\.jsonl:2: 'b' is empty"):
        read(path, columns=columns)
    found = read(path, columns=columns, on_bad_row="quarantine")
    assert found.examples[0].pair == ("t", "u") and "pair = 'b'" in " ".join(found.notes)
    with pytest.raises(DataError, match="--pair-column"):
        read(path)
    with pytest.raises(DataError, match="no column 'c'"):
        read(path, columns=Columns(text="a", pair="c", label="kind"))


def test_one_column_named_is_not_made_a_pair(tmp_path: Path) -> None:
    path = tiny.write_rows(tmp_path / "rows.jsonl", [{"premise": "t", "hypothesis": "u", "label": "x"}] * 2)
    assert read(path, columns=Columns(text="hypothesis")).examples[0].turns == (Turn("user", "u"),)


def test_conversations_and_single_texts_are_no_pairs() -> None:
    assert conversation("q", "a").pair is None
    assert Example((Turn("user", "t"),), label="x").pair is None
    assert Example((Turn("system", "s"), Turn("user", "t")), label="x").pair is None
    assert Example((Turn("system", "s"), Turn("user", "t"), Turn("user", "u")), label="x").pair == ("s\nt", "u")


def test_an_encoder_reads_what_its_tokenizer_makes_of_a_pair(tmp_path: Path) -> None:
    tokenizer = word_pieces()
    examples = [*map(about, PAIRS), Example((Turn("user", "a boat"),), label="contradiction")]
    settings: dict[str, Any] = {"kind": "encoder", "task": "classification", "labels": LABELS, "context_tokens": 8}
    rows = encode_rows(examples, tokenizer, **settings)
    check_encoding(examples, rows, tokenizer, **settings)
    for (first, second), row in zip(PAIRS, rows, strict=False):
        own = tokenizer(first, second, truncation=True, max_length=8)
        assert row.ids.tolist() == own["input_ids"]
        assert row.pair_start == own["token_type_ids"].index(1)
    assert [row.truncated for row in rows] == [1, 1, 2, 0] and rows[3].pair_start == 0

    save_rows(tmp_path, "key", rows)
    kept = load_rows(tmp_path, "key", len(rows))
    assert kept is not None and [row.pair_start for row in kept] == [row.pair_start for row in rows]

    batch = lay_out(rows, [3, 0, 2], kind="encoder", limit_tokens=100, packing=False).micro_batches[0]
    own = tokenizer.pad({"input_ids": [rows[i].ids.tolist() for i in batch.rows]}, return_tensors="pt")
    assert batch.types is not None and torch.equal(batch.ids, own["input_ids"])
    for line, i in enumerate(batch.rows):
        length, start = len(rows[i].ids), rows[i].pair_start
        expected = np.arange(batch.ids.shape[1]) >= start if start else np.zeros(batch.ids.shape[1])
        assert batch.types[line].tolist() == (expected * (np.arange(batch.ids.shape[1]) < length)).tolist()
    single = lay_out(rows, [3], kind="encoder", limit_tokens=100, packing=False).micro_batches[0]
    assert single.types is None


def test_a_bert_answers_as_in_transformers() -> None:
    from transformers import BertConfig, BertForSequenceClassification

    tokenizer = word_pieces()
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(tokenizer), hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        initializer_range=0.3,
    )  # fmt: skip
    model = BertForSequenceClassification(config).eval()
    rows = encode_rows(
        list(map(about, PAIRS)), tokenizer, kind="encoder", task="classification", labels=LABELS, context_tokens=32
    )
    batch = lay_out(rows, [0, 1, 2], kind="encoder", limit_tokens=100, packing=False).micro_batches[0]
    with torch.no_grad():
        ours = Network(model, kind="encoder").run(batch).hidden
        order = [PAIRS[i] for i in batch.rows]
        own = tokenizer([a for a, _ in order], [b for _, b in order], padding=True, return_tensors="pt")
        theirs = model(**own).logits
        without = model(input_ids=own["input_ids"], attention_mask=own["attention_mask"]).logits
    assert torch.allclose(ours, theirs, atol=1e-6) and not torch.allclose(ours, without, atol=1e-3)


def test_a_decoder_is_asked_in_one_turn() -> None:
    tokenizer = tiny.tokenizer()
    example = about(PAIRS[0])
    settings: dict[str, Any] = {"kind": "causal", "task": "classification", "labels": LABELS, "context_tokens": 100}
    row = encode_rows([example], tokenizer, **settings)[0]
    check_encoding([example], [row], tokenizer, **settings)
    said = tokenizer.decode(row.ids)
    assert said.count("<|im_start|>user") == 1 and "two red horses\n\nthere are animals<|im_end|>" in said
    assert np.array_equal(inference_ids(example, tokenizer), row.ids[: row.prompt_length])
    shown = prompt_with_examples(example, [about(PAIRS[1], "contradiction")])
    assert [turn.role for turn in shown.turns] == ["user", "assistant", "user"]
    assert shown.turns[0].content == "a boat\n\nno boat is here" and shown.turns[2].content.startswith("two red horses")


def test_written_rows_read_back_as_the_same_pairs(tmp_path: Path) -> None:
    write_rows(tmp_path / "kept.jsonl", list(map(about, PAIRS)))
    assert json.loads((tmp_path / "kept.jsonl").read_text().splitlines()[0])["text_pair"] == PAIRS[0][1]
    assert [row.pair for row in read(tmp_path / "kept.jsonl").examples] == PAIRS


def test_prediction_for_pairs(tmp_path: Path) -> None:
    folder = tiny.llama(tmp_path / "model")
    settings = Settings(device="cpu", dtype="float32", max_answer_tokens=3)
    (asked,) = predict_rows(str(folder), [("one", "two")], settings=settings)
    (joined,) = predict_rows(str(folder), ["one\n\ntwo"], settings=settings)
    assert asked.answer == joined.answer and asked.prompt == "one\n\ntwo"
