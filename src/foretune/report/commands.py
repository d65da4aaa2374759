"""The commands with which the result of a run is used, shared by the report and the model card."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import PurePath

from foretune.report.record import ExportInfo, RunRecord

_CLASSES = {
    "causal": ("AutoPeftModelForCausalLM", "AutoModelForCausalLM"),
    "seq2seq": ("AutoPeftModelForSeq2SeqLM", "AutoModelForSeq2SeqLM"),
    "encoder": ("AutoPeftModelForSequenceClassification", "AutoModelForSequenceClassification"),
}


def usage_commands(record: RunRecord) -> list[tuple[str, str]]:
    """Titles with commands for each export; paths are quoted for the shell or for Python."""
    commands: list[tuple[str, str]] = []
    for export in record.exports:
        if export.verified is False:
            continue
        commands += _ours(export, record) if export.kind in ("adapter", "full") else []
        commands += {"adapter": _adapter, "full": _folder, "merged": _folder, "gguf": _gguf}[export.kind](
            record, export
        )
    return commands


def base_name(record: RunRecord) -> str:
    """The base model as other tools load it: its folder during the run where it has one, else its source."""
    return record.model.folder or record.model.source


def short_name(record: RunRecord) -> str:
    """A name for the adapter in a server: lower-case letters, digits and hyphens, from the data's file name."""
    return re.sub(r"[^a-z0-9]+", "-", PurePath(record.data.name).stem.lower()).strip("-") or "adapter"


def _ours(export: ExportInfo, record: RunRecord) -> list[tuple[str, str]]:
    folder = shlex.quote(export.folder)
    if record.model.kind == "encoder":
        return [("Answer a file", f"foretune predict questions.jsonl --adapter {folder}")]
    return [
        ("Talk to it, or answer a file", f"foretune chat {folder}\nforetune predict questions.jsonl --adapter {folder}")
    ]


def _python(record: RunRecord, folder: str, *, adapter: bool) -> str:
    names = _CLASSES.get(record.model.kind, _CLASSES["causal"])
    name, package = (names[0], "peft") if adapter else (names[1], "transformers")
    place = json.dumps(folder)
    if adapter:
        imports = f"from peft import {name}\nfrom transformers import AutoTokenizer"
    else:
        imports = f"from {package} import {name}, AutoTokenizer"
    return f"{imports}\n\nmodel = {name}.from_pretrained({place})\ntokenizer = AutoTokenizer.from_pretrained({place})"


def _adapter(record: RunRecord, export: ExportInfo) -> list[tuple[str, str]]:
    commands = [("Python, with peft", _python(record, export.folder, adapter=True))]
    if record.model.kind == "causal":
        module = shlex.quote(f"{short_name(record)}={export.folder}")
        serve = f"vllm serve {shlex.quote(base_name(record))} --enable-lora --lora-modules {module}"
        commands.append(("Serve with vLLM", serve))
    return commands


def _folder(record: RunRecord, export: ExportInfo) -> list[tuple[str, str]]:
    commands = [("Python, with transformers", _python(record, export.folder, adapter=False))]
    if record.model.kind == "causal":
        commands.append(("Serve the merged model with vLLM", f"vllm serve {shlex.quote(export.folder)}"))
    return commands


def _gguf(record: RunRecord, export: ExportInfo) -> list[tuple[str, str]]:
    return [("llama.cpp", f"llama-cli -m {shlex.quote(export.folder)}")]
