"""The only module that opens a final path for writing: everything else is written aside, flushed and renamed.

A reader therefore sees the old file, the new file or no file, never half of one. Folders are written the same
way, with a manifest of hashes, so that a damaged or incomplete folder is recognised. One process at a time
holds a folder (`FolderLock`); the kernel frees the lock when the process dies, however it dies.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import glob
import hashlib
import json
import os
import re
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

from foretune.errors import OutputError, Place, UsageError

MANIFEST = "manifest.json"
_HASH_CHUNK_BYTES = 1 << 20
_RUST_ERROR = re.compile(r"\(os error (\d+)\)")


def cache_folder() -> Path:
    """Where models, fetched data and cached tokens live: ``$FORETUNE_CACHE`` or ``~/.cache/foretune``."""
    named = os.environ.get("FORETUNE_CACHE")
    base = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    return Path(named) if named else Path(base) / "foretune"


def sha256_bytes(content: bytes) -> str:
    """The SHA-256 of ``content`` in hexadecimal."""
    return hashlib.sha256(content).hexdigest()


def sha256_file(path: Path) -> str:
    """The SHA-256 of a file, read in pieces."""
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while piece := stream.read(_HASH_CHUNK_BYTES):
            digest.update(piece)
    return digest.hexdigest()


def canonical_json(value: Any) -> str:
    """JSON with sorted keys and no NaN: the form that is hashed and compared."""
    return json.dumps(value, sort_keys=True, ensure_ascii=False, allow_nan=False, separators=(",", ":"))


def fingerprint(value: Any, length: int = 16) -> str:
    """A short content hash of any JSON value."""
    return sha256_bytes(canonical_json(value).encode())[:length]


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def explained(path: Path) -> Iterator[None]:
    """Turn the operating system's refusals into an `OutputError` that names the place and the remedy."""
    try:
        yield
    except Exception as error:
        number = _error_number(error)
        if number in (errno.ENOSPC, errno.EDQUOT):
            free = shutil.disk_usage(_existing_parent(path)).free
            raise OutputError(
                f"the disk is full ({free // 2**20} MiB free); nothing was written half.",
                place=Place(path),
                remedy="Free some space and run the same command again: it resumes.",
            ) from error
        if number in (errno.EACCES, errno.EPERM, errno.EROFS):
            raise OutputError(
                "this folder cannot be written.", place=Place(path), remedy="Choose another --output."
            ) from error
        if number in (errno.EISDIR, errno.ENOTDIR, errno.EEXIST, errno.ENAMETOOLONG):
            raise OutputError(
                "no file of this name can be written here.", place=Place(path), remedy="Choose another --output."
            ) from error
        raise


def _error_number(error: Exception) -> int | None:
    """The system's error number; safetensors, written in Rust, only says it in its text: ``(os error 28)``."""
    if isinstance(error, OSError):
        return error.errno
    said = _RUST_ERROR.search(str(error)) if type(error).__name__ == "SafetensorError" else None
    return None if said is None else int(said[1])


def _existing_parent(path: Path) -> Path:
    while not path.exists() and path != path.parent:
        path = path.parent
    return path


def check_free(path: Path) -> None:
    """Raise `OutputError` where something stands that a folder written to ``path`` would replace."""
    if path.exists() and not (path.is_dir() and not any(path.iterdir())):
        raise OutputError("this exists already.", place=Place(path), remedy="Choose another --output.")


def check_output(path: Path, reads: Mapping[str, str | Path | None]) -> None:
    """Raise `UsageError` where writing ``path`` would replace one of the files (or a file in the folders) of ``reads``,
    and `OutputError` where it cannot be written: before the work, not after it.

    ``reads`` has what each of them holds as its key, like ``prompts``.
    """
    target = path.resolve()
    for what, source in reads.items():
        if source is None:
            continue
        place = Path(source).expanduser().resolve()
        if target == place or (place.is_dir() and target.exists() and target.is_relative_to(place)):
            raise UsageError(f"this would replace the {what}.", place=Place(path), remedy="Write another file.")
    with explained(path):
        if path.is_dir():
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(prefix=f".{path.name}.", dir=path.parent):
            pass


