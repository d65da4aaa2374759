"""Reading: every kind of file, the formats, and the definitions for damaged input."""

from __future__ import annotations

import base64
import csv
import gzip
import json
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from foretune.data.columns import Columns
from foretune.data.example import Turn
from foretune.data.lines import LONGEST_LINE_BYTES
from foretune.data.read import ReadResult, read
from foretune.errors import DataError, OutputError, UsageError

QA = [{"question": f"What is {n}?", "answer": f"It is {n}."} for n in range(12)]


def jsonl(path: Path, rows: list[Any]) -> Path:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return path


def pairs(result: ReadResult) -> list[tuple[str, str]]:
    return [(example.prompt, example.answer) for example in result.examples]


EXPECTED = [(row["question"], row["answer"]) for row in QA]


# ---------------------------------------------------------------- kinds of files


def write_csv(path: Path, rows: list[dict[str, Any]], delimiter: str = ",") -> Path:
    with path.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.DictWriter(stream, list(rows[0]), delimiter=delimiter)
        writer.writeheader()
        writer.writerows(rows)
    return path


def write_parquet(path: Path, rows: list[dict[str, Any]]) -> Path:
    import pyarrow as pa
    import pyarrow.parquet as pq

    pq.write_table(pa.Table.from_pylist(rows), path)
    return path


@pytest.mark.parametrize(
    "write",
    [
        lambda folder: jsonl(folder / "a.jsonl", QA),
        lambda folder: jsonl(folder / "a.ndjson", QA),
        lambda folder: jsonl(folder / "json-lines-named.json", QA),
        lambda folder: jsonl(folder / "no-ending", QA),
        lambda folder: write_csv(folder / "a.csv", QA),
        lambda folder: write_csv(folder / "semicolon.csv", QA, ";"),
        lambda folder: write_csv(folder / "tab.csv", QA, "\t"),
        lambda folder: write_csv(folder / "a.tsv", QA, "\t"),
        lambda folder: write_parquet(folder / "a.parquet", QA),
        lambda folder: write_parquet(folder / "parquet-named.jsonl", QA),
    ],
)
def test_every_kind_of_file_gives_the_same_examples(tmp_path: Path, write: Any) -> None:
    path = write(tmp_path)
    result = read(path)
    assert pairs(result) == EXPECTED
    assert (result.format, result.task) == ("question-answer", "generation")
    assert (result.rows_read, result.quarantined, result.files) == (12, 0, (path,))


@pytest.mark.parametrize("text", ["{rows}", '{{"data": {rows}}}', '{{"version": 1, "rows": {rows}, "more": [1, 2]}}'])
@pytest.mark.parametrize("indent", [None, 2])
def test_json_documents(tmp_path: Path, text: str, indent: int | None) -> None:
    path = tmp_path / "a.json"
    path.write_text(text.format(rows=json.dumps(QA, indent=indent)))
    assert pairs(read(path)) == EXPECTED


