"""Tiny encoder–decoders that a study pre-trains first: parents small enough for two cores, in two sizes.

BART's configuration with a shared vocabulary of 8k byte-level pieces. Two objectives, mixed row by row: denoising
(BART's text infilling, Lewis et al. 2020: spans of words replaced by one mask, span lengths Poisson with mean 3) and
many-to-many translation, both asked for by the target's token before the text. They see English and the languages of
``interface-parents`` alone: none is a target of the evaluation pairs, and nothing that these hold out is in it. The
vocabulary, which knows no translations, is made from the training texts of all languages, so that no target of the
evaluation falls back to bytes.

A model's source ``parent:NAME`` in a grid stands for one of `PARENTS`. It is trained once into the model cache, under
a name that holds its recipe; a stop or a kill goes on from the last checkpoint, bit for bit as if nothing had been.

What they are for: contrasts between parents at equal everything else. They are no useful translators.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from foretune.catalogue.datasets import INTERFACE_LANGUAGES, PARENT_LANGUAGES
from foretune.data import corpora
from foretune.data.example import Example, conversation
from foretune.data.translation import target_token
from foretune.errors import UsageError
from foretune.files import MANIFEST, FolderLock, atomic_folder, cache_folder, fingerprint, read_lines, write_json
from foretune.packages import Progress
from foretune.seeding import generator

PREFIX = "parent:"
DATA = "interface-parents"
MASK = "<mask>"
MASKED_SHARE = 0.3
MEAN_SPAN_WORDS = 3.0
DENOISED_SHARE = 0.5
"""Of the rows; the rest translate."""
CHECKPOINT_STEPS = 100
"""A kill costs at most so many updates; a checkpoint of the larger parent takes a quarter of a second."""
TOKENS = ("<s>", "<pad>", "</s>", "<unk>", MASK)


@dataclass(frozen=True)
class Recipe:
    """Everything that a parent is made from."""

    width: int
    layers: int
    """Of the encoder, and as many of the decoder"""
    heads: int
    ffn: int
    rows: int = 160_000
    """Training rows, each seen once"""
    rows_per_update: int = 64
    learning_rate: float = 1e-3
    vocabulary: int = 8192
    positions: int = 256
    seed: int = 0

    @property
    def steps(self) -> int:
        """Updates."""
        return math.ceil(self.rows / self.rows_per_update)


PARENTS: dict[str, Recipe] = {
    "tiny-3m": Recipe(width=160, layers=3, heads=4, ffn=576),
    "tiny-9m": Recipe(width=256, layers=4, heads=4, ffn=1024, learning_rate=7e-4),
}
"""3.4 and 9.5 million parameters; a test holds the counts."""


def is_parent(source: str) -> bool:
    """Whether a model's source names a parent."""
    return source.startswith(PREFIX)


def recipe_of(source: str) -> Recipe:
    """The recipe of ``parent:NAME``. Raises `UsageError`."""
    name = source.removeprefix(PREFIX)
    if name not in PARENTS:
        raise UsageError(f"there is no parent {name!r}.", remedy=f"Known: {', '.join(PARENTS)}.")
    return PARENTS[name]


def folder_of(source: str) -> Path:
    """Where the trained parent is, or will be."""
    name = source.removeprefix(PREFIX)
    return cache_folder() / "models" / f"parent-{name}-{fingerprint(asdict(recipe_of(source)))[:8]}"


def ready(source: str) -> bool:
    """Whether the parent is trained."""
    folder = folder_of(source)
    return (folder / MANIFEST).is_file() and (folder / "config.json").is_file()


def make_parent(source: str, *, progress: Progress, stopped: Callable[[], bool] = lambda: False) -> Path | None:
    """The folder of a trained parent, trained first where it is not there; None when told to stop before its end."""
    if ready(source):
        return folder_of(source)
    recipe, folder = recipe_of(source), folder_of(source)
    work = folder.with_name(f".{folder.name}.training")
    work.mkdir(parents=True, exist_ok=True)
    with FolderLock(work):
        return folder if ready(source) else _trained(source, recipe, work, folder, progress, stopped)


