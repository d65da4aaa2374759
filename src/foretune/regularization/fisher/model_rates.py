"""A base model's rates file: load, find the places, take the Fisher information, rank.

The variant follows from the model: its pre-training loss where it has the head for it, else labels drawn from a
classifier whose head comes from a seed; the file says which.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from foretune.catalogue.models import ModelKind, ModelReference, known_model
from foretune.files import cache_folder, fingerprint
from foretune.models.kinds import infer_kind
from foretune.models.load import LoadedModel, load, locate, read_config
from foretune.packages import Progress as Say
from foretune.regularization.fisher.samples import Source, Variant
from foretune.regularization.fisher.scores import Progress, kept_tensor_means, place_scores
from foretune.regularization.places.find import find_sites
from foretune.regularization.places.rates import PlaceRate, RatesFile

LIMIT_TOKENS = 512
"""Tokens of a batch: the whole vocabulary's scores of each are held."""
CONTEXT_TOKENS = 128
SCORE_DIGITS = 5
CLASSES = ("0", "1")
"""Of the classifier that stands in for a missing masked-language-model head."""
MASKED = "ForMaskedLM"
LOSS_NAMES = {
    ("causal", "pre-training"): "pre-training: next tokens",
    ("encoder", "pre-training"): "pre-training: masked tokens",
    ("seq2seq", "pre-training"): "pre-training: the rest of a text",
}


def load_for_fisher(
    reference: ModelReference, *, variant: Variant | None = None, say: Say | None = None
) -> tuple[LoadedModel, Variant]:
    """The model with the head that the Fisher information needs, in float32, and the variant that follows from it."""
    where = locate(reference.source, progress=say)
    config = read_config(where, reference.revision)
    kind = infer_kind(config)
    reference = ModelReference(
        reference.source, kind, "float32" if reference.quantize == "none" else reference.dtype, reference.quantize,
        reference.trust_remote_code, reference.revision,
    )  # fmt: skip
    if kind != "encoder":
        return load(reference, progress=say), variant or "pre-training"
    masked = any(str(name).endswith(MASKED) for name in config.get("architectures") or ())
    if masked and variant in (None, "pre-training"):
        return load(reference, masked=True, progress=say), "pre-training"
    return load(reference, labels=CLASSES, progress=say), "label-sampled"


def source_of(loaded: LoadedModel, variant: Variant, *, context_tokens: int = CONTEXT_TOKENS, seed: int = 0) -> Source:
    """How samples are made for a loaded model."""
    start = getattr(loaded.model.config, "decoder_start_token_id", None)
    pad = int(loaded.tokenizer.pad_token_id or 0)
    return Source(
        loaded.kind,
        variant,
        loaded.tokenizer,
        context_tokens=min(context_tokens, _positions(loaded.model)),
        seed=seed,
        pad_id=pad,
        decoder_start_id=pad if start is None else int(start),
        special=frozenset(int(i) for i in loaded.tokenizer.all_special_ids),
    )


def _positions(model: Any) -> int:
    """The longest row the model's positions allow."""
    most = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    return int(most) if isinstance(most, int) and most > 0 else CONTEXT_TOKENS * 1024


def model_rates(
    loaded: LoadedModel,
    variant: Variant,
    texts: Sequence[str],
    *,
    text_name: str,
    high: float = 0.1,
    low: float = 0.0,
    schedule: str = "linear",
    aggregation: str = "mean_of_means",
    context_tokens: int = CONTEXT_TOKENS,
    most_samples: int | None = None,
    limit_tokens: int = LIMIT_TOKENS,
    progress: Progress | None = None,
) -> RatesFile:
    """The rates file of a loaded model on ``texts``. Raises `ModelError` where its places are not known."""
    sites = find_sites(loaded.model)
    source = source_of(loaded, variant, context_tokens=context_tokens)
    samples = source.of_texts(texts)[:most_samples]
    found = kept_tensor_means(
        loaded.model, source, samples, weights=loaded.weights_hash, limit_tokens=limit_tokens, progress=progress
    )
    places = tuple(
        PlaceRate(site.name, site.kind, site.layer, site.stack, site.how, site.tensors, _rounded(scores), 0.0)
        for site, scores in zip(sites, place_scores(loaded.model, sites, found), strict=True)
    )
    bare = RatesFile(
        model=model_name(loaded.folder_or_id),
        weights=loaded.weights_hash,
        variant=variant_name(loaded.kind, variant),
        text=f"{text_name} ({fingerprint(list(texts))})",
        samples=found.samples,
        tokens=found.tokens,
        aggregation=aggregation,
        schedule=schedule,
        high=high,
        low=low,
        places=places,
    )
    return bare.with_rates(schedule=schedule, high=high, low=low, aggregation=aggregation)


def _rounded(scores: Mapping[str, float]) -> dict[str, float]:
    """Scores to the digits that do not depend on how samples were batched."""
    return {name: float(f"{score:.{SCORE_DIGITS}g}") for name, score in scores.items()}


def model_name(folder_or_id: str) -> str:
    """The catalogue's name of a fetched model, else the last part of its folder or hub id."""
    folder = Path(folder_or_id)
    known = known_model(folder.name)
    return known.name if known is not None and folder.parent == cache_folder() / "models" else folder.name


def variant_name(kind: ModelKind, variant: Variant) -> str:
    """The variant in words, as the rates file records it."""
    if kind == "encoder" and variant == "label-sampled":
        return "label-sampled: classes drawn from a fresh head"
    return LOSS_NAMES.get((kind, variant), f"{variant}: labels of {kind} rows")
