"""How metrics are called in reports."""

from __future__ import annotations

WRITTEN = {
    "loss": "loss",
    "loss_per_byte": "loss per byte",
    "exact_match": "exact match",
    "token_f1": "token F1",
    "rouge_l": "ROUGE-L",
    "chrf": "chrF++",
    "bleu": "BLEU",
    "comet": "COMET",
    "label_f1": "label F1",
    "choice": "right choices",
    "json_validity": "valid JSON",
    "json_match": "equal JSON",
    "tool_calls": "tool calls",
    "accuracy": "accuracy",
    "balanced_accuracy": "balanced accuracy",
    "calibration_error": "calibration error",
    "brier": "Brier score",
    "macro_f1": "macro F1",
    "pearson": "Pearson's r",
    "spearman": "Spearman's ρ",
    "mse": "mean squared error",
    "mae": "mean absolute error",
}
"""The metrics that a report writes in words; one from outside is written by its own name, and with its unit."""
