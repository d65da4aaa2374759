"""What a user asked for, kept word for word in the run folder so that a resumed run asks for the same."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from foretune.config.resolve import resolve
from foretune.config.spec import FitSpec
from foretune.errors import OutputError, Place
from foretune.evaluation.metrics import metric
from foretune.files import fingerprint, read_json, write_json
from foretune.fit.history import known_history
from foretune.fit.plan import Plan, plan
from foretune.fit.strategy import earlier_runs
from foretune.plugins import load as load_plugins

REQUEST = "request.json"
FREE_TO_CHANGE = ("budget.time", "budget.price_per_hour", "search.workers")
"""Settings that may differ when a run is resumed: they change no decision that was already made."""
PLACES = (
    "data.path", "data.validation", "data.test", "data.target", "data.previous", "model.source", "search.warm_start",
)  # fmt: skip
"""Settings that may be paths: kept absolute, so that a run can be resumed from another working directory."""


@dataclass(frozen=True)
class FitRequest:
    """Inputs of a fit: settings by dotted key, ``--set`` assignments, and the text of a settings file."""

    options: Mapping[str, Any]
    sets: Sequence[str] = ()
    config: str | None = None
    """The path of a settings file; its content is copied into the run folder."""
    plugins: tuple[str, ...] = ()
    extra: Mapping[str, Any] = field(default_factory=dict)
    resumed: bool = False
    """Read back from a run folder."""

    @property
    def identity(self) -> str:
        """A hash of what decides the run: the same request again is the same run."""
        decisive = {
            key: value for key, value in self.options.items() if value is not None and key not in FREE_TO_CHANGE
        }
        text = None if self.config is None else Path(self.config).read_text(encoding="utf-8", errors="replace")
        return fingerprint([decisive, list(self.sets), text, list(self.plugins)])

    def settings(self) -> FitSpec:
        """The checked settings; raises `UsageError`."""
        load_plugins(self.plugins)  # a plugin's method has settings, which are checked here
        file = None if self.config is None else Path(self.config)
        spec = resolve(file=file, sets=list(self.sets), options=dict(self.options)).spec
        if spec.data.metric is not None:
            metric(spec.data.metric)
        return spec

    def plan(self) -> Plan:
        """The plan of this request, with what this machine learnt from earlier runs."""
        load_plugins(self.plugins)
        history, outcomes = known_history()
        return plan(
            config=None if self.config is None else Path(self.config),
            sets=tuple(self.sets),
            options=dict(self.options),
            history=history,
            outcomes=outcomes,
            runs=earlier_runs(),
        )

    def save(self, folder: Path) -> None:
        """Keep the request (with the content of its settings file) in ``folder``."""
        options = {key: _from_anywhere(value) if key in PLACES else value for key, value in self.options.items()}
        plugins = tuple(_from_anywhere(plugin) for plugin in self.plugins)
        kept = replace(self, options=options, plugins=plugins)
        if self.config is not None:
            text = Path(self.config).read_text(encoding="utf-8")
            kept = replace(kept, config=None, extra={**self.extra, "config_text": text})
        write_json(folder / REQUEST, {**asdict(kept), "identity": self.identity})


def _from_anywhere(value: Any) -> Any:
    """The absolute path of a file or folder that is here; any other value (a hub id, a data set's name) as it is."""
    return str(Path(value).resolve()) if isinstance(value, str) and Path(value).exists() else value


def saved_identity(folder: Path) -> str | None:
    """The identity of the request begun in ``folder``, or None."""
    path = folder / REQUEST
    return str(read_json(path)["identity"]) if path.exists() else None


def saved_request(folder: Path, changes: Mapping[str, Any] | None = None) -> FitRequest:
    """The request that was begun in ``folder``, with ``changes`` to what is free to change.

    Raises `OutputError` when nothing was begun there.
    """
    path = folder / REQUEST
    if not path.exists():
        raise OutputError(
            "no run was begun here.", place=Place(folder), remedy="List runs with `foretune runs`, or start one."
        )
    value = read_json(path)
    config = None
    if (text := value["extra"].get("config_text")) is not None:
        config_path = folder / "config.yaml"
        if not config_path.exists():
            from foretune.files import write_text

            write_text(config_path, text)
        config = str(config_path)
    options = {**value["options"], **{k: v for k, v in (changes or {}).items() if v is not None}}
    return FitRequest(options, tuple(value["sets"]), config, tuple(value["plugins"]), resumed=True)
