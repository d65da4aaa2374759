"""Compute the dropout rates that ship with Foretune: one rates file for each model of the catalogue that is here.

    python scripts/make_rates.py                  # all models that are fetched
    python scripts/make_rates.py all-MiniLM-L6-v2

The text is the general sample that forgetting is measured on. A model that is not fetched is left out and named, so
that nobody's terms are accepted by a script. About half a minute for 135M parameters on one core.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from foretune.catalogue.models import MODELS, ModelReference
from foretune.evaluation.forgetting import SAMPLE, general_text
from foretune.models.fetch import fetched
from foretune.regularization.fisher.model_rates import load_for_fisher, model_rates
from foretune.regularization.places.rates import save

FOLDER = Path(__file__).parents[1] / "src" / "foretune" / "catalogue" / "rates"
LIMIT_TOKENS = 128
"""A batch holds the whole vocabulary's scores of every token: 262,144 words are 128 MiB at this size."""


def main() -> int:
    """Write the files."""
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("models", nargs="*", help="names of the catalogue [all that are fetched]")
    wanted = parser.parse_args().models or list(MODELS)
    texts = [example.turns[0].content for example in general_text()]
    for name in wanted:
        if fetched(name) is None:
            print(f"{name} is not fetched and is left out", file=sys.stderr)
            continue
        loaded, variant = load_for_fisher(ModelReference(name))
        rates = model_rates(loaded, variant, texts, text_name=SAMPLE, limit_tokens=LIMIT_TOKENS)
        save(FOLDER / f"{MODELS[name].name}.json", rates)
        print(f"{name}: {rates.variant}, {rates.samples} samples, {len(rates.places)} places")
    return 0


if __name__ == "__main__":
    sys.exit(main())
