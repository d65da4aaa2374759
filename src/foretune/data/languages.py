"""Which scripts, languages and code a text holds, by simple evidence: no model, no download.

Scripts come from the Unicode names of letters. A language is named only where the evidence is plain: its script
alone (Japanese kana, Hangul, …) or enough of its commonest words; everything else is honestly ``unknown``. Code is
recognised by a fence or by several unlike marks of programming languages.
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Iterable
from functools import lru_cache

UNKNOWN = "unknown"
_SCRIPT_LANGUAGE = {
    "HIRAGANA": "ja",
    "KATAKANA": "ja",
    "HANGUL": "ko",
    "GREEK": "el",
    "HEBREW": "he",
    "THAI": "th",
    "GEORGIAN": "ka",
    "ARMENIAN": "hy",
    "TAMIL": "ta",
    "BENGALI": "bn",
}
"""Scripts that one language dominates. Han alone is taken for Chinese, since Japanese prose has kana."""
_STOP_WORDS = {
    "en": "the of and to in is that it for was with as are be this have not what you which by from at or an",
    "de": "der die das und ist nicht ein eine zu den mit von auf für im dem des sich auch es wie was wird sind",
    "fr": "le la les des et est une dans que qui pour pas sur au avec ce il sont par plus vous nous du un",
    "es": "el la los las y es una que en de por con para no se del como más su lo un está qué son",
    "it": "il la gli che di è una per non con del della sono le un si nel come più anche alla i da ed",
    "pt": "o a os as e é uma que de em para não com do da por um se no na mais como são dos",
    "nl": "de het een en van is dat niet op te voor met zijn die er aan wat ook als bij wordt naar maar deze",
    "ru": "и в не на что это как с по для он из к но мы так вы его от или был если при",
    "uk": "і в не на що це як з по для він із до але ми так ви його від або був якщо та є",
    "sv": "och att det som en är på för av med inte den till har ett om var jag vi han kan men från",
    "pl": "i w nie na się że to z jest do jak co po dla od przez ale tak o jego czy oraz są",
    "tr": "ve bir bu için ile de da ne çok olarak daha var mi olan gibi kadar sonra ama en değil",
}
_STOP_SETS = {language: frozenset(words.split()) for language, words in _STOP_WORDS.items()}
_LEAST_HITS = 2
_LEAST_SHARE = 0.1
"""Prose in these languages has 30–50 % of such words; names and loan words give a few percent."""
_LEAST_LEAD = 1.3
"""The first language must have this many times the hits of the second (Spanish and Portuguese share many)."""
_MAIN_SCRIPT_SHARE = 0.3
_READ_CHARACTERS = 4000
_CODE_MARKS = tuple(
    re.compile(pattern, re.MULTILINE)
    for pattern in (
        r"^\s*(def|class) \w+.*:\s*$",
        r"^\s*(import \w[\w.]*|from \w[\w.]* import .+|#include\s*[<\"].+)\s*;?\s*$",
        r"[;{}]\s*$",
        r"\b(return|function|const|let|var|public|static|void|lambda)\b\s*\w*\s*[({=;]",
        r"\bSELECT\b.+\bFROM\b",
        r"</\w+>",
        r"\w+\([\w\s,.'\"=\[\]]*\)\s*[;{:]?\s*$",
        r"(==|!=|&&|\|\||=>|->|\+=|::)",
    )
)
_CODE_FENCE = re.compile(r"^\s*```", re.MULTILINE)
_LEAST_MARKS = 3


@lru_cache(maxsize=65_536)
def script_of(letter: str) -> str | None:
    """The script of a letter as the first word of its Unicode name (``CJK`` for Han); None for other characters."""
    if not letter.isalpha():
        return None
    name = unicodedata.name(letter, "").split(" ")[0]
    return name or None


def scripts(texts: Iterable[str]) -> dict[str, float]:
    """The share of letters in each script, most frequent first; empty when there are no letters."""
    counts: Counter[str] = Counter()
    for text in texts:
        for letter, count in Counter(text).items():
            script = script_of(letter)
            if script is not None:
                counts[script.lower()] += count
    total = sum(counts.values())
    return {script: count / total for script, count in counts.most_common()}


def language_of(text: str) -> str:
    """The language of ``text`` as its two-letter code, or `UNKNOWN`."""
    text = text[:_READ_CHARACTERS].lower()
    shares = {script.upper(): share for script, share in scripts([text]).items()}
    for script, language in _SCRIPT_LANGUAGE.items():
        if shares.get(script, 0.0) >= _MAIN_SCRIPT_SHARE:
            return language
    if shares.get("CJK", 0.0) >= _MAIN_SCRIPT_SHARE:
        kana = shares.get("HIRAGANA", 0.0) + shares.get("KATAKANA", 0.0)
        return "ja" if kana > 0 else "zh"
    words = re.findall(r"[^\W\d_]+", text)
    hits = Counter({language: sum(word in stop for word in words) for language, stop in _STOP_SETS.items()})
    (best, most), (_, second) = hits.most_common(2)
    plain = most >= _LEAST_HITS and most >= _LEAST_SHARE * len(words) and most >= _LEAST_LEAD * second
    return best if plain else UNKNOWN


def is_code(text: str) -> bool:
    """Whether ``text`` holds program code: a fenced block, or at least three unlike marks of code."""
    text = text[:_READ_CHARACTERS]
    return bool(_CODE_FENCE.search(text)) or sum(bool(mark.search(text)) for mark in _CODE_MARKS) >= _LEAST_MARKS
