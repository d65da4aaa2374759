"""One export from start to end: find adapter and base, answer the probes, write, load fresh, compare.

Serves ``foretune export``. The probes are test prompts that the run's report shows, so the check asks what the
evaluation asked. Nothing is left under the final name when the check fails.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from foretune.catalogue.models import known_model
from foretune.errors import ModelError, Place, UsageError
from foretune.export import loading
from foretune.export.approximate import Agreement, approximate
from foretune.export.gguf import FILE, export_gguf, refuse_unsupported
from foretune.export.merge import export_merged, write_model
from foretune.export.verify import DEFAULT_PROBES, ProbeAnswer, Verification, answer_probes, fitting, verify
from foretune.files import check_free, explained
from foretune.models.fetch import fetched, hub_snapshot
from foretune.models.load import weights_hash
from foretune.report.card import render_card
from foretune.report.record import RESULT, ExportInfo, RunRecord, read_record

Form = Literal["merged", "gguf"]
MOST_PROBES = 8
MOST_PROMPTS = 64
"""Prompts that the gates of an adapter are measured and checked on."""
LONGEST_PROBE = 1500  # characters: enough of any prompt to notice a difference


@dataclass(frozen=True)
class Source:
    """What is exported: the trained folder, its base (None for whole weights), and the run's record if there is one."""

    trained: Path
    base: Path | None
    record: RunRecord | None

    probes: tuple[str, ...] = DEFAULT_PROBES
    """Prompts to check the export with"""

    @property
    def labels(self) -> tuple[str, ...]:
        """Class names in their fixed order; empty unless known."""
        return self.record.data.labels if self.record is not None else ()


def find_source(folder: Path, base: Path | None = None) -> Source:
    """The source behind a run folder, an adapter folder or a folder of whole weights.

    Raises `ModelError` where a part is missing, and where the base that is here has other weights than the record says;
    a base that is named with ``base`` is taken at its word.
    """
    record = None
    trained = folder
    if (folder / RESULT).is_file():
        record = read_record(folder)
        trained = _trained(folder, record)
    if not loading.is_adapter(trained):
        loading.read_config(trained)
        return Source(trained, None, record)
    named = str(loading.read_config(trained, loading.ADAPTER_CONFIG).get("base_model_name_or_path") or "")
    candidates = [str(base)] if base else [name for name in (record and record.model.folder, named) if name]
    for candidate in candidates:
        if (found := _folder_of(candidate)) is not None:
            if record is not None and base is None:
                _check_weights(found, record)
            return Source(trained, found, record)
    tried = ", ".join(candidates) or "no folder is named"
    raise ModelError(
        f"the base model of this adapter is not here ({tried}).",
        place=Place(trained),
        remedy="Name its folder with --base FOLDER.",
    )


def _folder_of(name: str) -> Path | None:
    """The folder of a model that is here: a folder, a catalogue model fetched before, a hub model in the cache."""
    if (Path(name) / loading.CONFIG).is_file():
        return Path(name)
    return fetched(name) if known_model(name) is not None else hub_snapshot(name)


def _check_weights(base: Path, record: RunRecord) -> None:
    recorded = record.model.weights_sha256
    if recorded and weights_hash(base) != recorded:
        raise ModelError(
            "these are not the weights that the run was trained on.",
            place=Place(base),
            remedy="Name the folder of the model that it was trained on with --base FOLDER.",
        )


def _trained(folder: Path, record: RunRecord) -> Path:
    for item in record.exports:
        if item.kind in ("adapter", "full"):
            trained = folder / item.folder
            if not trained.resolve().is_relative_to(folder.resolve()):
                raise ModelError(f"the record names a folder outside the run: {item.folder}.", place=Place(folder))
            return trained
    raise ModelError("this run exported no adapter.", place=Place(folder), remedy="See its report for the reason.")


def export_run(
    folder: Path, destination: Path, form: Form, *, dtype: str = "auto", base: Path | None = None
) -> tuple[Path, Verification]:
    """Write the ``form`` of what lies in ``folder`` to ``destination`` and check it; returns its path and the check.

    ``dtype`` auto keeps the base's number type. Raises `OutputError` when ``destination`` is in use, `ModelError`
    when something is missing or the export answers differently, `UsageError` when the form cannot hold the model.
    """
    check_free(destination)
    source = find_source(folder, base)
    weights = source.base or source.trained
    target = str(loading.torch_dtype(dtype, weights)).removeprefix("torch.")
    if form == "gguf":
        refuse_unsupported(loading.read_config(weights), weights)
    source = replace(source, probes=_short_prompts(source)[:MOST_PROBES])
    reference = _reference(source)
    card = _card(source, destination, form)
    if form == "merged":
        _merged(source, destination, target, card)
        return destination, verify(reference, destination, source.probes)
    return _gguf(source, destination, target, card, reference)


