"""What a training step of a method takes beside one of LoRA, as `benchmarks/methods.py` measured it.

Processor seconds of a forward and a backward pass of SmolLM2-135M over 256 tokens in bfloat16, and the bytes that
autograd keeps for the backward pass, with a method's default settings, over those of peft's LoRA of rank 16 in
alternation. A step with fewer tokens makes methods that build whole weights dearer than this, one with more cheaper. On
an accelerator other things decide: nothing is said of it.
"""

from __future__ import annotations

from collections.abc import Mapping

from foretune.catalogue.methods import METHODS

MEASURED: Mapping[str, tuple[float, float]] = {
    "full": (1.11, 1.10),
    "lora": (0.97, 1.02),
    "loratrf": (1.20, 1.21),
    "mtllora": (1.11, 1.04),
    "mora": (1.52, 0.85),
    "melora": (1.09, 1.01),
    "lorasp": (1.01, 1.02),
    "loretta": (1.19, 1.04),
    "dsee": (1.08, 1.08),
    "nola": (1.07, 1.02),
    "bottleneck": (0.88, 0.84),
    "loreft": (0.86, 0.78),
    "direft": (0.88, 0.78),
    "red": (0.82, 0.78),
    "ssf": (0.91, 1.21),
    "adalink": (0.86, 0.76),
    "lofit": (0.78, 0.68),
    "partial": (0.40, 0.05),
    "layernorm": (0.87, 0.85),
    "lastlayers": (0.41, 0.07),
    "rslora": (0.96, 1.02),
    "dora": (1.35, 1.92),
    "pissa": (0.95, 1.02),
    "olora": (0.99, 1.02),
    "mica": (0.97, 0.99),
    "kasa": (0.99, 1.01),
    "adalora": (1.12, 1.03),
    "gralora": (1.12, 1.03),
    "hira": (2.03, 2.21),
    "shira": (1.59, 3.23),
    "delora": (1.04, 1.21),
    "deft": (1.41, 2.66),
    "glora": (1.93, 2.21),
    "loha": (1.91, 2.21),
    "lokr": (2.13, 2.21),
    "hra": (7.37, 15.80),
    "oft": (1.18, 1.22),
    "boft": (9.34, 6.05),
    "psoft": (1.09, 0.94),
    "miss": (0.99, 0.79),
    "peanut": (1.90, 2.24),
    "lily": (1.10, 1.03),
    "osf": (2.56, 4.15),
    "adamss": (1.20, 0.99),
    "randlora": (3.10, 14.14),
    "vera": (1.31, 1.38),
    "pvera": (1.51, 1.54),
    "fourierft": (2.94, 2.23),
    "waveft": (2.22, 3.49),
    "c3a": (2.09, 1.66),
    "vblora": (1.05, 1.04),
    "unilora": (1.03, 1.08),
    "tinylora": (0.99, 0.76),
    "road": (1.11, 1.68),
    "supertuning": (1.08, 2.26),
    "frod": (2.78, 4.11),
    "beft": (0.87, 0.75),
    "ia3": (0.85, 0.92),
    "trainable_tokens": (0.84, 0.76),
    "contextpeft": (1.06, 1.00),
    "mam": (1.07, 0.95),
    "dept": (1.18, 0.98),
    "e2vpt": (0.94, 0.85),
    "loretta_adp": (0.98, 0.94),
    "prompt_tuning": (1.06, 0.91),
    "p_tuning": (1.06, 0.91),
    "multitask_prompt_tuning": (1.05, 0.91),
    "cpt": (1.17, 1.06),
    "prefix_tuning": (0.88, 0.85),
    "adaption_prompt": (1.00, 0.80),
    "promot": (1.22, 1.18),
    "loraplus": (0.99, 1.02),
    "lorafa": (1.00, 1.02),
    "eva": (1.02, 1.02),
    "loraga": (1.05, 1.06),
}
"""(seconds, memory)"""


def step_factor(method: str, *, accelerated: bool) -> float:
    """Seconds of a step of ``method`` over one of LoRA as it is trained here; 1 where nothing is known, and where they
    follow from what is trained: all weights, or a choice among them."""
    known = method in MEASURED and METHODS[method].family not in ("whole", "selection")
    return MEASURED[method][0] / MEASURED["lora"][0] if known and not accelerated else 1.0
