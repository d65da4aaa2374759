"""Write ``docs/methods.md``, the reference of every method of fine-tuning, from the registry that the code itself uses.

    python scripts/make_methods_reference.py            # writes docs/methods.md
    python scripts/make_methods_reference.py --check    # exits with 1 when the committed file differs

The settings of each method are in ``docs/settings.md``; sizes for a share come from ``foretune methods size``.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path

from foretune.catalogue.methods import METHODS, Declaration
from foretune.catalogue.methods.measured import MEASURED
from foretune.catalogue.methods.peft_rows import REFUSED
from foretune.files import write_text
from foretune.report.text import markdown_table

PAGE = Path(__file__).resolve().parent.parent / "docs" / "methods.md"
HEAD = """# Methods

<!-- Written by scripts/make_methods_reference.py from the registry; do not edit. -->

Every way of adapting a model that `foretune fit --method NAME` can be asked for. `foretune methods` prints this list,
`foretune methods size --model MODEL --trainable 0.5%` the settings with which each trains that share of the model.

The unit is the **trainable share**: `foretune fit DATA --trainable 0.5%` turns a share of the model's parameters into
the method's knob (its rank, width or count). Where single layers can have a knob one higher, the rest of the share is
filled with that, feed-forward and upper layers first. A share that is out of reach on all linear layers changes the
layers (`targets`, `layers`) or, where no method was named, the method, and the plan says so. The number is asserted
when the adapter is built. `alpha` stays what it is when the rank changes, in a fit and in a study: scaled by alpha /
rank, an update learns about as fast at every rank for one learning rate (Schulman et al. 2025; the log has figures of
ours), so the rule's rate stays right.

`--layers` restricts a method to some layers: `last:8`, `first:4`, or an expression over roles such as
`decoder & layers>=3`. The same language picks the parameters of `partial`: `bias`, `norm`, `cross_attention`,
`attention.q`, `/regular expression/`, joined by `&`, `|`, `!` and brackets.

How LoRATRF, DoRA, LoReFT, adapters, (IA)³ and full tuning did beside LoRA on three tasks, each at rates of its own, is
in [a study](methods-study.md).

In the counts, r is the knob, i and o are a linear layer's inputs and outputs (the sum is over all adapted layers), d
the hidden width, f the inner width, L the number of layers, T tasks, n positions or parts. *Rate* is the learning rate
where the search starts, as a multiple of full fine-tuning's rule; multiples other than LoRA's are starting points from
the papers' own settings, not results of ours. *Merge* says whether the adapter can become part of the weights: exactly,
exactly for one task, or not; LoRATRF's gate can be approximated, with the loss measured (`foretune export
--approximate`). *Step* and *memory* are what a step takes and keeps for its backward pass, over LoRA of rank 16
(`benchmarks/methods.py`: SmolLM2-135M, 256 tokens, default settings, one core); a plan reckons with both.

Our own methods are peft tuners: `adapter_config.json` carries their type, and after `import foretune`
`peft.PeftModel.from_pretrained` loads them. What each promises is checked by one contract on tiny Llama, Gemma, BERT
and BART models; `foretune methods check NAME --plugin my_method.py` runs it on a method of your own.
"""
LAYERS = """## Which layers

`--layers last:8` adapts the upper eight layers; the frozen ones below are then computed once for every row. Any
expression works: `--layers 'layers>=10 & attention'`. `foretune methods layers DATA --keep 8` scores a base model's
layers on the rows of a data set, after federated partial prompt tuning (Che et al. 2023, 2310.15080; the score as in
the authors' released code), and prints the expression of the highest. A layer scores high where the states of
different rows are most alike. Whether layers chosen so do better than the last ones was not measured here, and no plan
uses the scores. Sending adapters between clients and a server is not built: Foretune trains on one machine.
"""
PLUGIN = """## A method of your own

A plugin is a Python file (`--plugin my_method.py`) or a package with an entry point in the group `foretune.plugins`. It
declares the method, says what is added to a layer, and registers both:

```python
from dataclasses import dataclass, field

import torch
from torch import nn

