"""Rules of the house that a syntax tree can show: who writes files, who opens SQLite, what is never called."""

from __future__ import annotations

import ast

import yaml

from foretune import errors
from tests.structure.source import REPOSITORY, calls, imported, modules

LONGEST_MODULE_LINES = 400

WRITERS = {"write_text", "write_bytes", "save_pretrained", "save_file", "copyfile", "copyfileobj", "copytree", "rename",
           "to_parquet", "write_table", "touch", "symlink_to"}  # fmt: skip
OPENERS = {"open", "fdopen"}

ASIDE = "into the folder that `files.atomic_folder` fills aside and renames when it is whole"
WORKSPACE = "into a download's work folder, which is removed at the end whatever happens"
MAY_WRITE = {
    ("packages", "download"): WORKSPACE,
    ("packages", "_copy_members"): WORKSPACE,
    ("data.corpora.foldoc", "build"): WORKSPACE,
    ("models.fetch", "_join_parts"): WORKSPACE,
    ("models.gguf", "dequantise"): ASIDE,
    ("methods.full", "FullAttachment.save"): ASIDE,
    ("export.approximate", "_write"): ASIDE,
    ("methods.attachment", "PeftAttachment.save"): ASIDE,
    ("study.parents", "vocabulary_of"): ASIDE,
    ("study.parent_training", "ParentTraining.save"): ASIDE,
    ("training.checkpoint", "save"): ASIDE,
    ("execution.memory", "forget_peak"): "a switch of the kernel under /proc, no file",
    ("training.checkpoint", "_set_aside"): "renames a damaged checkpoint so that nobody takes it for a good one",
    ("experience.store", "set_aside"): "moves a whole store out of the way on the user's order",
    ("export.merge", "write_model"): ASIDE,
    ("export.adapter", "export_adapter"): ASIDE,
    ("export.ensemble", "combine"): ASIDE,
    ("export.ensemble", "_copy_tokenizer"): ASIDE,
    ("export.adapter", "_copy"): ASIDE,
    ("execution.local", "_Process.__init__"): "a worker's log grows line by line while it runs; it is no result",
    ("execution.worker", "main"): "standard output under another descriptor, not a file",
    ("experience.parquet", "_parquet"): "into memory; files.write_bytes writes it",
}
"""(module, function) outside `files` that writes, and why that leaves nothing half done under a final name."""

NEVER_IMPORTED = {"pickle", "cPickle", "dill", "cloudpickle", "joblib", "marshal", "shelve", "imp"}
NEVER_CALLED = {"eval", "exec", "compile", "__import__", "torch.load", "np.load", "numpy.load", "os.system", "os.popen",
                "yaml.unsafe_load", "yaml.full_load", "exec_module"}  # fmt: skip
MAY_RUN_CODE = {
    ("plugins", "_run"): "a plugin that the user named with --plugin",
    ("peft_hook", "_Loader.exec_module"): "runs peft itself, by its own loader",
}
"""(module, function) that runs code from a file, and why."""


def _last(name: str) -> str:
    return name.rpartition(".")[2]


def _writes(name: str, call: ast.Call) -> bool:
    """Whether a call may write to a path: known writers, and opening in any mode but reading."""
    if name.startswith("files.") or ("." not in name and _last(name) in ("write_text", "write_bytes")):
        return False  # foretune.files' own functions
    if _last(name) in OPENERS:
        values = [*call.args, *(keyword.value for keyword in call.keywords if keyword.arg == "mode")]
        modes = [value.value for value in values if isinstance(value, ast.Constant) and isinstance(value.value, str)]
        return any(set(mode) & set("wax+") for mode in modes if len(mode) <= 3)
    if _last(name) == "replace":  # Path.replace has one argument; str.replace has two, dataclasses.replace keywords
        return "." in name and len(call.args) == 1 and not call.keywords
    return _last(name) in WRITERS


def test_only_files_opens_a_final_path_for_writing():
    found = {
        (module.name, scope): f"{module.path}:{call.lineno}: {name}"
        for module in modules()
        if module.name != "files"
        for name, call, scope in calls(module)
        if _writes(name, call)
    }
    unexplained = [place for key, place in found.items() if key not in MAY_WRITE]
    assert not unexplained, "\n".join(unexplained)
    assert not set(MAY_WRITE) - set(found), f"exceptions that nothing needs: {sorted(set(MAY_WRITE) - set(found))}"


