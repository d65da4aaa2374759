"""Write what steps of methods take into the catalogue, from the full run of `benchmarks/methods.py` that is kept.

    python scripts/make_method_costs.py

Then `scripts/make_methods_reference.py` shows them in docs/methods.md.
"""

from __future__ import annotations

from pathlib import Path

from foretune.files import canonical_json, read_json, write_text

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results" / "methods.json"
TABLE = ROOT / "src" / "foretune" / "catalogue" / "methods" / "measured.jsonl"


def table() -> str:
    """A line of JSON for every method that the benchmark could measure."""
    lines = [
        canonical_json(
            {"method": name, "seconds": round(one["step_ratio"], 2), "memory": round(one["memory_ratio"], 2)}
        )
        for name, one in read_json(RESULTS)["methods"].items()
        if "failed" not in one
    ]
    return "".join(line + "\n" for line in lines)


if __name__ == "__main__":
    write_text(TABLE, table())
