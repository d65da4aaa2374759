"""Put the result of a real `make demo` and a picture of its report into README.md.

    python scripts/update_readme.py demo-run

The text between the demo markers becomes the summary that `foretune report` prints; the picture is the top of
``report.html`` as Chromium shows it (Debian: ``apt-get install chromium``).
"""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
from pathlib import Path

from foretune.report.record import read_record
from foretune.report.text import summary

ROOT = Path(__file__).resolve().parent.parent
README = ROOT / "README.md"
PICTURE = ROOT / "docs" / "images" / "report.png"
WINDOW = "1100,2050"
"""Pixels: the page's own width, and down to the end of the learning curves."""


def main(folder: Path) -> None:
    """Rewrite the README and the picture from the finished run in ``folder``."""
    result = read_record(folder)
    rows = sum(result.data.rows.get(split, 0) for split in ("train", "validation", "test"))
    cores = result.environment.get("cores")
    counted = "1 processor core" if cores == 1 else f"{cores} processor cores"
    machine = f"{counted} ({result.environment.get('processor')}), no GPU"
    text = summary(result).replace(str(folder), "demo-run")
    block = "\n".join(
        [
            "<!-- demo:start -->",
            f"What `make demo` ends with, on {machine}: {result.model.source} on the {rows:,} rows of the shipped fact "
            f"set, {len(result.trials)} configurations tried.",
            "",
            "```",
            text.strip(),
            "```",
            "",
            "![The top of the report: verdict, comparison with intervals, learning curves](docs/images/report.png)",
            "<!-- demo:end -->",
        ]
    )
    content = README.read_text(encoding="utf-8")
    README.write_text(
        re.sub(r"<!-- demo:start -->.*<!-- demo:end -->", lambda _: block, content, flags=re.DOTALL), encoding="utf-8"
    )
    picture(folder / "report.html")


def picture(report: Path) -> None:
    """Write the top of ``report`` as a PNG."""
    PICTURE.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as profile:
        subprocess.run(
            [
                "chromium", "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--no-first-run",
                "--disable-background-networking", "--disable-component-update", "--disable-sync",
                f"--user-data-dir={profile}", f"--window-size={WINDOW}", f"--screenshot={PICTURE}",
                report.resolve().as_uri(),
            ],
            check=True,
            capture_output=True,
            timeout=120,
        )  # fmt: skip


if __name__ == "__main__":
    main(Path(sys.argv[1]))
