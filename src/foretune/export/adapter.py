"""The adapter folder in peft's form, with the tokenizer and the model card: everything another tool needs.

The folder appears whole or not at all, with a manifest of hashes. A method that trains all weights leaves a plain
Hugging Face folder instead; the same function writes it.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from foretune import files
from foretune.errors import ModelError, Place
from foretune.export.loading import ADAPTER_CONFIG, CONFIG, read_config
from foretune.methods.base import Attachment

CARD = "README.md"


def export_adapter(
    trained: Attachment | Path,
    destination: Path,
    *,
    tokenizer: Any,
    base_model: str | None = None,
    card: str | None = None,
) -> Path:
    """Write the adapter (or the whole weights) with ``tokenizer`` and ``card`` to ``destination``; returns it.

    ``trained`` is an attachment, or a folder that one was saved to. ``base_model`` is what ``adapter_config.json``
    names as its base: a hub id or a folder. Raises `ModelError` when the weights are missing, pickled or not finite,
    `OutputError` when the folder cannot be written.
    """
    with files.atomic_folder(destination) as aside:
        if isinstance(trained, Path):
            _copy(trained, aside)
        else:
            trained.save(aside)
        check_weights(aside)
        if base_model is not None and (aside / ADAPTER_CONFIG).is_file():
            config = read_config(aside, ADAPTER_CONFIG)
            files.write_json(aside / ADAPTER_CONFIG, {**config, "base_model_name_or_path": base_model})
        tokenizer.save_pretrained(aside)
        (aside / CARD).unlink(missing_ok=True)  # peft leaves an empty form there
        if card is not None:
            files.write_text(aside / CARD, card)
    return destination


def _copy(source: Path, aside: Path) -> None:
    if not source.is_dir():
        raise ModelError("there is no such folder.", place=Place(source))
    for path in sorted(source.iterdir()):
        if path.is_file() and not path.is_symlink() and path.name != files.MANIFEST:
            shutil.copyfile(path, aside / path.name)


def check_weights(folder: Path) -> None:
    """Refuse a folder without a configuration, without safetensors, with pickled weights, or with NaN in them."""
    import torch
    from safetensors import SafetensorError, safe_open

    if not any((folder / name).is_file() for name in (ADAPTER_CONFIG, CONFIG)):
        raise ModelError(f"neither {ADAPTER_CONFIG} nor {CONFIG} is here.", place=Place(folder))
    pickled = [path for pattern in ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl") for path in folder.glob(pattern)]
    if pickled:
        raise ModelError("pickled weights are not exported.", place=Place(pickled[0]), remedy="Save as safetensors.")
    weights = sorted(folder.glob("*.safetensors"))
    if not weights:
        raise ModelError("there are no weights (*.safetensors) here.", place=Place(folder))
    for path in weights:
        try:
            with safe_open(path, framework="pt") as tensors:
                for name in sorted(tensors.keys()):
                    tensor = tensors.get_tensor(name)
                    if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
                        raise ModelError(f"the weight {name} holds NaN or infinity.", place=Place(path))
        except SafetensorError as error:
            raise ModelError(f"the weights are damaged ({error}).", place=Place(path)) from error
