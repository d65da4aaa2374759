"""P-tuning (Liu et al. 2021, 2103.10385), with the network of peft."""

from __future__ import annotations

from foretune.catalogue.methods.prompts import before_rows, length
from foretune.catalogue.space import Number

P_TUNING = before_rows(
    "p_tuning",
    "A prompt that a small network makes of learnt vectors.",
    "Liu et al. 2021 (2103.10385), the network of peft 0.21",
    knob=length("p_tuning", "prompt", 20, "Learnt vectors before the row."),
    more=(Number("p_tuning.hidden", 1, 4096, 128, log=True, whole=True, about="Inner width of the network."),),
    formula="n·d + 2dm + m² + 2m + d",
    count=lambda targets, model, own: (
        int(own["prompt"]) * model.width + int(own["hidden"]) * (2 * model.width + int(own["hidden"]) + 2) + model.width
    ),
    example={"prompt": 3, "hidden": 8},
)
