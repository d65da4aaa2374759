"""The documents say what the code does: tables, lists and links are held to it."""

from __future__ import annotations

import ast
import json
import re
import shlex
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import typer
import yaml

from foretune.cli.main import app
from foretune.data.formats import FORMATS
from foretune.data.sources import READERS
from foretune.errors import EXIT_CODES
from foretune.evaluation.metrics import METRICS
from foretune.report.commands import usage_commands
from foretune.report.record import ExportInfo
from tests.structure.source import REPOSITORY

DOCUMENTS = sorted([*REPOSITORY.glob("*.md"), *(REPOSITORY / "docs").glob("*.md")])
PAPERS = {"2411.01195", "2411.04425", "2406.14005", "2412.09827", "2205.11277"}


def _text(name: str) -> str:
    return (REPOSITORY / name).read_text(encoding="utf-8")


def _commands() -> dict[str, typer.models.TyperInfo | None]:
    """Every command with the words that call it: ``fit``, ``data check`` and so on."""
    group = typer.main.get_command(app)
    found = {}
    for name, command in group.commands.items():  # type: ignore[attr-defined]
        inner = getattr(command, "commands", None)
        found.update({f"{name} {sub}": one for sub, one in inner.items()} if inner else {name: command})
    return found


def test_the_settings_reference_is_what_the_code_says():
    script = REPOSITORY / "scripts" / "make_settings_reference.py"
    done = subprocess.run([sys.executable, str(script), "--check"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_the_settings_reference_has_every_key():
    from foretune.config.spec import known_keys

    listed = re.findall(r"^\| `([a-z0-9_.-]+)` \|", _text("docs/settings.md"), re.MULTILINE)
    menu = "search.menu"  # one row for all: every setting of a trial may stand behind it
    named = {menu if key.startswith(f"{menu}.") else key for key in known_keys()}
    assert sorted(listed) == sorted(named)


def test_the_table_of_selectors_is_what_the_catalogue_says():
    script = REPOSITORY / "scripts" / "make_selector_table.py"
    done = subprocess.run([sys.executable, str(script), "--check"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_the_readme_lists_every_command():
    named = set()
    for row in re.findall(r"^\| `foretune ([^`]+)`", _text("README.md"), re.MULTILINE):
        first, *rest = row.split()
        subs = [word for word in rest if re.fullmatch(r"[a-z][a-z-]*", word)]
        named |= {f"{first} {sub}" for sub in subs} or {first}
    assert named == set(_commands())


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_commands_and_options_in_documents_exist(path):
    known = _commands()
    shown = re.findall(r"^ {4}foretune (.+)$|`foretune ([^`]+)`", path.read_text(encoding="utf-8"), re.MULTILINE)
    for block, inline in shown:
        words = (block or inline).split("#")[0].replace("|", " ").replace("·", " ").split()
        if words[0].startswith("-"):
            continue
        name = f"{words[0]} {words[1]}" if len(words) > 1 and f"{words[0]} {words[1]}" in known else words[0]
        assert name in known or any(other.startswith(f"{name} ") for other in known), (path, words)
        if name in known:
            assert not _unknown_options(known[name], words), (path, words)


def _unknown_options(command, words):
    options = {option for parameter in command.params for option in parameter.opts}
    return {word for word in words if re.fullmatch(r"--?[a-z][a-z-]*", word)} - {"--help"} - options


def _written(node):
    """The text of a string in the source, with X for what is filled in."""
    if isinstance(node, ast.JoinedStr):
        return "".join(part.value if isinstance(part, ast.Constant) else "X" for part in node.values)
    return node.value if isinstance(node, ast.Constant) and isinstance(node.value, str) else ""


def test_options_of_commands_in_messages_exist():
    known = _commands()
    for path in (REPOSITORY / "src").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            for line in re.findall(r"foretune ([a-z-]+(?: [^`\"\n.]*)?)", _written(node)):
                words = re.sub(r"[,;)]", " ", line).split()
                name = f"{words[0]} {words[1]}" if len(words) > 1 and f"{words[0]} {words[1]}" in known else words[0]
                if name in known:
                    assert not _unknown_options(known[name], words), (path, node.lineno, line)


@pytest.mark.parametrize("kind", ["causal", "encoder"])
@pytest.mark.parametrize("export", ["adapter", "full", "merged", "gguf"])
def test_commands_that_a_run_hands_over_are_accepted(kind, export, record):
    changed = replace(record, model=replace(record.model, kind=kind), exports=(ExportInfo(export, "my adapter", True),))
    changed = replace(changed, trials=tuple(replace(one, config={"method": "dora"}) for one in changed.trials))
    lines = [line for _, text in usage_commands(changed) for line in text.splitlines() if line.startswith("foretune ")]
    assert lines or export in ("merged", "gguf")
    for line in lines:
        _, name, *arguments = shlex.split(line)
        _commands()[name].make_context(name, arguments)  # parses; raises what a user would see


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_links_to_files_lead_somewhere(path):
    for target in re.findall(r"\]\(([^)#\s]+)[^)]*\)", path.read_text(encoding="utf-8")):
        if not target.startswith(("http://", "https://")):
            assert (path.parent / target).exists(), f"{path.name} links to {target}"


@pytest.mark.parametrize("name", ["README.md", "docs/errors.md"])
def test_exit_codes_are_listed(name):
    listed = {int(code) for code in re.findall(r"^\| (\d+) \|", _text(name), re.MULTILINE)}
    assert listed == set(EXIT_CODES)


def test_formats_endings_and_metrics_are_listed():
    text = _text("docs/data-formats.md")
    section = text[text.index("## Row formats") : text.index("## Task")]
    assert re.findall(r"^\| `([a-z-]+)` \|", section, re.MULTILINE) == list(FORMATS)  # in the order of detection
    assert set(re.findall(r"`(\.[a-z]+)`", text[: text.index("## Row formats")])) == {*READERS, ".gz"}
    metrics = text[text.index("`--metric` chooses") : text.index("## A metric of your own")]
    assert set(re.findall(r"`([a-z_0-9]+)`", metrics)) == set(METRICS)


def test_the_readme_opens_with_the_two_commands_and_holds_the_demo():
    lines = [line.strip() for line in _text("README.md").splitlines() if line.strip()]
    assert lines[1].startswith("make demo") and lines[2].startswith("make test")
    text = _text("README.md")
    assert text.index("<!-- demo:start -->") < text.index("<!-- demo:end -->")


def test_costs_of_regularizers_are_those_of_the_benchmark():
    found = json.loads(_text("benchmarks/results/regularization.json"))
    said = [
        "guided dropout {guided:.2f} on MiniLM", "{guided_decoder:.2f} on SmolLM2",
        "R-Drop {r_drop:.2f} and {r_drop_decoder:.2f}", "KL to the base {kl_to_base:.2f}",
        "{kl_to_base_kept:.2f} with", "Flat-LoRA {flat_lora:.2f} ({flat_lora_to_none:.2f} of",
        "{fisher_speedup:.1f} times as fast",
    ]  # fmt: skip
    page = " ".join(_text("docs/regularization.md").split())
    assert [text for text in said if text.format(**found) not in page] == []


def test_the_citation_names_the_papers():
    citation = yaml.safe_load(_text("CITATION.cff"))
    assert citation["cff-version"] == "1.2.0" and citation["message"] and citation["title"]
    found = {item["value"].removeprefix("arXiv:") for one in citation["references"] for item in one["identifiers"]}
    assert found == PAPERS
    assert all(one["type"] and one["title"] and one["authors"] for one in citation["references"])


def test_every_page_is_in_the_navigation():
    navigation = yaml.safe_load(_text("mkdocs.yml"))["nav"]
    assert {page for entry in navigation for page in entry.values()} == {
        path.name for path in DOCUMENTS if path.parent.name == "docs"
    }


def test_the_version_is_one():
    import tomllib

    from foretune import __version__

    assert tomllib.loads(_text("pyproject.toml"))["project"]["version"] == __version__
    assert yaml.safe_load(_text("CITATION.cff"))["version"] == __version__
    assert __version__ in _text("CHANGELOG.md")
    assert Path(REPOSITORY / "LICENSE").read_text(encoding="utf-8").splitlines()[1].strip() == "Apache License"
