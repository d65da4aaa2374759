"""A registry is a literal dict in one file: every entry has its own file, and every such file its entry."""

from __future__ import annotations

import inspect
from pathlib import Path

from tests.structure.source import PACKAGE, REPOSITORY, modules


def _files(folder: str, *shared: str) -> set[str]:
    return {path.stem for path in (PACKAGE / folder).glob("*.py")} - {"__init__", *shared}


def test_every_method_is_declared_registered_and_has_its_file():
    """One file here and one in the catalogue; the methods that peft has are rows of a table on both sides."""
    from foretune.catalogue.methods import METHODS as DECLARED
    from foretune.methods.registry import METHODS

    assert set(METHODS) == set(DECLARED)
    for name, method in METHODS.items():
        assert method.name == name
        assert method.space().names() == DECLARED[name].space.names()
    shared = {"base", "registry", "targets", "trainable", "adapter", "attachment", "fused", "kept", "share", "hf_peft"}
    own = {name for name, method in METHODS.items() if _stem(name) in _files("methods", *shared)}
    assert {_stem(name) for name in own} == _files("methods", *shared)
    assert {_stem(name) for name in own} <= _files("catalogue/methods")


def _stem(name: str) -> str:
    return name.replace("-", "_")


SHARED = ("base", "base_states", "compose", "lora_pairs", "registry", "row_noise", "weight_noise")


def test_every_regularizer_has_its_file():
    from foretune.catalogue.regularizers import REGULARIZERS as DECLARED
    from foretune.regularization.registry import REGULARIZERS

    where = {name: Path(inspect.getfile(build)).stem for name, build in REGULARIZERS.items()}
    assert where == {name: name.replace("-", "_") for name in REGULARIZERS}
    assert _files("regularization", *SHARED) == set(where.values())
    assert set(REGULARIZERS) == set(DECLARED)
    for name, build in REGULARIZERS.items():
        regularizer = build()
        assert regularizer.name == name
        fields = {
            parameter.name.removeprefix(f"{name}."): parameter.default for parameter in regularizer.space().parameters
        }
        assert DECLARED[name].strength in fields
        assert set(inspect.signature(build).parameters) == set(fields)
        assert {key: inspect.signature(build).parameters[key].default for key in fields} == fields


def test_every_data_set_has_its_builder():
    from foretune.catalogue.datasets import DATASETS
    from foretune.data.corpora import BUILDERS, FACTS

    assert {dataset.family for dataset in DATASETS.values()} == {*BUILDERS, "facts"}
    assert FACTS.is_file()
    for family, build in BUILDERS.items():
        assert Path(inspect.getfile(build)).stem == family


def test_every_metric_is_known_by_its_own_name():
    from foretune.evaluation.metrics import METRICS, TASK_METRICS

    assert all(metric.name == name for name, metric in METRICS.items())
    assert set(TASK_METRICS.values()) <= set(METRICS)


def test_every_exception_in_these_tests_names_a_module_that_exists():
    from tests.structure.test_layers import UPWARDS
    from tests.structure.test_rules import MAY_RUN_CODE, MAY_WRITE

    names = {module.name for module in modules()}
    assert {name for name, _ in (*UPWARDS, *MAY_WRITE, *MAY_RUN_CODE)} <= names


def test_every_file_of_the_package_is_shipped():
    import tomllib

    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))
    patterns = project["tool"]["setuptools"]["package-data"]["*"]
    present = {
        path
        for path in PACKAGE.rglob("*")
        if path.is_file() and path.suffix not in (".py", ".pyc") and "__pycache__" not in path.parts
    }
    assert {"facts.jsonl", "general_text.txt", "schema.sql", "style.css", "py.typed"} <= {path.name for path in present}
    assert not [path for path in present if not any(_matches(path, pattern) for pattern in patterns)]
    assert not [pattern for pattern in patterns if not any(_matches(path, pattern) for path in present)]


def _matches(path: Path, pattern: str) -> bool:
    """As setuptools sees it: the pattern starts at the nearest package, and no star crosses a folder."""
    package = next(folder for folder in path.parents if (folder / "__init__.py").is_file())
    inside = path.relative_to(package)
    return len(inside.parts) == len(Path(pattern).parts) and inside.match(pattern)
