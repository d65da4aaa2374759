"""What must hold for every tokenizer, template and text, whatever is in it."""

from __future__ import annotations

import functools

import numpy as np
import pytest
import template_tokenizers as made
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from foretune.data.encode import EncodedRow, encode_rows, inference_ids, shared_head
from foretune.data.example import Example, Turn
from foretune.data.layout import layout_of
from foretune.data.mask_check import check_encoding
from foretune.data.truncate import Prompt, parts_of, room

WORDS = st.text(alphabet="aetwof ?\n.éß日🙂", max_size=30)
ROOMY = 4096


@functools.cache
def tokenizer_called(name):
    return made.TOKENIZERS[name]()


@st.composite
def conversations(draw, spoken=WORDS):
    rounds = draw(st.integers(1, 3))
    turns = [Turn("system", draw(spoken))] if draw(st.booleans()) else []
    first = len(turns)
    for _ in range(rounds):
        turns += [Turn("user", draw(spoken)), Turn("assistant", draw(spoken))]
    answers = [first + 1 + 2 * i for i in range(rounds)]
    earlier = draw(st.lists(st.sampled_from(answers), unique=True))
    return Example(tuple(turns), targets=tuple(sorted({*earlier, answers[-1]})))


@pytest.mark.parametrize("name", sorted(made.TOKENIZERS))
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(example=conversations())
def test_every_row_passes_its_check_and_the_prompt_is_what_is_served(name, example):
    tokenizer = tokenizer_called(name)
    common = {"kind": "causal", "task": "generation", "context_tokens": ROOMY}
    row = encode_rows([example], tokenizer, **common)[0]
    check_encoding([example], [row], tokenizer, **common)
    layout = layout_of(tokenizer)
    assert np.array_equal(row.ids[: row.prompt_length], inference_ids(example, tokenizer))
    assert row.target_mask[row.prompt_length :].all()
    assert row.ids[-1] == layout.end_id and not row.target_mask[0]
    assert row.truncated == row.cut == 0


@pytest.mark.parametrize("name", ["chatml merging", "llama3 merging", "gemma sentence", "plain merging"])
@settings(max_examples=40, deadline=None)
@given(example=conversations(), context=st.integers(48, 160))
def test_cut_rows_fit_keep_their_ends_and_never_lose_the_answer(name, example, context):
    tokenizer = tokenizer_called(name)
    common = {"kind": "causal", "task": "generation"}
    full = encode_rows([example], tokenizer, context_tokens=ROOMY, **common)[0]
    row = encode_rows([example], tokenizer, context_tokens=context, **common)[0]
    check_encoding([example], [row], tokenizer, context_tokens=context, **common)
    assert len(row.ids) <= context
    assert len(full.ids) == len(row.ids) + row.truncated + row.cut
    assert row.target_mask.sum() <= full.target_mask.sum()
    answer = full.ids[full.prompt_length :]
    kept = row.ids[row.prompt_length :]
    assert np.array_equal(kept, answer[: len(kept)]) and len(kept) >= 1
    if row.cut == 0:
        assert np.array_equal(kept, answer)
    if row.truncated:
        assert len(row.ids) == context, "no more is cut than must be"


@settings(max_examples=200, deadline=None)
@given(
    length=st.integers(1, 40),
    head=st.integers(0, 12),
    tail=st.integers(0, 12),
    begin=st.integers(0, 1),
    answer=st.integers(1, 60),
    context=st.integers(2, 64),
)
def test_cutting_keeps_the_promised_lengths(length, head, tail, begin, answer, context):
    begin = min(begin, length)
    head = min(max(head, begin), length)
    tail = min(tail, length - head)
    prompt = Prompt(length, head, tail, begin)
    rooms = room(prompt, answer, context)
    if rooms is None:
        assert prompt.smallest + 1 > context
        return
    assert sum(rooms) <= context and 1 <= rooms[1] <= answer
    kept_head, start = prompt.cut(rooms[0], [0] * prompt.length, None)
    assert kept_head + length - start == min(rooms[0], length)
    assert kept_head <= start and length - start >= min(tail, length - kept_head)
    if answer + prompt.smallest <= context:
        assert rooms[1] == answer


def test_parts_of_a_prompt():
    ids, blanked = [9, 1, 2, 50, 51, 52, 3, 4], [9, 1, 2, 60, 3, 4]
    assert parts_of(ids, blanked, bos=9) == Prompt(length=8, head=3, tail=2, begin=1)
    assert parts_of(ids, None, bos=9) == Prompt(length=8, head=1, tail=0, begin=1)
    assert parts_of([1, 2], [1, 2], bos=None) == Prompt(length=2, head=2, tail=0, begin=0)


def made_row(ids, first_target):
    mask = np.zeros(len(ids), np.bool_)
    mask[first_target:] = True
    return EncodedRow(np.asarray(ids, np.int32), mask, first_target, 0)


@settings(max_examples=200, deadline=None)
@given(
    st.lists(st.tuples(st.lists(st.integers(0, 1), min_size=2, max_size=8), st.integers(1, 7)), min_size=1, max_size=5)
)
def test_shared_head_is_the_longest_that_leaves_each_row_a_token_of_its_own(raw):
    rows = [made_row(ids, min(first, len(ids) - 1)) for ids, first in raw]

    def allowed(length):
        return all(
            np.array_equal(row.ids[:length], rows[0].ids[:length]) and length < row.prompt_length for row in rows
        )

    assert shared_head(rows) == max(length for length in range(8) if length == 0 or allowed(length))


def test_shared_head_by_hand():
    assert shared_head([made_row([5, 6, 7, 8, 9], 4), made_row([5, 6, 7, 1, 2], 4)]) == 3
    assert shared_head([made_row([5, 6, 7, 8], 2), made_row([5, 6, 7, 9], 3)]) == 1
    assert shared_head([made_row([5, 6, 7], 2)]) == 1
    assert shared_head([]) == 0


def test_a_batch_of_rows_equals_rows_one_by_one():
    tokenizer = tokenizer_called("llama3 merging")
    examples = [
        Example((Turn("user", "cat " * n), Turn("assistant", "four" + "!" * n)), targets=(1,)) for n in range(30)
    ]
    common = {"kind": "causal", "task": "generation", "context_tokens": 60}
    together = encode_rows(examples, tokenizer, **common)
    for example, row in zip(examples, together, strict=True):
        alone = encode_rows([example], tokenizer, **common)[0]
        assert np.array_equal(row.ids, alone.ids) and np.array_equal(row.target_mask, alone.target_mask)
        assert (row.prompt_length, row.answer_bytes, row.truncated) == (
            alone.prompt_length,
            alone.answer_bytes,
            alone.truncated,
        )


def test_a_bos_that_also_begins_turns_is_not_doubled_by_the_cut() -> None:
    prompt = Prompt(length=9, head=1, tail=3, begin=1)
    ids = [1, 5, 5, 5, 1, 6, 7, 8, 9]
    assert prompt.cut(6, ids, bos=1) == (0, 4)  # kept: 1 6 7 8 9
    assert prompt.cut(7, ids, bos=1) == (1, 3)  # kept: 1 5 1 6 7 8 9: the second begins a turn
    assert prompt.cut(6, ids, bos=2) == (1, 4)
