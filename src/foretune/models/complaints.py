"""What can be wrong with a model, said in one paragraph with the place and the remedy.

The folder is looked at before transformers sees it (configuration, tokenizer, weights in safetensors); what
transformers raises while loading is translated; what it only reports (missing weights) is made an error.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from foretune.catalogue.models import ModelKind, ModelReference
from foretune.errors import ForetuneError, ModelError, Place
from foretune.models.kinds import infer_kind

CONFIG = "config.json"
WEIGHTS_INDEX = "model.safetensors.index.json"
ADAPTER_CONFIG = "adapter_config.json"
_TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "vocab.txt", "vocab.json", "spiece.model", "source.spm",
                    "sentencepiece.bpe.model", "tekken.json")  # fmt: skip
_PICKLE_ENDINGS = (".bin", ".pt", ".pth", ".ckpt")
_HEADER_LENGTH_BYTES = 8  # a safetensors file starts with its header's length, little-endian
_HEADER_LIMIT_BYTES = 100_000_000  # the limit of the safetensors library
_SHOWN = 3
_NO_CONVERSION = "DISABLE_SAFETENSORS_CONVERSION"


def check_folder(folder: Path) -> None:
    """Raise `ModelError` when a model folder lacks a part or has a damaged one."""
    if not (folder / CONFIG).is_file() and (folder / ADAPTER_CONFIG).is_file():
        raise ModelError(
            "this folder is an adapter, not a base model.",
            place=Place(folder / ADAPTER_CONFIG),
            remedy="Give the base model it names in base_model_name_or_path.",
        )
    check_config(folder)
    _check_weights(folder)
    if not any((folder / name).is_file() for name in _TOKENIZER_FILES):
        raise ModelError(
            "the model folder has no tokenizer.",
            place=Place(folder),
            remedy="Copy tokenizer.json and tokenizer_config.json of the same model into it.",
        )


def check_config(folder: Path) -> dict[str, Any]:
    """The content of ``config.json``; raises `ModelError` when it is missing, damaged or no object."""
    path = folder / CONFIG
    if not path.is_file():
        raise ModelError(
            "the model folder has no config.json.",
            place=Place(folder),
            remedy="Give the folder that save_pretrained wrote, a hub id, or a .gguf file.",
        )
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise ModelError(
            f"not valid JSON: {error.msg}.", place=Place(path, error.lineno, error.colno), remedy=_AGAIN
        ) from error
    except (OSError, UnicodeDecodeError) as error:
        raise ModelError(f"cannot be read ({error}).", place=Place(path), remedy=_AGAIN) from error
    if not isinstance(config, dict) or not isinstance(config.get("model_type"), str):
        raise ModelError("has no model_type.", place=Place(path), remedy="This is not a transformers configuration.")
    return config


def check_kind(config: Mapping[str, Any], kind: ModelKind, where: Path | str) -> None:
    """Raise `ModelError` when the configuration says another kind than ``kind``; silent where it does not say."""
    try:
        found = infer_kind(config)
    except ModelError:
        return
    if found != kind:
        raise ModelError(
            f"this model is of the kind {found}, not {kind}.", place=Place(str(where)), remedy=f"Load it as {found}."
        )


_AGAIN = "Copy or download this file again."


def _check_weights(folder: Path) -> None:
    files = _weight_files(folder)
    if not files:
        pickled = sorted(path.name for path in folder.iterdir() if path.suffix in _PICKLE_ENDINGS)
        if pickled:
            raise ModelError(
                f"the weights are pickled only ({pickled[0]}); unpickling a file runs whatever code is in it.",
                place=Place(folder),
                remedy="Where you trust the file, convert it once: load it with transformers and save_pretrained it, "
                "which writes model.safetensors.",
            )
        raise ModelError("the model folder has no weights (*.safetensors).", place=Place(folder), remedy=_AGAIN)
    for path in files:
        damage = safetensors_damage(path)
        if damage is not None:
            raise ModelError(damage, place=Place(path), remedy=_AGAIN)


def _weight_files(folder: Path) -> list[Path]:
    index = folder / WEIGHTS_INDEX
    if not (folder / "model.safetensors").is_file() and index.is_file():
        try:
            named = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
        except (ValueError, KeyError, AttributeError, TypeError) as error:
            raise ModelError(
                f"the index of weights is damaged ({error}).", place=Place(index), remedy=_AGAIN
            ) from error
        if any(Path(name).name != name for name in named):
            raise ModelError(
                "the index of weights names a file outside the folder.",
                place=Place(index),
                remedy="Do not use this model.",
            )
        return [folder / name for name in named]
    return sorted(folder.glob("*.safetensors"))


def safetensors_damage(path: Path) -> str | None:
    """What is wrong with a safetensors file by its header and length, or None. Reads the header only."""
    try:
        size = path.stat().st_size
        with path.open("rb") as stream:
            length = int.from_bytes(stream.read(_HEADER_LENGTH_BYTES), "little")
            if not 0 < length <= min(size - _HEADER_LENGTH_BYTES, _HEADER_LIMIT_BYTES):
                return f"the weights are damaged or cut short ({size} bytes)."
            header = json.loads(stream.read(length))
        ends = [entry["data_offsets"][1] for name, entry in header.items() if name != "__metadata__"]
    except FileNotFoundError:
        return "this file of weights is missing."
    except (ValueError, KeyError, TypeError, IndexError, AttributeError, OSError) as error:
        return f"the header of the weights is damaged ({type(error).__name__})."
    expected = _HEADER_LENGTH_BYTES + length + max(ends, default=0)
    return None if size == expected else f"the weights have {size} bytes where their header says {expected}."


@contextlib.contextmanager
def safetensors_only() -> Iterator[None]:
    """Keep transformers from asking the hub to convert a repository that has pickled weights only."""
    before = os.environ.get(_NO_CONVERSION)
    os.environ[_NO_CONVERSION] = "1"
    try:
        yield
    finally:
        if before is None:
            del os.environ[_NO_CONVERSION]
        else:
            os.environ[_NO_CONVERSION] = before


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """No progress bars and no table of missing weights from transformers: `check_report` speaks instead."""
    from transformers.utils import logging as library

    level, bars = library.get_verbosity(), library.is_progress_bar_enabled()
    library.set_verbosity_error()
    library.disable_progress_bar()
    try:
        yield
    finally:
        library.set_verbosity(level)
        if bars:
            library.enable_progress_bar()


@contextlib.contextmanager
def explained(where: Path | str, reference: ModelReference) -> Iterator[None]:
    """Turn what transformers raises while loading into a `ModelError`."""
    try:
        yield
    except ForetuneError:
        raise
    except (OSError, ValueError, RuntimeError, KeyError, ImportError, TypeError, AttributeError) as error:
        what, remedy = _translated(str(error), where, reference)
        raise ModelError(what, place=Place(str(where)), remedy=remedy) from error
    except Exception as error:
        if type(error).__module__.split(".")[0] not in ("safetensors_rust", "safetensors", "builtins"):
            raise
        first = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ModelError(f"cannot be loaded ({first}).", place=Place(str(where)), remedy=_AGAIN) from error


def _translated(text: str, where: Path | str, reference: ModelReference) -> tuple[str, str]:
    first = next((line.strip() for line in text.splitlines() if line.strip()), "no reason given")
    if "trust_remote_code" in text:
        return (
            "this model needs code that it brings along, which is not run by default.",
            "Read that code; where you trust it, run again with --trust-remote-code.",
        )
    if isinstance(where, Path):
        return f"cannot be loaded ({first}).", "Check that all files belong to the same model."
    if "safetensors" in text and "does not appear to have" in text:
        return (
            "the repository has no weights in safetensors.",
            "Choose a revision that has them, or convert the model once and give its folder.",
        )
    if os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE"):
        return (
            "the model is not in the local cache and HF_HUB_OFFLINE forbids looking on the hub.",
            "Unset HF_HUB_OFFLINE, fetch the model where there is a network, or give a folder.",
        )
    revision = f" at revision {reference.revision}" if reference.revision else ""
    return (
        f"cannot be loaded from the hub{revision} ({first}).",
        "Check the id, the network and, for a gated model, that you are logged in (`hf auth login`).",
    )


def check_report(report: Mapping[str, Any], where: Path | str, *, new_head: tuple[str, ...]) -> tuple[str, ...]:
    """The modules of a new head: those of ``new_head`` (or ``dense`` beside the base) that the file lacks or has in
    another shape. Raises `ModelError` when any other weights are missing or misshapen."""

    def foreign(name: str) -> bool:
        return not any(part in name for part in new_head) and not (new_head and name.startswith("dense."))

    missing = sorted(name for name in report.get("missing_keys", ()) if foreign(name))
    if missing:
        raise ModelError(
            f"the file of weights lacks {len(missing)} tensors of this architecture: {', '.join(missing[:_SHOWN])}"
            f"{', …' if len(missing) > _SHOWN else ''}.",
            place=Place(str(where)),
            remedy="Check that config.json and the weights belong together, and that the kind of model is right.",
        )
    mismatched = [entry for entry in report.get("mismatched_keys", ()) if foreign(str(entry[0]))]
    if mismatched:
        name, found, expected = (*mismatched[0], "?", "?")[:3]
        raise ModelError(
            f"{len(mismatched)} tensors have another shape than config.json says; {name}: {tuple(found)} in the file, "
            f"{tuple(expected)} expected.",
            place=Place(str(where)),
            remedy="Check that config.json and the weights belong together.",
        )
    drawn = [*report.get("missing_keys", ()), *(str(entry[0]) for entry in report.get("mismatched_keys", ()))]
    return tuple(sorted({name.rpartition(".")[0] for name in drawn if "." in name}))
