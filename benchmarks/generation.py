"""Generation: Foretune's loop against ``model.generate`` on the same prompts, tokens compared.

    python benchmarks/generation.py FOLDER [--rows 64] [--new-tokens 64] [--batch 64] [--dtype bfloat16]

FOLDER is a causal model with a chat template. Both take length-sorted batches of the same size; the ratio of the two
times of one run is what counts. Answers may part where two logits tie in bf16; the share of equal answers is printed.
"""

from __future__ import annotations

import argparse
import json
import time
from typing import Any

import numpy as np
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from foretune.evaluation.generation import generate_ids

TERMS = ("memory", "cache", "kernel", "compiler", "socket", "thread", "parser", "router", "byte", "spreadsheet")


def prompts_of(tokenizer: Any, rows: int) -> list[np.ndarray]:
    """``rows`` chat prompts with short and long answers."""
    asked = []
    for i in range(rows):
        term = TERMS[i % len(TERMS)]
        question = f"What is {i} plus {i + 3}?" if i % 2 else f"What is a {term} in computing? Answer in one sentence."
        ids = tokenizer.apply_chat_template(
            [{"role": "user", "content": question}], add_generation_prompt=True, return_dict=False
        )
        asked.append(np.asarray(ids, dtype=np.int64))
    return asked


def theirs(model: Any, prompts: list[np.ndarray], new_tokens: int, batch: int, stop: int) -> list[list[int]]:
    """The same answers by ``model.generate``, length-sorted and left-padded."""
    order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
    answers: list[list[int]] = [[]] * len(prompts)
    for start in range(0, len(order), batch):
        chosen = order[start : start + batch]
        width = max(len(prompts[i]) for i in chosen)
        ids = torch.full((len(chosen), width), stop)
        mask = torch.zeros_like(ids)
        for row, i in enumerate(chosen):
            ids[row, width - len(prompts[i]) :] = torch.as_tensor(prompts[i])
            mask[row, width - len(prompts[i]) :] = 1
        output = model.generate(
            input_ids=ids, attention_mask=mask, do_sample=False, max_new_tokens=new_tokens, eos_token_id=stop,
            pad_token_id=stop,
        )[:, width:].tolist()  # fmt: skip
        for i, new in zip(chosen, output, strict=True):
            answers[i] = new[: new.index(stop)] if stop in new else new
    return answers


def main() -> None:
    """Run both and print one JSON line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder")
    parser.add_argument("--rows", type=int, default=64)
    parser.add_argument("--new-tokens", type=int, default=64)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--dtype", default="bfloat16")
    arguments = parser.parse_args()
    model = AutoModelForCausalLM.from_pretrained(arguments.folder, dtype=getattr(torch, arguments.dtype)).eval()
    tokenizer = AutoTokenizer.from_pretrained(arguments.folder)
    prompts, stop = prompts_of(tokenizer, arguments.rows), int(tokenizer.eos_token_id)
    seconds: dict[str, list[float]] = {"foretune": [], "generate": []}
    for _ in range(2):
        start = time.perf_counter()
        ours = generate_ids(model, prompts, max_new_tokens=arguments.new_tokens, stop_ids=[stop])
        seconds["foretune"].append(time.perf_counter() - start)
        start = time.perf_counter()
        reference = theirs(model, prompts, arguments.new_tokens, arguments.batch, stop)
        seconds["generate"].append(time.perf_counter() - start)
    tokens = sum(len(answer or []) for answer in ours)
    best = {name: min(times) for name, times in seconds.items()}
    print(json.dumps({
        "rows": len(prompts), "answer_tokens": tokens, "threads": torch.get_num_threads(), "dtype": arguments.dtype,
        "equal_answers": sum(a == b for a, b in zip(ours, reference, strict=True)) / len(prompts),
        "foretune_s": best["foretune"], "generate_s": best["generate"],
        "foretune_tokens_per_s": tokens / best["foretune"], "speedup": best["generate"] / best["foretune"],
    }))  # fmt: skip


if __name__ == "__main__":
    main()
