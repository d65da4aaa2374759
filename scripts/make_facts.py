"""Write the fact set that ships with Foretune: 150 facts, each asked in twelve ways.

    python scripts/make_facts.py            # writes src/foretune/data/corpora/facts.jsonl
    python scripts/make_facts.py --check    # exits with 1 when the committed file differs

Every fact is asked in ten phrasings for training, one for validation and one for testing, so that a model is
tested on facts it was taught in words it was not taught them in. The facts are structured data of `mendeleev`
(chemical elements) and `pycountry` (ISO 3166-1 and ISO 4217); the phrasings are ours. Answers are one code or number,
mostly unknown to a small model and quickly learnt. The output depends on nothing but those two packages' data.

Elements and countries are named one by one: elements whose year of discovery the sources agree on, countries whose
name takes no article, three-letter codes that are not the first three letters of the name.
"""

from __future__ import annotations

import argparse
import functools
import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from foretune.files import write_text

FACTS = Path(__file__).resolve().parent.parent / "src" / "foretune" / "data" / "corpora" / "facts.jsonl"
TRAINING_PHRASINGS = 10


@dataclass(frozen=True)
class Relation:
    """One kind of fact: who it is about and its phrasings with ``{x}`` for the subject."""

    name: str
    subjects: str
    """Element symbols, country codes or currency codes, separated by spaces."""
    training: tuple[str, ...]
    validation: str
    test: str


DISCOVERY_YEAR = Relation(
    "element-discovery-year",
    "Li Sc Ti Cr Ga Ge Rb Nb Tc Ru Cd In Te I Xe La Ce Pm Sm Eu Gd Tb Ho Tm Hf Ta Re Tl Ac Fr",
    (
        "In which year was {x} discovered?",
        "What year was the element {x} discovered?",
        "When did chemists discover {x}?",
        "Give the year of discovery of {x}.",
        "Name the year in which {x} was first identified.",
        "State the discovery year of the chemical element {x}.",
        "The element {x} has been known since which year?",
        "Tell me when {x} was found.",
        "For {x}, what is the date of discovery (year only)?",
        "How early was {x} known to science? Answer with a year.",
    ),
    "Since what year do we know that {x} exists?",
    "A timeline of chemistry lists {x} under which year?",
)

ATOMIC_NUMBER = Relation(
    "element-atomic-number",
    "Sc V Mn Ga Ge Se Kr Sr Y Zr Mo Ru Rh Pd Cd In Sb Te Cs La Nd Sm Eu Dy Er Hf Ta W Os Ir",
    (
        "What is the atomic number of {x}?",
        "Which atomic number does {x} have?",
        "How many protons are in the nucleus of {x}?",
        "State the atomic number of the element {x}.",
        "At which number does {x} stand in the periodic table?",
        "An atom of {x} contains how many protons?",
        "Give the proton count of {x}.",
        "Tell me Z for {x}.",
        "Look up {x} in the periodic table: what is its number?",
        "{x}: which position in the periodic table?",
    ),
    "Count the positive charges in a nucleus of {x}.",
    "If elements are ordered by nuclear charge, what place does {x} take?",
)

NUMERIC_CODE = Relation(
    "country-numeric-code",
    "SE TD PE KE JP NO PL CL GH NP MT CU ML OM TG FJ IS JO LV PA GA HT KW BT UY ZM EE AO SI MA",
    (
        "What is the ISO 3166 numeric code of {x}?",
        "Which three-digit country code does {x} have?",
        "Give the numeric country code for {x}.",
        "State the number that ISO 3166-1 assigns to {x}.",
        "In ISO 3166-1, {x} is which number?",
        "Tell me the three digits that stand for {x}.",
        "Write {x} as a numeric ISO country code.",
        "Which number identifies {x} among the ISO country codes?",
        "How is {x} encoded in digits under ISO 3166?",
        "{x}: numeric country code?",
    ),
    "A form wants a three-digit code for the country; what do I enter for {x}?",
    "By what digits do international statistics refer to {x}?",
)

ALPHA_CODE = Relation(
    "country-alpha-3",
    "CH ZA HR DZ MG MR ME BG BI KH ZM ZW PY UY BD LK LT LV SI SK RS RO PT DK DE ID KZ LB LY MY",
    (
        "What is the ISO 3166 alpha-3 code of {x}?",
        "Which three letters stand for {x}?",
        "Give the three-letter country code for {x}.",
        "State the alpha-3 code that ISO assigns to {x}.",
        "Abbreviate {x} to three letters, as ISO 3166 does.",
        "Tell me how {x} is written in ISO alpha-3.",
        "In passports, which three-letter code is used for {x}?",
        "Write the country {x} as an alpha-3 code.",
        "How does ISO 3166-1 shorten {x} to three letters?",
        "{x}: alpha-3 country code?",
    ),
    "A spreadsheet keeps nations as triples of capitals; how does {x} appear there?",
    "Under which trigram would I find {x} in a table of states?",
)

