"""Labelled rows, encoders, encoder-decoders, and the cutting of long rows, against hand-made ids."""

from __future__ import annotations

import numpy as np
import pytest
import template_tokenizers as made

from foretune.data.coloured import coloured
from foretune.data.encode import encode_rows, inference_ids
from foretune.data.example import Example, Turn, conversation
from foretune.data.mask_check import check_encoding
from foretune.errors import DataError, UsageError


def encoded(examples, tokenizer, **settings):
    """Rows that have passed their check."""
    rows = encode_rows(examples, tokenizer, **settings)
    check_encoding(examples, rows, tokenizer, **settings)
    return rows


def rated(text, label):
    return Example((Turn("user", text),), label=label)


def test_encoder_classification():
    settings = {"kind": "encoder", "task": "classification", "labels": ("bad", "good"), "context_tokens": 6}
    rows = encoded([rated("A good film.", "good"), rated("bad " * 9, "bad")], made.word_piece(), **settings)
    assert rows[0].ids.tolist() == [1, 7, 4, 6, 10, 2] and rows[0].label == 1 and rows[0].truncated == 0
    assert rows[1].ids.tolist() == [1, 5, 5, 5, 5, 2] and rows[1].label == 0 and rows[1].truncated == 5
    assert not rows[0].target_mask.any() and rows[0].ids.dtype == np.int32


def test_encoder_regression_and_its_refusals():
    tokenizer = made.word_piece()
    settings = {"kind": "encoder", "task": "regression", "context_tokens": 6}
    assert encoded([rated("film", -1.5)], tokenizer, **settings)[0].label == -1.5
    with pytest.raises(DataError, match="row 1: 'good' is not a number"):
        encode_rows([rated("film", "good")], tokenizer, **settings)
    with pytest.raises(DataError, match="not finite"):
        encode_rows([rated("film", float("nan"))], tokenizer, **settings)


def test_an_unknown_or_missing_class_is_refused_with_the_place():
    settings = {"kind": "encoder", "task": "classification", "labels": ("bad", "good"), "context_tokens": 6}
    with pytest.raises(DataError, match="row 2: the label 'fine' is not among the classes"):
        encode_rows([rated("film", "bad"), rated("film", "fine")], made.word_piece(), **settings)
    with pytest.raises(DataError, match="row 1: the row has no label"):
        encode_rows([rated("film", None)], made.word_piece(), **settings)


def test_causal_classification_answers_with_the_label_s_name():
    tokenizer = made.TOKENIZERS["chatml merging"]()
    settings = {"kind": "causal", "task": "classification", "labels": ("no", "yes"), "context_tokens": 200}
    row = encoded([rated("is two two?", "yes")], tokenizer, **settings)[0]
    assert coloured(row, tokenizer).endswith("is two two?<|im_end|>↵\n<|im_start|>assistant↵\n[[yes<|im_end|>]]")
    assert row.label == 1 and row.answer_bytes == 3
    asked = inference_ids(rated("is two two?", None), tokenizer)
    assert np.array_equal(asked, row.ids[: row.prompt_length])
    plain = encoded([rated("is two two?", "yes")], tokenizer, plain=True, **settings)[0]
    assert coloured(plain, tokenizer) == "is two two?↵\n[[yes<|im_end|>]]"


def test_causal_regression_answers_with_the_number():
    tokenizer = made.TOKENIZERS["chatml bytes"]()
    settings = {"kind": "causal", "task": "regression", "context_tokens": 200}
    row = encoded([rated("rate", 2.0)], tokenizer, **settings)[0]
    assert coloured(row, tokenizer).endswith("[[2<|im_end|>]]") and row.label == 2.0


def test_encoder_decoder():
    tokenizer = made.encoder_decoder()
    settings = {"kind": "seq2seq", "task": "generation", "context_tokens": 8}
    eos = tokenizer.eos_token_id
    row, long = encoded([conversation("ab", "cd"), conversation("a" * 20, "b" * 20)], tokenizer, **settings)
    a, b, c, d = (tokenizer.convert_tokens_to_ids(letter) for letter in "abcd")
    assert row.ids.tolist() == [a, b, eos] and row.decoder_ids.tolist() == [c, d, eos]
    assert not row.target_mask.any() and row.targets == 3 and row.answer_bytes == 2
    assert long.ids.tolist() == [a] * 7 + [eos] and long.truncated == 13
    assert long.decoder_ids.tolist() == [b] * 8 and long.cut == 13 and long.answer_bytes == 8
    assert coloured(row, tokenizer) == "ab</s> → [[cd</s>]]"