def test_the_check_for_writing_sees_what_it_should():
    def writes(text: str) -> bool:
        call = ast.parse(text, mode="eval").body
        assert isinstance(call, ast.Call)
        return _writes(ast.unparse(call.func), call)

    assert writes("open(path, 'w')") and writes("path.open('ab')") and writes("path.open(mode='r+b')")
    assert writes("path.write_text(x)") and writes("shutil.copyfile(a, b)") and writes("aside.replace(final)")
    assert not writes("text.replace('a', 'b')") and not writes("replace(row, split=None)")
    assert not writes("path.open()") and not writes("path.open('rb')") and not writes("open(path, encoding='utf-8')")
    assert not writes("files.write_text(path, x)") and not writes("write_bytes(path, x)")


def test_functions_called_like_those_of_files_are_those_of_files():
    """`_writes` trusts a bare ``write_text``; so a module that calls it has to have it from `foretune.files`."""
    for module in modules():
        bare = {name for name, _, _ in calls(module) if name in ("write_text", "write_bytes")}
        if module.name == "files" or not bare:
            continue
        from_files = {
            alias.name
            for node in ast.walk(module.tree)
            if isinstance(node, ast.ImportFrom) and node.module == "foretune.files"
            for alias in node.names
        }
        assert bare <= from_files, module.path


def test_only_the_store_opens_sqlite():
    """`migrations` and `refusals` handle the store's connection and SQLite's errors; neither connects."""
    importing = {module.name for module in modules() if any(name == "sqlite3" for name, _ in imported(module))}
    assert importing <= {"experience.store", "experience.migrations", "experience.refusals"}
    connecting = {module.name for module in modules() for name, _, _ in calls(module) if _last(name) == "connect"}
    assert connecting == {"experience.store"}


def test_nothing_is_unpickled_and_no_text_is_run_as_code():
    wrong = [
        f"{module.path}:{line}: imports {name}"
        for module in modules()
        for name, line in imported(module)
        if name.partition(".")[0] in NEVER_IMPORTED
    ]
    for module in modules():
        for name, call, scope in calls(module):
            dangerous = name in NEVER_CALLED or _last(name) == "exec_module"
            in_shell = any(k.arg == "shell" and ast.unparse(k.value) != "False" for k in call.keywords)
            if (dangerous or in_shell) and (module.name, scope) not in MAY_RUN_CODE:
                wrong.append(f"{module.path}:{call.lineno}: calls {name}")
    assert not wrong, "\n".join(wrong)


def test_yaml_is_read_by_a_safe_loader():
    from foretune.config import load

    assert issubclass(load._Loader, yaml.SafeLoader)
    loads = [
        (module.name, ast.unparse(call))
        for module in modules()
        for name, call, _ in calls(module)
        if name in ("yaml.load", "yaml.compose", "yaml.load_all")
    ]
    assert loads and all("Loader=_Loader" in text for _, text in loads)


def test_only_commands_print():
    wrong = [
        f"{module.path}:{call.lineno}"
        for module in modules()
        if module.part != "cli"
        for name, call, _ in calls(module)
        if name in ("print", "typer.echo", "sys.stdout.write")
    ]
    assert not wrong, "\n".join(wrong)


def test_remote_code_is_off_unless_the_reference_says_otherwise():
    for module in modules():
        for name, call, _ in calls(module):
            for keyword in call.keywords:
                if keyword.arg == "trust_remote_code" and isinstance(keyword.value, ast.Constant):
                    assert keyword.value.value is False, f"{module.path}:{call.lineno}: {name}"


def test_modules_are_short():
    paths = [module.path for module in modules()] + [*(REPOSITORY / "scripts").glob("*.py")]
    long = {
        str(path.relative_to(REPOSITORY)): count
        for path in paths
        if (count := len(path.read_text(encoding="utf-8").splitlines())) > LONGEST_MODULE_LINES
    }
    assert not long


def test_every_module_says_what_it_is():
    assert not [str(module.path) for module in modules() if not ast.get_docstring(module.tree)]


def test_exit_codes_are_those_of_the_errors():
    def all_errors(kind: type[errors.ForetuneError]) -> list[type[errors.ForetuneError]]:
        return [kind, *(deeper for sub in kind.__subclasses__() for deeper in all_errors(sub))]

    declared = {kind.exit_code for kind in all_errors(errors.ForetuneError)}
    assert declared | {0} == set(errors.EXIT_CODES)
