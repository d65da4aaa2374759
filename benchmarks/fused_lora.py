"""LoRA's shorter forward and backward pass (`foretune.methods.fused`) against peft's own, on one loaded model.

    python benchmarks/fused_lora.py [--quick] [--model NAME] [--tokens 512] [--rank 16] [--repeats 9]

Both run the same tokens through the same model with the same adapter in one process, in turns whose order alternates:
a forward pass up to the last hidden state and the backward pass of its mean square. The ratio is that of processor
times, median over repeats. Differences of hidden state and gradients are reported beside it.
"""

from __future__ import annotations

import argparse
import time
from typing import Any

import torch
from common import finish, median, model_folder, parser, record
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM

from foretune.methods.fused import fuse, unfuse
from foretune.models.modules import linear_targets

TOLERANCE = {"float32": 1e-4, "bfloat16": 0.3}
"""Largest relative difference of a gradient: rounding, accumulated over all layers. In bfloat16 the smallest gradients
of thirty layers differ by a tenth; a wrong pass differs by about one."""


def arguments_of() -> argparse.Namespace:
    """The command line, with what ``--quick`` shortens."""
    made = parser(__doc__)
    made.add_argument("--tokens", type=int, default=512)
    made.add_argument("--rank", type=int, default=16)
    made.add_argument("--repeats", type=int, default=9)
    arguments = made.parse_args()
    if arguments.quick:
        arguments.tokens, arguments.repeats = 128, 3
    return arguments


def step(model: Any, ids: torch.Tensor) -> tuple[dict[str, torch.Tensor], float]:
    """Hidden state and gradients of one pass, with its processor seconds."""
    model.zero_grad(set_to_none=True)
    started = time.process_time()
    hidden = model.get_base_model().base_model(input_ids=ids, use_cache=False).last_hidden_state
    hidden.float().square().mean().backward()
    seconds = time.process_time() - started
    gradients = {name: weight.grad for name, weight in model.named_parameters() if weight.grad is not None}
    return {"hidden": hidden.detach(), **gradients}, seconds


def difference(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> float:
    """The largest relative difference of any tensor."""
    return max(float((one[name] - other[name]).float().norm() / other[name].float().norm()) for name in other)


def compared(folder: str, dtype: str, arguments: argparse.Namespace) -> dict[str, Any]:
    """Both ways in one number type."""
    torch.manual_seed(arguments.seed)
    base: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=getattr(torch, dtype)).eval()
    targets = linear_targets(base)
    model = get_peft_model(base, LoraConfig(r=arguments.rank, lora_alpha=2 * arguments.rank, target_modules=targets))
    for name, weight in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weight, std=0.01)
        if weight.requires_grad:
            weight.data = weight.data.to(base.dtype)
    ids = torch.randint(0, base.config.vocab_size, (1, arguments.tokens))
    seconds: dict[str, list[float]] = {"fused": [], "peft": []}
    seen: dict[str, dict[str, torch.Tensor]] = {}
    for repeat in range(arguments.repeats + 1):  # the first of each warms up
        for way in ("fused", "peft") if repeat % 2 else ("peft", "fused"):
            (fuse if way == "fused" else unfuse)(model)
            seen[way], taken = step(model, ids)
            seconds[way].append(taken)
    ratios = [one / other for one, other in zip(seconds["fused"][1:], seconds["peft"][1:], strict=True)]
    largest = difference(seen["fused"], seen["peft"])
    if largest > TOLERANCE[dtype]:
        raise SystemExit(f"the two ways differ by {largest:.2g} in {dtype}")
    return {"ratio": median(ratios), "difference": largest, "seconds": seconds}


def main() -> None:
    """Compare in float32 and bfloat16 and report."""
    arguments = arguments_of()
    torch.set_num_threads(arguments.threads)
    folder = model_folder(arguments.model)
    found = {dtype: compared(folder, dtype, arguments) for dtype in ("bfloat16", "float32")}
    summary = {
        "fused_lora_step_ratio": found["bfloat16"]["ratio"],
        "fused_lora_step_ratio_float32": found["float32"]["ratio"],
        **{f"difference_{dtype}": result["difference"] for dtype, result in found.items()},
        "tokens": arguments.tokens,
        "rank": arguments.rank,
        "repeats": arguments.repeats,
    }
    finish(arguments, "fused_lora", summary, record(arguments, measured=found, model=arguments.model))


if __name__ == "__main__":
    main()
