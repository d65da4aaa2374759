"""Metrics of a generated text against its reference.

exact_match and token_f1 compare what was said rather than how it was typed; the normalisation is ours and works in
every script (SQuAD's strips English articles and turns "3.5" into "35"; ours does neither). rouge_l follows Lin
2004 (F-measure of the longest common subsequence, beta 1, no stemming) and equals the ``rouge_score`` package on
plain English. bleu (Papineni et al. 2002) and chrf (chrF++, Popović 2017) take their counts from sacreBLEU and
report its signature. No model-based metric lives here.
"""

from __future__ import annotations

import json
import unicodedata
from collections import Counter
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

from foretune.data.tools import found_in
from foretune.evaluation import aggregate
from foretune.evaluation.base import Answer, Direction, MetricResult
from foretune.evaluation.metrics.rows import from_rows, prediction_of, require_rows

_WRAPPING = "\"'`“”‘’«»„「」『』"
_CLOSING = ".!?,;:。！？、"
_UNSPACED = ("CJK", "HIRAGANA", "KATAKANA", "THAI", "LAO", "KHMER", "MYANMAR")
"""Scripts written without spaces: there every character is a word, as sacreBLEU's Chinese tokenizer has it."""


def normalise(text: str) -> str:
    """The form in which answers are compared: NFKC, case folded, white space folded, outer quotes and a final mark off.

    Signs, articles, accents and everything inside the text stay: "-5" is not "5", "C++" is not "C".
    """
    folded = " ".join(unicodedata.normalize("NFKC", text).casefold().split())
    bare = folded.strip(_WRAPPING).rstrip(_CLOSING).strip(_WRAPPING).strip()
    return bare or folded


@lru_cache(maxsize=65_536)
def _kind(character: str) -> str:
    """``word``, ``alone`` (a word by itself) or ``gap``."""
    if unicodedata.category(character)[0] not in "LNM":
        return "gap"
    return "alone" if unicodedata.name(character, "").startswith(_UNSPACED) else "word"


def words(text: str) -> list[str]:
    """Words of the normalised text: runs of letters, digits and marks; "3.5" is one word."""
    pieces: list[str] = []
    folded = unicodedata.normalize("NFKC", text).casefold()
    for i, character in enumerate(folded):
        kind = _kind(character)
        if kind == "word":
            pieces.append(character)
        elif kind == "alone":
            pieces.append(f" {character} ")
        elif character in ".," and 0 < i < len(folded) - 1 and folded[i - 1].isdigit() and folded[i + 1].isdigit():
            pieces.append(character)
        else:
            pieces.append(" ")
    return "".join(pieces).split()


def exact(prediction: str, reference: str) -> float:
    """1 when both say the same after `normalise`."""
    return float(normalise(prediction) == normalise(reference))


def token_f1(prediction: str, reference: str) -> float:
    """F1 of the two bags of words (Rajpurkar et al. 2016); two answers without words agree."""
    said, wanted = Counter(words(prediction)), Counter(words(reference))
    return _f1((said & wanted).total(), said.total(), wanted.total(), prediction, reference)


def rouge_l(prediction: str, reference: str) -> float:
    """F1 of the longest common subsequence of words."""
    said, wanted = words(prediction), words(reference)
    return _f1(longest_common(said, wanted), len(said), len(wanted), prediction, reference)


def _f1(common: int, said: int, wanted: int, prediction: str, reference: str) -> float:
    if not said and not wanted:  # only marks ("+", "!="): compare them as written
        return exact(prediction, reference)
    return 2 * common / (said + wanted)


def longest_common(a: Sequence[str], b: Sequence[str]) -> int:
    """The length of the longest common subsequence, bit-parallel (Crochemore et al. 2001)."""
    places: dict[str, int] = {}
    for i, word in enumerate(a):
        places[word] = places.get(word, 0) | 1 << i
    full = (1 << len(a)) - 1
    row = full
    for word in b:
        here = row & places.get(word, 0)
        row = ((row + here) | (row - here)) & full
    return len(a) - row.bit_count()