def test_decoder_targets_get_the_end_that_the_tokenizer_leaves_out():
    tokenizer = made.byte_tokenizer(None, special=("</s>",), eos="</s>")
    row = encoded([conversation("a", "b")], tokenizer, kind="seq2seq", task="generation", context_tokens=8)[0]
    assert row.decoder_ids[-1] == tokenizer.eos_token_id and row.ids.tolist() == tokenizer("a")["input_ids"]


def test_language_codes_of_a_translation_model_are_kept():
    from transformers import NllbTokenizer

    letters = ["<s>", "<pad>", "</s>", "<unk>", "▁", "a", "b", "c", "▁a", "▁b"]
    tokenizer = NllbTokenizer(
        vocab={letter: i for i, letter in enumerate(letters)},
        merges=[("▁", "a"), ("▁", "b")],
        src_lang="eng_Latn",
        tgt_lang="deu_Latn",
    )
    settings = {"kind": "seq2seq", "task": "generation", "context_tokens": 16}
    row = encoded([conversation("a", "b")], tokenizer, **settings)[0]
    codes = [tokenizer.convert_tokens_to_ids(code) for code in ("eng_Latn", "deu_Latn")]
    assert codes[0] in row.ids and codes[1] not in row.ids
    assert codes[1] in row.decoder_ids and row.decoder_ids[-1] == tokenizer.eos_token_id


def test_tasks_that_a_kind_cannot_do_are_refused():
    text = [Example((Turn("text", "a"),))]
    with pytest.raises(UsageError, match="no language-model head"):
        encode_rows(text, made.word_piece(), kind="encoder", task="language-modelling", context_tokens=8)
    with pytest.raises(UsageError, match="needs pairs"):
        encode_rows(text, made.encoder_decoder(), kind="seq2seq", task="language-modelling", context_tokens=8)


HEAD = "<|im_start|>system\nBe good.<|im_end|>\n<|im_start|>user\n"
TAIL = "<|im_end|>\n<|im_start|>assistant\n"


def length(text):
    """Tokens of a text where a byte is a token and so is a control token."""
    for control in made.CHATML_TOKENS:
        text = text.replace(control, "#")
    return len(text)


def cut_row(prompt, answer, context):
    tokenizer = made.TOKENIZERS["chatml bytes"]()
    settings = {"kind": "causal", "task": "generation", "context_tokens": context}
    row = encoded([conversation(prompt, answer)], tokenizer, **settings)[0]
    return row, coloured(row, tokenizer).replace("↵", "")


def test_a_long_prompt_loses_the_beginning_of_its_question():
    context = length(HEAD) + 5 + length(TAIL) + len("yes") + 1
    row, text = cut_row("0123456789", "yes", context)
    assert text == f"{HEAD}56789{TAIL}[[yes<|im_end|>]]"
    assert (row.truncated, row.cut, row.prompt_length) == (5, 0, context - 4)


def test_a_head_that_does_not_fit_goes_before_the_question_does():
    context = length(TAIL) + 5 + 4
    row, text = cut_row("0123456789", "yes", context)
    assert text == f"56789{TAIL}[[yes<|im_end|>]]"
    assert row.truncated == length(HEAD) + 5


def test_an_answer_longer_than_the_context_is_cut_and_leaves_a_quarter_to_the_prompt():
    row, text = cut_row("0123456789", "y" * 500, 80)
    assert row.prompt_length == 20 and row.target_mask.sum() == 60
    assert text == f"{'0123456789'[-(20 - length(TAIL)) :]}{TAIL}[[{'y' * 60}]]"
    assert row.cut == 441 and row.answer_bytes == 60


def test_a_context_that_cannot_hold_the_template_is_refused_with_the_place():
    with pytest.raises(DataError, match="row 1: the prompt cannot fit"):
        cut_row("0123456789", "yes", length(TAIL))


def test_inference_cuts_as_training_does():
    tokenizer = made.TOKENIZERS["chatml bytes"]()
    row, _ = cut_row("0123456789", "yes", length(HEAD) + 5 + length(TAIL) + 4)
    asked = inference_ids(
        Example((Turn("user", "0123456789"),)), tokenizer, context_tokens=len(row.ids), answer_tokens=4
    )
    assert np.array_equal(asked, row.ids[: row.prompt_length])


def test_earlier_answers_that_are_cut_into_are_not_trained():
    tokenizer = made.TOKENIZERS["chatml bytes"]()
    example = Example(
        (Turn("user", "q"), Turn("assistant", "0123456789"), Turn("user", "cat"), Turn("assistant", "sat")),
        targets=(1, 3),
    )
    settings = {"kind": "causal", "task": "generation"}
    full = encoded([example], tokenizer, context_tokens=400, **settings)[0]
    assert full.answer_bytes == 13
    row = encoded([example], tokenizer, context_tokens=len(full.ids) - 20, **settings)[0]
    assert coloured(row, tokenizer).count("[[") == 1 and row.answer_bytes == 3