def export_plain_lora(
    folder: Path, destination: Path, form: Form | None, dtype: str, base: Path | None, most_kl: float
) -> tuple[Agreement, Verification]:
    """A LoRATRF adapter as a plain LoRA at ``destination``, or that LoRA as ``form``; how near it is, and the check.

    Raises as `export_run` does, and `UsageError` when the LoRA is further than ``most_kl`` nats from the adapter.
    """
    check_free(destination)
    source = find_source(folder, base)
    if source.base is None:
        raise UsageError("whole weights have no gates to approximate.", place=Place(folder))
    base, prompts = source.base, _short_prompts(source)[:MOST_PROMPTS]
    source = replace(source, probes=prompts[:MOST_PROBES])
    settings: dict[str, Any] = {"labels": source.labels, "most_kl": most_kl}
    if form is None:
        near = approximate(base, source.trained, destination, prompts, **settings)
        plain = replace(source, trained=destination)
        reference = _reference(plain)
        target = str(loading.torch_dtype(dtype, source.base)).removeprefix("torch.")
        return near, verify(reference, destination, source.probes, dtype=target, base=source.base, labels=source.labels)
    with tempfile.TemporaryDirectory(prefix=".plain-lora-") as name:
        near = approximate(base, source.trained, Path(name) / "lora", prompts, **settings)
        _, check = export_run(Path(name) / "lora", destination, form, dtype=dtype, base=source.base)
    return near, check


def _short_prompts(source: Source) -> tuple[str, ...]:
    """The run's own prompts, as far as the model has positions for them."""
    pairs = source.record.examples if source.record is not None else ()
    prompts = tuple(dict.fromkeys(pair.prompt[:LONGEST_PROBE] for pair in pairs if pair.prompt.strip()))
    config = loading.read_config(source.base or source.trained)
    tokenizer = loading.load_tokenizer(_tokenizer_folder(source))
    adapter = loading.read_config(source.trained, loading.ADAPTER_CONFIG) if source.base is not None else {}
    lengths = (adapter.get(name) for name in ("num_virtual_tokens", "prompt"))
    learnt = max((length for length in lengths if isinstance(length, int)), default=0)
    return fitting(prompts, tokenizer, config, learnt)


def _reference(source: Source) -> tuple[ProbeAnswer, ...]:
    """What the adapter answers over its base, float32 and unmerged: the evaluated model without rounding."""
    import torch

    model = loading.load(source.trained, torch.float32, base=source.base, labels=source.labels)
    return answer_probes(model, loading.load_tokenizer(_tokenizer_folder(source)), source.probes)


def _tokenizer_folder(source: Source) -> Path:
    own = (source.trained / "tokenizer_config.json").is_file()
    return source.trained if own or source.base is None else source.base


def _merged(source: Source, destination: Path, dtype: str, card: str | None) -> None:
    import torch

    if source.base is not None:
        export_merged(source.base, source.trained, destination, dtype, labels=source.labels, card=card)
        return
    model = loading.load_plain(source.trained, loading.kind_of(source.trained), torch.float32)
    write_model(model, loading.load_tokenizer(source.trained), destination, dtype, card=card)


def _gguf(
    source: Source, destination: Path, dtype: str, card: str | None, reference: Sequence[ProbeAnswer]
) -> tuple[Path, Verification]:
    with explained(destination):
        destination.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(
            prefix=f".{destination.name}.", suffix=".part", dir=destination.parent
        ) as name:
            merged = Path(name) / "merged"
            _merged(source, merged, "float32", None)
            path = export_gguf(merged, destination, dtype, card=card)
    return path, verify(reference, destination, source.probes, gguf=FILE, dtype=dtype)


def _card(source: Source, destination: Path, form: Form) -> str | None:
    if source.record is None:
        return None
    place = destination / FILE if form == "gguf" else destination
    record = replace(source.record, exports=(ExportInfo(form, str(place)),))
    return render_card(record, adapter=False)
