"""The source of the package as syntax trees: which modules there are, what they import, what they call."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import foretune

PACKAGE = Path(foretune.__file__).parent
REPOSITORY = PACKAGE.parents[1]


@dataclass(frozen=True)
class Module:
    """One file of the package."""

    name: str
    """Dotted, without ``foretune.``: ``data.read``; a package is named like its folder, the root is ``""``."""
    path: Path
    tree: ast.Module

    @property
    def part(self) -> str:
        """The first word of the name: the folder or the single file directly under the package."""
        return self.name.partition(".")[0]


@cache
def modules() -> tuple[Module, ...]:
    """Every module of the package."""
    found = []
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(PACKAGE).with_suffix("").parts
        name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
        found.append(Module(name, path, ast.parse(path.read_text(encoding="utf-8"), str(path))))
    return tuple(found)


def walk(node: ast.AST) -> Iterator[ast.AST]:
    """Every node that runs: what stands under ``if TYPE_CHECKING:`` is for the type checker alone."""
    yield node
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test):
            for other in child.orelse:
                yield from walk(other)
        else:
            yield from walk(child)


def imported(module: Module) -> Iterator[tuple[str, int]]:
    """(dotted name, line) of everything a module imports, at its top or inside a function."""
    for node in walk(module.tree):
        if isinstance(node, ast.Import):
            yield from ((alias.name, node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module.path}:{node.lineno} imports relatively"
            if node.module == "foretune":  # `from foretune import files` imports foretune.files
                yield from ((f"foretune.{alias.name}", node.lineno) for alias in node.names)
            else:
                yield str(node.module), node.lineno


def calls(module: Module) -> Iterator[tuple[str, ast.Call, str]]:
    """(what is called as written, the call, the function or class it stands in, dotted) of every call that runs."""

    def inside(node: ast.AST, scope: tuple[str, ...]) -> Iterator[tuple[str, ast.Call, str]]:
        for child in ast.iter_child_nodes(node):
            deeper = scope
            if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
                deeper = (*scope, child.name)
            if isinstance(child, ast.Call):
                yield ast.unparse(child.func), child, ".".join(scope)
            yield from inside(child, deeper)

    yield from inside(module.tree, ())
