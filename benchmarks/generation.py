"""Generation: Foretune's greedy loop against ``model.generate`` on the same prompts, tokens compared.

    python benchmarks/generation.py [--quick] [--model NAME] [--rows 64] [--new-tokens 64] [--repeats 3]

The model is a causal one with a chat template. Both answer in length-sorted batches of the same size, in turns whose
order alternates, in one process; the ratio is that of processor times of a repeat, and the median over repeats is
reported. Answers may part where two logits tie in bf16, so the share of equal answers is reported beside it.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from common import finish, median, model_folder, parser, record
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


def timed(work: Callable[[], Any]) -> tuple[Any, float, float]:
    """What ``work`` gives, with its processor seconds and seconds."""
    cpu, wall = time.process_time(), time.perf_counter()
    result = work()
    return result, time.process_time() - cpu, time.perf_counter() - wall


def arguments_of() -> argparse.Namespace:
    """The command line, with what ``--quick`` shortens."""
    made = parser(__doc__)
    made.add_argument("--rows", type=int, default=64)
    made.add_argument("--new-tokens", type=int, default=64)
    made.add_argument("--batch", type=int, default=64, help="rows of a batch of model.generate")
    made.add_argument("--repeats", type=int, default=3)
    made.add_argument("--dtype", default="bfloat16", choices=("bfloat16", "float32"))
    arguments = made.parse_args()
    if arguments.quick:
        arguments.rows, arguments.new_tokens, arguments.repeats = 16, 24, 1
    return arguments


def main() -> None:
    """Run both in turns and print one JSON object."""
    arguments = arguments_of()
    torch.set_num_threads(arguments.threads)
    folder = model_folder(arguments.model)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=getattr(torch, arguments.dtype)).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    prompts, stop = prompts_of(tokenizer, arguments.rows), int(tokenizer.eos_token_id)
    contestants: dict[str, Callable[[], Any]] = {
        "foretune": lambda: generate_ids(model, prompts, max_new_tokens=arguments.new_tokens, stop_ids=[stop]),
        "generate": lambda: theirs(model, prompts, arguments.new_tokens, arguments.batch, stop),
    }
    generate_ids(model, prompts[:2], max_new_tokens=2, stop_ids=[stop])  # the first pass warms up
    cpu: dict[str, list[float]] = {name: [] for name in contestants}
    wall: dict[str, list[float]] = {name: [] for name in contestants}
    answers: dict[str, Any] = {}
    for repeat in range(arguments.repeats):
        for name in list(contestants)[:: 1 if repeat % 2 == 0 else -1]:
            answers[name], cpu_s, wall_s = timed(contestants[name])
            cpu[name].append(cpu_s)
            wall[name].append(wall_s)
            print(f"repeat {repeat + 1}, {name}: {cpu_s:.2f} CPU s, {wall_s:.2f} s", flush=True)
    ratios = [slow / fast for slow, fast in zip(cpu["generate"], cpu["foretune"], strict=True)]
    tokens = sum(len(answer or []) for answer in answers["foretune"])
    equal = sum(a == b for a, b in zip(answers["foretune"], answers["generate"], strict=True))
    summary = {
        "ratio_vs_generate": median(ratios),
        "equal_answers": equal / len(prompts),
        "answer_tokens": tokens,
        "foretune_tokens_per_cpu_s": tokens / median(cpu["foretune"]),
        "generate_tokens_per_cpu_s": tokens / median(cpu["generate"]),
        **{key: vars(arguments)[key] for key in ("rows", "new_tokens", "repeats", "dtype")},
    }
    details = {"range": [min(ratios), max(ratios)], "cpu_s": cpu, "wall_s": wall}
    finish(arguments, "generation", summary, record(arguments, **details))


if __name__ == "__main__":
    main()
