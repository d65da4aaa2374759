"""The utility kernel equals its definition, survives kills, grows, and leaves out what cannot be compared."""

from __future__ import annotations

import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from foretune.data.example import Example, Turn, conversation
from foretune.errors import UsageError
from foretune.execution.blocks import called, carry_out, named
from foretune.selection.blocks import SerialBlocks
from foretune.selection.utility import blocks as computing
from foretune.selection.utility.blocks import compute, writer_of
from foretune.selection.utility.prompts import TEMPLATES, Prompts, Writer
from foretune.selection.utility.scorer import Scorer
from foretune.training.forward import Network

from ..faults.lives import DIED, live
from .conftest import rows as some_rows


@pytest.fixture(scope="module")
def bench(make_bench: Any) -> Any:
    return make_bench(some_rows(6))


def plainly(bench: Any, template: str, row: Example, shown: Example | None) -> tuple[float, float]:
    """(d, l) of one pair by the whole model on all its tokens, one at a time, softmax in float64."""
    writer = writer_of(bench, template)
    encoded = writer.alone([row])[0] if shown is None else writer.behind([(row, shown)])[0]
    with torch.no_grad():
        logits = bench.network.model(input_ids=torch.tensor(encoded.ids[None].astype(np.int64))).logits[0].double()
    at = np.flatnonzero(encoded.target_mask)
    logs = torch.log_softmax(logits, -1)[at - 1, encoded.ids[at].astype(np.int64)].numpy()
    return float(np.sqrt(np.mean((1 - np.exp(logs)) ** 2))), float(logs.mean())


@pytest.mark.parametrize("template", TEMPLATES)
def test_equals_a_plain_loop_over_pairs(bench, template, tmp_path):
    asked, shown = some_rows(5), some_rows(9)[3:]
    roomy = _on(bench, replace(bench.task, context_tokens=1000))
    kernel = compute(roomy, asked, shown, tmp_path, blocks=SerialBlocks(), template=template)
    for j, example in enumerate([None, *shown]):
        column = kernel.column(j - 1)
        expected = np.asarray([plainly(bench, template, row, example) for row in asked])
        np.testing.assert_allclose(column.d, expected[:, 0], atol=1e-5)
        np.testing.assert_allclose(column.l, expected[:, 1], atol=1e-5, rtol=1e-5)
    tokens = [int(row.target_mask.sum()) for row in writer_of(bench, template).alone(asked)]
    assert kernel.alone.tokens.tolist() == tokens


@pytest.mark.parametrize("way", ["packed", "expanded", "joint"])
@pytest.mark.parametrize("fields", [{}, {"sliding": True}], ids=["llama", "sliding windows"])
def test_all_ways_give_the_same(way, fields, tiny_llama, bench):
    if fields:
        from transformers import Qwen2Config, Qwen2ForCausalLM

        torch.manual_seed(0)
        model: Any = Qwen2ForCausalLM(
            Qwen2Config(
                vocab_size=400, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
                num_key_value_heads=2, initializer_range=0.2, use_sliding_window=True, sliding_window=8,
                max_window_layers=0,
            )
        ).eval()  # fmt: skip
    else:
        model = tiny_llama(vocab_size=400).eval()
    scorer = Scorer(Network(model, "causal"), pack_tokens=64)
    prompts = Prompts(writer_of(bench, "chat"), some_rows(8), some_rows(2))
    whole = scorer.score(prompts.head(0), prompts.tails, way="joint")
    found = scorer.score(prompts.head(0), prompts.tails, way=way)
    np.testing.assert_allclose(found.d, whole.d, atol=1e-5)
    np.testing.assert_allclose(found.l, whole.l, atol=1e-5, rtol=1e-5)
    assert scorer.way == "packed"


def test_the_trial_refuses_a_way_that_leaks(tiny_llama, monkeypatch):
    scorer = Scorer(Network(tiny_llama().eval(), "causal"))
    good = scorer._logits
    monkeypatch.setattr(
        scorer, "_logits", lambda head, tails, way: good(head[1:] if way == "packed" else head, tails, way)
    )
    assert scorer.way == "expanded"


