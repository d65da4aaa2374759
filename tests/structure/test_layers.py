"""Imports point downwards only, and ``search`` stands on torch-free ground."""

from __future__ import annotations

import ast

from tests.structure.source import Module, imported, modules

LAYERS = (
    (
        "",
        "errors",
        "units",
        "seeding",
        "files",
        "packages",
        "peft_hook",
        "plugins",
    ),  # "" is foretune/__init__.py with the version
    ("catalogue", "config", "cost", "experience"),
    ("search",),
    ("data", "models"),
    ("methods", "regularization"),
    ("training", "evaluation"),
    ("selection",),
    ("execution",),
    ("report", "export"),
    ("fit", "study"),
    ("collect",),
    ("cli",),
    ("__main__",),
)
SAME_LAYER = {
    ("", "peft_hook"): "`import foretune` makes peft load our adapters",
    ("units", "errors"): "a quantity that cannot be read is a UsageError",
    ("plugins", "errors"): "a plugin that is not there is a UsageError",
    ("files", "errors"): "a file that cannot be written is an OutputError",
    ("packages", "errors"): "what a package lacks is the caller's error",
    ("packages", "files"): "downloads are written and hashed like everything else",
    ("config", "catalogue"): "the settings of a trial are declared in the catalogue",
    ("cost", "catalogue"): "what a model costs depends on its kind",
    ("evaluation", "training"): "scoring runs the training loop's forward pass, so that both see the same loss",
    ("study", "fit"): "a study reads rows, forecasts and fills the experience as a fit does",
    ("export", "report"): "an export reads the run's record and writes a model card",
}
"""Imports between parts of one layer that are wanted, with the reason; never in both directions."""
UPWARDS = {
    ("execution.jobs", "export"): "the worker that holds the weights also writes and verifies the adapter",
    ("", "fit"): "foretune.fit, plan and resume load on first use, so that `import foretune` stays light",
}
"""Imports against the order, module by module, with the reason."""
TORCH_FREE = {*LAYERS[0], *LAYERS[1], "search", "report"}
HEAVY_INSIDE_FUNCTIONS = {
    ("search.quick_tune.surrogate", "torch"): "the published deep kernel, loaded when that strategy is asked for",
    ("seeding", "torch"): "a named torch generator, for those who train",
}
HEAVY = ("torch", "transformers", "peft", "accelerate", "datasets", "safetensors", "tokenizers")
SEARCH_STANDS_ON = {"", "errors", "units", "seeding", "files", "catalogue", "cost", "experience", "search"}


def _level(part: str) -> int:
    return next(level for level, parts in enumerate(LAYERS) if part in parts)


def _dependencies(module: Module) -> list[tuple[str, int]]:
    """(part, line) of the package's own parts that a module imports."""
    known = {part for parts in LAYERS for part in parts}
    found = []
    for name, line in imported(module):
        if name.partition(".")[0] != "foretune":
            continue
        part = ([*name.split("."), ""])[1]
        found.append((part if part in known else "", line))  # foretune.__version__ stands in the root
    return found


def test_every_part_has_its_layer():
    listed = [part for parts in LAYERS for part in parts]
    assert len(listed) == len(set(listed))
    assert {module.part for module in modules()} <= set(listed)


def test_imports_point_downwards():
    wrong = []
    for module in modules():
        for part, line in _dependencies(module):
            here, there = _level(module.part), _level(part)
            if part == module.part or there < here:
                continue
            pair = (module.part, part) if here == there else (module.name, part)
            exceptions = SAME_LAYER if here == there else UPWARDS
            if pair not in exceptions:
                wrong.append(f"{module.path}:{line}: {module.name or 'foretune'} imports {part}")
    assert not wrong, "\n".join(wrong)


def test_exceptions_inside_a_layer_have_one_direction():
    assert not [pair for pair in SAME_LAYER if pair[::-1] in SAME_LAYER]


def test_exceptions_are_in_use():
    pairs = [(module, part) for module in modules() for part, _ in _dependencies(module)]
    lazily = {("", "fit")}  # through importlib, which no syntax tree shows
    assert set(UPWARDS) - lazily <= {(module.name, part) for module, part in pairs}
    assert set(SAME_LAYER) <= {(module.part, part) for module, part in pairs}


def test_search_stands_on_catalogue_cost_and_experience_alone():
    for module in modules():
        if module.part == "search":
            assert {part for part, _ in _dependencies(module)} <= SEARCH_STANDS_ON, module.name


def test_the_ground_is_light():
    """Nothing heavy at all below `data`; `seeding` alone makes a torch generator, inside the function that is asked."""
    wrong = [
        f"{module.path}:{line}: {name}"
        for module in modules()
        if module.part in TORCH_FREE
        for name, line in imported(module)
        if name.partition(".")[0] in HEAVY and (module.name, name) not in HEAVY_INSIDE_FUNCTIONS
    ]
    assert not wrong, "\n".join(wrong)
    for name, heavy in HEAVY_INSIDE_FUNCTIONS:
        module = next(module for module in modules() if module.name == name)
        at_the_top = Module(name, module.path, ast.Module([n for n in module.tree.body if _imports(n)], []))
        assert heavy not in {found for found, _ in imported(at_the_top)}


def _imports(node: ast.stmt) -> bool:
    return isinstance(node, ast.Import | ast.ImportFrom)


def test_command_modules_import_only_light_things_at_their_top():
    light = {"foretune", "typer", "typing", "__future__", "collections", "contextlib", "dataclasses", "json", "os",
             "inspect", "pathlib", "re", "shlex", "sys", "time", "enum", "functools"}  # fmt: skip
    ground = {"", "errors", "units", "seeding", "files", "packages", "catalogue", "cli"}
    wrong = []
    for module in modules():
        if module.part != "cli":
            continue
        for node in module.tree.body:
            if not _imports(node):
                continue
            for name, line in imported(Module(module.name, module.path, ast.Module([node], []))):
                parts = [*name.split("."), ""]
                ours = parts[0] == "foretune"
                if parts[0] not in light or (ours and parts[1] not in ground and parts[1] != "__version__"):
                    wrong.append(f"{module.path}:{line}: {name}")
    assert not wrong, "\n".join(wrong)
