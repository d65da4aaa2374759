"""EVA (Paischer et al. 2024, 2410.07170): A starts as the leading directions of the layer's inputs."""

from __future__ import annotations

from foretune.catalogue.methods.recipes import lora_recipe

EVA = lora_recipe(
    "eva",
    "LoRA whose A starts as the directions in which the layer's inputs vary most.",
    "Paischer et al. 2024 (2410.07170), with equal ranks (their ρ = 1); multipliers as for LoRA",
    notes=("without training rows it starts as LoRA",),
)
