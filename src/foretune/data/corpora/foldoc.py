"""Questions on computing terms from the Free On-line Dictionary of Computing (editor Denis Howe, GFDL).

Debian carries it as ``dict-foldoc`` in dictd's format: an index of headword, offset and length (base-64 digits, RFC
2229's server) into a text compressed with gzip. ``apt-get download`` needs no administrator. An entry gives one row:
a question for its headword, and the first paragraphs of its first sense as the answer, without cross-reference marks,
categories and dates, cut at a sentence's end to at most `LONGEST` characters. Entries that only point to another are
left out.
"""

from __future__ import annotations

import gzip
import re
import shutil
import string
import subprocess
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from foretune.catalogue.datasets import FOLDOC
from foretune.errors import DataError, Place
from foretune.files import explained
from foretune.packages import Progress, extract, verify

SHORTEST = 40
"""Characters below which a definition says too little to be a training answer."""
ENOUGH = 160
"""Characters from which on no further paragraph is added."""
LONGEST = 600
"""Characters (about 150 tokens) at which a definition is cut, at a sentence's end."""
_DIGITS = string.ascii_uppercase + string.ascii_lowercase + "0123456789+/"
_INDEX = "./usr/share/dictd/foldoc.index"
_TEXT = "./usr/share/dictd/foldoc.dict.dz"
_PHRASINGS = (
    "What is {x}?",
    "Define {x}.",
    "What does the computing term {x} mean?",
    "Explain {x} in a few sentences.",
)
_SERVER_WORDS = ("00database", "00-database")
"""Index words under which dictd's servers find a dictionary's title, address and license."""
_ABOUT_ITSELF = re.compile(r"Free On-line Dictionary|Acknowledgements|Missing definition|FOLDOC")
_POINTER = re.compile(r"^(?:See|{)[^.]*\.?$")


def build(folder: Path, progress: Progress) -> Mapping[str, list[dict[str, Any]]]:
    """The data set from Debian's package; raises `DataError`."""
    package = _download(folder, progress)
    tar = folder / "package.tar"
    with explained(tar), tar.open("wb") as out:
        done = subprocess.run(["dpkg-deb", "--fsys-tarfile", str(package)], stdout=out, check=False)
    if done.returncode != 0:
        raise DataError("dpkg-deb cannot open the package.", place=Place(package.name))
    index, text = folder / "foldoc.index", folder / "foldoc.dict.dz"
    extract(tar, {_INDEX: index, _TEXT: text}, refuse=DataError)
    return {"foldoc": rows(index.read_text(encoding="utf-8"), gzip.decompress(text.read_bytes()))}


def _download(folder: Path, progress: Progress) -> Path:
    for tool in ("apt-get", "dpkg-deb"):
        if shutil.which(tool) is None:
            raise DataError(
                f"this data set comes from Debian and needs {tool}, which is not here.",
                remedy="Fetch it on Debian or Ubuntu and copy the cache folder, or choose another data set.",
            )
    progress(f"downloading {FOLDOC.name} {FOLDOC.version}")
    command = ["apt-get", "download", "--quiet=2", f"{FOLDOC.name}={FOLDOC.version}"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL)
    found = sorted(folder.glob("*.deb"))
    if done.returncode != 0 or len(found) != 1:
        said = " / ".join(line for line in done.stderr.splitlines() if line.startswith("E:")) or "nothing"
        raise DataError(
            f"apt-get could not download {FOLDOC.name} {FOLDOC.version}; it said: {said}.",
            remedy="Run `apt-get update`, and check that this release of Debian has this version "
            f"(`apt-cache policy {FOLDOC.name}`).",
        )
    verify(found[0], FOLDOC.sha256, refuse=DataError)
    return found[0]


def rows(index: str, text: bytes) -> list[dict[str, Any]]:
    """Question and answer of every entry worth asking about, in the order of the text.

    ``index`` is dictd's index, ``text`` the uncompressed dictionary in UTF-8. Raises `DataError` for a damaged index.
    """
    found: list[dict[str, Any]] = []
    seen: set[str] = set()
    for headword, body in entries(index, text):
        answer = definition(body)
        if answer and headword.lower() not in seen:
            seen.add(headword.lower())
            question = _PHRASINGS[len(found) % len(_PHRASINGS)].format(x=headword)
            found.append({"question": question, "answer": answer})
    return found


def entries(index: str, text: bytes) -> Iterator[tuple[str, str]]:
    """(headword, body) of every entry once, though several index words may point to it."""
    places: dict[int, int] = {}
    for number, line in enumerate(index.splitlines(), start=1):
        try:
            word, offset, length = line.split("\t")
            if word.startswith(_SERVER_WORDS):
                continue
            places[_number(offset)] = _number(length)
        except ValueError as error:
            raise DataError("a damaged line of the index.", place=Place("foldoc.index", number)) from error
    for start, size in sorted(places.items()):
        entry = text[start : start + size].decode("utf-8", errors="replace")
        heads, _, body = entry.partition("\n\n")
        headword = heads.strip().splitlines()[0].strip() if heads.strip() else ""
        if headword and not _ABOUT_ITSELF.search(headword):
            yield headword, body


def _number(digits: str) -> int:
    value = 0
    for digit in digits:
        value = value * len(_DIGITS) + _DIGITS.index(digit)
    return value


def definition(body: str) -> str:
    """The first paragraphs of the first sense as plain text; empty when they say too little."""
    kept = ""
    for paragraph in re.split(r"\n\s*\n", body):
        if kept and re.match(r"\s*[2-9]\. ", paragraph):
            break  # the next sense
        clean = _plain(paragraph)
        if not clean or (_POINTER.match(clean) and not kept):
            continue
        kept = f"{kept} {clean}".strip()
        if len(kept) >= ENOUGH:
            break
    kept = _cut(kept)
    return kept if len(kept) >= SHORTEST and not _POINTER.match(kept) else ""


def _plain(paragraph: str) -> str:
    text = " ".join(paragraph.split())
    text = re.sub(r"^(?:\d+\.\s+)?(?:<[^<>}]+[>}]\s*)?(?:1\.\s+)?", "", text)  # number of the sense, category
    text = re.sub(r"\{\(?(?:https?|ftp|news|mailto)[^}]*\}", "", text)  # bare links
    text = re.sub(r"\s*\((?:https?|ftp)://[^)]*\)", "", text)
    text = re.sub(r"\{([^{}]*)\}", r"\1", text).replace("__", "")
    text = re.sub(r'(?<!")[{}](?!")', "", text)  # references the editors left open; quoted braces are meant
    text = re.sub(r"\s*[\[(]\d{4}-\d{2}(?:-\d{2})?[\])]", "", text)  # date of the last change
    text = re.sub(r"\s*\[[^\]]*\?\]", "", text)  # notes of the editor such as [Reference?]
    text = re.sub(r"\s(?:See(?: also)?|Compare|Cf\.?) [^.]*\.$", "", text)  # a last sentence that points elsewhere
    text = re.sub(r"\s+([.,;:])", r"\1", text).strip()
    return text if re.search(r"[a-z]{2,} [a-z]", text) else ""


def _cut(text: str) -> str:
    if len(text) <= LONGEST:
        return text if text.endswith((".", "!", "?", '"', ")")) or not text else text + "."
    ends = [match.start() + 1 for match in re.finditer(r"[.!?](?=\s)", text[:LONGEST])]
    return text[: ends[-1]] if ends else ""
