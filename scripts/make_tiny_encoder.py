"""Pre-train a tiny encoder with a masked-language-model head in minutes, so that the paper's own Fisher runs on one.

    python scripts/make_tiny_encoder.py                       # into ~/.cache/foretune/made/tiny-encoder
    python scripts/make_tiny_encoder.py --minutes 1 --output FOLDER

A BERT of four layers, width 128, with word pieces of its own, on the definitions of FOLDOC (fetched; GFDL), masked as
BERT was (`foretune.regularization.fisher.samples`). Same text, seed and minutes' worth of updates give the same
weights; the number of updates follows from the first ones' speed unless ``--updates`` says it. The weights are not
committed: the study's second encoder is made where it is used. It is no good language model; its Fisher information
is real.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path
from typing import Any

import torch

from foretune.data.corpora import fetch
from foretune.files import atomic_folder, cache_folder, read_lines, write_json
from foretune.regularization.fisher.samples import Sample, Source
from foretune.seeding import derive, generator

VOCABULARY, LAYERS, WIDTH, HEADS, CONTEXT = 4096, 4, 128, 4, 64
ROWS_PER_UPDATE = 64
PEAK_RATE = 1e-3
WARM_UP = 0.1
HELD_OUT = 200
SPECIAL = {
    "pad_token": "[PAD]",
    "unk_token": "[UNK]",
    "cls_token": "[CLS]",
    "sep_token": "[SEP]",
    "mask_token": "[MASK]",
}


def texts() -> list[str]:
    """The definitions, one text each."""
    return [str(row["answer"]) for row in read_lines(fetch("foldoc"))]


def word_pieces(corpus: list[str]) -> Any:
    """A lower-casing WordPiece tokenizer trained on the corpus, with BERT's special tokens."""
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    inner = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    inner.normalizer = normalizers.BertNormalizer(lowercase=True)
    inner.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    inner.decoder = decoders.WordPiece()
    trainer = trainers.WordPieceTrainer(
        vocab_size=VOCABULARY, special_tokens=list(SPECIAL.values()), show_progress=False
    )
    inner.train_from_iterator(corpus, trainer)
    first, last = (inner.token_to_id(token) for token in ("[CLS]", "[SEP]"))
    inner.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B [SEP]",
        special_tokens=[("[CLS]", first), ("[SEP]", last)],
    )  # fmt: skip
    return PreTrainedTokenizerFast(tokenizer_object=inner, model_max_length=CONTEXT, **SPECIAL)


def encoder(tokenizer: Any, seed: int) -> Any:
    """The untrained model."""
    from transformers import BertConfig, BertForMaskedLM

    torch.manual_seed(derive(seed, "init"))
    return BertForMaskedLM(
        BertConfig(
            vocab_size=len(tokenizer), hidden_size=WIDTH, num_hidden_layers=LAYERS, num_attention_heads=HEADS,
            intermediate_size=4 * WIDTH, max_position_embeddings=CONTEXT, pad_token_id=tokenizer.pad_token_id,
            attn_implementation="sdpa",
        )
    )  # fmt: skip


def samples_of(tokenizer: Any, corpus: list[str], seed: int) -> tuple[Source, list[Sample]]:
    """The corpus in pieces, with the masks of one epoch."""
    special = frozenset(int(i) for i in tokenizer.all_special_ids)
    source = Source("encoder", "pre-training", tokenizer, CONTEXT, seed, int(tokenizer.pad_token_id), special=special)
    return source, source.of_texts(corpus)


@torch.no_grad()
def held_out_loss(model: Any, source: Source, samples: list[Sample]) -> float:
    """Mean masked-token loss in nats."""
    model.eval()
    losses = [batch.loss(model) for batch in source.batches(samples, 4096)]
    model.train()
    return float(torch.cat(losses).mean())


def train(model: Any, tokenizer: Any, corpus: list[str], arguments: argparse.Namespace) -> dict[str, Any]:
    """Masked-language-model training; facts of the run."""
    held, kept = corpus[:HELD_OUT], corpus[HELD_OUT:]
    check, held_samples = samples_of(tokenizer, held, seed=1)
    optimizer = torch.optim.AdamW(model.parameters(), lr=PEAK_RATE, weight_decay=0.01)
    before = held_out_loss(model, check, held_samples)
    updates, done, epoch, tokens = arguments.updates, 0, 0, 0
    started = time.perf_counter()
    while not updates or done < updates:
        source, samples = samples_of(tokenizer, kept, seed=derive(arguments.seed, "mask", epoch))
        order = generator(arguments.seed, "data", epoch).permutation(len(samples))
        for start in range(0, len(order) - ROWS_PER_UPDATE + 1, ROWS_PER_UPDATE):
            if updates and done >= updates:
                break
            chosen = [samples[i] for i in order[start : start + ROWS_PER_UPDATE]]
            torch.manual_seed(derive(arguments.seed, "dropout", done))
            (batch,) = source.batches(chosen, ROWS_PER_UPDATE * CONTEXT)
            total = updates or 1000
            share = done / total
            rate = share / WARM_UP if share < WARM_UP else (1 - share) / (1 - WARM_UP)
            for group in optimizer.param_groups:
                group["lr"] = PEAK_RATE * max(rate, 0.01)
            batch.loss(model).mean().backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()
            done += 1
            tokens += sum(len(sample.ids) for sample in chosen)
            if not updates and done == 20:
                updates = max(40, int(arguments.minutes * 60 / (time.perf_counter() - started) * 20))
                print(f"{updates} updates in about {arguments.minutes:g} minutes", file=sys.stderr)
            if done % 200 == 0:
                print(f"update {done}: held-out loss {held_out_loss(model, check, held_samples):.3f}", file=sys.stderr)
        epoch += 1
    after = held_out_loss(model, check, held_samples)
    return {"updates": done, "tokens": tokens, "seconds": round(time.perf_counter() - started), "seed": arguments.seed,
            "held_out_loss_before": round(before, 3), "held_out_loss_after": round(after, 3)}  # fmt: skip


def main() -> int:
    """Make the folder."""
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("--output", type=Path, default=cache_folder() / "made" / "tiny-encoder")
    parser.add_argument("--minutes", type=float, default=4.0)
    parser.add_argument("--updates", type=int, default=0, help="instead of minutes: repeatable on any machine")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    corpus = texts()
    tokenizer = word_pieces(corpus)
    model = encoder(tokenizer, arguments.seed)
    facts = train(model, tokenizer, corpus, arguments)
    with atomic_folder(arguments.output) as aside:
        model.eval().save_pretrained(aside)
        tokenizer.save_pretrained(aside)
        write_json(aside / "source.json", {"text": "foldoc", "license of the text": "GFDL-1.1-or-later", **facts})
    print(json.dumps({"folder": str(arguments.output), **facts}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