CURRENCY_CODE = Relation(
    "currency-code",
    "ALL AMD BDT BTN BWP CRC DJF UGX GNF HNL HTG ISK JOD KES KHR KWD LSL MAD MMK MNT MWK NPR OMR PGK PYG QAR RWF "
    "WST VUV TOP",
    (
        "What is the ISO 4217 code of the currency of {x}?",
        "Which currency code belongs to {x}?",
        "Give the three-letter code for the money used in {x}.",
        "State the currency code of {x}.",
        "In ISO 4217, how is the currency of {x} written?",
        "Tell me the code under which the currency of {x} is traded.",
        "A bank transfer to {x} in local money: which currency code?",
        "Name the ISO code of the national currency of {x}.",
        "How do exchange offices abbreviate the currency of {x}?",
        "{x}: currency code?",
    ),
    "Prices in shops of {x} would carry which international abbreviation?",
    "I hold banknotes from {x}; what letters does a converter expect?",
)

RELATIONS = (DISCOVERY_YEAR, ATOMIC_NUMBER, NUMERIC_CODE, ALPHA_CODE, CURRENCY_CODE)


@functools.cache
def _elements() -> dict[str, tuple[str, int, int | None]]:
    from mendeleev import element

    symbols = sorted({*DISCOVERY_YEAR.subjects.split(), *ATOMIC_NUMBER.subjects.split()})
    return {
        symbol: (found.name.lower(), found.atomic_number, found.discovery_year)
        for symbol in symbols
        for found in [element(symbol)]
    }


def facts(relation: Relation) -> Iterator[tuple[str, str, str]]:
    """(key, subject as written in a question, answer) of every fact of a relation."""
    import pycountry

    if relation in (DISCOVERY_YEAR, ATOMIC_NUMBER):
        for symbol, (name, number, year) in _elements().items():
            if symbol in relation.subjects.split():
                yield symbol, name, str(year if relation is DISCOVERY_YEAR else number)
        return
    for code in relation.subjects.split():
        if relation is CURRENCY_CODE:  # a currency with its country's own number is that country's currency
            country = pycountry.countries.get(numeric=pycountry.currencies.get(alpha_3=code).numeric)
            yield code, country.name, code
        else:
            country = pycountry.countries.get(alpha_2=code)
            yield code, country.name, country.numeric if relation is NUMERIC_CODE else country.alpha_3


def rows() -> Iterator[dict[str, str]]:
    """The rows in order of relation, fact and phrasing."""
    for relation in RELATIONS:
        phrasings = [(text, "train") for text in relation.training]
        phrasings += [(relation.validation, "validation"), (relation.test, "test")]
        for key, subject, answer in sorted(facts(relation)):
            for text, split in phrasings:
                asked = text.format(x=subject)
                question = asked[0].upper() + asked[1:]
                yield {
                    "question": question,
                    "answer": answer,
                    "group": f"{relation.name}:{key}",
                    "split": split,
                }


def facts_text() -> str:
    """The content of the file; raises `ValueError` when a phrasing or a question occurs twice."""
    for relation in RELATIONS:
        phrasings = {*relation.training, relation.validation, relation.test}
        if len(relation.training) != TRAINING_PHRASINGS or len(phrasings) != TRAINING_PHRASINGS + 2:
            raise ValueError(f"{relation.name} does not have twelve different phrasings")
    all_rows = list(rows())
    if len({row["question"] for row in all_rows}) != len(all_rows):
        raise ValueError("a question occurs twice")
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in all_rows)


def main() -> int:
    """Write the file, or compare it with ``--check``."""
    parser = argparse.ArgumentParser(description="Write the fact set that ships with Foretune.")
    parser.add_argument("--check", action="store_true", help="compare with the committed file and write nothing")
    text = facts_text()
    if parser.parse_args().check:
        same = FACTS.read_text(encoding="utf-8") == text
        print("the committed fact set is up to date" if same else f"{FACTS} differs from what this script writes")
        return 0 if same else 1
    write_text(FACTS, text)
    print(f"{FACTS}: {text.count(chr(10))} rows")
    return 0


if __name__ == "__main__":
    sys.exit(main())