def test_json_document_places_and_splits(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_text('{"train": [\n {"prompt": "a", "completion": "b"},\n {"prompt": "c"}\n],\n"dev": [\n7]}')
    with pytest.raises(DataError) as caught:
        read(path)
    assert f"{path}:3: there is no 'completion'" in str(caught.value)
    assert f"{path}:6:1: a row must be an object" in str(caught.value)
    path.write_text('{"train": [{"prompt": "a", "completion": "b"}], "dev": [{"prompt": "c", "completion": "d"}]}')
    assert [example.split for example in read(path).examples] == ["train", "validation"]


def test_broken_json_document_names_the_place(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_text('[\n{"prompt": "a", "completion": "b"},\n{"prompt": "c" "completion": "d"}]')
    with pytest.raises(DataError, match=r"a\.json:3:16.*expecting ',' delimiter.*\.jsonl"):
        read(path, on_bad_row="quarantine")
    path.write_text('[\n{"prompt": "a", "completion": "b"},\n')
    with pytest.raises(DataError, match=r"cut off"):
        read(path)
    path.write_text('[{"prompt": "a", "completion": "b"},]')
    with pytest.raises(DataError, match=r"comma with nothing after"):
        read(path)
    path.write_text('{"prompt": {"0": "a"}}\n')
    with pytest.raises(DataError, match=r"no known row format"):
        read(path)


def test_folder_of_splits(tmp_path: Path) -> None:
    jsonl(tmp_path / "train.jsonl", QA[:8])
    (tmp_path / "data").mkdir()
    write_parquet(tmp_path / "data" / "validation-00000-of-00001.parquet", QA[8:10])
    (tmp_path / "test.jsonl.gz").write_bytes(gzip.compress(json.dumps(QA[10]).encode()))
    jsonl(tmp_path / "notes.jsonl", [{"x": 1}])
    result = read(tmp_path)
    assert sorted(str(example.split) for example in result.examples) == ["test"] + ["train"] * 8 + ["validation"] * 2
    assert any("notes.jsonl" in note for note in result.notes)


def test_folder_of_shards_and_folders_without_data(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no data files"):
        read(tmp_path)
    jsonl(tmp_path / "part-1.jsonl", QA[:6])
    jsonl(tmp_path / "part-2.jsonl", QA[6:])
    assert pairs(read(tmp_path)) == EXPECTED
    write_csv(tmp_path / "other.csv", QA)
    with pytest.raises(DataError, match=r"several kinds"):
        read(tmp_path)


def test_one_text_whose_name_begins_like_a_split_does_not_hide_the_others(tmp_path: Path) -> None:
    for name in ("guide", "training-plan", "errors", "index"):
        (tmp_path / f"{name}.txt").write_text(f"About the {name}.\n")
    found = read(tmp_path)
    assert len(found.examples) == 4 and {row.split for row in found.examples} == {None}
    (tmp_path / "train-00000-of-00001-0a1b2c.txt").write_text("A real split.\n")
    found = read(tmp_path)
    assert [row.split for row in found.examples] == ["train", "train"] and "guide.txt" in " ".join(found.notes)


def test_saved_datasets_folder_equals_the_library(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    features = datasets.Features(text=datasets.Value("string"), label=datasets.ClassLabel(names=["no", "yes"]))
    train = datasets.Dataset.from_dict({"text": ["a", "b", "c"], "label": [0, 1, 1]}, features=features)
    datasets.DatasetDict(train=train, test=train.select([0])).save_to_disk(tmp_path / "saved")
    result = read(tmp_path / "saved")
    assert [(e.turns[0].content, e.label, e.split) for e in result.examples] == [
        ("a", "no", "train"),
        ("b", "yes", "train"),
        ("c", "yes", "train"),
        ("a", "no", "test"),
    ]
    several = datasets.Features(
        text=datasets.Value("string"), labels=datasets.List(datasets.ClassLabel(names=["no", "yes"]))
    )
    sets = datasets.Dataset.from_dict({"text": ["a", "b"], "labels": [[0, 1], []]}, features=several)
    sets.save_to_disk(tmp_path / "sets")
    sets.to_parquet(tmp_path / "sets.parquet")
    for saved in ("sets", "sets.parquet"):
        assert [e.answer for e in read(tmp_path / saved).examples] == ["no; yes", "none"]
    train.select([2, 0]).save_to_disk(tmp_path / "one")
    assert [e.turns[0].content for e in read(tmp_path / "one").examples] == ["c", "a"]
    (tmp_path / "one" / "state.json").write_text("{")
    with pytest.raises(DataError, match=r"damaged"):
        read(tmp_path / "one")


def test_damaged_arrow_and_parquet(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    datasets.Dataset.from_list(QA).save_to_disk(tmp_path / "saved")
    (part,) = (tmp_path / "saved").glob("*.arrow")
    part.write_bytes(part.read_bytes()[:100])
    with pytest.raises(DataError, match=r"not a readable Arrow file"):
        read(tmp_path / "saved")
    import pyarrow as pa
    import pyarrow.parquet as pq

    path = tmp_path / "a.parquet"
    pq.write_table(pa.Table.from_pylist(QA), path, compression="none", use_dictionary=False)
    content = path.read_bytes()
    path.write_bytes(content.replace(b"What is 7?", b"What is \xff?"))  # not UTF-8 inside an intact file
    with pytest.raises(DataError, match=r"not a readable Parquet file"):
        read(path)
    path.write_bytes(content[:-20])
    with pytest.raises(DataError, match=r"not a readable Parquet file"):
        read(path)


def test_hub_data_set(monkeypatch: pytest.MonkeyPatch) -> None:
    datasets = pytest.importorskip("datasets")
    asked: list[tuple[str, str | None]] = []

    def load(name: str, config: str | None) -> Any:
        asked.append((name, config))
        return datasets.DatasetDict(
            train=datasets.Dataset.from_list(QA[:10]),
            validation=datasets.Dataset.from_list(QA[10:]),
            unsupervised=datasets.Dataset.from_list(QA),
        )

    monkeypatch.setattr(datasets, "load_dataset", load)
    result = read("someone/things:main")
    assert asked == [("someone/things", "main")]
    assert pairs(result) == EXPECTED
    assert [e.split for e in result.examples] == ["train"] * 10 + ["validation"] * 2
    assert str(result.examples[10].place) == "someone/things:main/validation:1"
    assert any("unsupervised" in note for note in result.notes)

    def offline(name: str, config: str | None) -> Any:
        raise ConnectionError("cannot reach the hub")

    monkeypatch.setattr(datasets, "load_dataset", offline)
    with pytest.raises(DataError, match=r"someone/things: there is no such file.*cannot reach the hub"):
        read("someone/things")


def test_missing_file_is_not_taken_for_a_hub_id(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"does not exist"):
        read(tmp_path / "none.jsonl")
    with pytest.raises(DataError, match=r"does not exist"):
        read("data/none.jsonl")


def test_plain_text(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("one\ntwo\nthree\n")
    result = read(path)
    assert [e.turns for e in result.examples] == [(Turn("text", t),) for t in ("one", "two", "three")]
    assert result.task == "language-modelling" and result.examples[0].targets == (0,)
    path.write_text("a line\nwrapped\n\n\nanother\n")
    result = read(path)
    assert [e.prompt for e in result.examples] == ["a line\nwrapped", "another"]
    assert [e.place.line for e in result.examples if e.place] == [1, 5]
    assert any("paragraph" in note for note in result.notes)
    path.write_text("line\n" * 200 + "\n" + "line\n" * 200)  # one accidental blank line does not make two documents
    assert len(read(path).examples) == 400


# ---------------------------------------------------------------- damage: the definitions

GOOD = b'{"question": "q", "answer": "a"}'

DAMAGED_LINES: dict[str, tuple[bytes, int | None, str]] = {
    "not JSON": (b'{"question": "q", answer: 1}', 19, "not JSON"),
    "two values": (GOOD + b" " + GOOD, 34, "something follows"),
    "carriage returns alone": (GOOD + b"\r" + GOOD, 34, "CR alone"),
    "duplicate key": (b'{"question": "q", "answer": "a", "answer": "b"}', 34, "'answer' is given twice"),
    "NUL byte": (b'{"question": "q\0", "answer": "a"}', 16, "NUL"),
    "invalid UTF-8": ('{"question": "é'.encode() + b'\xe9", "answer": "a"}', 16, "0xe9 is not UTF-8"),
    "NaN": (b'{"question": "q", "answer": NaN}', 29, "NaN is not a JSON number"),
    "Infinity": (b'{"question": "q", "answer": -Infinity}', 29, "Infinity"),
    "too large a number": (b'{"question": "q", "answer": 1e999}', 29, "too large"),
    "digits without end": (b'{"question": "q", "answer": ' + b"9" * 5000 + b"}", None, "too many digits"),
    "not an object": (b'["q", "a"]', None, "not a list"),
    "text": (b'"q"', None, "not text"),
    "null": (b"null", None, "nothing"),
    "empty object": (b"{}", None, "empty"),
    "depth bomb": (b'{"question": ' + b"[" * 200_000 + b"]" * 200_000 + b"}", None, "nested too deeply"),
    "lone surrogate": (b'{"question": "\\ud83d x", "answer": "a"}', 15, "surrogate"),
    "type drift": (b'{"question": "q", "answer": 5}', None, "'answer' is a number here but text in most rows"),
    "a list": (b'{"question": ["q"], "answer": "a"}', None, "'question' holds a list"),
    "renamed key": (b'{"question": "q", "reply": "a"}', None, "no 'answer'; this row has 'question', 'reply'"),
    "no answer": (b'{"question": "q", "answer": null}', None, "'answer' is empty"),
    "blank answer": (b'{"question": "q", "answer": "  "}', None, "'answer' is empty"),
}


@pytest.mark.parametrize("kind", DAMAGED_LINES)
@pytest.mark.parametrize("position", [0, 2, 4])
def test_damaged_line_is_refused_with_its_place_or_set_aside(tmp_path: Path, kind: str, position: int) -> None:
    raw, column, what = DAMAGED_LINES[kind]
    content = [GOOD] * 5
    content.insert(position, raw)
    path = tmp_path / "a.jsonl"
    path.write_bytes(b"\n".join(content) + b"\n")
    line = position + 1
    with pytest.raises(DataError) as caught:
        read(path)
    place = f"{path}:{line}:{column}: " if column else f"{path}:{line}: "
    assert place in str(caught.value) and what in str(caught.value), str(caught.value)
    assert "1 of 6 rows" in str(caught.value) and "quarantine" in caught.value.remedy
    result = read(path, on_bad_row="quarantine", quarantine=tmp_path / "bad" / "rows.jsonl")
    assert (len(result.examples), result.quarantined, result.rows_read) == (5, 1, 6)
    assert [(p.place.line, p.place.column) for p in result.problems] == [(line, column)]
    (set_aside,) = (tmp_path / "bad" / "rows.jsonl").read_text().splitlines()
    entry = json.loads(set_aside)
    kept_raw = entry["raw"].encode() if "raw" in entry else base64.b64decode(entry["raw_base64"])
    assert kept_raw == raw and entry["line"] == line and what in entry["what"]


def test_good_surrogate_pairs_and_escapes_pass(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'{"question": "\\ud83d\\ude00 \\\\ud83d \\u00e9", "answer": "a"}\n')
    assert read(path).examples[0].prompt == "😀 \\ud83d é"


def test_byte_order_mark_crlf_and_blank_lines(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(b"\xef\xbb\xbf" + GOOD + b"\r\n\r\n  \n\t\n" + GOOD + b"\r\n\n")
    result = read(path)
    assert (result.rows_read, [e.place.line for e in result.examples if e.place]) == (2, [1, 5])


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be", "utf-32"])
def test_wide_encodings_are_refused_with_the_remedy(tmp_path: Path, encoding: str) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(((GOOD.decode() + "\n") * 20).encode(encoding))
    with pytest.raises(DataError, match=r"UTF-16.*iconv"):
        read(path, on_bad_row="quarantine")


def test_torn_last_line(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(GOOD + b"\n" + GOOD)
    assert read(path).rows_read == 2
    path.write_bytes(GOOD + b"\n" + GOOD[:-8])
    with pytest.raises(DataError, match=r"a\.jsonl:2:.*cut off"):
        read(path)
    assert read(path, on_bad_row="quarantine").quarantined == 1


def test_gzip_by_content_and_truncated_gzip(tmp_path: Path) -> None:
    packed = gzip.compress((GOOD + b"\n") * 5000, mtime=0)
    for name in ("a.jsonl", "a.jsonl.gz"):
        (tmp_path / name).write_bytes(packed)
        assert read(tmp_path / name).rows_read == 5000
    for cut in (5, len(packed) // 2, len(packed) - 4):
        (tmp_path / "cut.jsonl.gz").write_bytes(packed[:cut])
        with pytest.raises(DataError, match=r"gzip stream ends"):
            read(tmp_path / "cut.jsonl.gz", on_bad_row="quarantine")
    flipped = bytearray(packed)
    flipped[-6] ^= 1  # the checksum
    (tmp_path / "flipped.jsonl.gz").write_bytes(bytes(flipped))
    with pytest.raises(DataError, match=r"gzip stream is damaged"):
        read(tmp_path / "flipped.jsonl.gz")


@pytest.mark.parametrize(
    "content", [b"", b"\n\n  \n", b"\xef\xbb\xbf", b"[]", b'{"data": []}', gzip.compress(b"", mtime=0)]
)
def test_empty_files(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "a.json"
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"no rows in it"):
        read(path)


@pytest.mark.parametrize("content", [b"PK\x03\x04rest", b"BZh91AY", b"\x28\xb5\x2f\xfdrest", b"SQLite format 3\0"])
def test_foreign_files_are_named(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"this file is"):
        read(path)


def test_unknown_ending(tmp_path: Path) -> None:
    path = tmp_path / "a.docx"
    path.write_bytes(b"some words")
    with pytest.raises(DataError, match=r"not known.*\.jsonl"):
        read(path)


def test_long_lines(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    fifty = b'{"question": "q", "answer": "' + b"x" * 50 * 2**20 + b'"}'
    path.write_bytes(GOOD + b"\n" + fifty + b"\n" + GOOD + b"\n")
    result = read(path)
    assert [len(e.answer) for e in result.examples] == [1, 50 * 2**20, 1]
    longer = b'{"question": "q", "answer": "' + b"x" * (LONGEST_LINE_BYTES + 5) + b'"}'
    path.write_bytes(GOOD + b"\n" + longer + b"\n" + GOOD + b"\n" + longer)
    result = read(path, on_bad_row="quarantine")
    assert len(result.examples) == 2 and [p.place.line for p in result.problems] == [2, 4]
    assert "longer than 64 MiB" in result.problems[0].what
    assert (tmp_path / "a.jsonl.quarantine.jsonl").stat().st_size < 2**20


def test_all_rows_bad(tmp_path: Path) -> None:
    path = jsonl(tmp_path / "a.jsonl", [1, 2, 3])
    with pytest.raises(DataError, match=r"3 of 3 rows"):
        read(path)
    with pytest.raises(DataError, match=r"none of the 3 rows can be used"):
        read(path, on_bad_row="quarantine")
    path = jsonl(tmp_path / "b.jsonl", [{"question": "q", "answer": ""}] * 7)
    with pytest.raises(DataError, match=r"7 of 7 rows.*\n.*\n.*\n.*\n.*\n.*\n.*and 2 more"):
        read(path)


def test_the_quarantine_cannot_be_the_data(tmp_path: Path) -> None:
    path = jsonl(tmp_path / "a.jsonl", [*QA, 1])
    before = path.read_bytes()
    with pytest.raises(UsageError, match=r"data file itself"):
        read(path, on_bad_row="quarantine", quarantine=path)
    assert path.read_bytes() == before


def test_unwritable_quarantine_is_an_output_error(tmp_path: Path) -> None:
    path = jsonl(tmp_path / "a.jsonl", [*QA, 1])
    (tmp_path / "file").write_text("")
    with pytest.raises((OutputError, NotADirectoryError, FileExistsError)):
        read(path, on_bad_row="quarantine", quarantine=tmp_path / "file" / "bad.jsonl")


LINE = st.one_of(
    st.sampled_from([GOOD, *(raw for raw, _, _ in DAMAGED_LINES.values() if len(raw) < 1000), b"", b"  "]),
    st.binary(max_size=40).map(lambda raw: raw.replace(b"\n", b"")),
)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(lines=st.lists(LINE, max_size=12), end=st.sampled_from([b"", b"\n", b"\r\n"]))
def test_kept_and_quarantined_are_all_rows(
    tmp_path_factory: pytest.TempPathFactory, lines: list[bytes], end: bytes
) -> None:
    folder = tmp_path_factory.mktemp("rows")
    path = folder / "a.jsonl"
    path.write_bytes(b"\n".join([GOOD, GOOD, GOOD, *lines]) + end)
    quarantine = folder / "bad.jsonl"
    result = read(path, on_bad_row="quarantine", quarantine=quarantine)
    rows = sum(1 for line in path.read_bytes().split(b"\n") if line.strip())
    assert len(result.examples) + result.quarantined == result.rows_read == rows
    assert len(result.problems) == result.quarantined
    set_aside = quarantine.read_text().splitlines() if quarantine.exists() else []
    assert len(set_aside) == result.quarantined
    for entry in map(json.loads, set_aside):
        assert entry["what"] and 1 <= entry["line"] <= len(lines) + 3


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(text=st.text(st.sampled_from('ab,;"\n\r\0é'), max_size=60))
def test_any_csv_is_read_refused_or_set_aside(tmp_path_factory: pytest.TempPathFactory, text: str) -> None:
    folder = tmp_path_factory.mktemp("rows")
    path = folder / "a.csv"
    path.write_text("question,answer\nq,a\n" + text, encoding="utf-8", newline="")
    try:
        result = read(path, on_bad_row="quarantine", quarantine=folder / "bad.jsonl")
    except DataError:
        return
    assert len(result.examples) + result.quarantined == result.rows_read >= 1


# ---------------------------------------------------------------- CSV


def test_csv_multiline_fields_and_their_places(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_bytes(b'\xef\xbb\xbfquestion,answer\r\n"two\r\nlines","say ""hi"", now"\r\n\r\nq,a\r\n,\r\n')
    result = read(path)
    assert pairs(result) == [("two\nlines", 'say "hi", now'), ("q", "a")]
    assert [e.place.line for e in result.examples if e.place] == [2, 5]


def test_csv_unclosed_quote_costs_one_row(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text('question,answer\nq1,a1\nq2,"a2\nq3,a3\nq4,a4\n')
    with pytest.raises(DataError, match=r"a\.csv:3:4: a quote is opened here and not closed"):
        read(path)
    result = read(path, on_bad_row="quarantine")
    assert pairs(result) == [("q1", "a1"), ("q3", "a3"), ("q4", "a4")]
    assert (result.rows_read, result.quarantined) == (4, 1)


def test_csv_ragged_rows_and_headers(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text("question,answer\nq1,a1\nq2,a, b\nq3\nq4,a4\n")
    with pytest.raises(DataError) as caught:
        read(path)
    assert f"{path}:3: 3 fields where the header has 2" in str(caught.value)
    assert f"{path}:4: 1 field where" in str(caught.value)
    path.write_text("answer,answer\nq1,a1\n")
    with pytest.raises(DataError, match=r"'answer' twice"):
        read(path)
    path.write_text("hello,world\nmore,things\n")
    with pytest.raises(DataError, match=r"the columns are: hello, world"):
        read(path)
    path.write_text("question,answer\n")
    with pytest.raises(DataError, match=r"no rows"):
        read(path)


def test_csv_delimiters(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text("sep=;\nquestion;answer\nq, with, commas;a\n")
    assert pairs(read(path)) == [("q, with, commas", "a")]
    path.write_text('question;answer\n"a; b, c";"d"\nq, r;s, t\n')
    result = read(path)
    assert pairs(result) == [("a; b, c", "d"), ("q, r", "s, t")]
    assert any("separated by ';'" in note for note in result.notes)


def test_csv_long_field(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text("question,answer\nq," + "x" * 300_000 + "\n")  # the csv module alone stops at 131,072
    assert len(read(path).examples[0].answer) == 300_000


# ---------------------------------------------------------------- options


def test_named_columns(tmp_path: Path) -> None:
    rows = [{"frage": "q", "antwort": "a", "quelle": "s1", "teil": "dev", "anweisung": "be kind", "art": "x"}] * 3
    path = jsonl(tmp_path / "a.jsonl", rows)
    columns = Columns(prompt="frage", answer="antwort", group="quelle", split="teil", system="anweisung", task="art")
    example = read(path, columns=columns).examples[0]
    assert [t.role for t in example.turns] == ["system", "user", "assistant"] and example.targets == (2,)
    assert (example.group, example.split, example.task, example.answer) == ("s1", "validation", "x", "a")
    with pytest.raises(DataError, match=r"no column 'Antwrt' \(said as the answer column\). Did you mean 'antwort'"):
        read(path, columns=Columns(prompt="frage", answer="Antwrt"))
    with pytest.raises(DataError, match=r"columns are: frage, antwort, quelle"):
        read(path, columns=Columns(label="zzz"))


def test_unknown_options(tmp_path: Path) -> None:
    path = jsonl(tmp_path / "a.jsonl", QA)
    with pytest.raises(UsageError, match=r"Formats: messages"):
        read(path, format="jsonl")
    with pytest.raises(UsageError, match=r"Tasks: generation"):
        read(path, task="ranking")
    with pytest.raises(DataError, match=r"not in the format alpaca.*columns are: question, answer"):
        read(path, format="alpaca")


def test_split_column(tmp_path: Path) -> None:
    path = jsonl(tmp_path / "a.jsonl", [{**QA[0], "split": s} for s in ("Training", "val", "TEST", "eval", None)])
    assert [e.split for e in read(path).examples] == ["train", "validation", "test", "validation", None]
    path = jsonl(tmp_path / "b.jsonl", [{**QA[0], "split": "fold-1"}] * 2)
    assert [e.split for e in read(path).examples] == [None, None]
    with pytest.raises(DataError, match=r"'fold-1', which is not train, validation or test"):
        read(path, columns=Columns(split="split"))


def test_the_hash_is_that_of_the_file(tmp_path: Path) -> None:
    import hashlib

    path = jsonl(tmp_path / "a.jsonl", QA)
    assert read(path).sha256 == hashlib.sha256(path.read_bytes()).hexdigest()


def test_reading_imports_neither_torch_nor_transformers(tmp_path: Path) -> None:
    import subprocess

    path = jsonl(tmp_path / "a.jsonl", QA)
    code = (
        "import sys; from foretune.data.read import read; "
        f"read({str(path)!r}); print([m for m in ('torch', 'transformers', 'datasets', 'pyarrow') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
