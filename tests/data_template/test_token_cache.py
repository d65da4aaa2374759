"""Cached rows equal fresh ones; damage of any kind is read as absence and repaired; the key covers what decides."""

from __future__ import annotations

from dataclasses import fields

import numpy as np
import pytest
import template_tokenizers as made

from foretune.data import encode
from foretune.data.encode import encode_rows
from foretune.data.example import Example, Turn, conversation
from foretune.data.token_cache import load_rows, save_rows, token_folder, tokenizer_identity

SETTINGS = {"kind": "causal", "task": "generation", "context_tokens": 60}
EXAMPLES = [conversation("what is two?", "two"), conversation("cat " * 30, "sat"), conversation("q", "yes " * 60)]


def same(left, right):
    for field in fields(left):
        first, second = getattr(left, field.name), getattr(right, field.name)
        if isinstance(first, np.ndarray):
            assert first.dtype == second.dtype and np.array_equal(first, second), field.name
        else:
            assert first == second and type(first) is type(second), field.name


@pytest.fixture
def entry(tmp_path):
    tokenizer = made.TOKENIZERS["chatml bytes"]()
    rows = encode_rows(EXAMPLES, tokenizer, cache=tmp_path, **SETTINGS)
    (path,) = tmp_path.iterdir()
    return tokenizer, rows, path


def count_tokenizations(monkeypatch):
    calls = []
    original = encode.render_rows
    monkeypatch.setattr(encode, "render_rows", lambda *args: calls.append(1) or original(*args))
    return calls


def test_a_second_call_reads_the_entry(entry, monkeypatch):
    tokenizer, rows, path = entry
    calls = count_tokenizations(monkeypatch)
    again = encode_rows(EXAMPLES, tokenizer, cache=path.parent, **SETTINGS)
    assert not calls
    for fresh, stored in zip(rows, again, strict=True):
        same(fresh, stored)


def damaged(content):
    size = len(content)
    yield from (content[:length] for length in (0, 1, size // 2, size - 1))
    for position in range(0, size, max(1, size // 40)):
        yield content[:position] + bytes([content[position] ^ 1]) + content[position + 1 :]
    yield b"\x80\x04K\x01."


def test_a_damaged_entry_is_written_again(entry, monkeypatch):
    tokenizer, rows, path = entry
    content = path.read_bytes()
    calls = count_tokenizations(monkeypatch)
    for expected, damage in enumerate(damaged(content), start=1):
        path.write_bytes(damage)
        again = encode_rows(EXAMPLES, tokenizer, cache=path.parent, **SETTINGS)
        assert len(calls) == expected, "a damaged entry was believed"
        assert path.read_bytes() == content
        for fresh, stored in zip(rows, again, strict=True):
            same(fresh, stored)


def test_the_key_covers_tokenizer_template_settings_and_rows(tmp_path):
    def entries(examples=EXAMPLES, tokenizer=None, **changed):
        tokenizer = tokenizer or made.TOKENIZERS["chatml bytes"]()
        encode_rows(examples, tokenizer, cache=tmp_path, **{**SETTINGS, **changed})
        return len(list(tmp_path.iterdir()))

    assert entries() == 1
    assert entries() == 1
    assert entries(context_tokens=61) == 2
    assert entries(plain=True) == 3
    assert entries(examples=EXAMPLES[:2]) == 4
    assert entries(examples=[*EXAMPLES[:2], conversation("q", "yes")]) == 5
    assert entries(tokenizer=made.byte_tokenizer(made.CHATML.replace("Be good", "Be bad"))) == 6
    assert entries(tokenizer=made.TOKENIZERS["chatml merging"]()) == 7


def test_a_tokenizer_keeps_its_identity_when_it_is_used():
    tokenizer = made.word_piece()
    before = tokenizer_identity(tokenizer)
    tokenizer(["a film", "a"], truncation=True, max_length=3, padding=True)
    assert tokenizer_identity(tokenizer) == before


def test_every_kind_of_row_survives(tmp_path):
    seq2seq = {"kind": "seq2seq", "task": "generation", "context_tokens": 5}
    rows = encode_rows([conversation("abc", "d"), conversation("a", "")], made.encoder_decoder(), **seq2seq)
    numbers = {"kind": "encoder", "task": "regression", "context_tokens": 5}
    rows += encode_rows([Example((Turn("user", "film"),), label=2.0)], made.word_piece(), **numbers)
    classes = {**numbers, "task": "classification", "labels": ("a", "b")}
    rows += encode_rows([Example((Turn("user", "film"),), label="a")], made.word_piece(), **classes)
    save_rows(tmp_path, "key", rows)
    for row, stored in zip(rows, load_rows(tmp_path, "key", len(rows)), strict=True):
        same(row, stored)
    save_rows(tmp_path, "none", [])
    assert load_rows(tmp_path, "none", 0) == [] and load_rows(tmp_path, "absent", 0) is None
    assert load_rows(tmp_path, "key", len(rows) + 1) is None


def test_the_folder_follows_the_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("FORETUNE_CACHE", str(tmp_path))
    assert token_folder() == tmp_path / "tokens"