def reference_distance(model: Any, tokenizer: Any, prompt: str, response: str) -> float:
    """DELIFT's reference procedure as described: the prompt's text, eos, the response, eos; distance of the rest."""
    first = tokenizer(prompt, add_special_tokens=False)["input_ids"] + [tokenizer.eos_token_id]
    second = tokenizer(response, add_special_tokens=False)["input_ids"] + [tokenizer.eos_token_id]
    with torch.no_grad():
        probabilities = torch.softmax(model(input_ids=torch.tensor([first + second])).logits[0].double(), dim=-1)
    truth = [float(probabilities[len(first) - 1 + t, token]) for t, token in enumerate(second)]
    return float(np.linalg.norm(1 - np.asarray(truth)) / np.sqrt(len(truth)))


def test_the_reference_preset_gives_the_reference_procedures_numbers(bench, tmp_path):
    short = [("Name a colour.", "red"), ("Two plus two?", "four"), ("Is it on?\nSay so.", "yes, on\nnow")]
    pairs = [conversation(prompt, response) for prompt, response in short]
    roomy = _on(bench, replace(bench.task, context_tokens=1000))
    kernel = compute(roomy, pairs, pairs, tmp_path, blocks=SerialBlocks(), template="delift-ref", self_pairs="keep")
    model, tokenizer = bench.network.model, bench.tokenizer
    for i, (prompt, response) in enumerate(short):
        without = f"Instruction: Please generate a response to the following query.\n\n\nQuery: {prompt}\n"
        alone = reference_distance(model, tokenizer, without, response)
        for j, (other, answer) in enumerate(short):
            guide = (
                "Use the following example as a guide to answer the query in the same format and style, providing a "
                "clear and concise response."
            )
            behind = f"Instruction:\n{guide}\n\n\nExample:\n{other}\n{answer}\n\n\nQuery:\n{prompt}\n"
            expected = alone - reference_distance(model, tokenizer, behind, response)
            assert kernel.utility(j)[0][i] == pytest.approx(expected, abs=2e-6)


class _on:  # noqa: N801
    """A bench with another task."""

    def __init__(self, bench: Any, task: Any) -> None:
        self.task = task
        self.network, self.tokenizer, self.pad_id = bench.network, bench.tokenizer, bench.pad_id
        self.weights_hash, self.kind = bench.weights_hash, bench.kind


def test_views_are_made_of_the_same_numbers(bench, tmp_path):
    asked = some_rows(5)
    kept = compute(bench, asked, asked, tmp_path, blocks=SerialBlocks(), self_pairs="keep")
    d = np.stack([kept.column(j).d for j in range(5)])
    logs = np.stack([kept.column(j).l for j in range(5)])
    raw = kept.alone.d - d
    np.testing.assert_array_equal(kept.view(shape="raw"), raw)
    np.testing.assert_array_equal(kept.view(), np.maximum(raw, 0))
    scaled = kept.view(shape="minmax")
    assert scaled.min() == 0 and scaled.max() == 1
    np.testing.assert_allclose(scaled, (raw - raw.min()) / (raw.max() - raw.min()), atol=1e-6)
    np.testing.assert_allclose(kept.view("log", "raw"), logs - kept.alone.l, atol=1e-6)
    np.testing.assert_allclose(kept.view("exponential", "raw"), np.exp(logs) - np.exp(kept.alone.l), atol=1e-6)
    dropped = compute(bench, asked, asked, tmp_path, blocks=SerialBlocks())
    assert dropped.computed_pairs == 0
    off = ~np.eye(5, dtype=bool)
    np.testing.assert_array_equal(dropped.view(shape="raw")[off], raw[off])
    assert (dropped.view(shape="raw")[~off] == 0).all()
    into = np.memmap(tmp_path / "s.bin", np.float32, "w+", shape=(5, 5))
    np.testing.assert_array_equal(kept.view(out=into), np.maximum(raw, 0))


def test_equal_rows_count_as_one_row_and_do_not_vouch_for_each_other(bench, tmp_path):
    first, second = some_rows(2)
    kernel = compute(bench, [first, second, first], [first, second, first], tmp_path, blocks=SerialBlocks())
    view = kernel.view(shape="raw")
    assert view[0, 0] == view[0, 2] == view[2, 0] == 0 and view[1, 0] == view[1, 2] != 0
    np.testing.assert_array_equal(view[0], view[2])
    assert kernel.computed_pairs == 4


