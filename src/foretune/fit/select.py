"""Selecting rows outside a fit: estimate, select, describe, hand over.

Scores are kept under the cache by content (model, template, rows, settings), so a selection that was stopped, or one on
a grown data set, goes on with the blocks there are, and a changed model or template shares nothing with them. What is
handed over: the kept rows, best first, in a file that ``fit`` reads; beside it a manifest and a report.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from foretune import __version__
from foretune.catalogue.models import DEFAULT_MODEL, ModelReference
from foretune.catalogue.selection import Keep, names_in, needed, parse_keep
from foretune.data import corpora
from foretune.data.columns import FOUND, Columns
from foretune.data.example import Example, task_of
from foretune.data.read import OnBadRow, ReadResult, read
from foretune.data.write import LINES, write_rows
from foretune.errors import DataError, Place, UsageError
from foretune.execution.bench import Bench
from foretune.execution.types import SPLITS, TaskSpec
from foretune.files import cache_folder, check_output, fingerprint, write_json, write_text
from foretune.fit.assistants import assisted
from foretune.fit.selected import other_rows
from foretune.models.kinds import infer_kind
from foretune.models.load import LoadedModel, bring, read_config
from foretune.selection.base import Cost, Request, Selection, Speeds
from foretune.selection.declared import cost_of, pool_of
from foretune.selection.portrait import portrait
from foretune.selection.run import answer_tokens, check_request
from foretune.selection.run import select as select_rows
from foretune.selection.task_ranking import TaskScore, rank_tasks

TRAINING_SPLITS = (None, "train")
_CONTEXT_TOKENS = 2048
OnProgress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class SelectionJob:
    """What to select from which rows, with what."""

    examples: tuple[Example, ...]
    task: str
    method: str
    keep: Keep
    target: tuple[Example, ...] = ()
    previous: tuple[Example, ...] = ()
    model: str | None = None
    fields: Mapping[str, Any] | None = None
    seed: int = 0
    context_tokens: int = _CONTEXT_TOKENS
    device: Any = "auto"
    dtype: Any = "auto"
    plain_template: bool = False
    store: Path | None = None
    """Where scores are kept; the cache when None"""

    @property
    def needs_model(self) -> bool:
        """Whether any of its selectors scores with a model."""
        return needed(names_in(self.method))[0]

    @property
    def folder(self) -> Path:
        """Where scores are kept."""
        return self.store or selection_folder()

    def request(self, bench: Bench | None, speeds: Speeds | None = None) -> Request:
        """The request that the selectors see."""
        return Request(
            examples=self.examples,
            count=self.keep.rows(len(self.examples)),
            seed=self.seed,
            target=self.target,
            previous=self.previous,
            fields=dict(self.fields or {}),
            bench=bench,
            folder=self.folder,
            speeds=speeds or Speeds(),
        )


def selection_folder() -> Path:
    """Where scores are kept unless another folder is named."""
    return cache_folder() / "selection"


def read_pool(
    data: str | Path,
    *,
    columns: Columns = FOUND,
    task: str | None = None,
    format: str | None = None,
    on_bad_row: OnBadRow = "error",
) -> tuple[ReadResult, tuple[Example, ...]]:
    """What was read, and the rows that may be selected: not those that say they are for validation or test.

    Raises `DataError` and `UsageError` as `read` does.
    """
    found = read(corpora.locate(str(data)), columns=columns, task=task, format=format, on_bad_row=on_bad_row)
    pool = tuple(row for row in found.examples if row.split in TRAINING_SPLITS)
    if not pool:
        raise DataError("no row is for training.", place=Place(str(data)), remedy="Check its split column.")
    return found, pool


def estimate(job: SelectionJob, speeds: Speeds | None = None, row: tuple[float, float] | None = None) -> Cost:
    """What the selection will take, before a model is loaded.

    ``row`` holds the mean tokens of a row's question, template included, and answer; estimated where it is None.
    """
    from foretune.catalogue.selection import work_of

    request = job.request(None, speeds)
    pool = pool_of(request)
    if row is not None:
        pool = replace(pool, prompt_tokens=row[0], answer_tokens=row[1])
    return cost_of(work_of(job.method, pool, request.fields, job.keep), request.speeds)


def run_selection(
    job: SelectionJob,
    *,
    loaded: LoadedModel | None = None,
    workers: int = 1,
    on_progress: OnProgress = lambda what, done, total: None,
    stopped: Callable[[], bool] = lambda: False,
) -> tuple[Selection, dict[str, Any]]:
    """The selection and its portrait (facts for the report), made by so many processes.

    Raises `SelectionStopped` when told to stop, and the errors of models, data and settings.
    """
    if not job.needs_model and loaded is None and job.model is None:
        request = job.request(None)
        return _carried_out(job, replace(request, on_progress=on_progress, stopped=stopped))
    with open_bench(job, loaded) as bench:
        request = replace(job.request(bench), on_progress=on_progress, stopped=stopped)
        return _carried_out(job, request, workers)


@contextmanager
def open_bench(job: SelectionJob, loaded: LoadedModel | None = None) -> Iterator[Bench]:
    """A bench in a folder of its own, whose splits are empty: selectors encode what they are given."""
    with TemporaryDirectory(prefix="foretune-select-") as folder:
        for split in SPLITS:
            write_text(Path(folder) / f"{split}.jsonl", "")
        yield _bench(job, Path(folder), loaded)


def rank_sources(
    target: str | Path,
    sources: Sequence[str | Path],
    *,
    method: str = "insta",
    model: str | None = None,
    seed: int = 0,
    context_tokens: int = _CONTEXT_TOKENS,
    epochs: float = 1.0,
) -> list[TaskScore]:
    """Data sets from the most to the least helpful for ``target``; see `selection.task_ranking`.

    Raises `UsageError` for an unknown method, `DataError` for a source that cannot be read or is of another task.
    """
    found, wanted = read_pool(target)
    pools = {str(source): other_rows(source, found.task) for source in sources}
    job = SelectionJob(
        wanted, found.task, "random", Keep("rows", 0), model=model, seed=seed, context_tokens=context_tokens
    )
    with open_bench(job) as bench:
        request = Request((), 0, seed=seed, bench=bench, folder=job.folder)
        return rank_tasks(
            wanted, pools, bench=bench, method=method, seed=seed, epochs=epochs, request=request  # type: ignore[arg-type]
        )  # fmt: skip


def _carried_out(job: SelectionJob, request: Request, workers: int = 1) -> tuple[Selection, dict[str, Any]]:
    check_request(job.method, request)
    bench = request.bench
    with assisted(job, bench if isinstance(bench, Bench) and job.needs_model else None, workers):
        chosen = select_rows(request, job.method, job.keep)
    manifest = {
        "foretune": __version__,
        "selection": job.method,
        "keep": str(job.keep),
        "fields": dict(job.fields or {}),
        "seed": job.seed,
        "model": None if bench is None else {"source": job.model, "weights": bench.weights_hash},
        "context_tokens": job.context_tokens,
        "target_rows": len(job.target),
        "previous_rows": len(job.previous),
        "pool": fingerprint([row.id for row in job.examples], length=32),
        "seconds": chosen.cost.seconds,
        "cpu_seconds": chosen.cost.cpu_seconds,
        "nested": chosen.nested,
        "n_positive": chosen.n_positive,
        "objective": chosen.objective,
        "counted": dict(chosen.manifest),
        **_cut(request),
    }
    chosen = replace(chosen, manifest=manifest)
    facts = portrait(
        job.examples,
        chosen.indices,
        answer_tokens(request),
        target=job.target,
        scores=chosen.scores,
        seed=job.seed,
    )
    return chosen, facts


def _cut(request: Request) -> dict[str, Any]:
    """How many rows were cut to fit the context, with the place of the first."""
    from foretune.data.row_label import where
    from foretune.selection.run import usable

    if request.bench is None:
        return {"cut_rows": 0}
    able = usable(request.examples).rows
    encoded = request.bench.encode([request.examples[i] for i in able])
    cut = [i for i, row in zip(able, encoded, strict=True) if row.cut or row.truncated]
    return {"cut_rows": len(cut), **({"first_cut": str(where(request.examples[cut[0]], cut[0]))} if cut else {})}


def _bench(job: SelectionJob, folder: Path, loaded: LoadedModel | None) -> Bench:
    if loaded is None:
        where = bring(job.model or DEFAULT_MODEL)
        kind = infer_kind(read_config(where))
    else:
        where, kind = loaded.folder_or_id, loaded.kind
    labels = tuple(sorted({str(row.label) for row in job.examples})) if job.task == "classification" else ()
    task = TaskSpec(
        folder=str(folder),
        task=job.task,
        model=ModelReference(str(where), kind=kind, dtype=job.dtype),
        metric="loss",
        labels=labels,
        context_tokens=job.context_tokens,
        seed=job.seed,
        device=job.device,
        plain_template=job.plain_template,
    )
    bench = Bench(task, loaded)
    bench.model.to(bench.accelerator.device)
    return bench


def outputs(output: Path) -> dict[str, Path]:
    """What is written beside the kept rows."""
    stem = output.with_suffix("")
    return {
        "rows": output,
        "manifest": stem.with_name(f"{stem.name}.manifest.json"),
        "report": stem.with_name(f"{stem.name}.report.html"),
    }


def check_outputs(output: Path, reads: Mapping[str, str | None]) -> None:
    """Raise `UsageError` where ``output`` does not end as JSON lines do, or one of `outputs` replaces what is read."""
    if output.suffix.lower() not in LINES:
        raise UsageError("the rows are written as JSON lines.", place=Place(output), remedy="Let it end in .jsonl.")
    for path in outputs(output).values():
        check_output(path, reads)


def hand_over(job: SelectionJob, chosen: Selection, facts: Mapping[str, Any], output: Path, name: str) -> None:
    """Write the kept rows, the manifest with every index and score, and the report. Raises `OutputError`."""
    from foretune.report.selection_page import render

    paths = outputs(output)
    scores = None if chosen.scores is None else [s if abs(s) != float("inf") else None for s in chosen.scores]
    value = {**chosen.manifest, "data": name, "indices": list(chosen.indices), "scores": scores}
    write_text(paths["report"], render(name, chosen.manifest, facts))
    write_json(paths["manifest"], value)
    write_rows(output, chosen.apply(job.examples))


def select(
    dataset: str | Path | Sequence[Example],
    *,
    method: str,
    budget: str | float | int,
    model: Any = None,
    tokenizer: Any = None,
    target: str | Path | Sequence[Example] | None = None,
    previous: str | Path | Sequence[Example] | None = None,
    seed: int = 0,
    store: str | Path | None = None,
    fields: Mapping[str, Any] | None = None,
    context_tokens: int = _CONTEXT_TOKENS,
    device: str = "auto",
    dtype: str = "auto",
    workers: int = 1,
    on_progress: OnProgress = lambda what, done, total: None,
) -> Selection:
    """The rows of ``dataset`` that ``method`` keeps; what ``foretune select`` does, without files.

    ``dataset``, ``target`` and ``previous`` are files, data sets by name, or examples. ``budget``: a share, a number
    of rows, or answer tokens ("200k tokens"). ``model`` is a name, a folder, or a loaded transformers model with its
    ``tokenizer``. ``fields`` are selectors' settings (``{"ifd.ratio": "loss"}``). ``store`` keeps scores between calls.
    ``workers`` processes share the scoring, unless ``model`` is an object.
    Raises `UsageError`, `DataError`, `ModelError`.
    """
    if isinstance(dataset, str | Path):
        found, pool = read_pool(dataset)
        task: str = found.task
    else:
        pool = tuple(dataset)
        task = task_of(pool)

    def others(source: str | Path | Sequence[Example] | None) -> tuple[Example, ...]:
        if source is None or isinstance(source, str | Path):
            return other_rows(source, task)
        return tuple(source)

    loaded = None if model is None or isinstance(model, str | Path) else _given(model, tokenizer)
    job = SelectionJob(
        examples=pool, task=task, method=method, keep=parse_keep(budget), target=others(target),
        previous=others(previous), model=None if model is None or loaded is not None else str(model), fields=fields,
        seed=seed, context_tokens=context_tokens, device=device, dtype=dtype,
        store=None if store is None else Path(store),
    )  # fmt: skip
    workers = 1 if loaded is not None else workers
    return run_selection(job, loaded=loaded, workers=workers, on_progress=on_progress)[0]


def _given(model: Any, tokenizer: Any) -> LoadedModel:
    """A model object as a loaded model; its weights are hashed, so that kept scores are never another model's."""
    import hashlib

    if tokenizer is None:
        raise UsageError("a loaded model needs its tokenizer.", remedy="Give tokenizer=, or the model's folder.")
    digest = hashlib.sha256()
    for name, tensor in model.state_dict().items():
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().view(-1).float().numpy().tobytes())
    kind = infer_kind(model.config.to_dict())
    return LoadedModel(model.eval(), tokenizer, kind, str(model.config.name_or_path), digest.hexdigest()[:32])
