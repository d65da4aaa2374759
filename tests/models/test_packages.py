"""Downloading by hash with the real pip (offline), and archives that mean harm."""

from __future__ import annotations

import io
import sys
import tarfile
import threading
import time
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from foretune import packages
from foretune.errors import DataError, ModelError, OutputError

MakeWheel = Callable[[str, dict[str, bytes]], str]


@pytest.mark.parametrize(
    "name", ["../x", "a/../../x", "/etc/passwd", "a\\..\\x", "C:/x", "C:x", "a\0b", "", "a/..", ".."]
)
def test_hostile_names(name: str) -> None:
    assert packages.is_hostile(name)


@pytest.mark.parametrize("name", ["a/b.txt", "./usr/share/x", "./", "a..b/c", "...", "a/b:c"])
def test_harmless_names(name: str) -> None:
    assert not packages.is_hostile(name)


def _zip(path: Path, names: list[str], *, link: str = "") -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        for name in names:
            archive.writestr(name, b"content")
        if link:
            entry = zipfile.ZipInfo(link)
            entry.external_attr = 0o120777 << 16
            archive.writestr(entry, "/etc/passwd")
    return path


def test_a_hostile_member_refuses_the_whole_archive(tmp_path: Path) -> None:
    archive = _zip(tmp_path / "x.whl", ["good.txt", "../evil.txt"])
    with pytest.raises(ModelError, match="leads outside its folder"):
        packages.extract(archive, {"good.txt": tmp_path / "out" / "good.txt"}, refuse=ModelError)
    assert not (tmp_path / "out").exists()


def test_links_are_refused_in_both_formats(tmp_path: Path) -> None:
    archive = _zip(tmp_path / "x.whl", ["good.txt"], link="link")
    with pytest.raises(ModelError, match="is a link"):
        packages.names(archive, refuse=ModelError)
    tar = tmp_path / "x.tar.gz"
    with tarfile.open(tar, "w:gz") as opened:
        entry = tarfile.TarInfo("link")
        entry.type, entry.linkname = tarfile.SYMTYPE, "/etc/passwd"
        opened.addfile(entry)
    with pytest.raises(DataError, match="is a link"):
        packages.names(tar, refuse=DataError)


def test_extract_writes_what_was_asked_and_names_what_is_missing(tmp_path: Path) -> None:
    tar = tmp_path / "x.tar.gz"
    with tarfile.open(tar, "w:gz") as opened:
        entry = tarfile.TarInfo("./deep/file")
        entry.size = 4
        opened.addfile(entry, io.BytesIO(b"1234"))
    packages.extract(tar, {"./deep/file": tmp_path / "out" / "file"}, refuse=DataError)
    assert (tmp_path / "out" / "file").read_bytes() == b"1234"
    with pytest.raises(DataError, match="lacks other"):
        packages.extract(tar, {"other": tmp_path / "other"}, refuse=DataError)


@pytest.mark.parametrize("keep", [0, 10, 60])
def test_a_cut_archive_is_an_error_of_ours(tmp_path: Path, keep: int) -> None:
    whole = _zip(tmp_path / "x.whl", ["good.txt"]).read_bytes()
    cut = tmp_path / "cut.whl"
    cut.write_bytes(whole[:keep])
    with pytest.raises(ModelError, match="cannot be read"):
        packages.names(cut, refuse=ModelError)


def test_download_brings_the_pinned_file(tmp_path: Path, make_wheel: MakeWheel) -> None:
    sha256 = make_wheel("tiny-parcel", {"tiny_parcel/data.txt": b"hello"})
    said: list[str] = []
    found = packages.download("tiny-parcel", "1.0", sha256, tmp_path / "in", refuse=ModelError, progress=said.append)
    packages.extract(found, {"tiny_parcel/data.txt": tmp_path / "data.txt"}, refuse=ModelError)
    assert (tmp_path / "data.txt").read_text() == "hello"
    assert said == ["downloading tiny-parcel 1.0"]


def test_a_wrong_hash_is_refused_before_opening(tmp_path: Path, make_wheel: MakeWheel) -> None:
    make_wheel("tiny-parcel", {"tiny_parcel/data.txt": b"hello"})
    with pytest.raises(ModelError, match="another file than the pinned one"):
        packages.download("tiny-parcel", "1.0", "0" * 64, tmp_path / "in", refuse=ModelError)
    with pytest.raises(DataError, match="the file was not opened"):
        packages.verify(Path(__file__), "0" * 64, refuse=DataError)


def test_an_unknown_package_says_what_pip_said(tmp_path: Path, make_wheel: MakeWheel) -> None:
    with pytest.raises(DataError, match=r"could not be downloaded; pip said: .*No matching distribution"):
        packages.download("tiny-parcel", "1.0", "0" * 64, tmp_path / "in", refuse=DataError)


def test_without_pip_the_remedy_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pip", None)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ModelError, match="ensurepip"):
        packages.download("tiny-parcel", "1.0", "0" * 64, tmp_path / "in", refuse=ModelError)


def test_sole_waits_for_the_other_holder(tmp_path: Path) -> None:
    order: list[str] = []
    entered = threading.Event()

    def first() -> None:
        with packages.sole(tmp_path):
            entered.set()
            time.sleep(0.3)
            order.append("first done")

    thread = threading.Thread(target=first)
    thread.start()
    entered.wait()
    said: list[str] = []
    with packages.sole(tmp_path, progress=said.append):
        order.append("second in")
    thread.join()
    assert order == ["first done", "second in"]
    assert len(said) == 1 and "waiting" in said[0]


def test_sole_gives_up_after_its_patience(tmp_path: Path) -> None:
    with packages.sole(tmp_path), pytest.raises(OutputError, match="another Foretune process"):
        packages.sole(tmp_path, patience_s=0.0).__enter__()


def test_a_workspace_is_gone_after_an_error(tmp_path: Path) -> None:
    with pytest.raises(KeyError), packages.workspace(tmp_path) as folder:
        (folder / "half").write_text("x")
        raise KeyError
    assert list(tmp_path.iterdir()) == []