from foretune.catalogue.methods.base import ADAPTER_TRAITS, Declaration, per_linear, rank, targets
from foretune.catalogue.space import Space
from foretune.methods.adapter import AdapterMethod
from foretune.methods.registry import add
from foretune.methods.tuners.config import AdapterConfig
from foretune.methods.tuners.layer import Update
from foretune.methods.tuners.model import define


@dataclass
class Settings(AdapterConfig):
    rank: int = field(default=8)
    method = "columns"


class Columns(Update):
    \"\"\"The first r inputs get free weights.\"\"\"

    def __init__(self, base, inputs, outputs, config, name):
        super().__init__(base, inputs, outputs, config, name)
        self.free = nn.Parameter(torch.empty(outputs, min(inputs, config.knob_of(name))))

    def reset(self):
        nn.init.zeros_(self.free)

    def delta(self):
        return nn.functional.pad(self.free, (0, self.inputs - self.free.shape[1]))


define(Settings, Columns)
add(
    Declaration(
        name="columns",
        about="The first inputs of each layer get free weights.",
        knob="rank",
        formula="r·o",
        space=Space((rank("columns", 8), targets("columns"))),
        menu=Space(()),
        traits=ADAPTER_TRAITS,
        rate_multiplier=10.0,
        short_run_multiplier=1.0,
        source="an example",
        example={"rank": 4},
        count=per_linear(lambda i, o, r, own: min(r, i) * o),
    ),
    AdapterMethod("columns", lambda request: Settings(**request.settings("rank"))),
)
```
"""
FAMILIES = {
    "whole": "All weights",
    "delta": "Changes of linear layers",
    "edit": "Edits of activations",
    "sublayer": "Small layers in between",
    "embedding": "Embeddings",
    "prompt": "Prompts and prefixes",
    "selection": "Selections of the model's own parameters",
    "recipe": "Recipes",
}
HEADING = ("method", "what it does", "knob", "parameters", "merge", "rate", "step", "memory", "for", "source")
MERGE = {"exact": "exact", "per_task": "one task", "approximate": "approximate", "no": "no"}


def page() -> str:
    """The whole page."""
    parts = [HEAD]
    for family, title in FAMILIES.items():
        members = [item for item in METHODS.values() if item.family == family]
        if members:
            parts.append(f"## {title}\n")
            parts += [markdown_table(HEADING, map(_row, members)), ""]
            parts += _notes(members)
    refused = [f"- `{name}`: {why}." for name, why in REFUSED.items()]
    return "\n".join([*parts, "## What peft has and Foretune refuses\n", *refused, "", LAYERS, PLUGIN])


def _row(item: Declaration) -> tuple[str, ...]:
    kinds = "all" if len(item.kinds) == 3 else ", ".join(item.kinds)
    evidence = "" if item.evidence == "paper equations" else f" ({item.evidence})"
    start = "" if item.traits.identity_at_init else " Not the base at the start."
    cost = [f"{ratio:.2f}" for ratio in MEASURED.get(item.name, ())] or ["", ""]
    off = "" if item.traits.disables_to_base or item.family == "whole" else " Cannot be switched off."
    return (
        f"`{item.name}`",
        f"{item.about}{start}{off}",
        f"`{item.knob}`" if item.knob else "fixed",
        item.formula,
        MERGE[item.traits.merge],
        f"{item.rate_multiplier:g}",
        *cost,
        kinds,
        f"{item.source}{evidence}",
    )


def _notes(members: list[Declaration]) -> Iterator[str]:
    noted = [item for item in members if item.notes]
    for item in noted:
        yield f"- `{item.name}`: {'; '.join(item.notes)}."
    if noted:
        yield ""


def main() -> int:
    """Write the page, or compare it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="only compare with the committed file")
    if parser.parse_args().check:
        if PAGE.read_text(encoding="utf-8") != page():
            print("methods.md is not what the registry says; run scripts/make_methods_reference.py", file=sys.stderr)
            return 1
        return 0
    write_text(PAGE, page())
    return 0


if __name__ == "__main__":
    sys.exit(main())
