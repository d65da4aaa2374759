"""Damage that SQLite passes over in silence, losing results: a check that reads the files and opens no database.

A file cut off within its first page is taken for an empty database. A write-ahead log is replayed up to the first
frame whose checksum fails, and the rest is dropped. For a torn last transaction (a writer killed while writing it)
that is right; where whole transactions follow the damage it loses results.
Format: https://www.sqlite.org/fileformat2.html, sections 1.3 and 4.
"""

from __future__ import annotations

import struct
from pathlib import Path

HEADER_BYTES = 32
FRAME_HEADER_BYTES = 24
FILE_HEADER_BYTES = 100
_MAGIC_LITTLE, _MAGIC_BIG = 0x377F0682, 0x377F0683
_WORD = 0xFFFFFFFF


def silent_loss(store: Path) -> str | None:
    """What SQLite would lose of ``store`` without a word, or None."""
    log = store.with_name(f"{store.name}-wal")
    lost = lost_commits(log)
    if lost is not None:
        return f"its write-ahead log cannot be replayed ({lost})"
    if log.exists() and log.stat().st_size:
        return None  # the log may hold what the file lacks
    return _cut_off(store)


def _cut_off(store: Path) -> str | None:
    """Whether the file is shorter than its header says. An empty file is a new store."""
    if not store.is_file() or not (present := store.stat().st_size):
        return None
    with store.open("rb") as stream:
        header = stream.read(FILE_HEADER_BYTES)
    if not header.startswith(b"SQLite format 3\0"):
        return None  # SQLite refuses it by itself
    if len(header) < FILE_HEADER_BYTES:
        return "the file is cut off"
    (page_bytes,), (changes, pages) = struct.unpack(">H", header[16:18]), struct.unpack(">2I", header[24:32])
    (counted_at,) = struct.unpack(">I", header[92:96])
    expected = pages * (page_bytes if page_bytes > 1 else 65536)  # 1 stands for 65536, which has no 16-bit form
    return "the file is cut off" if changes == counted_at and present < expected else None


def lost_commits(log: Path) -> str | None:
    """What is wrong with the log in front of the last transaction, or None. A log in use by a writer is read twice."""
    first = _damage(log)
    return first if first is not None and _damage(log) == first else None


def _damage(log: Path) -> str | None:
    try:
        content = log.read_bytes()
    except FileNotFoundError:
        return None
    if len(content) < HEADER_BYTES + FRAME_HEADER_BYTES:
        return None
    magic, _, page_bytes, _, salt_1, salt_2, sum_1, sum_2 = struct.unpack(">8I", content[:HEADER_BYTES])
    salts, frame_bytes = (salt_1, salt_2), FRAME_HEADER_BYTES + page_bytes
    if magic not in (_MAGIC_LITTLE, _MAGIC_BIG) or not 512 <= page_bytes <= 65536:
        return "its header is damaged"
    order = "<" if magic == _MAGIC_LITTLE else ">"
    frames = range(HEADER_BYTES, len(content) - frame_bytes + 1, frame_bytes)
    commits = [start for start in frames if _is_commit(content, start)]
    state = _checksum((0, 0), content[:24], order)
    if state != (sum_1, sum_2):
        return "its header is damaged" if commits else None
    commits = [start for start in commits if _salts(content, start) == salts]  # others are left over, and in the file
    settled = commits[-2] if len(commits) > 1 else 0  # the last frame of the last transaction but one
    for number, start in enumerate(range(HEADER_BYTES, settled + 1, frame_bytes), start=1):
        state = _checksum(state, content[start : start + 8], order)
        state = _checksum(state, content[start + FRAME_HEADER_BYTES : start + frame_bytes], order)
        expected = struct.unpack(">2I", content[start + 16 : start + 24])
        if _salts(content, start) != salts or state != expected:
            return f"frame {number} is damaged and committed ones follow it"
    return None


def _salts(content: bytes, start: int) -> tuple[int, ...]:
    return struct.unpack(">2I", content[start + 8 : start + 16])


def _is_commit(content: bytes, start: int) -> bool:
    """A frame that ends a transaction carries the size of the database in pages."""
    return int.from_bytes(content[start + 4 : start + 8], "big") > 0


def _checksum(state: tuple[int, int], content: bytes, order: str) -> tuple[int, int]:
    first, second = state
    words = struct.unpack(f"{order}{len(content) // 4}I", content)
    for index in range(0, len(words), 2):
        first = (first + words[index] + second) & _WORD
        second = (second + words[index + 1] + first) & _WORD
    return first, second