def test_pairs_beyond_the_context_are_left_out_and_counted(bench, tmp_path):
    asked = [
        *some_rows(3),
        conversation("What colour is a " * 3, "red like a stone " * 3),
        conversation("endless " * 40, "word " * 40),
    ]
    kernel = compute(bench, asked, asked, tmp_path, blocks=SerialBlocks())
    counted = kernel.counted()
    assert counted["rows_too_long"] == 1 and not kernel.alone.there[4]
    long = np.stack([kernel.column(j).too_long for j in range(5)])
    assert long[4].all() and long[:, 4].all() and counted["pairs_too_long"] == int(long.sum()) < 25
    assert (kernel.view(shape="raw")[long] == 0).all()
    lengths = {
        (i, j): len(writer_of(bench, "auto").behind([(asked[i], asked[j])])[0].ids) for i in range(4) for j in range(4)
    }
    assert all(long[j, i] == (length > 96) for (i, j), length in lengths.items())


def test_only_the_asked_pairs_are_computed(bench, tmp_path):
    asked = some_rows(4)
    whole = compute(bench, asked, asked, tmp_path / "whole", blocks=SerialBlocks()).view(shape="raw")
    some = compute(bench, asked, asked, tmp_path, blocks=SerialBlocks(), pairs=[[1], [0, 2], [], [3]])
    assert some.computed_pairs == 4
    view = some.view(shape="raw")
    for i, j in ((1, 0), (0, 1), (2, 1)):
        assert view[j, i] == pytest.approx(whole[j, i], abs=1e-6)
    assert np.count_nonzero(view) == 3


def test_rows_with_system_turns_share_heads_by_system_turn(bench, tmp_path):
    system = Turn("system", "Be brief.")
    asked = [
        row if i % 2 else replace(row, turns=(system, *row.turns), targets=(2,)) for i, row in enumerate(some_rows(4))
    ]
    kernel = compute(bench, asked, asked, tmp_path, blocks=SerialBlocks())
    for i in range(4):
        for j in range(4):
            assert kernel.column(j).d[i] == pytest.approx(plainly(bench, "auto", asked[i], asked[j])[0], abs=1e-5)


def test_a_boundary_that_depends_on_the_row_is_noticed(bench):
    class Merging(Writer):
        """Writes a row that begins with x without its turn before it: head and tail cannot be told apart."""

        def behind(self, pairs: Any) -> Any:
            encoded = super().behind(pairs)
            return [
                replace(one, ids=np.concatenate([one.ids[3:], one.ids[:3]])) if row.prompt.startswith("x") else one
                for one, (row, _) in zip(encoded, pairs, strict=True)
            ]

    asked = [*some_rows(2), conversation("x marks the spot", "here")]
    prompts = Prompts(Merging(bench.tokenizer, "chat"), asked, some_rows(3))
    assert [tail is not None for tail in prompts.tails] == [True, True, False]


def test_plain_text_and_encoders_are_refused(bench, tmp_path):
    with pytest.raises(UsageError, match="plain text has no questions"):
        compute(bench, [Example((Turn("text", "abc"),))], some_rows(1), tmp_path, blocks=SerialBlocks())
    with pytest.raises(UsageError, match="unknown template"):
        compute(bench, some_rows(1), some_rows(1), tmp_path, blocks=SerialBlocks(), template="delift")
    with pytest.raises(UsageError, match="causal language model"):
        Scorer(type("Encoder", (), {"kind": "encoder"})())  # type: ignore[arg-type]


def contents(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*.safetensors") if path.is_file()
    }


def test_a_grown_data_set_computes_new_rows_and_columns_only(bench, tmp_path):
    pool = some_rows(6)
    compute(bench, pool[:4], pool[:4], tmp_path, blocks=SerialBlocks())
    before = contents(tmp_path)
    grown = compute(bench, pool, pool, tmp_path, blocks=SerialBlocks())
    assert grown.computed_pairs == 36 - 16
    after = contents(tmp_path)
    assert before.items() <= after.items()
    whole = compute(bench, pool, pool, tmp_path / "whole", blocks=SerialBlocks())
    np.testing.assert_allclose(grown.view(shape="raw"), whole.view(shape="raw"), atol=1e-6)
    assert compute(bench, pool[1:3], pool[2:5], tmp_path, blocks=SerialBlocks()).computed_pairs == 0
    assert compute(bench, pool, pool, tmp_path, blocks=SerialBlocks(), template="plain").computed_pairs == 36
    assert compute(bench, pool, pool, tmp_path, blocks=SerialBlocks(), adapter="another").computed_pairs == 36


