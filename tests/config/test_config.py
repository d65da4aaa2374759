"""Reading, merging and writing settings: places, nearest keys, typing, origins, round trips."""

import pytest
from pydantic import BaseModel

from foretune.config.load import load_file, parse_set, scalar
from foretune.config.resolve import Recommended, resolve, resolved_text, write_resolved
from foretune.config.spec import FitSpec, known_keys
from foretune.errors import UsageError


def _file(tmp_path, text):
    path = tmp_path / "fit.yaml"
    path.write_text(text)
    return path


@pytest.mark.parametrize(
    ("text", "value"),
    [("1e-4", 1e-4), ("2.5E+3", 2500.0), ("12", 12), ("-3", -3), (".5", 0.5), ("no", "no"), ("on", "on"),
     ("true", True), ("1:30", "1:30"), ("010", 10), ("0x1F", "0x1F"), ("", None), ("null", None), ("30m", "30m"),
     ("[8, 16]", [8, 16]), ("'1'", "1"), ("a: b: c", "a: b: c"), ("2026-11-22", "2026-11-22")],
)  # fmt: skip
def test_scalars_follow_yaml_1_2(text, value):
    read = scalar(text)
    assert read == value
    assert type(read) is type(value)


def test_quantities_become_numbers():
    spec = resolve(sets=["budget.time=1h30m", "memory.limit=2GiB", "data.test_share=0.5%"]).spec
    assert (spec.budget.time, spec.memory.limit) == (5400.0, 2 * 2**30)
    assert spec.data.test_share == 0.005


@pytest.mark.parametrize(
    ("text", "line", "words"),
    [
        ("model:\n  sorce: x\n", 2, "model.source"),
        ("modle:\n  source: x\n", 2, "model.source"),
        ("learning_rate: 1e-4\n", 1, "training.learning_rate"),
        ("training:\n  lora:\n    rnak: 8\n", 3, "training.lora.rank"),
        ("data:\n  columns:\n    promt: q\n", 3, "data.columns.prompt"),
        ("budget:\n  time: 5m\n  time: 6m\n", 3, "given twice"),
        ("a: 1\na: 2\n", 2, "given twice"),
        ("model:\n  source: [unclosed\n", 3, "not YAML"),
        ("budget:\n  time: soon\n", 2, "duration"),
        ("training:\n  learning_rate: 5\n", 2, "outside its range"),
        ("training:\n  learning_rate: fast\n", 2, "must be a number"),
        ("training:\n  method: loar\n", 2, "not an option"),
        ("device: tpu\n", 1, "'auto', 'cpu' or 'cuda'"),
        ("search:\n  workers: 0\n", 2, "greater than or equal to 1"),
        ("evaluation:\n  max_rows: true\n", 2, "max_rows"),
        ("model: !!python/object/apply:os.system [echo]\n", None, "kind that is not read"),
        ("- a\n- b\n", None, "key: value"),
        ("<<: {a: 1}\n", 1, "not a setting"),
        ("? [a]\n: 1\n", 1, "plain word"),
        ("data: &x {columns: *x}\n", 1, "aliases"),
        ("search:\n", None, None),
    ],
)
def test_what_is_wrong_is_named_with_its_line(tmp_path, text, line, words):
    path = _file(tmp_path, text)
    if words is None:
        resolve(file=path)  # an empty group is no error
        return
    with pytest.raises(UsageError) as caught:
        resolve(file=path)
    assert words in caught.value.paragraph()
    if line is not None:
        assert caught.value.place.line == line
        assert caught.value.place.path == path


