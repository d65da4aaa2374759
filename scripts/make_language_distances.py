"""Writes `src/foretune/catalogue/distances.py`: how far languages lie from each other in syntax.

Definition: cosine distance (URIEL+'s ``new_syntactic_distance`` with ``set_distance_metric("cosine")``) between the
languages' syntactic features of URIEL+ (Khan et al. 2025), sources united, over the features known of both, nothing
imputed. The package's version is written beside the numbers. Run it with ``pip install foretune[languages]``;
``--check`` says whether the file is what the script makes.
"""

from __future__ import annotations

import argparse
import sys
from importlib.metadata import version
from itertools import combinations
from pathlib import Path

TARGET = Path(__file__).parent.parent / "src" / "foretune" / "catalogue" / "distances.py"
ISO_639_3 = {
    "cs": "ces", "da": "dan", "de": "deu", "en": "eng", "es": "spa", "fi": "fin", "fr": "fra", "hu": "hun", "it": "ita",
    "ja": "jpn", "ko": "kor", "nl": "nld", "pl": "pol", "pt": "por", "ru": "rus", "sv": "swe", "tr": "tur",
}  # fmt: skip
"""The languages of the interface texts, by the code those use."""

HEAD = '''"""Cosine distances between languages by syntactic features of URIEL+ {version}: 0 is alike, 1 shares nothing.

Made by `scripts/make_language_distances.py`, which says how; not edited by hand. The features are URIEL+'s (Khan et
al. 2025, CC BY-SA 4.0, https://github.com/Masonshipton25/URIELPlus), from WALS, SSWL, Grambank and Ethnologue.
"""

VERSION = "urielplus {version}, cosine distance of syntactic features, sources united, not imputed"
DISTANCES: dict[tuple[str, str], float] = {{
'''


def table() -> str:
    """The module's text, computed afresh."""
    from urielplus.urielplus import URIELPlus

    base = URIELPlus()
    base.set_cache(False)
    base.set_distance_metric("cosine")
    lines = [HEAD.format(version=version("urielplus"))]
    for a, b in combinations(sorted(ISO_639_3), 2):
        value = float(base.new_syntactic_distance(ISO_639_3[a], ISO_639_3[b]))
        lines.append(f'    ("{a}", "{b}"): {value:.4f},\n')
    return "".join([*lines, "}\n"])


def main() -> int:
    """Write the file, or compare it with what would be written."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="Fail when the file differs.")
    made = table()
    if parser.parse_args().check:
        same = TARGET.read_text(encoding="utf-8") == made
        print("up to date" if same else f"{TARGET} differs; run this script without --check")
        return 0 if same else 1
    TARGET.write_text(made, encoding="utf-8")
    print(f"wrote {TARGET}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
