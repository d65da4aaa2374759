"""The model card: ``README.md`` in the adapter's folder, with the metadata block that model hubs read.

The ``model-index`` follows Hugging Face's schema (`huggingface_hub.ModelCard` reads it); every number in it comes from
the comparison on the test rows, and the verdict and its limits stand in the text above the tables. Text that comes
from data or from paths is escaped so that it can neither open HTML nor break a table.
"""

from __future__ import annotations

import re
from pathlib import Path, PurePath
from typing import Any

from foretune import files
from foretune.report.commands import method_of, short_name, usage_commands
from foretune.report.record import RunRecord, Setting
from foretune.report.text import comparison_table, markdown_table
from foretune.report.wording import FEW_SEEDS, counted, number_word, qualifications, verdict

CARD = "README.md"
_TASKS = {  # Foretune's task and model kind → the hub's pipeline tag
    "generation": {"causal": "text-generation", "seq2seq": "text2text-generation"},
    "classification": {"": "text-classification"},
    "regression": {"": "text-classification"},
    "language-modelling": {"": "text-generation"},
}
_SPDX_LIKE = re.compile(r"[a-z0-9][a-z0-9.\-+]*")


def render_card(record: RunRecord, *, adapter: bool = True) -> str:
    """The card as Markdown with its metadata. ``adapter`` is False for full or merged weights."""
    import yaml

    metadata = yaml.safe_dump(_metadata(record, adapter=adapter), sort_keys=False, allow_unicode=True, width=100)
    parts = [f"---\n{metadata}---", f"# {_safe(_title(record))}", f"**{_safe(verdict(record))}**"]
    parts += [_bullets(qualifications(record)), _comparison(record), _limits(record), _usage(record)]
    parts += [_data(record), _settings(record), _provenance(record)]
    return "\n\n".join(part for part in parts if part) + "\n"


def write_card(folder: Path, record: RunRecord, *, adapter: bool = True) -> Path:
    """Write ``README.md`` into ``folder`` and into its manifest, where it has one; returns its path.

    Raises `OutputError`.
    """
    path = folder / CARD
    files.write_text(path, render_card(record, adapter=adapter))
    manifest = folder / files.MANIFEST
    if manifest.is_file():
        known = files.read_json(manifest)
        files.write_json(manifest, {**known, "files": {**known["files"], CARD: files.sha256_file(path)}})
    return path


def _title(record: RunRecord) -> str:
    return f"{PurePath(record.model.source).name} fine-tuned on {PurePath(record.data.name).name}"


def _pipeline(record: RunRecord) -> str:
    tasks = _TASKS.get(record.data.task, _TASKS["generation"])
    return tasks.get(record.model.kind) or tasks.get("") or "text-generation"


def _metadata(record: RunRecord, *, adapter: bool) -> dict[str, Any]:
    license_name = (record.model.license or "").strip().lower()
    method = method_of(record)
    known = _SPDX_LIKE.fullmatch(license_name) is not None
    metadata: dict[str, Any] = {
        "base_model": record.model.source,
        "library_name": "peft" if adapter else "transformers",
        "pipeline_tag": _pipeline(record),
        "license": (license_name if known else "other") if license_name else None,
        "license_name": re.sub(r"[^a-z0-9.\-]+", "-", license_name).strip("-") if license_name and not known else None,
        "language": list(record.data.languages) or None,
        "datasets": [short_name(record)],
        "tags": ["foretune", *([method] if method else []), *(["base_model:adapter"] if adapter else [])],
        "model-index": _model_index(record),
    }
    return {name: value for name, value in metadata.items() if value is not None}


def _model_index(record: RunRecord) -> list[dict[str, Any]] | None:
    compared = record.comparison
    winner = compared.system("winner") if compared else None
    if compared is None or winner is None or not winner.metrics:
        return None
    metrics = [
        {"type": name, "value": round(measure.value, 6), "name": compared.info(name).label}
        for name, measure in winner.metrics.items()
    ]
    dataset = {"name": PurePath(record.data.name).name, "type": short_name(record), "split": compared.split}
    task = {"type": _pipeline(record)}
    return [{"name": _title(record), "results": [{"task": task, "dataset": dataset, "metrics": metrics}]}]


