"""Checkpoints: folders written aside, hashed, flushed, renamed; the newest valid one is used.

``step-00000120/`` holds ``state.safetensors`` (masters, moments, what the method made of training rows), ``state.json``
(everything else, with lease id and attempt for fencing) and the manifest of hashes. A folder that fails its manifest is
set aside under ``damaged-`` and named in the log; nothing is unpickled.
"""

from __future__ import annotations

import logging
import shutil
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from foretune.files import atomic_folder, folder_damage, read_json, remove_leftovers, write_json

if TYPE_CHECKING:
    import torch

logger = logging.getLogger(__name__)
_PREFIX = "step-"
TAKEN = "taken/"


@dataclass(frozen=True)
class Checkpoint:
    """A valid checkpoint."""

    folder: Path
    step: int
    facts: Mapping[str, Any]

    def tensors(self) -> dict[str, torch.Tensor]:
        """Masters and moments by name."""
        from safetensors.torch import load_file

        tensors: dict[str, torch.Tensor] = load_file(self.folder / "state.safetensors")
        return tensors

    def taken(self) -> dict[str, torch.Tensor]:
        """What the method made of training rows when the run began, and does not train."""
        from safetensors import safe_open

        with safe_open(self.folder / "state.safetensors", framework="pt") as stored:
            names = [name for name in stored.keys() if name.startswith(TAKEN)]  # noqa: SIM118 - no mapping
            return {name.removeprefix(TAKEN): stored.get_tensor(name) for name in names}


def save(run_folder: Path, step: int, tensors: Mapping[str, torch.Tensor], facts: Mapping[str, Any]) -> Path:
    """Write the checkpoint of ``step``; an older one of the same step is replaced. Raises `OutputError`."""
    from safetensors.torch import save_file

    final = run_folder / f"{_PREFIX}{step:08d}"
    with atomic_folder(final) as aside:
        save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, aside / "state.safetensors")
        write_json(aside / "state.json", {"step": step, **facts})
    return final


def steps(run_folder: Path) -> list[int]:
    """The steps that have a checkpoint folder, rising."""
    names = [path.name for path in run_folder.glob(f"{_PREFIX}*") if path.is_dir()]
    return sorted(int(name.removeprefix(_PREFIX)) for name in names)


def read(run_folder: Path, step: int) -> Checkpoint | None:
    """The checkpoint of ``step``, or None when it is missing or damaged (it is then set aside)."""
    folder = run_folder / f"{_PREFIX}{step:08d}"
    if not folder.is_dir():
        return None
    if (damage := folder_damage(folder)) is not None:
        _set_aside(folder, damage)
        return None
    return Checkpoint(folder, step, read_json(folder / "state.json"))


def newest(run_folder: Path, at_most: int | None = None) -> Checkpoint | None:
    """The newest valid checkpoint (not beyond ``at_most``); damaged ones are set aside and named."""
    remove_leftovers(run_folder)
    for step in reversed(steps(run_folder)):
        if at_most is not None and step > at_most:
            continue
        if (checkpoint := read(run_folder, step)) is not None:
            return checkpoint
    return None


def _set_aside(folder: Path, damage: str) -> None:
    aside = folder.with_name(f"damaged-{folder.name}")
    shutil.rmtree(aside, ignore_errors=True)
    folder.replace(aside)
    logger.warning("checkpoint %s was set aside as %s: %s", folder, aside.name, damage)


def retain(run_folder: Path, keep: Collection[int]) -> None:
    """Delete all checkpoints but those of the steps in ``keep``."""
    for step in steps(run_folder):
        if step not in keep:
            shutil.rmtree(run_folder / f"{_PREFIX}{step:08d}", ignore_errors=True)
