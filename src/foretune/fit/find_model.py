"""Which model, how large, and with which tokenizer — without fetching anything, and without torch where it is known.

A model is looked for as a folder, a GGUF file, a catalogue model fetched before, a snapshot in the hub's cache, and
last as a catalogue model whose sizes are known here though it is not fetched yet. What only exists on the hub is a
`ModelError` that says how to fetch it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from foretune.catalogue.models import MODELS, known_model
from foretune.cost.gguf_header import read_config as read_gguf_config
from foretune.cost.shapes import ModelShapes, read_config
from foretune.errors import ModelError, Place
from foretune.models.fetch import fetched, hub_snapshot
from foretune.models.measured_shapes import shapes_of

_CONFIG, _TOKENIZER = "config.json", "tokenizer.json"

# The sizes of the catalogue's models, so that they can be planned before they are fetched. A test holds each to the
# number of parameters in the catalogue.
CATALOGUE_CONFIGS: Mapping[str, Mapping[str, Any]] = {
    "SmolLM2-135M-Instruct": {
        "model_type": "llama", "hidden_size": 576, "intermediate_size": 1536, "num_hidden_layers": 30,
        "num_attention_heads": 9, "num_key_value_heads": 3, "vocab_size": 49152, "max_position_embeddings": 8192,
        "tie_word_embeddings": True,
    },
    "Gemma-3-270M": {
        "model_type": "gemma3_text", "hidden_size": 640, "intermediate_size": 2048, "num_hidden_layers": 18,
        "num_attention_heads": 4, "num_key_value_heads": 1, "head_dim": 256, "vocab_size": 262144,
        "max_position_embeddings": 32768,
    },
    "all-MiniLM-L6-v2": {
        "model_type": "bert", "hidden_size": 384, "intermediate_size": 1536, "num_hidden_layers": 6,
        "num_attention_heads": 12, "vocab_size": 30522, "max_position_embeddings": 512,
    },
}  # fmt: skip
_PACKED_SHARE = 0.75  # bytes of a catalogue package for each parameter: four-bit weights, embeddings at eight


@dataclass(frozen=True)
class ModelFacts:
    """A model as far as a plan needs it."""

    source: str
    shapes: ModelShapes
    folder: Path | None = None
    """Where configuration and tokenizer lie; None for a GGUF file or a model that is not fetched"""
    fetch_bytes: int = 0
    note: str = ""

    @property
    def tokenizer(self) -> Path | None:
        """The ``tokenizer.json``, where there is one."""
        path = None if self.folder is None else self.folder / _TOKENIZER
        return path if path is not None and path.is_file() else None


def find_model(source: str, *, revision: str | None = None) -> ModelFacts:
    """The facts about ``source``. Raises `ModelError` when it is nowhere, damaged or of an unknown architecture."""
    path = Path(source).expanduser()
    if path.is_dir():
        return _facts(source, path)
    if path.is_file():
        if path.suffix.lower() != ".gguf":
            raise ModelError(
                "this file is not a model.", place=Place(path), remedy="Give the folder of a model or a .gguf file."
            )
        return ModelFacts(source, ModelShapes.from_config(read_gguf_config(path)), note="sizes read from the GGUF file")
    known = known_model(source)
    if known is not None:
        folder = fetched(known.name)
        if folder is not None:
            return _facts(known.name, folder)
        shapes = ModelShapes.from_config(CATALOGUE_CONFIGS[known.name])
        note = f"{known.name} is not fetched yet; its sizes are those of the catalogue"
        return ModelFacts(known.name, shapes, fetch_bytes=int(_PACKED_SHARE * known.parameters), note=note)
    snapshot = hub_snapshot(source, revision)
    if snapshot is not None:
        return _facts(source, snapshot)
    raise _nowhere(source)


def _facts(source: str, folder: Path) -> ModelFacts:
    path = folder / _CONFIG
    return ModelFacts(source, shapes_of(read_config(path), Place(path)), folder)


def _nowhere(source: str) -> ModelError:
    import difflib

    close = difflib.get_close_matches(source.lower(), {name.lower(): name for name in MODELS}, n=1, cutoff=0.5)
    meant = next((f"Did you mean {name}? " for name in MODELS if close and name.lower() == close[0]), "")
    return ModelError(
        f"there is no model {source!r} here: no such folder or file, not in the catalogue, not in the hub's cache.",
        remedy=f"{meant}Give a folder, a .gguf file or one of {', '.join(MODELS)}; a hub model must be downloaded first"
        " (fit does so; plan stays offline).",
    )
