"""COMET (Rei et al. 2020), a learnt score of translations, by its own package in an interpreter of its own.

`unbabel-comet` 2.2 needs a transformers below 5 and a NumPy below 2, so it lives in another environment:
``COMET_PYTHON`` is that environment's Python (this one unless it is set) and ``COMET_MODEL`` the checkpoint's file.
Scores of different checkpoints are different scores.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

from foretune.data.translation import without_instruction
from foretune.errors import Place, UsageError
from foretune.evaluation.base import Answer
from foretune.evaluation.metrics.own import OwnMetric
from foretune.files import read_json, write_json

MODEL, PYTHON = "COMET_MODEL", "COMET_PYTHON"
_SCORE = """
import json, sys
from comet import load_from_checkpoint
with open(sys.argv[2], encoding="utf-8") as file:
    rows = json.load(file)
model = load_from_checkpoint(sys.argv[1])
import torch
scores = model.predict(rows, batch_size=16, gpus=min(1, torch.cuda.device_count()), progress_bar=False).scores
with open(sys.argv[3], "w", encoding="utf-8") as file:
    json.dump([float(score) for score in scores], file)
"""
_SAID_LINES = 3


def _scores(answers: Sequence[Answer]) -> list[float]:
    """COMET of every answer; raises `UsageError` where there is no checkpoint or the other Python fails."""
    model = os.environ.get(MODEL, "")
    if not Path(model).is_file():
        raise UsageError(
            f"comet needs a checkpoint, and {MODEL} names no file.",
            place=Place(model) if model else None,
            remedy=f"Set {MODEL} to a model.ckpt, and {PYTHON} to a Python that has unbabel-comet.",
        )
    rows = [
        {"src": without_instruction(answer.prompt), "mt": answer.prediction, "ref": answer.reference}
        for answer in answers
    ]
    with TemporaryDirectory(prefix="foretune-comet-") as folder:
        given, found = Path(folder) / "rows.json", Path(folder) / "scores.json"
        write_json(given, rows)
        python = os.environ.get(PYTHON) or sys.executable
        try:
            done = subprocess.run(
                [python, "-c", _SCORE, model, str(given), str(found)], capture_output=True, text=True, errors="replace"
            )
        except OSError as error:
            raise UsageError(f"{PYTHON} cannot be run ({error.strerror}).", place=Place(python)) from error
        if done.returncode:
            said = " ".join(done.stderr.strip().splitlines()[-_SAID_LINES:])
            raise UsageError(
                f"COMET failed: {said}", place=Place(python), remedy=f"{PYTHON} has to be a Python with unbabel-comet."
            )
        return list(read_json(found))


COMET = OwnMetric("comet", _scores, together=True, unit="COMET")
