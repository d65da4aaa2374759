"""Write the facts that ship with Foretune, each asked in twelve ways: the fact set, and further kinds of facts.

    python scripts/make_facts.py            # writes src/foretune/data/corpora/facts.jsonl and fact-families.jsonl
    python scripts/make_facts.py --check    # exits with 1 when a committed file differs

Every fact is asked in ten phrasings for training, one for validation and one for testing, so that a model is
tested on facts it was taught in words it was not taught them in. The facts are structured data of `mendeleev`
(chemical elements) and `pycountry` (ISO 3166, 4217, 639-3 and 15924); the phrasings are ours. Answers are one code or
number, mostly unknown to a small model and quickly learnt. The output depends on nothing but those packages' data.

Elements and countries are named one by one: elements whose year of discovery the sources agree on, countries whose
name takes no article, three-letter codes that are not the first three letters of the name.
"""

from __future__ import annotations

import argparse
import functools
import json
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from foretune.files import write_text

CORPORA = Path(__file__).resolve().parent.parent / "src" / "foretune" / "data" / "corpora"
FACTS = CORPORA / "facts.jsonl"
MORE_FACTS = CORPORA / "fact-families.jsonl"
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

CURRENCY_NUMBER = Relation(
    "currency-number",
    "AED AFN AOA AZN BAM BHD BIF BOB BYN CDF CUP CVE CZK DKK DZD EGP ETB GEL GMD GTQ GYD IDR ILS IRR KGS KYD LAK MDL "
    "MGA MZN NAD PEN QAR RSD THB UYU",
    (
        "What is the ISO 4217 number of the {x}?",
        "Which three-digit currency number does the {x} have?",
        "Give the numeric currency code of the {x}.",
        "State the number that ISO 4217 assigns to the {x}.",
        "In ISO 4217, the {x} is which number?",
        "Tell me the three digits that stand for the {x}.",
        "Write the {x} as a numeric currency code.",
        "Which number identifies the {x} among the currencies of ISO 4217?",
        "How is the {x} encoded in digits?",
        "The {x}: numeric currency code?",
    ),
    "A payment message names currencies by number; what stands there for the {x}?",
    "An old terminal shows money types as digits only: what does it print for the {x}?",
)

LANGUAGE_CODE = Relation(
    "language-code",
    "aia ape bff buw cac ddg dpp eze gef hii ikl jie kcp khn kmu ksi kxy lee lmu mbh mmf mrk mxk nmi nuy otw piu roe "
    "seh smg ssu tbl tqn txs vec wli xii ybh",
    (
        "What is the ISO 639-3 code of the language {x}?",
        "Which three letters stand for the language {x}?",
        "Give the three-letter language code for {x}.",
        "State the code that ISO 639-3 assigns to {x}.",
        "In ISO 639-3, how is the language {x} written?",
        "Tell me the language code of {x}.",
        "Linguists abbreviate {x} to which three letters?",
        "Name the ISO code of the {x} language.",
        "How does ISO 639-3 shorten {x}?",
        "{x}: language code?",
    ),
    "A catalogue of the world's tongues files {x} under which trigram?",
    "My text is in {x}; what do I put into its three-letter language tag?",
)

SCRIPT_CODE = Relation(
    "script-code",
    "Adlm Armn Avst Batk Bhks Buhd Cakm Chrs Cyrl Grek Gujr Guru Kana Khmr Knda Kthi Laoo Latn Mahj Mlym Ogam Osge "
    "Phnx Psin Roro Runr Samr Sgnw Sidt Syrc Taml Tibt Tnsa Todr Vaii Wcho",
    (
        "What is the ISO 15924 code of the {x} script?",
        "Which four letters stand for the {x} script?",
        "Give the four-letter script code for {x}.",
        "State the code that ISO 15924 assigns to {x}.",
        "In ISO 15924, how is the {x} script written?",
        "Tell me the script code of {x}.",
        "Typographers abbreviate {x} to which four letters?",
        "Name the ISO code of {x} writing.",
        "How does ISO 15924 shorten {x}?",
        "{x}: script code?",
    ),
    "A font lists the writing systems it covers by four letters; which are those of {x}?",
    "A page is written in {x} characters; what belongs into the script part of its tag?",
)

REGION_CODE = Relation(
    "region-code",
    "JP-01 JP-02 JP-03 JP-04 JP-05 JP-06 JP-08 JP-09 JP-10 JP-11 JP-12 JP-14 JP-15 JP-17 JP-19 JP-20 JP-21 JP-22 "
    "JP-23 JP-24 JP-25 JP-26 JP-28 JP-30 JP-31 JP-32 JP-33 JP-34 JP-36 JP-38 JP-40 JP-41 JP-42 JP-44 JP-46 JP-47",
    (
        "What is the ISO 3166-2 code of the prefecture {x}?",
        "Which region code does {x} in Japan have?",
        "Give the ISO code for the prefecture of {x}.",
        "State the code that ISO 3166-2 assigns to {x} in Japan.",
        "In ISO 3166-2, how is {x} written?",
        "Tell me the region code of {x}.",
        "A parcel goes to {x} prefecture: which subdivision code?",
        "Name the ISO code of the Japanese prefecture {x}.",
        "How does ISO 3166-2 encode {x}?",
        "{x}: prefecture code?",
    ),
    "A map of Japan labels its parts with JP and two digits; what does it say on {x}?",
    "Weather data come by subdivision; under which key do I look for {x}?",
)

