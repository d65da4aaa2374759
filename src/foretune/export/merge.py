"""The merged model: the adapter folded into the base in float32, cast once, saved as a plain Hugging Face folder.

Folding in float32 and rounding once at the end keeps the merged weights within half a unit in the last place of the
exact sum; folding in bfloat16 rounds the base, the update and their sum. Tied embeddings stay tied unless the adapter
trained one of the two apart, in which case the configuration says so.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from foretune import files
from foretune.errors import Place, UsageError
from foretune.export.adapter import CARD, check_weights
from foretune.export.loading import ADAPTER_CONFIG, load_adapted, load_tokenizer, read_config, torch_dtype

if TYPE_CHECKING:
    from torch import nn


def merge(base: Path, adapter: Path, *, labels: Sequence[str] = ()) -> nn.Module:
    """The base in ``base`` with the adapter folded in, float32, without a trace of peft.

    Raises `UsageError` for methods that are not a change of weights (prompts, prefixes), `ModelError` otherwise.
    """
    import torch

    adapted: Any = load_adapted(base, adapter, torch.float32, labels=labels)
    method = str(read_config(adapter, ADAPTER_CONFIG).get("peft_type", "this method")).lower()
    remedy = "Serve the adapter folder with its base model instead."
    if adapted.active_peft_config.is_prompt_learning or not hasattr(adapted.base_model, "merge_and_unload"):
        raise UsageError(f"{method} cannot be folded into the weights.", place=Place(adapter), remedy=remedy)
    try:
        merged: nn.Module = adapted.merge_and_unload(safe_merge=True)
    except (NotImplementedError, ValueError, AttributeError, TypeError, RuntimeError) as error:
        if isinstance(error, torch.OutOfMemoryError) or "can't allocate" in str(error):
            raise
        what = f"{method} cannot be folded into these weights: {error}"
        raise UsageError(what, place=Place(adapter), remedy=remedy) from error
    return merged.eval()


def write_model(model: nn.Module, tokenizer: Any, destination: Path, dtype: str, *, card: str | None = None) -> Path:
    """Cast ``model`` once to ``dtype`` and write it with its tokenizer, whole or not at all; returns the folder."""
    target = torch_dtype(dtype)
    saved: Any = model.to(target)
    config = saved.config
    config.dtype = target
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    config.tie_word_embeddings = bool(config.tie_word_embeddings) and _still_tied(saved)
    with files.atomic_folder(destination) as aside:
        saved.save_pretrained(aside)
        tokenizer.save_pretrained(aside)
        check_weights(aside)
        if card is not None:
            files.write_text(aside / CARD, card)
    return destination


def _still_tied(model: Any) -> bool:
    """Whether input and output embeddings are one tensor (or there is no output embedding to tie)."""
    head, embedding = model.get_output_embeddings(), model.get_input_embeddings()
    return head is None or head.weight is embedding.weight


def export_merged(
    base: Path,
    adapter: Path,
    destination: Path,
    dtype: str = "auto",
    *,
    labels: Sequence[str] = (),
    card: str | None = None,
) -> Path:
    """Fold ``adapter`` into ``base`` and write the result to ``destination``; ``auto`` keeps the base's number type.

    The tokenizer (with chat template) is the adapter's where it has one, else the base's. Raises `UsageError`,
    `ModelError`, `OutputError`. Does not check the answers: `foretune.export.verify` does.
    """
    target = str(torch_dtype(dtype, base)).removeprefix("torch.")
    own = (adapter / "tokenizer_config.json").is_file()
    tokenizer = load_tokenizer(adapter if own else base)
    return write_model(merge(base, adapter, labels=labels), tokenizer, destination, target, card=card)
