"""Loading a plain folder or an adapter over its base, fresh and from local files only, for merging and verifying.

Nothing here reaches the network, runs a model's own code or unpickles weights. A quantized base is refused: an adapter
folded into rounded weights would not answer as it was evaluated.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from foretune import files
from foretune.errors import ModelError, Place, UsageError

if TYPE_CHECKING:
    import torch
    from torch import nn

Kind = Literal["causal", "seq2seq", "classifier"]
ADAPTER_CONFIG = "adapter_config.json"
ADAPTER_WEIGHTS = "adapter_model.safetensors"
CONFIG = "config.json"

_ADAPTER_KINDS: dict[str, Kind] = {"CAUSAL_LM": "causal", "SEQ_2_SEQ_LM": "seq2seq", "SEQ_CLS": "classifier"}
_CLASSES = {
    "causal": "AutoModelForCausalLM",
    "seq2seq": "AutoModelForSeq2SeqLM",
    "classifier": "AutoModelForSequenceClassification",
}
_HEADS = ("classifier", "score")
"""Names of the classification heads that adapters train along."""


def read_config(folder: Path, name: str = CONFIG) -> dict[str, Any]:
    """A JSON configuration in ``folder``. Raises `ModelError` when missing or damaged."""
    try:
        value = files.read_json(folder / name)
    except (FileNotFoundError, NotADirectoryError):
        raise ModelError(
            f"there is no {name} here.", place=Place(folder), remedy="Name a Hugging Face model or adapter folder."
        ) from None
    except ValueError as error:
        raise ModelError(f"{name} is not valid JSON ({error}).", place=Place(folder / name)) from error
    if not isinstance(value, dict):
        raise ModelError(f"{name} holds no JSON object.", place=Place(folder / name))
    return value


def is_adapter(folder: Path) -> bool:
    """Whether ``folder`` holds an adapter rather than whole weights."""
    return (folder / ADAPTER_CONFIG).is_file()


def kind_of(folder: Path) -> Kind:
    """What the model in ``folder`` does, from its adapter's task type or its architecture's name."""
    if is_adapter(folder):
        task = str(read_config(folder, ADAPTER_CONFIG).get("task_type"))
        if task not in _ADAPTER_KINDS:
            raise ModelError(f"adapters for {task} are not supported.", place=Place(folder / ADAPTER_CONFIG))
        return _ADAPTER_KINDS[task]
    config = read_config(folder)
    architecture = str((config.get("architectures") or [""])[0])
    if architecture.endswith("ForSequenceClassification"):
        return "classifier"
    return "seq2seq" if config.get("is_encoder_decoder") else "causal"


def load_plain(
    folder: Path, kind: Kind, dtype: torch.dtype, *, labels: Sequence[str] = (), classes: int | None = None
) -> nn.Module:
    """The whole model in ``folder`` in ``dtype``, in evaluation mode. Raises `ModelError`.

    ``labels`` or ``classes`` are given for the base of a classifier's adapter, which brings its own head: a base may
    then have a head of another size.
    """
    import transformers

    if read_config(folder).get("quantization_config"):
        raise ModelError(
            "the base weights are quantized, so an adapter cannot be folded into them exactly.",
            place=Place(folder),
            remedy="Name the folder of the unquantized model with --base.",
        )
    settings: dict[str, Any] = {}
    if kind == "classifier" and labels:
        settings["id2label"] = dict(enumerate(labels))
        settings["label2id"] = {label: number for number, label in enumerate(labels)}
    elif kind == "classifier" and classes is not None:
        settings["num_labels"] = classes
    settings["ignore_mismatched_sizes"] = bool(settings)
    try:
        model: nn.Module = getattr(transformers, _CLASSES[kind]).from_pretrained(
            folder, dtype=dtype, local_files_only=True, trust_remote_code=False, use_safetensors=True, **settings
        )
    except (OSError, ValueError, RuntimeError, KeyError) as error:
        raise ModelError(f"this model cannot be loaded: {_first_line(error)}.", place=Place(folder)) from error
    return model.eval()


def load_adapted(base: Path, adapter: Path, dtype: torch.dtype, *, labels: Sequence[str] = ()) -> nn.Module:
    """The base with the adapter attached, both in ``dtype``, in evaluation mode. Raises `ModelError`."""
    from safetensors import SafetensorError

    from foretune.methods import registry  # noqa: F401 -- makes our methods known to peft
    from foretune.methods.attachment import load_adapter

    if not (adapter / ADAPTER_WEIGHTS).is_file():
        raise ModelError(f"there is no {ADAPTER_WEIGHTS} here.", place=Place(adapter))
    kind = kind_of(adapter)
    classes = None if labels or kind != "classifier" else _classes(adapter)
    model = load_plain(base, kind, dtype, labels=labels, classes=classes)
    try:
        adapted: nn.Module = load_adapter(model, adapter)
    except (OSError, ValueError, RuntimeError, KeyError, TypeError, SafetensorError) as error:
        what = f"the adapter does not fit the base model in {base}: {_first_line(error)}."
        raise ModelError(what, place=Place(adapter)) from error
    return adapted.to(dtype).eval()


def load(folder: Path, dtype: torch.dtype, *, base: Path | None = None, labels: Sequence[str] = ()) -> nn.Module:
    """Whatever ``folder`` holds: whole weights, or an adapter over ``base``."""
    if not is_adapter(folder):
        return load_plain(folder, kind_of(folder), dtype)
    if base is None:
        raise UsageError(f"{folder} is an adapter and needs its base model.", remedy="Name it with --base FOLDER.")
    return load_adapted(base, folder, dtype, labels=labels)


def load_tokenizer(folder: Path) -> Any:
    """The tokenizer in ``folder``, with its chat template where it has one. Raises `ModelError`."""
    import transformers

    try:
        return transformers.AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except (OSError, ValueError, KeyError) as error:
        raise ModelError(f"the tokenizer cannot be loaded: {_first_line(error)}.", place=Place(folder)) from error


def torch_dtype(name: str, folder: Path | None = None) -> torch.dtype:
    """The torch type called ``name``; ``auto`` is the one that the weights in ``folder`` are stored in."""
    import torch

    if name == "auto" and folder is not None:
        config = read_config(folder)
        name = str(config.get("dtype") or config.get("torch_dtype") or "float32")
    known = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
    if name not in known:
        raise UsageError(f"{name!r} is not a number type.", remedy=f"Use auto, {', '.join(known)}.")
    return known[name]


def _classes(adapter: Path) -> int:
    """How many classes the head saved with an adapter has: the rows of its last weight matrix."""
    from safetensors import safe_open

    with safe_open(adapter / ADAPTER_WEIGHTS, framework="pt") as tensors:
        heads = sorted(
            name
            for name in list(tensors.keys())
            if name.endswith("weight") and any(head in name.split(".") for head in _HEADS)
        )
        if not heads:
            raise ModelError("the adapter holds no classification head.", place=Place(adapter))
        return int(tensors.get_slice(heads[-1]).get_shape()[0])


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return (lines[0] if lines else type(error).__name__).rstrip(".")
