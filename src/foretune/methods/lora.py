"""LoRA (Hu et al. 2021, 2106.09685) through peft: y = W₀x + (α/r)·B A drop(x), B = 0 at the start.

Count: r·(in + out) for every target linear layer. Knob: the rank.
"""

from __future__ import annotations

from peft import LoraConfig

from foretune.methods.adapter import AdapterMethod, Request


def build(request: Request) -> LoraConfig:
    """Peft's configuration of LoRA."""
    own = request.own
    return LoraConfig(
        r=int(own["rank"]),
        lora_alpha=float(own["alpha"]),
        lora_dropout=float(own["dropout"]),
        target_modules=request.names,
        rank_pattern=request.pattern,
        task_type=request.task_type,
        bias="none",
    )


METHOD = AdapterMethod("lora", build)