def _safe(text: str) -> str:
    """Text that Markdown shows as it is: no HTML, no table bars, no line breaks, no emphasis or links."""
    flat = " ".join(text.split())
    return re.sub(r"([\\`*_\[\]|<>])", r"\\\1", flat).replace("\\<", "&lt;").replace("\\>", "&gt;")


def _code(text: str) -> str:
    """Text as inline code that holds whatever it is given, also inside a table."""
    flat = " ".join(text.split()).replace("|", "¦")
    ticks = "`" * (max((len(run) for run in re.findall(r"`+", flat)), default=0) + 1)
    space = " " if flat.startswith("`") or flat.endswith("`") else ""
    return f"{ticks}{space}{flat}{space}{ticks}"


def _bullets(lines: list[str]) -> str:
    return "\n".join(f"- {_safe(line)}" for line in lines)


def _table(heading: list[str], rows: list[list[str]], *, first_left: int = 1) -> str:
    marks = [":--" if place < first_left else "--:" for place in range(len(heading))]
    return markdown_table(heading, rows, marks=marks, cell=str)  # the cells are Markdown already


def _comparison(record: RunRecord) -> str:
    compared = record.comparison
    if compared is None:
        return ""
    heading, rows = comparison_table(compared)
    rows = [[_safe(cell) for cell in row] for row in rows]
    note = (
        f"On {counted(compared.rows, f'{compared.split} row')}; ± is one standard error, brackets hold 95 % intervals."
    )
    return f"## Comparison\n\n{_table([_safe(cell) for cell in heading], rows)}\n\n{note}"


def _limits(record: RunRecord) -> str:
    compared = record.comparison
    if compared is None:
        return ""
    lines = []
    if compared.seeds < FEW_SEEDS:
        lines.append(
            f"{number_word(compared.seeds).capitalize()} seed{'' if compared.seeds == 1 else 's'}, these rows only: "
            "another training run or other data may come out differently."
        )
    lines.append(f"The {compared.split} rows come from the same source as the training rows.")
    lines.append("What the base model gets wrong or says unfairly, this one may too.")
    return f"## Limitations\n\n{_bullets([*lines, *record.warnings])}"


def _usage(record: RunRecord) -> str:
    blocks = []
    for title, command in usage_commands(record):
        language = "python" if "import " in command else "bash"
        fence = "`" * max(3, max((len(run) for run in re.findall(r"`+", command)), default=0) + 1)
        blocks.append(f"{title}:\n\n{fence}{language}\n{command}\n{fence}")
    if record.data.template:
        blocks.append("How rows were written in training:\n\n" + _bullets(list(record.data.template)))
    return "## Use\n\n" + "\n\n".join(blocks) if blocks else ""


def _data(record: RunRecord) -> str:
    item = record.data
    rows = ", ".join(f"{count:,} {name}" for name, count in item.rows.items())
    lines = [
        f"- file: {_code(item.name)} (SHA-256 {_code(item.sha256)}, fingerprint {_code(item.fingerprint)})",
        f"- format: {_safe(item.format)}; task: {_safe(item.task)}; rows: {_safe(rows)}",
        *(f"- {_safe(line)}" for line in item.split_report),
    ]
    if record.selection is not None:
        lines += [f"- {_safe(record.selection.sentence())}", f"- {_safe(record.selection.limits())}"]
    return "## Data\n\n" + "\n".join(lines)


def _settings(record: RunRecord) -> str:
    if not record.settings:
        return ""
    rows = [
        [_code(item.key), _code(_value(item)), _safe(item.origin), _safe(item.evidence)] for item in record.settings
    ]
    return "## Settings and where they came from\n\n" + _table(
        ["setting", "value", "origin", "why"], rows, first_left=4
    )


def _value(item: Setting) -> str:
    return item.value if isinstance(item.value, str) else files.canonical_json(item.value)


def _provenance(record: RunRecord) -> str:
    seeds = ", ".join(f"{name} {seed}" for name, seed in record.seeds.items())
    lines = [
        f"- made by Foretune {_safe(record.foretune_version)} in run {_code(record.id)} on {_safe(record.finished)}",
        f"- command: {_code(record.command)}",
        f"- base weights SHA-256: {_code(record.model.weights_sha256)}" if record.model.weights_sha256 else "",
        f"- seeds: {_safe(seeds)}" if seeds else "",
    ]
    return "## Provenance\n\n" + "\n".join(line for line in lines if line)
