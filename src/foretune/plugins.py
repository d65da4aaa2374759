"""Code from outside: plugin files named with ``--plugin``, and packages that offer an entry point.

A plugin registers what it brings when it is run: a method by `foretune.methods.registry.add`, a metric by
`foretune.evaluation.metrics.own_metric`. Packages name a module under the entry-point group ``foretune.plugins``.
Nothing is looked for elsewhere, and nothing is run twice.
"""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Iterable
from importlib.metadata import entry_points
from pathlib import Path

from foretune.errors import Place, UsageError

GROUP = "foretune.plugins"

_loaded: set[str] = set()


def load(files: Iterable[Path | str] = ()) -> None:
    """Run every installed plugin and the given files, once each. Raises `UsageError` for a file that is none."""
    for entry in entry_points(group=GROUP):
        if entry.value not in _loaded:
            _loaded.add(entry.value)
            entry.load()
    for file in files:
        path = Path(file).resolve()
        if str(path) not in _loaded:
            _run(path)
            _loaded.add(str(path))


def _run(path: Path) -> None:
    """Run a user's plugin file, named on the command line, in this process."""
    if not path.is_file():
        raise UsageError("there is no such plugin file.", place=Place(path), remedy="Check --plugin.")
    spec = importlib.util.spec_from_file_location(f"foretune_plugin_{path.stem}", path)
    if spec is None or spec.loader is None:
        raise UsageError("this is not a Python file.", place=Place(path), remedy="Check --plugin.")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
