"""Every parameter of a model that is known by its shapes, with its role and size: what the selector language sees.

The names and roles are those that `foretune.models.selector` finds on the loaded model, heads left out (a classifier's
is new and trained whole). So an expression picks, and counts, the same on ``config.json`` as on the weights.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from functools import lru_cache

from foretune.cost.shapes import ModelShapes
from foretune.models.modules import ModuleRole, describe, layer_counts
from foretune.models.selector import Parameter, parse


@lru_cache(maxsize=8)
def shape_parameters(shapes: ModelShapes) -> tuple[tuple[Parameter, int], ...]:
    """(parameter, number of entries) of every parameter outside the heads."""
    found = list(_modules(shapes))
    counts = layer_counts([module for module, _ in found])
    listed = []
    for module, sizes in found:
        layers = counts.get(module.stack, 0) if module.layer is not None else 0
        listed += [(Parameter(f"{module.name}.{kind}", module, layers), size) for kind, size in sizes.items()]
    return tuple(listed)


def _modules(shapes: ModelShapes) -> Iterator[tuple[ModuleRole, dict[str, int]]]:
    for linear in shapes.linears:
        sizes = {"weight": linear.inputs * linear.outputs} | ({"bias": linear.outputs} if linear.bias else {})
        for name in linear.names():
            yield describe(name), sizes
    for norm in shapes.norms:
        sizes = {"weight": norm.width} | ({"bias": norm.width} if norm.bias else {})
        for layer in range(norm.layers):
            yield replace(describe(norm.pattern.format(layer=layer)), role="norm"), sizes
    for table in shapes.embeddings:
        role = "embedding" if table.role == "tokens" else "position_embedding"
        yield ModuleRole(table.pattern, role, None, describe(table.pattern).stack), {"weight": table.parameters}


def picked_size(shapes: ModelShapes, expression: str) -> int:
    """Entries of all parameters that ``expression`` picks; 0 for none. Raises `UsageError` when it cannot be read."""
    predicate = parse(expression)
    return sum(size for parameter, size in shape_parameters(shapes) if predicate(parameter))