def write_bytes(path: Path, content: bytes) -> None:
    """Write a file atomically: aside, flushed to the disk, renamed. Raises `OutputError`."""
    with explained(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".part", dir=path.parent)
        temporary = Path(name)
        try:
            with os.fdopen(descriptor, "wb") as stream:
                stream.write(content)
                stream.flush()
                os.fsync(stream.fileno())
            temporary.chmod(0o644)
            temporary.replace(path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
        _sync_folder(path.parent)


def write_text(path: Path, text: str) -> None:
    """Write UTF-8 text atomically."""
    write_bytes(path, text.encode("utf-8"))


def write_json(path: Path, value: Any) -> None:
    """Write JSON atomically; NaN and infinity are refused."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def read_json(path: Path) -> Any:
    """Read a JSON file written by `write_json`."""
    return json.loads(path.read_text(encoding="utf-8"))


def append_line(path: Path, value: Any) -> None:
    """Append one JSON line and flush it to the disk; a torn last line is dropped by `read_lines`."""
    line = canonical_json(value).encode() + b"\n"
    with explained(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("a+b") as stream:
            end = stream.seek(0, os.SEEK_END)
            if end:
                stream.seek(-1, os.SEEK_END)
                if stream.read(1) != b"\n":  # a torn tail of a killed writer: cut it off
                    stream.seek(0)
                    keep = stream.read().rfind(b"\n") + 1
                    stream.truncate(keep)
            start = stream.seek(0, os.SEEK_END)
            try:
                stream.write(line)
                stream.flush()
                os.fsync(stream.fileno())
            except OSError:
                with contextlib.suppress(OSError):
                    os.truncate(path, start)
                raise


def read_lines(path: Path) -> list[Any]:
    """The complete JSON lines of a file written by `append_line`; a torn tail is ignored."""
    if not path.exists():
        return []
    content = path.read_bytes()
    return [json.loads(line) for line in content[: content.rfind(b"\n") + 1].splitlines() if line.strip()]


@contextlib.contextmanager
def atomic_folder(final: Path) -> Iterator[Path]:
    """Fill a folder aside; on success add a manifest of hashes, flush everything and rename it to ``final``.

    On any exception the partial folder is removed and ``final`` is as before. An existing ``final`` is replaced.
    """
    with explained(final):
        final.parent.mkdir(parents=True, exist_ok=True)
        aside = Path(tempfile.mkdtemp(prefix=f".{final.name}.", suffix=".part", dir=final.parent))
        try:
            yield aside
            hashes = {
                str(path.relative_to(aside)): sha256_file(path) for path in sorted(aside.rglob("*")) if path.is_file()
            }
            write_json(aside / MANIFEST, {"files": hashes})
            for path in aside.rglob("*"):
                if path.is_file():
                    with path.open("rb+") as stream:
                        os.fsync(stream.fileno())
            for path in [*(p for p in aside.rglob("*") if p.is_dir()), aside]:
                _sync_folder(path)
            aside.chmod(0o755)
            if final.exists():
                graveyard = Path(tempfile.mkdtemp(prefix=f".{final.name}.", suffix=".old", dir=final.parent))
                final.replace(graveyard / final.name)
                aside.replace(final)
                shutil.rmtree(graveyard, ignore_errors=True)
            else:
                aside.replace(final)
            _sync_folder(final.parent)
        except BaseException:
            shutil.rmtree(aside, ignore_errors=True)
            raise


def folder_damage(folder: Path) -> str | None:
    """Why a folder written by `atomic_folder` cannot be trusted, or None when every hash agrees."""
    try:
        hashes = dict(read_json(folder / MANIFEST)["files"])
    except FileNotFoundError:
        return f"{MANIFEST} is missing"
    except (ValueError, KeyError, TypeError, UnicodeDecodeError):
        return f"{MANIFEST} is damaged"
    for name, expected in hashes.items():
        path = folder / name
        if not path.resolve().is_relative_to(folder.resolve()):
            return f"{MANIFEST} names {name}, which lies outside"
        if not path.is_file():
            return f"{name} is missing"
        if sha256_file(path) != expected:
            return f"{name} is damaged"
    return None


def is_leftover(path: Path) -> bool:
    """Whether this is what a killed writer leaves aside, by its name."""
    return path.name.startswith(".") and path.suffix in (".part", ".old", ".claim")


def remove_leftovers(folder: Path) -> int:
    """Remove the leftovers of a killed writer directly in ``folder``; returns how many.

    Only where no other process may be writing: its unfinished files have such names too.
    """
    leftovers = [path for path in folder.glob(".*") if is_leftover(path)]
    for path in leftovers:
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)
    return len(leftovers)


class FolderLock:
    """Holds a folder for one process; a second holder gets an `OutputError` at once."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / ".lock"
        self._stream: Any = None

    def __enter__(self) -> FolderLock:
        with explained(self.path):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._stream = self.path.open("a+")
        try:
            fcntl.flock(self._stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self._stream.close()
            raise OutputError(
                "another Foretune process is working in this folder.",
                place=Place(self.path.parent),
                remedy="Wait for it to end, or choose another --output.",
            ) from None
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stream.close()


@contextlib.contextmanager
def claimed(path: Path) -> Iterator[bool]:
    """Whether the work that will write ``path`` is ours for as long as we are inside; false where another has it.

    A claim ends with its process, however that ends, so that work of a killed one is taken up by the others; what it
    had half written, of ``path`` or of files of the same stem, is removed then.
    """
    lock = path.with_name(f".{path.name}.claim")
    with explained(lock):
        lock.parent.mkdir(parents=True, exist_ok=True)
        stream = lock.open("a+")
    try:
        fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        ours = _same_file(stream.fileno(), lock)  # not that of a holder who removed it between our two calls
    except BlockingIOError:
        ours = False
    if not ours:
        stream.close()
        yield False
        return
    try:
        for torn in path.parent.glob(f".{glob.escape(path.stem)}.*.part"):  # nobody else may be writing them now
            torn.unlink(missing_ok=True)
        yield True
    finally:
        lock.unlink(missing_ok=True)
        stream.close()


def _same_file(descriptor: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except FileNotFoundError:
        return False


def lives(process: int) -> bool:
    """Whether there is a process of this number on this machine."""
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
