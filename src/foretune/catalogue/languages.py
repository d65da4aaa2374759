"""Languages by the two-letter code people write (ISO 639-1): English name, three-letter code, distance between two.

Translation data and models name languages differently: mBART writes ``de_DE``, NLLB ``deu_Latn``, M2M-100 ``de``.
`token_of` finds the name a model's tokenizer knows among its own language tokens. Distances are those of
`catalogue.distances`; a pair it lacks is None, never guessed.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable

from foretune.catalogue.distances import DISTANCES
from foretune.errors import UsageError

LANGUAGES: dict[str, tuple[str, str]] = {
    "ar": ("Arabic", "arb"), "bg": ("Bulgarian", "bul"), "ca": ("Catalan", "cat"), "cs": ("Czech", "ces"),
    "da": ("Danish", "dan"), "de": ("German", "deu"), "el": ("Greek", "ell"), "en": ("English", "eng"),
    "es": ("Spanish", "spa"), "et": ("Estonian", "est"), "eu": ("Basque", "eus"), "fi": ("Finnish", "fin"),
    "fr": ("French", "fra"), "gl": ("Galician", "glg"), "he": ("Hebrew", "heb"), "hi": ("Hindi", "hin"),
    "hr": ("Croatian", "hrv"), "hu": ("Hungarian", "hun"), "id": ("Indonesian", "ind"), "it": ("Italian", "ita"),
    "ja": ("Japanese", "jpn"), "ko": ("Korean", "kor"), "lt": ("Lithuanian", "lit"), "lv": ("Latvian", "lvs"),
    "nb": ("Norwegian", "nob"), "nl": ("Dutch", "nld"), "pl": ("Polish", "pol"), "pt": ("Portuguese", "por"),
    "ro": ("Romanian", "ron"), "ru": ("Russian", "rus"), "sk": ("Slovak", "slk"), "sl": ("Slovenian", "slv"),
    "sr": ("Serbian", "srp"), "sv": ("Swedish", "swe"), "th": ("Thai", "tha"), "tr": ("Turkish", "tur"),
    "uk": ("Ukrainian", "ukr"), "vi": ("Vietnamese", "vie"), "zh": ("Chinese", "zho"),
}  # fmt: skip
Languages = tuple[str, str]
"""(source, target) as two-letter codes"""
_CODE = re.compile(r"([A-Za-z]{2,3})(?:[-_].+)?")


def code_of(tag: str) -> str:
    """The two-letter code in a language tag: ``de-AT``, ``de_DE`` and ``DE`` are ``de``. Raises `UsageError`."""
    match = _CODE.fullmatch(tag.strip())
    short = match[1].lower() if match else ""
    if short in LANGUAGES:
        return short
    by_three = {three: code for code, (_, three) in LANGUAGES.items()}
    if short in by_three:
        return by_three[short]
    near = difflib.get_close_matches(short, LANGUAGES, n=3, cutoff=0.4)
    raise UsageError(
        f"{tag!r} is no language known here.",
        remedy=f"Give a two-letter code{' such as ' + ', '.join(near) if near else ''}: {', '.join(LANGUAGES)}.",
    )


def parse_pair(value: str) -> Languages:
    """``en-de`` (or ``en>de``, ``en_US de_DE``) as two codes. Raises `UsageError`."""
    for mark in (">", "→", " ", ","):
        if mark in value:
            parts = [part.strip() for part in value.split(mark) if part.strip()]
            break
    else:
        parts = value.split("-")
    if len(parts) != 2:
        raise UsageError(f"{value!r} does not name two languages.", remedy="Write source and target like en-de.")
    source, target = code_of(parts[0]), code_of(parts[1])
    if source == target:
        raise UsageError(f"{value!r} names one language twice.", remedy="Write source and target like en-de.")
    return source, target


def name_of(code: str) -> str:
    """The English name of a language."""
    return LANGUAGES[code_of(code)][0]


def distance(a: str, b: str) -> float | None:
    """The distance of two languages in `DISTANCES`; 0 for the same one, None where it is not in the table."""
    first, second = sorted((code_of(a), code_of(b)))
    return 0.0 if first == second else DISTANCES.get((first, second))


def token_of(code: str, tokens: Iterable[str]) -> str | None:
    """The token among a tokenizer's language ``tokens`` that means ``code`` (``__de__``, ``de_DE``), or None."""
    short = code_of(code)
    three = LANGUAGES[short][1]
    found = {re.sub(r"^__|__$|^>>|<<$", "", token): token for token in tokens}
    for wanted in (short, three):
        if wanted in found:
            return found[wanted]
    regional = sorted(name for name in found if re.match(rf"(?:{short}|{three})[_-]", name))
    return found[regional[0]] if regional else None