def test_files_that_cannot_be_read(tmp_path):
    with pytest.raises(UsageError, match="No such file"):
        load_file(tmp_path / "none.yaml")
    (tmp_path / "binary.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UsageError, match="UTF-8"):
        load_file(tmp_path / "binary.yaml")
    (tmp_path / "big.yaml").write_text("#" * (2 << 20))
    with pytest.raises(UsageError, match="too large"):
        load_file(tmp_path / "big.yaml")
    (tmp_path / "deep.yaml").write_text("[" * 20000)
    with pytest.raises(UsageError):
        load_file(tmp_path / "deep.yaml")
    (tmp_path / "empty.yaml").write_text("")
    assert load_file(tmp_path / "empty.yaml") == ({}, None)


@pytest.mark.parametrize("text", ["training.lora.rank", "=3", "lora.rank=3", "nonsense=1", "data={a: 1}"])
def test_bad_assignments_name_themselves(text):
    with pytest.raises(UsageError) as caught:
        parse_set([text])
    assert text in str(caught.value.place)
    assert caught.value.remedy


def test_an_assignment_given_twice_is_refused():
    with pytest.raises(UsageError, match="twice"):
        parse_set(["device=cpu", "device=cuda"])


def test_later_layers_win_and_origins_are_kept(tmp_path):
    path = _file(tmp_path, "training:\n  learning_rate: 1e-4\n  epochs: 2\n  lora: {rank: 8}\ndevice: cpu\n")
    resolution = resolve(file=path, sets=["training.epochs=1"], options={"search.seed": 7, "model.source": None})
    values = {key: (item.value, item.origin) for key, item in resolution.values.items()}
    assert values["training.learning_rate"] == (1e-4, "file")
    assert values["training.epochs"] == (1.0, "set")
    assert values["search.seed"] == (7, "option")
    assert values["model.source"][1] == "default"
    assert resolution.fixed_training() == {"learning_rate": 1e-4, "epochs": 1.0, "lora.rank": 8}
    assert resolution.spec.training == resolution.fixed_training()
    assert ":2:" in resolution.values["training.learning_rate"].evidence


def test_one_budget_and_the_later_one_wins(tmp_path):
    with pytest.raises(UsageError, match="one budget"):
        resolve(options={"budget.time": "5m", "budget.trials": 3})
    path = _file(tmp_path, "budget: {trials: 5}\n")
    spec = resolve(file=path, options={"budget.time": "5m"}).spec
    assert (spec.budget.time, spec.budget.trials) == (300.0, None)
    with pytest.raises(UsageError, match="price_per_hour"):
        resolve(sets=["budget.cost=$5"])


ADVICE = {
    "training.learning_rate": Recommended(1.33e-3, 'the rule for width 576: "10×" full tuning\'s'),
    "training.lora.rank": Recommended(16, "the usual"),
    "memory.micro_batch_tokens": Recommended(512, "fits"),
}


def test_advice_yields_to_choices_and_does_not_leave_the_search():
    resolution = resolve(sets=["training.lora.rank=4"]).recommend(ADVICE)
    assert resolution["training.lora.rank"] == 4
    assert resolution["training.learning_rate"] == 1.33e-3
    assert resolution.values["training.learning_rate"].origin == "recommended"
    assert resolution.fixed_training() == {"lora.rank": 4}


def test_the_written_file_gives_the_same_run(tmp_path):
    first = resolve(
        sets=["training.lora.rank=4", "training.weight_decay=1e-5",
              "budget.time=90s", "data.path=rows: [1].jsonl", "data.columns.prompt=no"],
    ).recommend(ADVICE)  # fmt: skip
    path = tmp_path / "resolved.yaml"
    write_resolved(path, first)
    again = resolve(file=path)
    assert again.spec == first.spec
    assert again.fixed_training() == first.fixed_training() == {"lora.rank": 4, "weight_decay": 1e-5}
    assert again.values["training.learning_rate"] == first.values["training.learning_rate"]
    assert {k: v.value for k, v in again.values.items()} == {k: v.value for k, v in first.values.items()}
    assert {k for k in again.values if again.chosen(k)} == {k for k in first.values if first.chosen(k)}
    assert "the usual" not in resolved_text(again)
    assert resolved_text(again.recommend(ADVICE)).count("recommended") == resolved_text(first).count("recommended")


def test_a_value_changed_in_the_written_file_is_the_users(tmp_path):
    path = tmp_path / "resolved.yaml"
    write_resolved(path, resolve().recommend(ADVICE))
    text = path.read_text()
    assert text.count("0.00133") == 2
    path.write_text(text.replace("0.00133", "0.002", 1).replace("seed: 0", "seed: 3"))
    changed = resolve(file=path)
    assert changed.fixed_training() == {"learning_rate": 0.002}
    assert changed.chosen("search.seed")
    assert not changed.chosen("search.workers")


def test_a_damaged_origins_block_is_refused(tmp_path):
    with pytest.raises(UsageError, match="origins block"):
        resolve(file=_file(tmp_path, "device: cpu\norigins: [1, 2]\n"))


def test_every_key_has_a_description():
    assert all(known_keys().values())
    assert "training.lora.rank" in known_keys()

    def sections(model):
        for field in model.model_fields.values():
            assert field.description
            if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
                sections(field.annotation)

    sections(FitSpec)
