"""Translators' files: units, entries and trees as rows; what is broken or hostile is refused with its line."""

import gzip
import json

import pytest

from foretune.data.columns import Columns
from foretune.data.read import read
from foretune.errors import DataError

TMX = """<?xml version="1.0" encoding="UTF-8"?>
<!DOCTYPE tmx SYSTEM "tmx14.dtd">
<tmx version="1.4"><header srclang="en"/><body>
<tu><tuv xml:lang="EN-us"><seg>Save &amp; <bpt i="1">&lt;b&gt;</bpt>close<ept i="1">&lt;/b&gt;</ept></seg></tuv>
    <tuv xml:lang="de"><seg>Sichern und
    schließen</seg></tuv></tu>
<tu><tuv xml:lang="en"><seg>Lonely</seg></tuv></tu>
<tu><tuv xml:lang="en-US"><seg>Yes</seg></tuv><tuv xml:lang="de"><seg>Ja</seg></tuv></tu>
</body></tmx>
"""
PO = r"""# translators
msgid ""
msgstr "Language: de\n"

#: a.py:3
msgid "Save \"now\"\n"
msgstr "\"Jetzt\" "
"sichern\n"

#, fuzzy, python-format
msgid "Maybe"
msgstr "Vielleicht"

msgctxt "menu"
msgid "Open"
msgstr "Öffnen"

msgid "%d file"
msgid_plural "%d files"
msgstr[0] "%d Datei"
msgstr[1] "%d Dateien"

msgid "Untranslated"
msgstr ""

#~ msgid "Old"
#~ msgstr "Alt"
"""


def pairs(result):
    return [(row.prompt, row.answer) for row in result.examples]


def test_tmx_units_are_translations_without_inline_markup(tmp_path):
    path = tmp_path / "memory.tmx"
    path.write_text(TMX)
    result = read(path, on_bad_row="quarantine")
    assert pairs(result) == [("Save & close", "Sichern und schließen"), ("Yes", "Ja")]
    assert (result.format, result.quarantined) == ("translation", 1)
    assert result.problems[0].place.line == 7 and "1 language" in result.problems[0].what
    zipped = tmp_path / "memory.tmx.gz"
    zipped.write_bytes(gzip.compress(TMX.encode()))
    assert pairs(read(zipped, on_bad_row="quarantine")) == pairs(result)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (TMX.replace('"tmx14.dtd">', '"tmx14.dtd" [<!ENTITY a "aaaa"><!ENTITY b "&a;&a;">]>'), "declares an entity"),
        (TMX.replace('"tmx14.dtd">', '"tmx14.dtd" [<!ENTITY x SYSTEM "file:///etc/passwd">]>'), "declares an entity"),
        (TMX[:400], "not readable XML"),
    ],
    ids=["bomb", "external", "cut"],
)
def test_hostile_and_broken_xml_is_refused(tmp_path, text, said):
    path = tmp_path / "memory.tmx"
    path.write_text(text)
    with pytest.raises(DataError, match=said):
        read(path, on_bad_row="quarantine")


def test_po_entries_without_fuzzy_empty_and_obsolete_ones(tmp_path):
    path = tmp_path / "de.po"
    path.write_text(PO)
    result = read(path)
    assert pairs(result) == [
        ('Save "now"\n', '"Jetzt" sichern\n'),
        ("Open", "Öffnen"),
        ("%d file", "%d Datei"),
        ("%d files", "%d Dateien"),
    ]
    path.write_text(PO + '\nmsgid "x"\nmsgstr "y"\nnonsense here\n')
    bad = read(path, on_bad_row="quarantine").problems
    assert [problem.place.line for problem in bad] == [len(PO.splitlines()) + 4]


def test_trees_of_keys_are_aligned(tmp_path):
    folder = tmp_path / "strings"
    folder.mkdir()
    texts = {
        "en": {"menu": {"open": "Open", "gone": "Gone"}, "yes": "Yes", "count": 3},
        "pt-BR": {"yes": "Sim", "menu": {"open": "Abrir"}},
        "de": {"menu": {"open": "Öffnen", "gone": ""}, "yes": "Ja"},
    }
    for name, tree in texts.items():
        (folder / f"{name}.json").write_text(json.dumps(tree, ensure_ascii=False))
    result = read(folder, columns=Columns(languages=("en", "pt")))
    assert sorted(pairs(result)) == [("Open", "Abrir"), ("Yes", "Sim")]
    assert any("aligned" in note for note in result.notes)
    assert sorted(pairs(read(folder, columns=Columns(languages=("de", "en"))))) == [("Ja", "Yes"), ("Öffnen", "Open")]
    with pytest.raises(DataError):
        read(folder, columns=Columns(languages=("en", "ja")))


def test_rows_of_several_languages_need_to_be_told_which(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps({"translation": {"en": "a", "de": "b", "fr": "c"}}) + "\n")
    assert pairs(read(path, columns=Columns(languages=("fr", "de")))) == [("c", "b")]
    with pytest.raises(DataError):
        read(path)