def parsed(text: str) -> tuple[bool, Any]:
    """(whether ``text`` is strict JSON, the value). NaN, fences and words around it are not JSON."""

    def refuse(name: str) -> Any:
        raise ValueError(name)

    try:
        return True, json.loads(text.strip(), parse_constant=refuse)
    except (ValueError, RecursionError):
        return False, None


def json_valid(prediction: str, reference: str) -> float:
    """1 when the prediction is JSON, whatever it says."""
    return float(parsed(prediction)[0])


def json_equal(prediction: str, reference: str) -> float:
    """1 when prediction and reference are the same JSON value: key order and white space do not count."""
    (valid, said), (wanted_valid, wanted) = parsed(prediction), parsed(reference)
    return float(valid and wanted_valid and _typed(said) == _typed(wanted))


def same_calls(prediction: str, reference: str) -> float:
    """1 when both call the same functions with the same arguments, in any order; none where none is expected.

    Calls are found in whatever marks a template puts around them; what is said beside them does not count.
    """
    said, wanted = ([(call.name, _typed(json.loads(call.arguments))) for call in found_in(text)]
                    for text in (prediction, reference))  # fmt: skip
    return float(len(said) == len(wanted) and all(said.count(call) == wanted.count(call) for call in wanted))


def _typed(value: Any) -> Any:
    """``value`` with booleans told from numbers, which Python holds equal."""
    if isinstance(value, bool):
        return ("bool", value)
    if isinstance(value, dict):
        return {key: _typed(inner) for key, inner in value.items()}
    return [_typed(inner) for inner in value] if isinstance(value, list) else value


class Bleu:
    """Corpus BLEU by sacreBLEU; ``per_row`` are smoothed sentence scores with the orders that exist."""

    name = "bleu"
    direction: Direction = "higher"
    needs_generation = True
    unit = "points of 100"

    def score(self, rows: Sequence[Answer]) -> MetricResult:
        """BLEU, its bootstrap error over rows, and sacreBLEU's signature in ``details``."""
        from sacrebleu.metrics import BLEU

        require_rows(rows, self.name)
        sentences, corpus = BLEU(effective_order=True), BLEU()
        pairs = [(prediction_of(row, self.name), row.reference) for row in rows]
        scores = [sentences.sentence_score(prediction, [reference]) for prediction, reference in pairs]
        statistics = tuple(
            tuple(map(float, (score.sys_len, score.ref_len, *score.counts, *score.totals))) for score in scores
        )
        corpus.corpus_score([pairs[0][0]], [[pairs[0][1]]])  # the signature states the number of references seen
        return from_rows("bleu", statistics, tuple(s.score for s in scores), scale=aggregate.PERCENT,
                         details={"signature": str(corpus.get_signature())})  # fmt: skip


class Chrf:
    """Corpus chrF++ by sacreBLEU; ``per_row`` are sentence scores."""

    name = "chrf"
    direction: Direction = "higher"
    needs_generation = True
    unit = "points of 100"

    def score(self, rows: Sequence[Answer]) -> MetricResult:
        """chrF++, its bootstrap error over rows, and sacreBLEU's signature in ``details``."""
        import numpy as np
        from sacrebleu.metrics import CHRF

        require_rows(rows, self.name)
        scorer = CHRF(word_order=2)
        predictions = [prediction_of(row, self.name) for row in rows]
        # sacreBLEU keeps no public form of chrF's counts; a test holds what is made of them to `corpus_score`
        counts = scorer._extract_corpus_statistics(predictions, [[row.reference for row in rows]])
        statistics = tuple(tuple(map(float, row)) for row in counts)
        per_row = aggregate.chrf(np.eye(len(rows)), np.asarray(statistics))
        return from_rows("chrf", statistics, tuple(map(float, per_row)), scale=aggregate.PERCENT,
                         details={"signature": str(scorer.get_signature())})  # fmt: skip
