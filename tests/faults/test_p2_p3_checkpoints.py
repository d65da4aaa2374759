"""P2: a save that fails leaves the old checkpoint and nothing half; P3: the newest valid checkpoint is used."""

from __future__ import annotations

import builtins
import errno
import io
import logging
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from foretune import files
from foretune.errors import OutputError
from foretune.training import checkpoint

STATE = {"masters/a": torch.arange(6, dtype=torch.float32).reshape(2, 3), "moments/a": torch.ones(2, 3)}
FACTS = {"seed": 0, "seen": []}


def save(folder: Path, step: int) -> Path:
    return checkpoint.save(folder, step, {name: tensor + step for name, tensor in STATE.items()}, FACTS)


class Disk:
    """A disk with room for so many more bytes: every write goes through it, the one that does not fit fails."""

    def __init__(self, room: int) -> None:
        self.room = room
        self.wanted = 0

    def take(self, count: int) -> None:
        self.wanted += count
        if self.wanted > self.room:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


class FullFile(io.FileIO):
    """A file on that disk: what still fits is written before the write fails, as on a real one."""

    disk: Disk

    def write(self, content: Any) -> int:
        data = bytes(content)
        left = max(0, self.disk.room - self.disk.wanted)
        super().write(data[:left])
        self.disk.take(len(data))
        return len(data)


@pytest.fixture
def small_disk(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[int], Disk]]:
    """A function that makes the disk full after so many more bytes, for safetensors and for `files`."""
    from safetensors import torch as safetensors_torch

    real_fdopen, real_save = os.fdopen, safetensors_torch.save_file

    def fill(room: int) -> Disk:
        disk = Disk(room)

        def fdopen(descriptor: int, mode: str = "r", *rest: Any, **named: Any) -> Any:
            if "w" not in mode:
                return real_fdopen(descriptor, mode, *rest, **named)
            stream = FullFile(descriptor, mode.replace("b", ""))
            stream.disk = disk
            return stream

        def save_file(tensors: Any, path: Path) -> None:
            content = safetensors_torch.save(tensors)
            with FullFile(str(path), "w") as stream:
                stream.disk = disk
                stream.write(content)

        monkeypatch.setattr(os, "fdopen", fdopen)
        monkeypatch.setattr(safetensors_torch, "save_file", save_file)
        return disk

    yield fill
    monkeypatch.undo()
    assert (os.fdopen, safetensors_torch.save_file) == (real_fdopen, real_save)


def test_the_disk_is_full_at_every_byte_of_a_save(tmp_path: Path, small_disk: Callable[[int], Disk]) -> None:
    folder = tmp_path / "run"
    save(folder, 1)
    disk = small_disk(1 << 30)
    save(folder, 2)
    needed = disk.wanted
    assert needed > 200
    shutil.rmtree(folder / "step-00000002")
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    for room in range(needed):
        small_disk(room)
        with pytest.raises(OutputError, match="disk is full") as raised:
            save(folder, 2)
        assert raised.value.exit_code == 6 and "Free some space" in raised.value.remedy
        assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before
        assert [path.name for path in folder.iterdir()] == ["step-00000001"], f"something is left with room {room}"
    small_disk(needed)
    save(folder, 2)
    newest = checkpoint.newest(folder)
    assert newest is not None and newest.step == 2
    assert torch.equal(newest.tensors()["masters/a"], STATE["masters/a"] + 2)


