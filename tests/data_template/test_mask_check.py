"""The self-check must catch every kind of mask error, name the row, and count what is only worth knowing."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import template_tokenizers as made

from foretune.data.coloured import coloured
from foretune.data.encode import encode_rows
from foretune.data.example import Example, Turn, conversation
from foretune.data.mask_check import check_encoding
from foretune.errors import DataError, Place

SETTINGS = {"kind": "causal", "task": "generation", "context_tokens": 400}
GOOD = conversation("what is four?", "two and two", place=Place("rows.jsonl", 1))
BAD = conversation("what is two?", "one and one", place=Place("rows.jsonl", 7))
ROUNDS = Example(
    (Turn("user", "cat"), Turn("assistant", "sat"), Turn("user", "dog"), Turn("assistant", "ran")),
    targets=(1, 3),
    place=Place("rows.jsonl", 9),
)


@pytest.fixture(scope="module")
def tokenizer():
    return made.TOKENIZERS["llama3 bytes"]()


def masked(row, positions, value):
    mask = row.target_mask.copy()
    mask[positions] = value
    return replace(row, target_mask=mask)


def shifted(row):
    return replace(row, target_mask=np.roll(row.target_mask, 1))


def with_ids(row, position, value):
    ids = row.ids.copy()
    ids[position] = value
    return replace(row, ids=ids)


def without_end(row):
    return replace(row, ids=row.ids[:-1], target_mask=row.target_mask[:-1])


def with_second_bos(row):
    ids = np.concatenate([row.ids[:1], row.ids])
    return replace(
        row, ids=ids, target_mask=np.concatenate([[False], row.target_mask]), prompt_length=row.prompt_length + 1
    )


def with_line_break(row):
    ids = np.append(row.ids, row.ids[-8]).astype(np.int32)
    return replace(row, ids=ids, target_mask=np.append(row.target_mask, True))


ERRORS = {
    "nothing trained": (lambda row: masked(row, slice(None), False), "no token is trained"),
    "prompt trained too": (lambda row: masked(row, slice(1, None), True), "tokens of the prompt are trained"),
    "one header token trained": (lambda row: masked(row, row.prompt_length - 1, True), "tokens of the prompt"),
    "first token trained": (lambda row: masked(row, 0, True), "first token is a target"),
    "mask one too late": (shifted, "first token is a target|is not trained"),
    "first answer token missing": (lambda row: masked(row, row.prompt_length, False), "first token of the answer"),
    "end of turn not trained": (lambda row: masked(row, -1, False), "end of the turn is not trained"),
    "end of turn missing": (without_end, "end of the turn is not trained"),
    "text after the end of turn": (with_line_break, "end of the turn is not trained"),
    "two bos": (with_second_bos, "two beginning-of-text"),
    "another answer": (lambda row: with_ids(row, row.prompt_length, 70), "what is trained reads"),
    "another prompt": (lambda row: with_ids(row, 5, 70), "training and inference see different prompts"),
    "prompt length off by one": (lambda row: replace(row, prompt_length=row.prompt_length - 1), "different prompts"),
    "prompt is the whole row": (lambda row: replace(row, prompt_length=len(row.ids)), "took the whole answer"),
    "id outside the vocabulary": (lambda row: with_ids(row, 3, 9999), "the token id 9999"),
    "mask of another length": (lambda row: replace(row, target_mask=row.target_mask[1:]), "mask entries"),
    "no tokens": (lambda row: replace(row, ids=row.ids[:0], target_mask=row.target_mask[:0]), "no tokens"),
}


@pytest.mark.parametrize("error", sorted(ERRORS))
def test_every_error_is_caught_with_its_place_and_shown(tokenizer, error):
    damage, words = ERRORS[error]
    rows = encode_rows([GOOD, BAD], tokenizer, **SETTINGS)
    with pytest.raises(DataError, match=words) as caught:
        check_encoding([GOOD, BAD], [rows[0], damage(rows[1])], tokenizer, **SETTINGS)
    assert caught.value.place == Place("rows.jsonl", 7)
    assert "rows.jsonl:7" in str(caught.value)
    if error == "end of turn not trained":
        assert "[[one and one]]<|eot|>" in str(caught.value)


def test_an_untrained_token_inside_an_answer_is_caught_unless_the_template_marks_it(tokenizer):
    rows = encode_rows([BAD], tokenizer, **SETTINGS)
    hole = masked(rows[0], rows[0].prompt_length + 2, False)
    with pytest.raises(DataError, match="inside the answer"):
        check_encoding([BAD], [hole], tokenizer, **SETTINGS)
    marked = made.byte_tokenizer(made.MARKED)
    row = encode_rows([BAD], marked, **SETTINGS)[0]
    assert not row.target_mask[row.prompt_length :].all()
    check_encoding([BAD], [row], marked, **SETTINGS)
    with pytest.raises(DataError, match="what is trained reads"):
        check_encoding([BAD], [masked(row, row.prompt_length + 2, False)], marked, **SETTINGS)


def test_trained_tokens_between_the_turns_are_caught(tokenizer):
    row = encode_rows([ROUNDS], tokenizer, **SETTINGS)[0]
    check_encoding([ROUNDS], [row], tokenizer, **SETTINGS)
    with pytest.raises(DataError, match="tokens of the prompt are trained"):
        check_encoding([ROUNDS], [masked(row, slice(20, row.prompt_length), True)], tokenizer, **SETTINGS)
    first = np.flatnonzero(row.target_mask)[0]
    for wrong in (first - 1, first + 1, first + 4):
        with pytest.raises(DataError, match="tokens of the prompt are trained"):
            damaged = masked(row, wrong, not row.target_mask[wrong])
            check_encoding([ROUNDS], [damaged], tokenizer, **SETTINGS)


def test_earlier_answers_that_the_template_splits_pass_and_untrained_ones_are_counted(tokenizer):
    marked = made.byte_tokenizer(made.MARKED)
    row = encode_rows([ROUNDS], marked, **SETTINGS)[0]
    assert coloured(row, marked).count("[[") == 4
    assert check_encoding([ROUNDS], [row], marked, **SETTINGS).untrained_turns == 0
    row = encode_rows([ROUNDS], tokenizer, **SETTINGS)[0]
    left_out = masked(row, slice(0, row.prompt_length), False)
    assert check_encoding([ROUNDS], [left_out], tokenizer, **SETTINGS).untrained_turns == 1


def test_the_first_five_failures_are_listed(tokenizer):
    examples = [replace(BAD, place=Place("rows.jsonl", line)) for line in range(1, 9)]
    rows = [without_end(row) for row in encode_rows(examples, tokenizer, **SETTINGS)]
    with pytest.raises(DataError, match=r"8 of 8 rows fail") as caught:
        check_encoding(examples, rows, tokenizer, **SETTINGS)
    assert "rows.jsonl:5" in str(caught.value) and "rows.jsonl:6" not in str(caught.value)


def test_an_answer_that_holds_an_end_of_turn_is_refused(tokenizer):
    example = conversation("q", "yes<|eot|>no", place=Place("rows.jsonl", 3))
    rows = encode_rows([example], tokenizer, **SETTINGS)
    with pytest.raises(DataError, match=r"rows.jsonl:3.*'<\|eot\|>' as text"):
        check_encoding([example], rows, tokenizer, **SETTINGS)


def test_an_end_of_turn_with_id_zero_inside_an_answer_is_refused_too():
    zero = made.merging_tokenizer(made.CHATML, special=("<|im_end|>", "<|im_start|>"))
    assert zero.eos_token_id == 0
    example = conversation("q", "yes<|im_end|>no")
    with pytest.raises(DataError, match="as text"):
        check_encoding([example], encode_rows([example], zero, **SETTINGS), zero, **SETTINGS)


def test_a_label_that_is_not_the_data_s_is_caught():
    tokenizer = made.word_piece()
    settings = {"kind": "encoder", "task": "classification", "labels": ("bad", "good"), "context_tokens": 8}
    examples = [Example((Turn("user", "a good film"),), label="good")]
    rows = encode_rows(examples, tokenizer, **settings)
    with pytest.raises(DataError, match="its label is 0, but the data says 1"):
        check_encoding(examples, [replace(rows[0], label=0)], tokenizer, **settings)
    with pytest.raises(DataError, match="different inputs"):
        check_encoding(examples, [with_ids(rows[0], 1, 5)], tokenizer, **settings)


def test_counts(tokenizer):
    examples = [
        GOOD,
        conversation("q <|eot|> q", " padded "),
        conversation("w" * 600, "yes"),
        conversation("q", "v" * 600),
    ]
    rows = encode_rows(examples, tokenizer, **SETTINGS)
    report = check_encoding(examples, rows, tokenizer, **SETTINGS)
    assert report.rows == 4 and report.longest == 400
    assert report.tokens == sum(len(row.ids) for row in rows)
    assert report.target_tokens == sum(int(row.target_mask.sum()) for row in rows)
    assert report.control == 1
    assert (report.truncated, report.cut_answers) == (1, 1)
    assert report.truncated_tokens == rows[2].truncated > 0 and report.cut_tokens == rows[3].cut > 0
    assert report.to_json()["unknown_share"] == 0.0
    assert any("shortened prompt" in line for line in report.lines())


def test_unknown_tokens_are_reported():
    tokenizer = made.word_piece()
    settings = {"kind": "encoder", "task": "regression", "context_tokens": 8}
    examples = [Example((Turn("user", "a zebra"),), label=0.5)]
    report = check_encoding(examples, encode_rows(examples, tokenizer, **settings), tokenizer, **settings)
    assert report.unknown_tokens == 1
    assert any("25.0 %" in note for note in report.notes)


def test_rows_are_coloured_and_control_characters_do_not_reach_the_terminal(tokenizer):
    example = conversation("a\x1b[31mb", "c")
    row = encode_rows([example], tokenizer, **SETTINGS)[0]
    plain, bright = coloured(row, tokenizer), coloured(row, tokenizer, colour=True)
    assert "a\\u001b[31mb" in plain and "\x1b" not in plain and plain.endswith("[[c<|eot|>]]")
    assert bright.count("\x1b") == 3 and bright.endswith("\x1b[7m\x1b[32mc<|eot|>\x1b[0m")