def test_a_damaged_block_is_computed_again(bench, tmp_path):
    pool = some_rows(4)
    compute(bench, pool, pool, tmp_path, blocks=SerialBlocks())
    good = contents(tmp_path)
    (folder,) = tmp_path.iterdir()
    (folder / "rows-0123456789abcdef-999999999.jsonl").write_text("left by a killed process")
    path = next(tmp_path.rglob(f"{pool[2].id}-*.safetensors"))
    path.write_bytes(path.read_bytes()[:-3] + b"abc")
    assert compute(bench, pool, pool, tmp_path, blocks=SerialBlocks()).computed_pairs == 4
    assert contents(tmp_path) == good and not list(folder.glob("rows-*"))


def test_killed_at_random_moments_it_ends_with_the_same_bytes(bench, tmp_path, monkeypatch):
    monkeypatch.setattr(computing, "BLOCK_ROWS", 4)
    pool = some_rows(30)
    compute(bench, pool, pool, tmp_path / "quiet", blocks=SerialBlocks())
    killed = tmp_path / "killed"
    chance = random.Random(1)
    for kill in range(5):
        before = _whole_blocks(killed)
        limit_s = chance.uniform(0.03, 0.12)
        code = live(lambda: compute(bench, pool, pool, killed, blocks=SerialBlocks()), limit_s=limit_s)
        assert code == DIED, "it has to be killed before it is through"
        after = _whole_blocks(killed)
        assert before.items() <= after.items()  # the same files, not written again
        assert len([path for path in killed.rglob("*.part")]) <= kill + 1  # a kill loses the block in work, no more
    before = _whole_blocks(killed)
    compute(bench, pool, pool, killed, blocks=SerialBlocks())
    assert before.items() <= _whole_blocks(killed).items()
    assert contents(killed) == contents(tmp_path / "quiet")


def _whole_blocks(folder: Path) -> dict[str, tuple[int, int]]:
    """Every finished block with its inode and time: a file that was written again has others."""
    whole = [path for path in folder.rglob("*.safetensors") if not path.name.startswith(".")]
    return {path.name: (path.stat().st_ino, path.stat().st_mtime_ns) for path in whole}


def test_only_functions_of_the_package_travel():
    from functools import partial

    from foretune.selection.greedy.partition import rank_part

    order = named(partial(rank_part, folder="x", count=2))
    assert order == {
        "function": "foretune.selection.greedy.partition:rank_part",
        "settings": {"folder": "x", "count": 2},
        "bench": False,
    }
    assert called(order["function"]) is rank_part
    for name in ("os:system", "foretune.files:write_text.x", "foretunely:f"):
        with pytest.raises(UsageError):
            called(name)
    with pytest.raises(UsageError):
        named(lambda block: block)
    with pytest.raises(UsageError):
        carry_out(None, {"function": "subprocess:run", "settings": {}, "bench": False, "block": []})


def test_rows_with_tools_are_measured_and_found_again(bench, tmp_path):
    """Blocks are of rows whose tools became text, and were kept under the ids of those."""
    tools = '[{"type": "function", "function": {"name": "look_up"}}]'
    plain = some_rows(4)
    offering = [replace(row, tools=tools) for row in plain]
    roomy = _on(bench, replace(bench.task, context_tokens=1000))
    kernel = compute(roomy, offering, offering, tmp_path, blocks=SerialBlocks())
    assert all(kernel.column(j).d.any() for j in range(-1, 4)) and kernel.computed_pairs == 16
    again = compute(roomy, offering, offering, tmp_path, blocks=SerialBlocks())
    assert again.computed_pairs == 0
    np.testing.assert_array_equal(again.column(1).d, kernel.column(1).d)
