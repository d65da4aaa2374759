"""Parallel interface texts of Home Assistant, from English to eight languages (Apache-2.0).

The wheel holds, for every component, one JSON file per language with the same keys. A row is an English text of at
least `FEWEST_WORDS` words with its translation. Only keys translated into *all* eight languages are taken, so that
the pairs have identical English sides and differ in nothing but the language. Texts of one component go to one split;
a validation or test row whose English text or translation also occurs in training (in test: also in validation) is
dropped in every language. Placeholders such as ``{name}`` stay, and a row whose translation lacks one is dropped.

``interface-parents`` holds the same texts in other languages, for models that are pre-trained and then tuned on the
pairs: training components only, and nothing whose English text or translation the pairs hold out.

The same texts give two kinds of classification: ``interface-language`` and ``interface-product-…``.

It is the language of buttons and settings: short, terse, full of product names. No claim about prose follows from it.
"""

from __future__ import annotations

import json
import re
import zipfile
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from foretune.catalogue.datasets import HOMEASSISTANT, INTERFACE_LANGUAGES, PARENT_LANGUAGES, PRODUCT_LANGUAGES
from foretune.data.example import normalised
from foretune.data.parallel import leaves
from foretune.errors import DataError, Place
from foretune.packages import Progress, download, names
from foretune.seeding import derive

FEWEST_WORDS = 4
FEWEST_PARENT_WORDS = 2
"""Pre-training takes shorter texts too, as long as they are more than a name."""
LONGEST = 600
"""Characters of a text in either language; longer ones are whole help pages."""
PRODUCTS = (
    "habitica", "hassio", "home_connect", "knx", "miele", "mqtt", "teslemetry", "victron_gx", "zha", "zwave_js",
)  # fmt: skip
"""The components with the most texts in all languages: 140 to 450 each."""
_TENTHS = 10
_HELD_OUT = {8: "validation", 9: "test"}
"""Of ten equal shares of the components, the ninth validates and the tenth tests."""
_MEMBER = re.compile(r"homeassistant/components/([^/]+)/translations/([a-z]{2})\.json")
_PLACEHOLDER = re.compile(r"\{\w+\}")

Segment = dict[str, str]
"""One text by language code."""


def build(folder: Path, progress: Progress) -> Mapping[str, list[dict[str, Any]]]:
    """All five language pairs from one download; raises `DataError`."""
    package = HOMEASSISTANT
    wheel = download(
        package.name,
        package.version,
        package.sha256,
        folder / "homeassistant",
        python_version=package.python_version,
        refuse=DataError,
        progress=progress,
    )
    progress("aligning the translations")
    split = split_segments(segments(wheel))
    pairs = {
        f"interface-en-{code}": [
            {"source": segment["en"], "target": segment[code], "group": component, "split": part}
            for component, part, segment in split
        ]
        for code in INTERFACE_LANGUAGES
    }
    products = {f"interface-product-{code}": product_rows(split, code) for code in PRODUCT_LANGUAGES}
    held_out = {normalised(text) for _, part, segment in split if part != "train" for text in segment.values()}
    parents = parent_rows(parent_segments(wheel), held_out)
    return {**pairs, "interface-parents": parents, "interface-language": language_rows(split), **products}


def language_rows(split: Sequence[tuple[str, str, Segment]]) -> list[dict[str, Any]]:
    """Every segment in one of the nine languages, in turn: no text is there twice in two languages."""
    codes = ("en", *INTERFACE_LANGUAGES)
    return [
        {"text": segment[code], "label": code, "group": component, "split": part}
        for number, (component, part, segment) in enumerate(split)
        for code in (codes[number % len(codes)],)
    ]


def product_rows(split: Sequence[tuple[str, str, Segment]], code: str) -> list[dict[str, Any]]:
    """The texts of the `PRODUCTS` in one language with their component; split by row, as every component is a class."""
    return [{"text": segment[code], "label": component} for component, _, segment in split if component in PRODUCTS]


