"""LoRA+ (Hayou, Ghosh & Yu 2024, 2402.12354): LoRA whose B has ``ratio`` times the learning rate of A.

With equal rates A and B cannot both learn features as the width grows; a ratio well above 1 lets them. The run's
learning rate is A's.
"""

from __future__ import annotations

from peft import LoraConfig

from foretune.methods import lora
from foretune.methods.adapter import AdapterMethod, Request
from foretune.methods.attachment import PeftAttachment


def build(request: Request) -> LoraConfig:
    """LoRA's configuration."""
    return lora.build(request)


def start(attachment: PeftAttachment, request: Request) -> None:
    """Give every B its factor on the learning rate."""
    ratio = float(request.own["ratio"])
    attachment.rate_factor = lambda name: ratio if ".lora_B." in name else 1.0


METHOD = AdapterMethod("loraplus", build, start)
