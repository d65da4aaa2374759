"""What a training step of a method takes beside one of LoRA, as `benchmarks/methods.py` measured it.

Processor seconds of a forward and a backward pass of SmolLM2-135M over 256 tokens in bfloat16, and the bytes that
autograd keeps for the backward pass, with a method's default settings, over those of peft's LoRA of rank 16 in
alternation. A step with fewer tokens makes methods that build whole weights dearer than this, one with more cheaper. On
an accelerator other things decide: nothing is said of it.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from foretune.catalogue.methods import METHODS
from foretune.files import read_lines

MEASURED: Mapping[str, tuple[float, float]] = {
    line["method"]: (line["seconds"], line["memory"]) for line in read_lines(Path(__file__).with_suffix(".jsonl"))
}
"""(seconds, memory) by method; `scripts/make_method_costs.py` writes the file"""


def step_factor(method: str, *, accelerated: bool) -> float:
    """Seconds of a step of ``method`` over one of LoRA as it is trained here; 1 where nothing is known, and where they
    follow from what is trained: all weights, or a choice among them."""
    known = method in MEASURED and METHODS[method].family not in ("whole", "selection")
    return MEASURED[method][0] / MEASURED["lora"][0] if known and not accelerated else 1.0