def test_safetensors_itself_reports_a_full_disk_as_our_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The Rust writer has an error type of its own."""
    from safetensors import SafetensorError

    def full(tensors: Any, path: Path) -> None:
        raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")

    save(tmp_path, 1)
    monkeypatch.setattr("safetensors.torch.save_file", full)
    with pytest.raises(OutputError, match="disk is full"):
        save(tmp_path, 2)
    assert [path.name for path in tmp_path.iterdir()] == ["step-00000001"]


def damages() -> list[tuple[str, str, Callable[[Path], None]]]:
    def cut(share: str) -> Callable[[Path], None]:
        def apply(path: Path) -> None:
            size = path.stat().st_size
            lost = 2 if path.name == files.MANIFEST else 1  # its last byte is a line end and holds nothing
            os.truncate(path, {"0": 0, "1": 1, "half": size // 2, "n-1": size - lost}[share])

        return apply

    def flip(path: Path) -> None:
        content = bytearray(path.read_bytes())
        content[len(content) // 2] ^= 1
        path.write_bytes(bytes(content))

    kinds: list[tuple[str, Callable[[Path], None]]] = [(f"cut at {at}", cut(at)) for at in ("0", "1", "half", "n-1")]
    kinds += [("a bit flipped", flip), ("deleted", Path.unlink)]
    names = ("state.safetensors", "state.json", "manifest.json")
    return [(name, kind, apply) for name in names for kind, apply in kinds]


@pytest.mark.parametrize(
    ("name", "kind", "damage"), damages(), ids=lambda value: value if isinstance(value, str) else ""
)
def test_a_damaged_checkpoint_is_set_aside_and_the_one_before_used(
    name: str, kind: str, damage: Callable[[Path], None], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    save(tmp_path, 1)
    damage(save(tmp_path, 2) / name)
    with caplog.at_level(logging.WARNING):
        found = checkpoint.newest(tmp_path)
    assert found is not None and found.step == 1
    assert torch.equal(found.tensors()["masters/a"], STATE["masters/a"] + 1)
    assert (tmp_path / "damaged-step-00000002").is_dir() and not (tmp_path / "step-00000002").exists()
    assert "step-00000002" in caplog.text and "damaged-step-00000002" in caplog.text
    assert checkpoint.steps(tmp_path) == [1]


def test_a_manifest_that_names_files_outside_is_damage(tmp_path: Path) -> None:
    save(tmp_path, 1)
    folder = save(tmp_path, 2)
    outside = tmp_path / "outside"
    outside.write_text("x")
    manifest = files.read_json(folder / files.MANIFEST)
    for name in ("../outside", str(outside)):
        changed = {**manifest["files"], name: files.sha256_file(outside)}
        (folder / files.MANIFEST).write_text(files.canonical_json({"files": changed}))
        assert files.folder_damage(folder) is not None, name


def test_a_rename_that_fails_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "result.json"
    files.write_json(path, {"a": 1})
    before = path.read_bytes()
    for error, kind in ((errno.EIO, OSError), (errno.EROFS, OutputError), (errno.EDQUOT, OutputError)):

        def refuse(self: Path, target: Path, error: int = error) -> Path:
            raise OSError(error, os.strerror(error))

        with monkeypatch.context() as patch:
            patch.setattr(Path, "replace", refuse)
            with pytest.raises(kind):
                files.write_json(path, {"a": 2})
        assert path.read_bytes() == before and [p.name for p in tmp_path.iterdir()] == ["result.json"]


def test_a_full_disk_never_tears_the_journal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "journal.jsonl"
    files.append_line(path, {"event": 1})
    real = Path.open

    def opened(self: Path, mode: str = "r", *rest: Any, **named: Any) -> Any:
        if mode != "a+b":
            return real(self, mode, *rest, **named)
        stream = FullFile(str(self), "a+")
        stream.disk = Disk(7)
        return stream

    with monkeypatch.context() as patch:
        patch.setattr(Path, "open", opened)
        with pytest.raises(OutputError, match="disk is full"):
            files.append_line(path, {"event": 2})
    assert path.read_bytes() == b'{"event":1}\n'
    with builtins.open(path, "ab") as stream:  # noqa: PTH123 - a writer that was killed in the middle
        stream.write(b'{"even')
    assert files.read_lines(path) == [{"event": 1}]
    files.append_line(path, {"event": 3})
    assert files.read_lines(path) == [{"event": 1}, {"event": 3}]
