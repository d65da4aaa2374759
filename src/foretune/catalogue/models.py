"""The models Foretune can fetch by name: which package carries them, its SHA-256, their license and their kind.

Weights never ship with Foretune; `foretune.models.fetch` downloads the package, checks it and converts it once.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

ModelKind = Literal["causal", "seq2seq", "encoder"]


@dataclass(frozen=True)
class Package:
    """A distribution on the Python package index and the hash of its one file."""

    name: str
    version: str
    sha256: str
    source: bool = False


@dataclass(frozen=True)
class KnownModel:
    """A model that a package carries."""

    name: str
    kind: ModelKind
    packages: tuple[Package, ...]
    parameters: int
    license: str
    about: str
    terms: str = ""


DEFAULT_MODEL = "SmolLM2-135M-Instruct"


@dataclass(frozen=True)
class ModelReference:
    """Which model, and how to load it: everything a worker process needs to load the same one."""

    source: str
    """A folder, a hub id, a GGUF file, or a name of the catalogue."""
    kind: ModelKind = "causal"
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """``auto``: bfloat16 where the processor or accelerator computes in it, else float32."""
    quantize: Literal["none", "4bit"] = "none"
    trust_remote_code: bool = False
    revision: str | None = None