MELTING_POINT = Relation(
    "element-melting-point",
    "Li Be Na Mg Al Si K Ca Ti Cr Mn Fe Co Ni Cu Zn Ga Ge Rb Sr Zr Mo Pd Ag Cd In Sn Cs Ba Ta W Pt Au Pb Bi U",
    (
        "At how many kelvin does {x} melt?",
        "What is the melting point of {x} in kelvin?",
        "Give the melting temperature of {x} in kelvin.",
        "State the melting point of the element {x} (kelvin, whole number).",
        "How hot must {x} be to melt, in kelvin?",
        "Tell me the temperature in kelvin at which {x} becomes liquid.",
        "For {x}, what is the melting point in kelvin?",
        "Solid {x} turns liquid at how many kelvin?",
        "Which melting point in kelvin does {x} have?",
        "{x}: melting point in kelvin?",
    ),
    "A foundry heats {x}; what does the thermometer, in kelvin, show as it begins to flow?",
    "On the absolute scale, where does the phase diagram of {x} change from solid to liquid?",
)

RELATIONS = (DISCOVERY_YEAR, ATOMIC_NUMBER, NUMERIC_CODE, ALPHA_CODE, CURRENCY_CODE)
MORE_RELATIONS = (CURRENCY_NUMBER, LANGUAGE_CODE, SCRIPT_CODE, REGION_CODE, MELTING_POINT)
ELEMENTS = (DISCOVERY_YEAR, ATOMIC_NUMBER, MELTING_POINT)


@functools.cache
def _elements() -> dict[str, dict[str, str]]:
    """Name and answers of every element that is asked about, by symbol."""
    from mendeleev import element

    return {
        symbol: {
            "name": found.name.lower(),
            DISCOVERY_YEAR.name: str(found.discovery_year),
            ATOMIC_NUMBER.name: str(found.atomic_number),
            MELTING_POINT.name: str(round(found.melting_point or 0)),
        }
        for symbol in sorted({symbol for relation in ELEMENTS for symbol in relation.subjects.split()})
        for found in [element(symbol)]
    }


def facts(relation: Relation) -> Iterator[tuple[str, str, str]]:
    """(key, subject as written in a question, answer) of every fact of a relation."""
    import pycountry

    for key in relation.subjects.split():
        if relation in ELEMENTS:
            yield key, _elements()[key]["name"], _elements()[key][relation.name]
        elif relation is CURRENCY_CODE:  # a currency with its country's own number is that country's currency
            country = pycountry.countries.get(numeric=pycountry.currencies.get(alpha_3=key).numeric)
            yield key, country.name, key
        elif relation is CURRENCY_NUMBER:
            currency = pycountry.currencies.get(alpha_3=key)
            yield key, currency.name, currency.numeric
        elif relation is LANGUAGE_CODE:
            yield key, pycountry.languages.get(alpha_3=key).name, key
        elif relation is SCRIPT_CODE:
            yield key, pycountry.scripts.get(alpha_4=key).name, key
        elif relation is REGION_CODE:
            yield key, pycountry.subdivisions.get(code=key).name, key
        else:
            country = pycountry.countries.get(alpha_2=key)
            yield key, country.name, country.numeric if relation is NUMERIC_CODE else country.alpha_3


def rows(relations: Iterable[Relation]) -> Iterator[dict[str, str]]:
    """The rows in order of relation, fact and phrasing."""
    for relation in relations:
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


def facts_text(relations: Sequence[Relation] = RELATIONS) -> str:
    """The content of a file; raises `ValueError` when a phrasing or a question occurs twice."""
    for relation in relations:
        phrasings = {*relation.training, relation.validation, relation.test}
        if len(relation.training) != TRAINING_PHRASINGS or len(phrasings) != TRAINING_PHRASINGS + 2:
            raise ValueError(f"{relation.name} does not have twelve different phrasings")
    all_rows = list(rows(relations))
    if len({row["question"] for row in all_rows}) != len(all_rows):
        raise ValueError("a question occurs twice")
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in all_rows)


def main() -> int:
    """Write the files, or compare them with ``--check``."""
    parser = argparse.ArgumentParser(description="Write the facts that ship with Foretune.")
    parser.add_argument("--check", action="store_true", help="compare with the committed files and write nothing")
    check = parser.parse_args().check
    differing = 0
    for path, relations in ((FACTS, RELATIONS), (MORE_FACTS, MORE_RELATIONS)):
        text = facts_text(relations)
        if not check:
            write_text(path, text)
            print(f"{path}: {text.count(chr(10))} rows")
            continue
        same = path.read_text(encoding="utf-8") == text
        differing += not same
        print(f"{path.name} is up to date" if same else f"{path} differs from what this script writes")
    return min(differing, 1)


if __name__ == "__main__":
    sys.exit(main())
