"""Load a base model and its tokenizer: by catalogue name, from a folder, a GGUF file or a hub id.

Weights are read from safetensors only, so nothing is unpickled; remote code runs only when the reference says so.
What is wrong with a model is found before or while it is loaded and said with its place and a remedy: a weight that
the file lacks is an error here, where transformers would draw it at random and go on. Only the head of a
classifier may be new; it is drawn from its own seeded stream, so two workers start from the same head.

Where a tokenizer has no padding token, its end (or unknown) token stands in; no embedding is added. Beginning and
end tokens of rows are the business of `foretune.data.template`.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from foretune.catalogue.models import DEFAULT_MODEL, MODELS, ModelKind, ModelReference, known_model
from foretune.errors import ModelError, Place, UsageError
from foretune.files import MANIFEST, fingerprint, read_json, sha256_file
from foretune.models import complaints
from foretune.models.fetch import convert_gguf, fetch, hub_snapshot, models_folder
from foretune.models.languages import set_languages
from foretune.packages import Progress
from foretune.seeding import derive

if TYPE_CHECKING:
    import torch

_HEAD_NAMES = ("classifier", "score", "pooler", "pre_classifier", "classification_head", "head.dense", "head.norm")
"""Modules that a sequence classifier may have and its base may lack; EuroBERT's has a ``dense`` beside its base."""
NEW_HEAD = "foretune_new_head"
"""The attribute of a loaded classifier that names the modules which its base lacks: drawn anew, so to be trained."""
_CPU_BF16_FLAGS = ("avx512_bf16", "amx_bf16", "bf16")
"""Processor flags of native bfloat16 arithmetic (x86, and ARM's bf16); without one it is emulated and slower."""


@dataclass(frozen=True)
class LoadedModel:
    """A base model ready for trials, in evaluation mode and without gradients requested anew."""

    model: Any
    """A transformers ``PreTrainedModel``."""
    tokenizer: Any
    """A transformers tokenizer with a padding token."""
    kind: ModelKind
    folder_or_id: str
    """What transformers loaded: a folder or a hub id."""
    weights_hash: str
    """SHA-256 over the hashes of the weight files: two models with the same hash have the same weights."""


def locate(source: str, *, progress: Progress | None = None) -> Path | str:
    """Where a model is: a folder (fetched, converted, or the user's own) or, failing those, the hub id itself.

    Tried in order: an existing folder, a GGUF file (converted once), a catalogue name (fetched when missing), a hub
    id of the form ``owner/name``. Raises `ModelError` when ``source`` is none of them.
    """
    path = Path(source).expanduser()
    if path.is_dir():
        return path
    if path.is_file() or source.endswith(".gguf"):
        return convert_gguf(path, progress=progress)
    if known_model(source) is not None:
        return fetch(source, progress=progress)
    parts = source.split("/")
    if len(parts) == 2 and all(parts) and not source.startswith((".", "~")):
        return source
    raise ModelError(
        f"there is no model {source!r}: no such folder or file, and the catalogue has {', '.join(MODELS)}.",
        remedy=f"Give a folder with config.json, a .gguf file, a hub id (owner/name) or a catalogue name such as "
        f"{DEFAULT_MODEL}.",
    )


HUB_FILES = ("*.json", "*.safetensors", "*.model", "*.txt", "*.jinja", "*.py")
"""What is downloaded of a hub model: no pickled weights, no other formats. Python files are only run when told to."""


def bring(source: str, *, revision: str | None = None, progress: Progress | None = None) -> Path | str:
    """Like `locate`, and a hub model is downloaded when it is not in the local cache; raises `ModelError`.

    Called before a time budget begins, so that a download is not charged to it.
    """
    where = locate(source, progress=progress)
    if isinstance(where, Path) or hub_snapshot(where, revision) is not None:
        return where
    from huggingface_hub import snapshot_download

    if progress is not None:
        progress(f"downloading {where}")
    with complaints.explained(where, ModelReference(where, revision=revision)):
        snapshot_download(where, revision=revision, allow_patterns=list(HUB_FILES))
    return where


