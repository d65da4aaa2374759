"""How a model is told which language to translate into.

======================  ============================================================================================
decoder                 an instruction before the text: ``Translate from English to German:``
T5                      its own prefix: ``translate English to German: ``
Marian and ours         the target's token before the text (``>>de<<``), where the vocabulary has it
mBART, M2M-100, NLLB    language codes in the tokenizer and a forced first token (`models.languages`), no text
======================  ============================================================================================
"""

from __future__ import annotations

import re
from pathlib import Path

from foretune.catalogue.languages import Languages, name_of
from foretune.catalogue.models import ModelKind

VOCABULARIES = ("tokenizer.json", "vocab.json")
"""Files of a model's folder that may name a target's token."""
T5 = ("t5", "mt5")
_INSTRUCTION = re.compile(r"^(?:Translate from .+? to .+?:\n|translate .+? to .+?: |>>[^<]+<< )")


def target_token(code: str) -> str:
    """The token that asks for a language in vocabularies that hold such tokens."""
    return f">>{code}<<"


def prefix_for(languages: Languages, kind: ModelKind, architecture: str, folder: Path | None) -> str:
    """What is written before a text for a model of this kind; ``folder`` holds its vocabulary."""
    source, target = languages
    if kind == "causal":
        return f"Translate from {name_of(source)} to {name_of(target)}:\n"
    if kind != "seq2seq":
        return ""
    if architecture in T5:
        return f"translate {name_of(source)} to {name_of(target)}: "
    return f"{target_token(target)} " if _knows(folder, target_token(target)) else ""


def without_instruction(prompt: str) -> str:
    """The text itself, where ``prompt`` begins with what `prefix_for` writes for some languages."""
    return _INSTRUCTION.sub("", prompt, count=1)


def _knows(folder: Path | None, token: str) -> bool:
    files = [] if folder is None else [folder / name for name in VOCABULARIES]
    return any(f'"{token}"' in path.read_text(encoding="utf-8", errors="replace") for path in files if path.is_file())
