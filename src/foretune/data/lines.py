"""Lines of a text file as bytes, whatever compressed them and however they end.

gzip is recognised by its first bytes, not by the name of the file. A UTF-8 byte order mark is dropped; LF and CRLF
both end a line. UTF-16, other compressions and a gzip stream that ends early are refused for the whole file, with a
remedy: in such a file nobody can say how many rows are missing. One line is held in memory at a time; a line above
`LONGEST_LINE_BYTES` is cut and flagged, its rest skipped without being held.
"""

from __future__ import annotations

import contextlib
import gzip
import io
import re
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, cast

from foretune.data.problems import NOT_UTF8, Refused, conversion
from foretune.errors import DataError, Place

LONGEST_LINE_BYTES = 64 * 2**20
"""Longest line that is read: above any real row, below what would exhaust a small machine."""
CUT_LINE_BYTES = 2**16
"""What is kept of a longer line, to recognise it in the quarantine file."""
_SNIFFED_BYTES = 4096
_UTF16_NUL_SHARE = 0.2
"""Latin text in UTF-16 is half NUL bytes; other scripts still have them in spaces and line ends."""

_UTF8_MARK = b"\xef\xbb\xbf"
_WIDE_MARKS = (b"\xff\xfe", b"\xfe\xff", b"\x00\x00\xfe\xff")
_GZIP = b"\x1f\x8b"
_FOREIGN = {
    b"PK\x03\x04": ("a zip archive or an Excel workbook", "Unpack it, or save the sheet as CSV (UTF-8)."),
    b"BZh": ("bzip2-compressed", "Unpack it with bunzip2 or compress it with gzip."),
    b"\xfd7zXZ": ("xz-compressed", "Unpack it with unxz or compress it with gzip."),
    b"\x28\xb5\x2f\xfd": ("zstandard-compressed", "Unpack it with unzstd or compress it with gzip."),
    b"SQLite": ("an SQLite database", "Export the table as CSV."),
    b"\x80\x04": ("a Python pickle", "Foretune never unpickles; save the rows as JSON Lines."),
}


@dataclass(frozen=True)
class Line:
    """One line without its line end; ``number`` counts from 1."""

    number: int
    content: bytes
    ended: bool
    """False only for a last line that no line end follows."""
    cut: bool = False
    """The line was longer than `LONGEST_LINE_BYTES`; ``content`` is its beginning."""


def first_bytes(path: Path) -> bytes:
    """The first bytes of a file, after gzip and without a UTF-8 mark. Raises `DataError`."""
    with _opened(path) as stream:
        return stream.read(_SNIFFED_BYTES)


def lines(path: Path) -> Iterator[Line]:
    """The lines of ``path``. Raises `DataError` for a file that is damaged or encoded as a whole."""
    number = 0
    with _opened(path) as stream:
        while True:
            number += 1
            with _explained(path, number):
                content = stream.readline(LONGEST_LINE_BYTES + 1)
                cut = len(content) > LONGEST_LINE_BYTES and not content.endswith(b"\n")
                if cut:
                    content, ended = content[:CUT_LINE_BYTES], _skip_line(stream)
                else:
                    ended = content.endswith(b"\n")
            if not content:
                return
            if ended and not cut:
                content = content[:-1].removesuffix(b"\r")
            yield Line(number, content, ended, cut)


def whole_text(path: Path) -> str:
    """The whole file as text; bytes that are not UTF-8 become lone surrogates, which no good row holds."""
    with _opened(path) as stream, _explained(path, None):
        return stream.read().decode("utf-8", "surrogateescape")


def decoded(line: Line) -> str:
    """The line as text. Raises `Refused` for NUL bytes, bytes that are not UTF-8 and over-long lines."""
    if line.cut:
        raise Refused(f"the line is longer than {LONGEST_LINE_BYTES // 2**20} MiB")
    nul = line.content.find(b"\0")
    if nul >= 0:
        raise Refused("a NUL byte: the file was damaged or is not text", nul + 1)
    try:
        return line.content.decode("utf-8")
    except UnicodeDecodeError as error:
        column = len(line.content[: error.start].decode("utf-8")) + 1
        byte = line.content[error.start]
        raise Refused(f"byte 0x{byte:02x} {NOT_UTF8} (is the file in another encoding?)", column) from None


def _skip_line(stream: BinaryIO) -> bool:
    while piece := stream.readline(LONGEST_LINE_BYTES):
        if piece.endswith(b"\n"):
            return True
    return False


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[BinaryIO]:
    """The plain bytes of a file: unpacked when gzip, past a UTF-8 mark; other encodings are refused."""
    if path.is_dir():
        raise DataError("this is a folder, not a file.", place=Place(path))
    try:
        raw = path.open("rb")
    except FileNotFoundError:
        raise DataError("this file does not exist.", place=Place(path), remedy="Check the path.") from None
    except OSError as error:
        raise DataError(f"this file cannot be opened: {error.strerror}.", place=Place(path)) from error
    with raw:
        magic = raw.read(len(_GZIP))
        raw.seek(0)
        stream: BinaryIO = raw
        if magic == _GZIP:
            stream = cast(BinaryIO, io.BufferedReader(cast(io.RawIOBase, gzip.GzipFile(fileobj=raw, mode="rb"))))
        with _explained(path, 1):
            head = cast(io.BufferedReader, stream).peek(_SNIFFED_BYTES)[:_SNIFFED_BYTES]
        _refuse_foreign(path, head)
        if head.startswith(_UTF8_MARK):
            stream.read(len(_UTF8_MARK))
        yield stream


def _refuse_foreign(path: Path, head: bytes) -> None:
    for magic, (kind, remedy) in _FOREIGN.items():
        if head.startswith(magic):
            raise DataError(f"this file is {kind}.", place=Place(path), remedy=remedy)
    wide = head.startswith(_WIDE_MARKS)
    # alternate bytes are NUL, unlike the runs of NUL bytes that a crash leaves behind
    pairs = len(re.findall(rb"[^\0]\0|\0[^\0]", head))
    if wide or (head and head.count(b"\0") > _UTF16_NUL_SHARE * len(head) and pairs > _UTF16_NUL_SHARE * len(head)):
        raise DataError(
            "this file is UTF-16 (or UTF-32) text; Foretune reads UTF-8.",
            place=Place(path),
            remedy=f"Convert it: {conversion(path, 'UTF-16')}",
        )


@contextlib.contextmanager
def _explained(path: Path, number: int | None) -> Iterator[None]:
    try:
        yield
    except EOFError:
        raise DataError(
            "the gzip stream ends here, before its end mark: the file is incomplete.",
            place=Place(path, number),
            remedy="Copy or download it again; `gzip -dc FILE > rows` saves what is left of it.",
        ) from None
    except (zlib.error, gzip.BadGzipFile) as error:
        raise DataError(
            f"the gzip stream is damaged here ({error}).",
            place=Place(path, number),
            remedy="Copy or download it again.",
        ) from None
    except OSError as error:
        raise DataError(f"this file cannot be read: {error.strerror or error}.", place=Place(path, number)) from error