def load(
    reference: ModelReference,
    *,
    labels: Sequence[str] = (),
    regression: bool = False,
    masked: bool = False,
    device: str | torch.device = "cpu",
    seed: int = 0,
    progress: Progress | None = None,
) -> LoadedModel:
    """The model of ``reference`` on ``device``, with its tokenizer.

    With ``labels`` or ``regression`` it is a sequence classifier (any kind) whose head, where the base has none of
    that size, is drawn from the stream ``("head",)`` of ``seed``; otherwise a causal language model, an
    encoder–decoder or an encoder, bare or (``masked``) with its masked-language-model head, as ``reference.kind`` says.
    Raises `ModelError`; `UsageError` for labels and regression at once.
    """
    if labels and regression:
        raise UsageError("a model has labels or predicts a number, not both.")
    where = locate(reference.source, progress=progress)
    if isinstance(where, Path):
        check_folder(where)
    if not (labels or regression):
        complaints.check_kind(read_config(where, reference.revision), reference.kind, where)
    import torch

    target = torch.device(device)
    with complaints.explained(where, reference):
        tokenizer = _load_tokenizer(where, reference)
        model, report = _load_model(where, reference, tuple(labels), regression, masked, target, seed)
    if reference.languages is not None and reference.kind == "seq2seq":
        set_languages(model, tokenizer, *reference.languages)
    new_head = complaints.check_report(report, where, new_head=_HEAD_NAMES if labels or regression else ())
    if new_head:
        setattr(model, NEW_HEAD, new_head)
    _give_padding(tokenizer, model)
    model.eval()
    return LoadedModel(model, tokenizer, reference.kind, str(where), weights_hash(where, reference.revision))


def check_folder(where: Path) -> None:
    """Raise `ModelError` when a model folder lacks a part or has a damaged one; torch is not needed."""
    try:
        complaints.check_folder(where)
    except ModelError as error:
        if where.parent != models_folder():
            raise
        remedy = f"Delete {where}; the next run fetches or converts it again."
        raise ModelError(error.what, place=error.place, remedy=remedy) from error


def computing_dtype(wanted: str, device: torch.device) -> torch.dtype:
    """The dtype that ``auto`` means on a device: bfloat16 where it is native, else float32."""
    import torch

    if wanted != "auto":
        dtype: torch.dtype = getattr(torch, wanted)
        return dtype
    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float32
    return torch.bfloat16 if cpu_has_bfloat16() else torch.float32


def cpu_has_bfloat16(cpuinfo: Path = Path("/proc/cpuinfo")) -> bool:
    """True when the processor computes in bfloat16 natively; False where the system does not say (not Linux)."""
    try:
        text = cpuinfo.read_text(encoding="ascii", errors="replace")
    except OSError:
        return False
    for line in text.splitlines():
        key, _, value = line.partition(":")
        if key.strip() in ("flags", "Features"):
            return any(flag in value.split() for flag in _CPU_BF16_FLAGS)
    return False


def _load_tokenizer(where: Path | str, reference: ModelReference) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(
        str(where), trust_remote_code=reference.trust_remote_code, revision=reference.revision
    )


def _load_model(
    where: Path | str,
    reference: ModelReference,
    labels: tuple[str, ...],
    regression: bool,
    masked: bool,
    device: torch.device,
    seed: int,
) -> tuple[Any, dict[str, Any]]:
    import torch
    import transformers

    settings: dict[str, Any] = {
        "dtype": computing_dtype(reference.dtype, device),
        "use_safetensors": True,
        "trust_remote_code": reference.trust_remote_code,
        "revision": reference.revision,
        "output_loading_info": True,
        "ignore_mismatched_sizes": True,  # `complaints.check_report` refuses them, with the tensor's name
    }
    if reference.quantize == "4bit":
        settings |= {
            "quantization_config": _four_bit(settings["dtype"], bool(labels or regression)),
            "device_map": {"": device},
        }
    if labels or regression:
        settings |= _head_settings(labels)
        auto = transformers.AutoModelForSequenceClassification
    else:
        auto = {
            "causal": transformers.AutoModelForCausalLM,
            "seq2seq": transformers.AutoModelForSeq2SeqLM,
            "encoder": transformers.AutoModelForMaskedLM if masked else transformers.AutoModel,
        }[reference.kind]
    devices = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices), complaints.quiet(), complaints.safetensors_only():
        torch.manual_seed(derive(seed, "head"))
        model, report = auto.from_pretrained(str(where), **settings)
    if reference.quantize == "4bit":
        _keep_blocks(model)
        return model, report
    return model.to(device), report


