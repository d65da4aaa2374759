"""SelectIT: the model rates every row from 1 to K under several prompts; agreement counts, and so does certainty.

(Liu et al. 2024, 2402.16705.) For a rating prompt RP and a row S, with P_k the probability of the token "k", normalised
over the K tokens, and k* = argmax P:

    token level      S_token = k* · 1/(K−1) Σ_{k≠k*} |P_k* − P_k|       certainty weights the rating
    sentence level   S_sent  = mean_RP(S_token) / (1 + α · sd_RP(S_token))   disagreement between prompts is discounted
    model level      Σ_m θ_m / Σθ · S_sent(m)                           several models, weighted by their parameters

Here the model level is one model unless ``select-it.second`` names another. The prompts below say in our own words what
the paper's do. Highest first. A model that cannot rate gives noise.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from foretune.data.batches import lay_out
from foretune.data.encode import EncodedRow, encode_rows
from foretune.data.example import Example, conversation
from foretune.errors import ModelError, UsageError
from foretune.selection.base import BlockMap, Request, Selection, Workbench
from foretune.selection.declared import Declared, Floats
from foretune.selection.kept_blocks import in_blocks
from foretune.selection.likelihoods import row_key
from foretune.training.forward import on_device

RATINGS = ("1", "2", "3", "4", "5")
PROMPTS = (
    "Rate how well the answer fits the instruction on a scale from 1 (not at all) to 5 (fully). Say only the number.",
    "How useful is this pair of instruction and answer for teaching an assistant? 1 is useless, 5 is excellent. "
    "Say only the number.",
    "Judge the quality of the answer: 1 very poor, 2 poor, 3 fair, 4 good, 5 very good. Say only the number.",
    "Is the answer correct, complete and clear? Give a number from 1 to 5, where 5 is the best. Say only the number.",
    "As a careful reviewer, give this instruction and its answer a mark between 1 and 5; higher is better. "
    "Say only the number.",
)


def rating_row(prompt: str, row: Example) -> Example:
    """The question that asks for a rating of ``row``; its answer is the lowest rating, which only marks the place."""
    return conversation(f"{prompt}\n\nInstruction:\n{row.prompt}\n\nAnswer:\n{row.answer}\n\nRating:", RATINGS[0])


def token_level(probabilities: Floats) -> Floats:
    """(rows,) certainty-weighted ratings from (rows, K) normalised probabilities of the K ratings."""
    ratings = probabilities.shape[1]
    best = probabilities.argmax(axis=1)
    top = probabilities[np.arange(len(best)), best]
    certainty = (top[:, None] - probabilities).sum(axis=1) / (ratings - 1)
    weighted: Floats = (best + 1) * certainty
    return weighted


def sentence_level(of_prompts: Floats, alpha: float) -> Floats:
    """(rows,) from (prompts, rows) token-level ratings; the standard deviation is over prompts."""
    scores: Floats = of_prompts.mean(axis=0) / (1 + alpha * of_prompts.std(axis=0))
    return scores


class SelectIt(Declared):
    """The model's own ratings."""

    name = "select-it"

    def select(self, request: Request, *, blocks: BlockMap) -> Selection:
        """Highest rating first."""
        settings = request.settings(self.name)
        benches = [request.model]
        if settings["second"] != "none":
            benches.append(request.model.with_model(settings["second"]))
        if any(bench.kind != "causal" for bench in benches):
            raise UsageError(
                "select-it asks a model that goes on writing for its ratings.", remedy="Choose ifd or rds-plus."
            )
        weights = np.asarray([sum(p.numel() for p in bench.network.model.parameters()) for bench in benches], float)
        scores = np.stack([self._of_model(request, bench, float(settings["alpha"])) for bench in benches])
        return self.by_score(request, (weights[:, None] * scores).sum(axis=0) / weights.sum())

    def _of_model(self, request: Request, bench: Workbench, alpha: float) -> Floats:
        tokens = rating_tokens(bench)
        levels = []
        for number, prompt in enumerate(PROMPTS):
            asked = [rating_row(prompt, row) for row in request.examples]
            task = bench.task
            rows = encode_rows(
                asked, bench.tokenizer, kind=bench.kind, task="generation", context_tokens=task.context_tokens,
                plain=task.plain_template,
            )  # fmt: skip

            def compute(block: Sequence[int], rows: list[EncodedRow] = rows) -> dict[str, Floats]:
                return {"probabilities": probabilities(bench, [rows[i] for i in block], tokens)}

            made_of = [bench.weights_hash, str(bench.network.model.dtype), list(tokens)]
            kept = in_blocks(request, f"ratings-{number + 1}", [row_key(row) for row in rows], made_of, compute)
            levels.append(token_level(kept["probabilities"]))
        return sentence_level(np.stack(levels), alpha)


def rating_tokens(bench: Workbench) -> tuple[int, ...]:
    """The token with which each rating begins; raises `ModelError` where two ratings begin alike."""
    ids = [bench.tokenizer(rating, add_special_tokens=False)["input_ids"] for rating in RATINGS]
    last = tuple(int(one[-1]) for one in ids)
    if len(set(last)) != len(RATINGS):
        raise ModelError("this tokenizer writes two ratings with the same token.", remedy="Choose another selector.")
    return last


@torch.no_grad()
def probabilities(bench: Workbench, rows: Sequence[EncodedRow], tokens: Sequence[int]) -> Floats:
    """(rows, K) probabilities of the rating tokens where each row's answer begins, normalised over the K."""
    found = np.zeros((len(rows), len(tokens)))
    network = bench.network
    firsts = []
    for row in rows:  # only the place where the answer begins is looked at
        mask = np.zeros(len(row.ids), np.bool_)
        mask[np.flatnonzero(row.target_mask)[0]] = True
        firsts.append(EncodedRow(row.ids, mask, row.prompt_length, 1))
    with network.mode(packing=network.packs, training=False):
        update = lay_out(
            firsts, range(len(firsts)), kind="causal", limit_tokens=bench.task.micro_batch_tokens,
            packing=network.packs, pad_id=bench.pad_id,
        )  # fmt: skip
        for batch in update.micro_batches:
            scored = network.run(on_device(batch, network.model))
            logs = scored.log_probs(slice(0, len(scored.row)))[:, list(tokens)].double()
            found[scored.row.cpu().numpy()] = logs.softmax(-1).cpu().numpy()
    return found
