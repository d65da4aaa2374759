"""The commands with which the result of a run is used, shared by the report and the model card."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import PurePath

from foretune.catalogue.methods.peft_rows import PEFT
from foretune.report.record import ExportInfo, RunRecord

_CLASSES = {
    "causal": ("AutoPeftModelForCausalLM", "AutoModelForCausalLM"),
    "seq2seq": ("AutoPeftModelForSeq2SeqLM", "AutoModelForSeq2SeqLM"),
    "encoder": ("AutoPeftModelForSequenceClassification", "AutoModelForSequenceClassification"),
}
_SERVED_AS_LORA = (None, "lora", "rslora", "pissa", "olora", "lora+", "lora-plus", "eva", "lora-ga")
"""Methods whose adapter folder is a plain LoRA, which servers load as it is."""
_KNOWN_TO_PEFT = (*_SERVED_AS_LORA, *PEFT)
_VLLM_RANKS = (8, 16, 32, 64, 128, 256, 320, 512)  # the sizes that vLLM's --max-lora-rank accepts
_VLLM_DEFAULT_RANK = 16


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
    answer = f"foretune predict {folder} prompts.txt --output answers.jsonl"
    if record.model.kind == "encoder":
        return [("Answer a file", answer)]
    return [("Talk to it, or answer a file", f"foretune chat {folder}\n{answer}")]


def _python(record: RunRecord, folder: str, *, adapter: bool) -> str:
    names = _CLASSES.get(record.model.kind, _CLASSES["causal"])
    name, place = names[0 if adapter else 1], json.dumps(folder)
    if adapter:
        imports = f"from peft import {name}\nfrom transformers import AutoTokenizer"
        if method_of(record) not in _KNOWN_TO_PEFT:
            imports = f"import foretune  # tells peft of {method_of(record)}\n{imports}"
    else:
        imports = f"from transformers import {name}, AutoTokenizer"
    # the base is loaded first, whose head has another size
    outputs = f", num_labels={len(record.data.labels) or 1}" if adapter and record.model.kind == "encoder" else ""
    loaded = f"model = {name}.from_pretrained({place}{outputs})"
    return f"{imports}\n\n{loaded}\ntokenizer = AutoTokenizer.from_pretrained({place})"


def _adapter(record: RunRecord, export: ExportInfo) -> list[tuple[str, str]]:
    commands = [("Python, with peft", _python(record, export.folder, adapter=True))]
    if record.model.kind != "causal":
        return commands
    if method_of(record) not in _SERVED_AS_LORA:
        return [*commands, ("To serve it, fold it into the base first", "foretune export . --merge --output merged")]
    module = shlex.quote(f"{short_name(record)}={export.folder}")
    rank = next((size for size in _VLLM_RANKS if size >= _rank(record)), _VLLM_RANKS[-1])
    option = f" --max-lora-rank {rank}" if rank > _VLLM_DEFAULT_RANK else ""
    serve = f"vllm serve {shlex.quote(base_name(record))} \\\n  --enable-lora --lora-modules {module}{option}"
    return [*commands, ("Serve with vLLM", serve)]


def method_of(record: RunRecord) -> str | None:
    """The winner's method by name; None when the record does not say."""
    config = record.winner.config if record.winner is not None else {}
    name = config.get("method.name", config.get("method"))
    return None if name is None else str(name)


def _rank(record: RunRecord) -> int:
    config = record.winner.config if record.winner is not None else {}
    ranks = [v for name, v in config.items() if name.rpartition(".")[2] in ("rank", "r") and isinstance(v, int)]
    return max(ranks, default=0)


def _folder(record: RunRecord, export: ExportInfo) -> list[tuple[str, str]]:
    commands = [("Python, with transformers", _python(record, export.folder, adapter=False))]
    if record.model.kind == "causal":
        commands.append(("Serve the merged model with vLLM", f"vllm serve {shlex.quote(export.folder)}"))
    return commands


def _gguf(record: RunRecord, export: ExportInfo) -> list[tuple[str, str]]:
    return [("llama.cpp", f"llama-cli -m {shlex.quote(export.folder)}")]