def _head_settings(labels: tuple[str, ...]) -> dict[str, Any]:
    if not labels:
        return {"num_labels": 1, "problem_type": "regression"}
    return {
        "num_labels": len(labels),
        "id2label": dict(enumerate(labels)),
        "label2id": {label: number for number, label in enumerate(labels)},
        "problem_type": "single_label_classification",
    }


def _four_bit(dtype: torch.dtype, new_head: bool) -> Any:
    """NF4 with double quantisation; a classifier's head stays dense, since it is trained."""
    import importlib.util

    if importlib.util.find_spec("bitsandbytes") is None:
        raise ModelError(
            "loading in 4 bits needs bitsandbytes, which is not installed.",
            remedy="Run `pip install foretune[quantize]`, or load without quantisation.",
        )
    from transformers import BitsAndBytesConfig

    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=dtype,
        llm_int8_skip_modules=[rf"(?:.*\.)?{re.escape(name)}" for name in _HEAD_NAMES] if new_head else None,
    )


def _keep_blocks(model: Any) -> None:
    """Forbid bitsandbytes to repack weights in place.

    On a processor with bfloat16 its `Linear4bit` (0.50) does so at the first forward pass without gradients, rounds
    the scales on the way and then has no gradient: a base that several trials share would change, and training stop.
    """
    for module in model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False


def _give_padding(tokenizer: Any, model: Any) -> None:
    """A padding token from those that exist, told to the model too (its classifier looks for it).

    A padding token beyond the model's embeddings (added to a tokenizer without the model) counts as none.
    """
    rows = model.get_input_embeddings().num_embeddings
    if tokenizer.pad_token is None or tokenizer.pad_token_id >= rows:
        stand_in = tokenizer.eos_token or tokenizer.unk_token
        if stand_in is None or tokenizer.convert_tokens_to_ids(stand_in) >= rows:
            raise ModelError(
                f"the tokenizer has no padding, end or unknown token among the {rows} the model knows.",
                place=Place(str(getattr(tokenizer, "name_or_path", "tokenizer"))),
                remedy='Name one of its tokens as "eos_token" in tokenizer_config.json.',
            )
        tokenizer.pad_token = stand_in
    config = model.config.get_text_config()
    known = getattr(config, "pad_token_id", None)
    if known is None or not 0 <= known < rows:
        config.pad_token_id = tokenizer.pad_token_id
    generation = getattr(model, "generation_config", None)
    if generation is not None and generation.pad_token_id is None:
        generation.pad_token_id = tokenizer.pad_token_id


def weights_hash(where: Path | str, revision: str | None = None) -> str:
    """A hash of the weight files of a folder, or of a hub model in the local cache; 32 hexadecimal digits."""
    folder = where if isinstance(where, Path) else _snapshot(where, revision)
    recorded: dict[str, str] = {}
    if (folder / MANIFEST).is_file():
        recorded = read_json(folder / MANIFEST)["files"]
    files = sorted(folder.glob("*.safetensors"))
    return fingerprint([recorded.get(file.name) or _hash_of(file) for file in files], length=32)


def _hash_of(file: Path) -> str:
    state = file.stat()
    return _hashed(file, state.st_size, state.st_mtime_ns)


@lru_cache(maxsize=256)
def _hashed(file: Path, size: int, changed_ns: int) -> str:
    """Once a process, for a file that stays as it is: a base of gigabytes takes seconds, and several ask for it."""
    return sha256_file(file)


def _snapshot(hub_id: str, revision: str | None) -> Path:
    from transformers.utils import cached_file

    found = cached_file(hub_id, "config.json", revision=revision, local_files_only=True)
    return Path(str(found)).parent


def read_config(where: Path | str, revision: str | None = None) -> dict[str, Any]:
    """The ``config.json`` of a folder or of a hub id; raises `ModelError` when it is missing or damaged."""
    if isinstance(where, Path):
        return complaints.check_config(where)
    from transformers.utils import cached_file

    with complaints.explained(where, ModelReference(where)):
        found = cached_file(where, "config.json", revision=revision)
    config: dict[str, Any] = json.loads(Path(os.fspath(found)).read_text(encoding="utf-8"))
    return config
