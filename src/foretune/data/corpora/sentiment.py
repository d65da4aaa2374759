"""Sentences rated for sentiment by twenty people each: films, tweets, products, news.

Source: C.J. Hutto and E. Gilbert, VADER, ICWSM 2014 (MIT); the ratings lie in the source distribution of
``vaderSentiment``. Ratings run from -4 to 4. The ``-rating`` sets hold every sentence with its mean rating; the
``-sentiment`` sets hold its sign, without the sentences whose mean lies within `NEUTRAL` of zero.

Sentences of one product review or one editorial share a ``group``, so a split keeps them together. The film sentences
and tweets come without the number of their review or author: each is its own group there, equal texts together.
"""

from __future__ import annotations

import html
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from foretune.catalogue.datasets import VADER
from foretune.data.example import normalised
from foretune.errors import DataError, Place
from foretune.files import fingerprint
from foretune.packages import Progress, download, extract

NEUTRAL = 0.5
"""Mean ratings nearer to zero than this have no clear sign: raters disagree about it (their spread is near 1)."""
_HIGHEST = 4.0
_TAR = "vaderSentiment-3.3.2/additional_resources/hutto_ICWSM_2014.tar.gz"
_FILES = {
    "film": "movieReviewSnippets_GroundTruth.txt",
    "tweet": "tweets_GroundTruth.txt",
    "product": "amazonReviewSnippets_GroundTruth.txt",
    "news": "nytEditorialSnippets_GroundTruth.txt",
}
_COLUMNS = 3


def build(folder: Path, progress: Progress) -> Mapping[str, list[dict[str, Any]]]:
    """All eight data sets from one download; raises `DataError`."""
    archive = download(
        VADER.name, VADER.version, VADER.sha256, folder / "vader", source=True, refuse=DataError, progress=progress
    )
    inner = folder / "ratings.tar.gz"
    extract(archive, {_TAR: inner}, refuse=DataError)
    files = {domain: folder / name for domain, name in _FILES.items()}
    extract(inner, {f"hutto_ICWSM_2014/{_FILES[domain]}": path for domain, path in files.items()}, refuse=DataError)
    built: dict[str, list[dict[str, Any]]] = {}
    for domain, path in files.items():
        rated = read_ratings(path, domain)
        built[f"{domain}-rating"] = [{"text": text, "label": mean, "group": group} for text, mean, group in rated]
        built[f"{domain}-sentiment"] = [
            {"text": text, "label": "positive" if mean > 0 else "negative", "group": group}
            for text, mean, group in rated
            if abs(mean) >= NEUTRAL
        ]
    return built


def read_ratings(path: Path, domain: str) -> list[tuple[str, float, str]]:
    """(text, mean rating, group) of a tab-separated file; raises `DataError` with the line of a damaged row."""
    rated = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        parts = line.split("\t")
        try:
            if len(parts) != _COLUMNS:
                raise ValueError(f"{len(parts)} columns instead of {_COLUMNS}")
            mean = float(parts[1])
            if not -_HIGHEST <= mean <= _HIGHEST:
                raise ValueError(f"the rating {mean} is outside -4 to 4")
        except ValueError as error:
            raise DataError(f"not a rated sentence: {error}.", place=Place(path.name, number)) from error
        text = " ".join(html.unescape(parts[2]).split())
        if text:
            document, separator, _ = parts[0].partition("_")
            group = document if separator else fingerprint(normalised(text))
            rated.append((text, round(mean, 4), f"{domain}-{group}"))
    return rated
