"""The grid file: what it means, and how mistakes in it are told."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from foretune.errors import UsageError
from foretune.study.grid_file import load_grid, presets
from foretune.study.kinds import ARMS, kind_of, module_of

GOOD = """name: x
tasks: {f: facts}
arms:
  a: {lora: {rank: 4}}
  b: {}
control: b
seeds: 2
horizon: {steps: 3}
"""


def grid(tmp_path: Path, text: str) -> Any:
    path = tmp_path / "grid.yaml"
    path.write_text(text)
    return load_grid(path)


def test_arms_are_the_base_with_a_few_settings_of_their_own(tmp_path: Path) -> None:
    found = grid(tmp_path, GOOD + "base: {lora.alpha: 8, rows_per_update: 2}\n")
    a, b = found.config("a"), found.config("b")
    assert (a["lora.rank"], b["lora.rank"]) == (4, 16)
    assert {key for key in a if a[key] != b[key]} == {"lora.rank"}
    assert a["lora.alpha"] == 8 and a["rows_per_update"] == 2
    assert found.seeds == (0, 1) and found.sizes == ("all",)


def test_an_arm_of_another_method_leaves_the_bases_method_settings_behind(tmp_path: Path) -> None:
    found = grid(tmp_path, GOOD.replace("  b: {}", "  b: {method: full}") + "base: {lora.alpha: 8}\n")
    assert found.config("b")["method"] == "full"
    assert not any(key.startswith("lora.") for key in found.config("b"))


@pytest.mark.parametrize(
    ("old", "new", "said", "line"),
    [
        ("control: b", "contrl: b", "Did you mean control", 6),
        ("lora: {rank: 4}", "lora: {rnak: 4}", "Did you mean lora.rank", 4),
        ("lora: {rank: 4}", "lora: {rank: 0}", "outside its range", 4),
        ("lora: {rank: 4}", "lora: {rank: 16}", "the same as a", 5),
        ("lora: {rank: 4}", "epochs: 4", "`horizon` says", 4),
        ("control: b", "control: c", "no arm 'c'", 6),
        ("lora: {rank: 4}", "lora: {rank: 4}, control: c", "no arm 'c'", 4),
        ("lora: {rank: 4}", "lora: {rank: 4}, control: [b]", "the name of an arm", 4),
        ("lora: {rank: 4}", "lora: {rank: 4}, control: a", "leave it out", 4),
        ("b: {}", "b: {control: a}", "leave it out", 5),
        ("{f: facts}", "{f: {path: facts, fromat: x}}", "Did you mean format", 2),
        ("{steps: 3}", "{steps: 3, epochs: 1}", "either steps or epochs", 8),
        ("seeds: 2", "seeds: [1, 1]", "same value is given twice", 7),
        ("name: x", "name: ../x", "no name of a study", 1),
        ("seeds: 2", "seeds: 2\nsizes: [0]", "no size", 8),
        ("seeds: 2", "seeds: 2\nlearning_rate: {sweep: [1e-3]}", "at least two", 8),
        ("seeds: 2", "seeds: 2\nlearning_rate: {sweep: [1e-3, 1e-4], pilot: g}", "no task 'g'", 8),
        ("seeds: 2", "seeds: 2\nbase: {learning_rate: 1e-3}", "at the top of the grid", 8),
    ],
)
def test_a_mistake_is_told_with_its_line_and_what_was_meant(
    tmp_path: Path, old: str, new: str, said: str, line: int
) -> None:
    with pytest.raises(UsageError) as error:
        grid(tmp_path, GOOD.replace(old, new))
    assert said in str(error.value)
    assert f"grid.yaml:{line}:" in str(error.value)


def test_factors_are_a_product_of_arms_beside_those_written_out(tmp_path: Path) -> None:
    found = grid(
        tmp_path, GOOD + "factors: {method: [lora, bottleneck], trainable: [0.5%, 2%]}\nbase: {bottleneck.width: 8}\n"
    )
    made = ["lora-0.5pct", "lora-2pct", "bottleneck-0.5pct", "bottleneck-2pct"]
    assert list(found.arms) == ["a", "b", *made] and list(found.product) == made
    assert (found.share("lora-2pct"), found.share("a")) == (0.02, None)
    assert found.config("bottleneck-0.5pct")["bottleneck.width"] == 8 and "trainable" not in found.config("lora-2pct")
    assert type(found).model_validate(found.model_dump(mode="json")) == found, "a saved study reads back as itself"


def test_a_share_sets_the_knob_for_each_model_or_says_what_is_nearest(tmp_path: Path) -> None:
    from foretune.cost.shapes import ModelShapes
    from foretune.study.arms import on_model

    shapes = ModelShapes.from_config({
        "model_type": "llama", "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2,
        "num_attention_heads": 4, "vocab_size": 3000, "max_position_embeddings": 50,
    })  # fmt: skip
    found = grid(tmp_path, GOOD)
    arm = on_model(found.config("b"), 0.02, shapes)
    assert arm.share == pytest.approx(0.02, rel=0.02) and arm.config["lora.rank"] != 16
    assert arm.config.get("lora.alpha", 32) == 32, "scaled by alpha / rank, an update learns about as fast at any rank"
    with pytest.raises(UsageError, match="nearest share"):
        on_model(found.config("b"), 1e-5, shapes)


@pytest.mark.parametrize(
    ("added", "said"),
    [
        ("factors: {method: [lora], trainable: [0.5%, half]}", "factors.trainable"),
        ("factors: {method: lora}", "a list of values"),
        ("learning_rate: {factors: [1]}", "at least two"),
        ("learning_rate: {factors: [1, 3], sweep: [1e-3, 1e-2]}", "both given"),
    ],
)
def test_mistakes_in_factors_and_sweeps(tmp_path: Path, added: str, said: str) -> None:
    with pytest.raises(UsageError, match=said):
        grid(tmp_path, GOOD + added)


def test_a_grid_on_other_data_and_models(tmp_path: Path) -> None:
    from foretune.study.grid_file import replaced

    found = replaced(load_grid("methods-fair:nightly"), ["math=MetaMathQA.jsonl", "other rows.jsonl"], ["Llama-3.2-3B"])
    assert list(found.tasks) == ["math", "other-rows"] and found.tasks["math"].path == "MetaMathQA.jsonl"
    assert list(found.model) == ["Llama-3.2-3B"] and found.learning_rate.pilot == "math"


@pytest.mark.parametrize(
    ("data", "models", "said"),
    [
        (["a/train.jsonl", "b/train.jsonl"], [], r"two tasks are both called 'train'"),
        (["a=x.jsonl", "a=y.jsonl"], [], r"two tasks are both called 'a'"),
        ([], ["one/merged", "two/merged"], r"two models are both called 'merged'.*NAME: \{source: two/merged\}"),
        ([], [f"{'m' * 32}-{end}" for end in "ab"], r"two models are both called 'm{32}'"),
    ],
)
def test_two_of_one_name_are_refused(data: list[str], models: list[str], said: str) -> None:
    from foretune.study.grid_file import replaced

    with pytest.raises(UsageError, match=said):
        replaced(load_grid("smoke"), data, models)


def test_files_beside_the_grid_are_found_from_anywhere(write_grid: Callable[..., Path]) -> None:
    path = write_grid()
    assert load_grid(path).tasks["near"].path == str(path.parent.resolve() / "near.jsonl")


def test_every_shipped_study_can_be_read() -> None:
    assert "smoke" in presets()
    for name in presets():
        kind = kind_of(name)
        assert load_grid(name).about if kind == ARMS else module_of(kind).about(name)


def test_an_unknown_study_names_the_nearest() -> None:
    with pytest.raises(UsageError, match="Did you mean smoke"):
        load_grid("smoek")
