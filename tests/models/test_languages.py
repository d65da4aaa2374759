"""Multilingual encoder–decoders are told source and target: codes around the text, what decoding begins with."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from foretune.catalogue.models import ModelReference
from foretune.data.encode import encode_rows
from foretune.data.example import conversation
from foretune.data.instruction import instructed
from foretune.data.translation import prefix_for
from foretune.errors import ModelError
from foretune.models.languages import language_tokens, set_languages
from foretune.models.load import load

PIECES = [("<s>", 0.0), ("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), *((f"▁w{i}", -1.0 - i) for i in range(20)),
          ("▁", -30.0), ("a", -31.0)]  # fmt: skip


def tokenizer(name: str) -> Any:
    from transformers import MBart50Tokenizer, MBartTokenizer, NllbTokenizer

    if name == "nllb":
        return NllbTokenizer(vocab={piece: number for number, (piece, _) in enumerate(PIECES)}, merges=[])
    return {"mbart50": MBart50Tokenizer, "mbart": MBartTokenizer}[name](vocab=PIECES)


def bare_model() -> Any:
    return SimpleNamespace(config=SimpleNamespace(), generation_config=SimpleNamespace())


@pytest.mark.parametrize("name", ["mbart50", "nllb"])
def test_a_code_stands_before_source_and_target_and_is_forced(name: str) -> None:
    made, model = tokenizer(name), bare_model()
    set_languages(model, made, "en", "de")
    english, german = (
        made.convert_tokens_to_ids(code)
        for code in (("eng_Latn", "deu_Latn") if name == "nllb" else ("en_XX", "de_DE"))
    )
    (row,) = encode_rows([conversation("w1 w2", "w3")], made, kind="seq2seq", task="generation", context_tokens=32)
    assert row.ids[0] == english and row.decoder_ids is not None
    assert row.decoder_ids[0] == german and row.decoder_ids[-1] == made.eos_token_id
    assert model.generation_config.forced_bos_token_id == german
    assert not hasattr(model.config, "decoder_start_token_id")


def test_the_first_mbart_starts_from_the_code_and_its_targets_end_with_the_text() -> None:
    made, model = tokenizer("mbart"), bare_model()
    set_languages(model, made, "en", "de")
    german = made.convert_tokens_to_ids("de_DE")
    assert made(text_target="w3")["input_ids"][-1] == german, "the tokenizer itself puts the code last"
    (row,) = encode_rows([conversation("w1", "w3")], made, kind="seq2seq", task="generation", context_tokens=32)
    assert row.decoder_ids is not None and row.decoder_ids[-1] == made.eos_token_id
    assert german not in row.decoder_ids
    assert model.config.decoder_start_token_id == model.generation_config.decoder_start_token_id == german
    assert not hasattr(model.generation_config, "forced_bos_token_id")


def test_m2m_names_tokens_and_codes_apart() -> None:
    ids = {"__en__": 5, "__de__": 6}
    made = SimpleNamespace(
        lang_code_to_token={"en": "__en__", "de": "__de__"}, src_lang="en", tgt_lang="en",
        convert_tokens_to_ids=ids.__getitem__,
    )  # fmt: skip

    class Callable(SimpleNamespace):
        def __call__(self, *, text_target: str) -> dict[str, list[int]]:
            return {"input_ids": [ids[f"__{self.tgt_lang}__"], 9, 2]}

    made, model = Callable(**vars(made)), bare_model()
    assert language_tokens(made) == {"__en__": "en", "__de__": "de"}
    set_languages(model, made, "en", "de")
    assert (made.src_lang, made.tgt_lang) == ("en", "de") and model.generation_config.forced_bos_token_id == 6


def test_a_language_the_model_lacks_is_an_error_and_a_plain_tokenizer_needs_nothing() -> None:
    with pytest.raises(ModelError, match="Danish"):
        set_languages(bare_model(), tokenizer("mbart50"), "en", "da")
    model = bare_model()
    set_languages(model, SimpleNamespace(), "en", "de")
    assert not vars(model.generation_config)


def test_a_loaded_model_answers_with_the_forced_code_first(tmp_path: Path) -> None:
    import numpy as np
    import torch
    from transformers import MBartConfig, MBartForConditionalGeneration

    from foretune.evaluation.generation import generate_ids

    made = tokenizer("mbart50")
    torch.manual_seed(0)
    MBartForConditionalGeneration(MBartConfig(
        vocab_size=len(made), d_model=16, encoder_layers=1, decoder_layers=1, encoder_attention_heads=2,
        decoder_attention_heads=2, encoder_ffn_dim=16, decoder_ffn_dim=16, max_position_embeddings=32,
        decoder_start_token_id=2,
    )).save_pretrained(tmp_path)  # fmt: skip
    made.save_pretrained(tmp_path)
    loaded = load(ModelReference(str(tmp_path), kind="seq2seq", dtype="float32", languages=("en", "tr")))
    prompt = np.asarray(loaded.tokenizer("w1 w2")["input_ids"])
    assert loaded.tokenizer.convert_ids_to_tokens(int(prompt[0])) == "en_XX"
    (answer,) = generate_ids(loaded.model, [prompt], max_new_tokens=4, stop_ids=[])
    assert answer is not None and loaded.tokenizer.convert_ids_to_tokens(answer[0]) == "tr_TR"


def test_what_is_written_before_a_text(tmp_path: Path) -> None:
    pair = ("en", "de")
    assert prefix_for(pair, "causal", "llama", None) == "Translate from English to German:\n"
    assert prefix_for(pair, "seq2seq", "t5", None) == "translate English to German: "
    assert prefix_for(pair, "seq2seq", "m2m_100", tmp_path) == prefix_for(pair, "encoder", "bert", None) == ""
    (tmp_path / "vocab.json").write_text('{">>de<<": 3}')
    assert prefix_for(pair, "seq2seq", "marian", tmp_path) == ">>de<< "
    (row,) = instructed([conversation("Hi", "Hallo")], "x: ")
    assert (row.prompt, row.answer, row.targets) == ("x: Hi", "Hallo", (1,))