def parent_rows(found: Iterable[tuple[str, Segment]], held_out: Collection[str]) -> list[dict[str, Any]]:
    """Rows of all languages of a text, of training components, without what is held out and each text once."""
    rows, seen = [], set()
    for component, segment in found:
        folded = {normalised(text) for text in segment.values()}
        english = normalised(segment["en"])
        if split_of(component) == "train" and english not in seen and folded.isdisjoint(held_out):
            seen.add(english)
            rows.append({"translation": dict(sorted(segment.items())), "group": component})
    return rows


def segments(wheel: Path) -> Iterator[tuple[str, Segment]]:
    """(component, text by language) of every key translated into all languages, components in alphabetical order."""
    wanted = {"en", *INTERFACE_LANGUAGES}
    for component, segment in _texts(wheel, wanted, FEWEST_WORDS):
        if set(segment) == wanted and is_usable(segment):
            yield component, segment


def parent_segments(wheel: Path) -> Iterator[tuple[str, Segment]]:
    """The same in the languages to pre-train on, whichever a key has: English and at least one real translation."""
    for component, segment in _texts(wheel, {"en", *PARENT_LANGUAGES}, FEWEST_PARENT_WORDS):
        usable = {code: text for code, text in segment.items() if is_usable({"en": segment["en"], code: text})}
        if len(usable) > 1:
            yield component, usable


def _texts(wheel: Path, wanted: Collection[str], fewest_words: int) -> Iterator[tuple[str, Segment]]:
    """(component, text by language) of every English text of so many words, in the languages it is translated into."""
    members: dict[str, dict[str, str]] = {}
    for name in names(wheel, refuse=DataError):
        match = _MEMBER.fullmatch(name)
        if match is not None and match[2] in wanted:
            members.setdefault(match[1], {})[match[2]] = name
    with zipfile.ZipFile(wheel) as archive:
        for component, files in sorted(members.items()):
            texts = {code: leaves(_read(archive, name)) for code, name in files.items()}
            for key, english in texts.get("en", {}).items():
                if len(english.split()) >= fewest_words:
                    yield component, {code: own[key] for code, own in texts.items() if own.get(key)}


def _read(archive: zipfile.ZipFile, name: str) -> Any:
    try:
        return json.loads(archive.read(name))
    except (ValueError, zipfile.BadZipFile) as error:
        raise DataError(f"not valid JSON ({error}).", place=Place(name)) from error


def is_usable(segment: Segment) -> bool:
    """True when every language has a real translation: not empty, not the English text, placeholders complete."""
    english = segment["en"]
    placeholders = sorted(_PLACEHOLDER.findall(english))
    return all(
        text
        and len(text) <= LONGEST
        and sorted(_PLACEHOLDER.findall(text)) == placeholders
        and (code == "en" or normalised(text) != normalised(english))
        for code, text in segment.items()
    )


def split_of(component: str) -> str:
    """The split of a component: by a hash of its name, so that it does not depend on the others."""
    return _HELD_OUT.get(derive(0, "interface", component) % _TENTHS, "train")


def split_segments(found: Iterator[tuple[str, Segment]]) -> list[tuple[str, str, Segment]]:
    """(component, split, segment) with every English text once, and nothing held out that an earlier split shows."""
    by_split: dict[str, list[tuple[str, Segment]]] = {"train": [], "validation": [], "test": []}
    for component, segment in found:
        by_split[split_of(component)].append((component, segment))
    kept = []
    shown: dict[str, set[str]] = {code: set() for code in ("en", *INTERFACE_LANGUAGES)}
    for part, rows in by_split.items():
        earlier = {code: frozenset(texts) for code, texts in shown.items()}
        for component, segment in rows:
            folded = {code: normalised(text) for code, text in segment.items()}
            if folded["en"] in shown["en"] or any(folded[code] in earlier[code] for code in folded):
                continue
            kept.append((component, part, segment))
            for code, text in folded.items():
                shown[code].add(text)
    return kept
