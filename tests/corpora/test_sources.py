"""Each source's conversion, on small pieces written here in the source's own form."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path

import pytest

from foretune.data.corpora import foldoc, interface, reasoning, sentiment
from foretune.errors import DataError, UsageError

DIGITS = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/"


def _base64(value: int) -> str:
    text = ""
    while True:
        value, digit = divmod(value, 64)
        text = DIGITS[digit] + text
        if not value:
            return text


def _dictionary(bodies: dict[str, str], aliases: dict[str, str] | None = None) -> tuple[str, bytes]:
    text, index, places = b"", [], {}
    for head, body in bodies.items():
        entry = f"{head}\n\n{body}\n\n".encode()
        places[head] = (len(text), len(entry))
        text += entry
    for word in [*bodies, *(aliases or {})]:
        start, size = places[(aliases or {}).get(word, word)]
        index.append(f"{word}\t{_base64(start)}\t{_base64(size)}")
    return "\n".join(index) + "\n", text


LONG = "   <programming> A {loop} is a part of a program that is run again and again until\n   some condition holds."


def test_foldoc_entries_are_read_by_offset_and_once_despite_aliases() -> None:
    index, text = _dictionary({"loop": LONG, "été": LONG.replace("loop", "café")}, {"looping": "loop"})
    rows = foldoc.rows(index, text)
    assert [row["question"] for row in rows] == ["What is loop?", "Define été."]
    assert rows[0]["answer"] == "A loop is a part of a program that is run again and again until some condition holds."
    assert "café" in rows[1]["answer"]


@pytest.mark.parametrize(
    ("body", "answer"),
    [
        ("   {loop}.", ""),
        ("   <jargon> See {other loop}.", ""),
        ("   <x> Short one.", ""),
        (
            LONG + "\n\n   (2014-10-25)",
            "A loop is a part of a program that is run again and again until some condition holds.",
        ),
        (
            "   1. <hardware> The first meaning of the word, long enough to be kept here.\n\n   2. <x> The second one.",
            "The first meaning of the word, long enough to be kept here.",
        ),
        (
            "   <x> A kind of network used in offices and factories (2001-02-03).  See also {token ring}.\n\n"
            "   {Home (http://example.org/)}.",
            "A kind of network used in offices and factories.",
        ),
        (
            "   A __very__ small program that waits in memory, like a {daemon (about.html)}.",
            "A very small program that waits in memory, like a daemon (about.html).",
        ),
    ],
)
def test_foldoc_definitions_are_plain_text(body: str, answer: str) -> None:
    assert foldoc.definition(body) == answer


def test_foldoc_long_definitions_end_with_a_sentence() -> None:
    answer = foldoc.definition("   " + "This sentence has some words in it. " * 40)
    assert foldoc.LONGEST - 40 < len(answer) <= foldoc.LONGEST
    assert answer.endswith("in it.")
    assert foldoc.definition("   " + "word " * 400) == ""


def test_foldoc_a_damaged_index_is_said_with_its_line() -> None:
    index, text = _dictionary({"loop": LONG})
    with pytest.raises(DataError, match=r"foldoc\.index:2"):
        foldoc.rows(index + "broken line\n", text)
    with pytest.raises(DataError, match=r"foldoc\.index:2"):
        foldoc.rows(index + "word\t!!\tA\n", text)


def test_foldoc_without_apt_names_the_remedy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(DataError, match="needs apt-get"):
        foldoc.build(tmp_path, lambda line: None)


def _fake_tool(folder: Path, name: str, script: str) -> None:
    path = folder / name
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)


def test_foldoc_another_file_than_the_pinned_one_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tools, work = tmp_path / "tools", tmp_path / "work"
    tools.mkdir()
    work.mkdir()
    _fake_tool(tools, "apt-get", "echo forged > dict-foldoc.deb")
    _fake_tool(tools, "dpkg-deb", "echo opened > opened")
    monkeypatch.setenv("PATH", f"{tools}:/bin:/usr/bin")
    with pytest.raises(DataError, match="the file was not opened"):
        foldoc.build(work, lambda line: None)
    assert not list(tmp_path.rglob("opened"))


def test_foldoc_says_what_apt_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _fake_tool(tmp_path, "apt-get", "echo \"E: Version '1' for 'dict-foldoc' was not found\" >&2; exit 100")
    _fake_tool(tmp_path, "dpkg-deb", "exit 0")
    monkeypatch.setenv("PATH", f"{tmp_path}:/bin:/usr/bin")
    with pytest.raises(DataError, match=r"was not found.*apt-get update"):
        foldoc.build(tmp_path, lambda line: None)


def test_ratings_keep_the_sentences_of_a_document_together(tmp_path: Path) -> None:
    path = tmp_path / "ratings.txt"
    path.write_bytes(b"1_1\t2.5\tGood &amp;  cheap.\r\n1_2\t-0.1\tIt is.\r\n12_1\t-3\tAwful.\r\n")
    assert sentiment.read_ratings(path, "product") == [
        ("Good & cheap.", 2.5, "product-1"),
        ("It is.", -0.1, "product-1"),
        ("Awful.", -3.0, "product-12"),
    ]


def test_equal_texts_without_a_document_share_a_group(tmp_path: Path) -> None:
    path = tmp_path / "ratings.txt"
    path.write_text("1\t2\tGreat fun\n2\t3\tgreat  FUN\n3\t3\tOther\n")
    groups = [group for _, _, group in sentiment.read_ratings(path, "film")]
    assert groups[0] == groups[1] != groups[2]


@pytest.mark.parametrize("line", ["2\t1.0", "2\tgood\ttext", "2\t9.0\ttext", "2\tnan\ttext"])
def test_a_damaged_rating_is_said_with_its_line(tmp_path: Path, line: str) -> None:
    path = tmp_path / "ratings.txt"
    path.write_text(f"1\t1.0\tfine\n{line}\n")
    with pytest.raises(DataError, match=r"ratings\.txt:2"):
        sentiment.read_ratings(path, "film")


def _translations(path: Path, components: dict[str, dict[str, dict[str, str]]]) -> Path:
    with zipfile.ZipFile(path, "w") as wheel:
        for component, languages in components.items():
            for code, texts in languages.items():
                name = f"homeassistant/components/{component}/translations/{code}.json"
                wheel.writestr(name, json.dumps({"config": texts}, ensure_ascii=False))
    return path


def _all_languages(english: dict[str, str]) -> dict[str, dict[str, str]]:
    others = {code: {key: f"{code} {text}" for key, text in english.items()} for code in interface.INTERFACE_LANGUAGES}
    return {"en": english, **others}


def test_only_segments_of_all_languages_are_taken(tmp_path: Path) -> None:
    good = {"a": "Set up the {name} now", "b": "Too short here", "c": "This one has enough words"}
    lacking = _all_languages(good)
    del lacking["ja"]["c"]
    lost = _all_languages(good)
    lost["tr"]["a"] = "Now set it up"  # without the placeholder
    untranslated = _all_languages(good)
    untranslated["de"]["c"] = "this one has  enough words"
    no_japanese = {code: texts for code, texts in _all_languages(good).items() if code != "ja"}
    wheel = _translations(
        tmp_path / "x.whl", {"d": no_japanese, "c": untranslated, "b": lost, "a": lacking, "e": _all_languages(good)}
    )
    found = [(component, segment["en"]) for component, segment in interface.segments(wheel)]
    assert found == [
        ("a", good["a"]),
        ("b", good["c"]),
        ("c", good["a"]),
        ("e", good["a"]),
        ("e", good["c"]),
    ]


def test_nothing_held_out_is_shown_earlier() -> None:
    names = [f"component{i}" for i in range(200)]
    by_split = {
        part: next(n for n in names if interface.split_of(n) == part) for part in ("train", "validation", "test")
    }

    def segment(english: str, german: str | None = None) -> dict[str, str]:
        return {
            "en": english,
            **{code: f"{code} {english}" for code in interface.INTERFACE_LANGUAGES},
            **({"de": german} if german else {}),
        }

    rows = [
        (by_split["test"], segment("Shared with training text")),
        (by_split["test"], segment("Shared with validation text")),
        (by_split["test"], segment("Other English same German", "Gleicher Text")),
        (by_split["test"], segment("Only in the test")),
        (by_split["test"], segment("only in  THE test")),
        (by_split["validation"], segment("Shared with validation text")),
        (by_split["train"], segment("shared with Training text")),
        (by_split["train"], segment("Something with this German", "gleicher text")),
    ]
    kept = [(part, seg["en"]) for _, part, seg in interface.split_segments(iter(rows))]
    assert kept == [
        ("train", "shared with Training text"),
        ("train", "Something with this German"),
        ("validation", "Shared with validation text"),
        ("test", "Only in the test"),
    ]


def test_components_are_split_about_8_to_1_to_1() -> None:
    parts = [interface.split_of(f"component{i}") for i in range(2000)]
    assert 0.77 < parts.count("train") / 2000 < 0.83
    assert 0.08 < parts.count("test") / 2000 < 0.12


def test_reasoning_rows_are_seeded() -> None:
    first = reasoning.build("reasoning-gym:leg_counting", 20, 3)
    assert first == reasoning.build("reasoning-gym:leg_counting", 20, 3)
    assert first != reasoning.build("reasoning-gym:leg_counting", 20, 4)
    assert len({row["question"] for row in first}) == len(first)
    assert all(row["answer"].isdigit() for row in first)


def test_reasoning_errors(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(DataError, match="leg_counting"):
        reasoning.build("reasoning-gym:leg_countin", 5, 0)
    with pytest.raises(UsageError, match="at least one"):
        reasoning.build("reasoning-gym:leg_counting", 0, 0)
    monkeypatch.setitem(__import__("sys").modules, "reasoning_gym", None)
    with pytest.raises(DataError, match=r"pip install foretune\[corpora\]"):
        reasoning.build("reasoning-gym:leg_counting", 5, 0)
