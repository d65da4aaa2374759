"""The pre-trained parents: their sizes, what they see, and that a stop changes nothing."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from foretune.catalogue.datasets import DATASETS, INTERFACE_LANGUAGES, PARENT_LANGUAGES
from foretune.cost.shapes import ModelShapes
from foretune.data.translation import prefix_for
from foretune.errors import UsageError
from foretune.files import sha256_file
from foretune.study import parents
from foretune.study.parents import MASK, Recipe, config_of, folder_of, infilled, make_parent, ready, training_rows

MINIATURE = Recipe(width=16, layers=1, heads=2, ffn=24, rows=96, rows_per_update=8, vocabulary=320, positions=64)


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache with interface texts in miniature and a parent in miniature."""
    monkeypatch.setenv("FORETUNE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setitem(parents.PARENTS, "mini", MINIATURE)
    monkeypatch.setattr(parents, "CHECKPOINT_STEPS", 5)

    def write(name: str, rows: list[dict[str, Any]]) -> None:
        folder = tmp_path / "cache" / "data" / name
        folder.mkdir(parents=True)
        (folder / "data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        (folder / "source.json").write_text(json.dumps({"edition": DATASETS[name].edition}))
        (folder / "MANIFEST.json").write_text("{}")

    words = [f"word{i}" for i in range(12)]
    texts = [{"en": f"set {a} now {b}", "fr": f"regler {b} sur {a}"} for a in words for b in words[:4]]
    write("interface-parents", [{"translation": text} for text in texts])
    for code in INTERFACE_LANGUAGES:
        write(f"interface-en-{code}", [{"source": "x", "target": f"{code} ziel", "split": "train"}] * 3)
    return tmp_path


def test_the_parents_have_the_sizes_they_are_named_after() -> None:
    for name, wanted in (("tiny-3m", 3.4e6), ("tiny-9m", 9.45e6)):
        config = config_of(parents.PARENTS[name], 1, 0, 2, 8192)
        shapes = ModelShapes.from_config({"model_type": "bart", "is_encoder_decoder": True, **config})
        assert shapes.parameters == pytest.approx(wanted, rel=0.02), name
    assert not set(PARENT_LANGUAGES) & set(INTERFACE_LANGUAGES)
    with pytest.raises(UsageError, match="tiny-3m"):
        make_parent("parent:huge", progress=lambda line: None)


def test_infilling_replaces_spans_of_about_a_third_by_single_masks() -> None:
    random = np.random.default_rng(0)
    text = " ".join(f"w{i}" for i in range(40))
    for _ in range(50):
        noised = infilled(text, random).split()
        assert MASK in noised and not any(a == b == MASK for a, b in pairwise(noised))
        left = [word for word in noised if word != MASK]
        assert left == [word for word in text.split() if word in left], "order stays"
        assert 0.65 <= len(left) / 40 <= 0.95
    assert infilled("one", random) == MASK


def test_rows_hold_both_objectives_and_are_drawn_by_the_seed() -> None:
    texts = [{"en": f"a{i} b c d", "fr": f"e{i} f g", "ru": f"h{i} i"} for i in range(50)]
    rows = training_rows(MINIATURE, texts)
    assert len(rows) == 96 and rows == training_rows(MINIATURE, texts)
    masked = sum(MASK in row.prompt for row in rows)
    assert 30 <= masked <= 66
    for row in rows:
        token, _, prompt = row.prompt.partition(" ")
        language = token.removeprefix(">>").removesuffix("<<")
        segment = next(one for one in texts if row.answer in one.values())
        assert segment[language] == row.answer
        assert MASK in prompt or prompt in set(segment.values()) - {row.answer}


def test_a_stopped_pre_training_ends_as_one_that_was_not(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = make_parent("parent:mini", progress=lambda line: None)
    assert whole is not None and ready("parent:mini")
    expected = sha256_file(whole / "model.safetensors")
    tokenizer_of_whole = (whole / "tokenizer.json").read_text()
    monkeypatch.setenv("FORETUNE_CACHE", str(cache / "again"))
    (cache / "again").mkdir()
    (cache / "again" / "data").symlink_to(cache / "cache" / "data")
    for _ in range(3):
        updates = iter(range(100))
        assert make_parent("parent:mini", progress=lambda line: None, stopped=lambda u=updates: next(u) >= 2) is None
        assert not ready("parent:mini")
    again = make_parent("parent:mini", progress=lambda line: None)
    assert again == folder_of("parent:mini") and again != whole
    assert sha256_file(again / "model.safetensors") == expected
    assert (again / "tokenizer.json").read_text() == tokenizer_of_whole
    assert prefix_for(("en", "de"), "seq2seq", "bart", again) == ">>de<< "
    assert prefix_for(("en", "th"), "seq2seq", "bart", again) == ""


def test_the_vocabulary_takes_a_language_and_a_mask_for_one_token(cache: Path) -> None:
    from transformers import AutoTokenizer

    folder = make_parent("parent:mini", progress=lambda line: None)
    tokenizer = AutoTokenizer.from_pretrained(str(folder))
    ids = tokenizer(f">>de<< set {MASK} now")["input_ids"]
    pieces = tokenizer.convert_ids_to_tokens(ids)
    assert pieces[0] == ">>de<<" and MASK in pieces and pieces[-1] == "</s>"
    assert tokenizer.decode(tokenizer("öö 한국")["input_ids"], skip_special_tokens=True) == "öö 한국"
