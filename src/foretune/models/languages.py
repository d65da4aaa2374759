"""Source and target language of a multilingual encoder–decoder: codes for its tokenizer, a forced first token.

mBART, M2M-100 and NLLB put a language code around what the tokenizer encodes (``src_lang``, ``tgt_lang``) and begin
an answer with the target's code, which decoding has to force, or start decoding from it. Other models need nothing of
this module (`data.translation` writes what they are told into the text).
"""

from __future__ import annotations

from typing import Any

from foretune.catalogue.languages import name_of, token_of
from foretune.errors import ModelError, Place


def set_languages(model: Any, tokenizer: Any, source: str, target: str) -> None:
    """Tell ``tokenizer`` and ``model`` to translate from ``source`` to ``target``; nothing where codes have no use.

    Raises `ModelError` for a language the tokenizer does not know.
    """
    codes = language_tokens(tokenizer)
    if not codes:
        return
    found = {}
    for code in (source, target):
        token = token_of(code, codes)
        if token is None:
            raise ModelError(
                f"this model has no token for {name_of(code)}.",
                place=Place(str(getattr(tokenizer, "name_or_path", "tokenizer"))),
                remedy="Choose another model or language pair.",
            )
        found[code] = token
    tokenizer.src_lang, tokenizer.tgt_lang = codes[found[source]], codes[found[target]]
    wanted = int(tokenizer.convert_tokens_to_ids(found[target]))
    settings = [one for one in (model.config, getattr(model, "generation_config", None)) if one is not None]
    begins = tokenizer(text_target="a")["input_ids"][0] == wanted
    for one in settings:
        if begins:
            one.forced_bos_token_id = wanted
        else:  # the first mBART: decoding starts from the code, which its labels have behind the end of text
            one.decoder_start_token_id = wanted


def language_tokens(tokenizer: Any) -> dict[str, str]:
    """The tokenizer's language tokens with the codes that its ``src_lang`` takes; empty where it has no languages.

    M2M-100 writes ``__de__`` for the code ``de``; elsewhere token and code are one.
    """
    if not hasattr(tokenizer, "src_lang"):
        return {}
    by_code = getattr(tokenizer, "lang_code_to_token", None)
    if by_code:
        return {str(token): str(code) for code, token in by_code.items()}
    known = getattr(tokenizer, "lang_code_to_id", None) or getattr(tokenizer, "extra_special_tokens", None) or ()
    names = [str(name) for name in known] or [str(name) for name in tokenizer.all_special_tokens]
    return {name: name for name in names if not name.startswith("<")}