def _trained(
    source: str, recipe: Recipe, work: Path, folder: Path, progress: Progress, stopped: Callable[[], bool]
) -> Path | None:
    from foretune.study.parent_training import ParentTraining

    texts = [row["translation"] for row in read_lines(corpora.fetch(DATA, progress=progress))]
    if not (work / "tokenizer" / "tokenizer.json").is_file():
        progress(f"{source}: making the vocabulary")
        vocabulary_of(recipe, [*_flat(texts), *_target_texts(progress)], work / "tokenizer")
    progress(f"{source}: {recipe.rows:,} rows in {recipe.steps:,} updates")
    training = ParentTraining(recipe, work, training_rows(recipe, texts))
    if not training.run(progress, stopped, source):
        return None
    with atomic_folder(folder) as aside:
        training.save(aside)
        write_json(aside / "recipe.json", {"source": source, **asdict(recipe)})
    training.clean()
    return folder


def _flat(texts: Sequence[dict[str, str]]) -> list[str]:
    return [text for segment in texts for text in segment.values()]


def _target_texts(progress: Progress) -> list[str]:
    """Training texts of the evaluation's targets, for the vocabulary alone."""
    found = []
    for code in INTERFACE_LANGUAGES:
        rows = read_lines(corpora.fetch(f"interface-en-{code}", progress=progress))
        found += [row["target"] for row in rows if row["split"] == "train"]
    return found


def vocabulary_of(recipe: Recipe, texts: Sequence[str], folder: Path) -> None:
    """Train and save the tokenizer: byte-level pieces, an end of text behind everything, a token a language."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    languages = [target_token(code) for code in ("en", *PARENT_LANGUAGES, *INTERFACE_LANGUAGES)]
    raw = Tokenizer(models.BPE(unk_token="<unk>"))
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = decoders.ByteLevel()
    raw.train_from_iterator(texts, trainers.BpeTrainer(
        vocab_size=recipe.vocabulary, special_tokens=[*TOKENS, *languages], show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    ))  # fmt: skip
    raw.post_processor = processors.TemplateProcessing(
        single="$A </s>", pair="$A </s> $B </s>", special_tokens=[("</s>", TOKENS.index("</s>"))]
    )
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=raw, bos_token="<s>", eos_token="</s>", unk_token="<unk>", pad_token="<pad>", mask_token=MASK,
        extra_special_tokens=languages, model_max_length=recipe.positions,
    )  # fmt: skip
    with atomic_folder(folder) as aside:
        tokenizer.save_pretrained(aside)


def training_rows(recipe: Recipe, texts: Sequence[dict[str, str]]) -> list[Example]:
    """The rows of both objectives, drawn by the recipe's seed; prompts hold the target's token."""
    random = generator(recipe.seed, "parents", "rows")
    rows: list[Example] = []
    while len(rows) < recipe.rows:
        for number in random.permutation(len(texts))[: recipe.rows - len(rows)]:
            segment = texts[int(number)]
            source, target = (str(code) for code in random.choice(sorted(segment), size=2, replace=False))
            if random.random() < DENOISED_SHARE:
                prompt, answer = infilled(segment[target], random), segment[target]
            else:
                prompt, answer = segment[source], segment[target]
            rows.append(conversation(f"{target_token(target)} {prompt}", answer))
    return rows


def infilled(text: str, random: np.random.Generator) -> str:
    """``text`` with spans of words replaced by one mask each, until about `MASKED_SHARE` of the words are gone."""
    words: list[str | None] = list(text.split())
    budget = max(1, round(MASKED_SHARE * len(words)))
    while budget > 0:
        length = min(budget, max(1, int(random.poisson(MEAN_SPAN_WORDS))))
        start = int(random.integers(0, max(1, len(words) - length + 1)))
        words[start : start + length] = [None] * min(length, len(words) - start)
        budget -= length
    kept: list[str] = []
    for word in words:
        if word is not None:
            kept.append(word)
        elif not kept or kept[-1] != MASK:
            kept.append(MASK)
    return " ".join(kept)


def config_of(recipe: Recipe, pad: int, begin: int, end: int, size: int) -> dict[str, Any]:
    """The settings of BART's configuration."""
    return {
        "vocab_size": size, "d_model": recipe.width, "encoder_layers": recipe.layers, "decoder_layers": recipe.layers,
        "encoder_attention_heads": recipe.heads, "decoder_attention_heads": recipe.heads,
        "encoder_ffn_dim": recipe.ffn, "decoder_ffn_dim": recipe.ffn, "max_position_embeddings": recipe.positions,
        "dropout": 0.0, "attention_dropout": 0.0, "activation_dropout": 0.0, "scale_embedding": True,
        "pad_token_id": pad, "bos_token_id": begin, "eos_token_id": end, "decoder_start_token_id": end,
        "forced_eos_token_id": None, "tie_word_embeddings": True,
    }  # fmt: skip
