"""`plan` from data to answer, its command, what it must not import, and the finding of models."""

import json
import struct
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from typer.testing import CliRunner

from foretune.catalogue.models import MODELS
from foretune.cli.display import after_probe
from foretune.cli.main import app
from foretune.cost.machine import Accelerator, Machine
from foretune.cost.request import Measured
from foretune.cost.shapes import ModelShapes
from foretune.data.example import Example, Turn, conversation
from foretune.errors import BudgetError, DataError, ModelError, UsageError
from foretune.execution.calibration import matmul_rate, measure
from foretune.fit.find_model import CATALOGUE_CONFIGS, find_model
from foretune.fit.history import SPEED, Recorder, known_history
from foretune.fit.outlook import default_run, replan
from foretune.fit.plan import plan
from foretune.fit.probe_plan import measured, task_spec
from foretune.fit.row_tokens import count_tokens
from foretune.search.strategies import searched_methods

MACHINE = Machine("test", 2, 2, 16 * 2**30, 12 * 2**30, True)
TEMPLATE = "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}<|end|>{% endfor %}"


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("FORETUNE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))


def _tokenizer():
    from tokenizers import Tokenizer, models, pre_tokenizers

    tokenizer = Tokenizer(models.WordLevel({"[UNK]": 0}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()  # one token a word
    return tokenizer


def _model(folder, template=None, **changes):
    folder.mkdir(parents=True, exist_ok=True)
    config = {"model_type": "llama", "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2,
              "num_attention_heads": 4, "vocab_size": 100, "max_position_embeddings": 50, **changes}  # fmt: skip
    (folder / "config.json").write_text(json.dumps(config))
    _tokenizer().save(str(folder / "tokenizer.json"))
    if template is not None:
        (folder / "chat_template.jinja").write_text(template)
    return folder


def _rows(path, count=100):
    path.write_text("".join(json.dumps({"prompt": f"question number {i}", "completion": "an answer"}) + "\n"
                            for i in range(count)))  # fmt: skip
    return path


def _plan(tmp_path, **fields):
    data = _rows(tmp_path / "rows.jsonl")
    model = str(_model(tmp_path / "model"))
    fields = {"model": model, "machine": MACHINE, "matmul": lambda machine: 2.4e11, **fields}
    return plan(data, **fields)


def test_memory_is_that_of_the_method_or_of_the_heaviest_that_is_searched(tmp_path):
    given = {"data": _rows(tmp_path / "rows.jsonl"), "model": str(_model(tmp_path / "m")), "machine": MACHINE,
             "matmul": lambda machine: 1e11}  # fmt: skip

    def activations(**options):
        return plan(**given, options=options).placement.peak.activations

    linears = 2 * 2 * (4 * 64 * 64 + 3 * 64 * 128)  # bytes, layers
    one_copy, twelve = (activations(**{"training.method": name}) for name in ("loha", "hra"))
    assert 8 * linears < twelve - one_copy < 12 * linears
    assert activations(**{"search.methods": ["lora", "hra"]}) >= twelve > activations(**{"search.methods": ["lora"]})
    assert plan(**given, options={"search.methods": ["dora", "ia3"]}).config["method"] == "dora"


def test_what_cannot_be_merged_is_not_searched_where_that_is_how_it_is_served(tmp_path):
    served = searched_methods("causal", None, deploy="merged")
    assert set(searched_methods("causal", None)) - set(served) == {"loratrf"} and "dora" in served
    given = {"data": _rows(tmp_path / "rows.jsonl"), "model": str(_model(tmp_path / "m")), "machine": MACHINE,
             "matmul": lambda machine: 1e11}  # fmt: skip
    for options in (
        {"training.method": "loratrf"},
        {"search.methods": ["lora", "loratrf"]},
        {"training.method": "mam"},
    ):
        with pytest.raises(UsageError, match="cannot be merged"):
            plan(**given, options={**options, "output.deploy": "gguf"})
    exact = {"training.method": "loratrf", "training.loratrf.trf_gate": "none"}
    assert plan(**given, options={**exact, "output.deploy": "merged"}).config["method"] == "loratrf"


def test_a_plan_from_start_to_end(tmp_path):
    answer = _plan(tmp_path, time="10m", price_per_hour="$3", sets=["training.lora.rank=4"])
    assert answer.fits
    assert (answer.rows.train, answer.rows.validation, answer.rows.test) == (80, 10, 10)
    assert answer.config["lora.rank"] == 4
    assert answer.config["rows_per_update"] == 4  # of 80 rows, three times: 60 updates instead of 15
    assert "60 steps; updates of 4 rows instead of 16" in answer.why
    assert answer.trainable == answer.model.shapes.lora_parameters(4)
    assert answer.resolution.values["training.lora.rank"].origin == "set"
    assert answer.resolution.values["training.learning_rate"].origin == "recommended"
    assert answer.resolution.fixed_training() == {"lora.rank": 4}
    assert answer.forecast.money.value == pytest.approx(answer.forecast.seconds.value / 1200)
    json.dumps(answer.to_json(), allow_nan=False)


def test_plan_does_not_import_torch_and_is_deterministic(tmp_path):
    assert _plan(tmp_path, time="10m").to_json() == _plan(tmp_path, time="10m").to_json()
    data, model = _rows(tmp_path / "rows.jsonl"), _model(tmp_path / "model")
    code = (
        "import sys; from foretune.cli.main import app\n"
        "try: app(sys.argv[1:], standalone_mode=False)\n"
        "except SystemExit: pass\n"
        "heavy = {'torch', 'transformers', 'datasets', 'peft'} & set(sys.modules); assert not heavy, heavy"
    )
    for arguments in (["--help"], ["plan", "--help"], ["doctor"], ["plan", str(data), "--model", str(model), "--json"]):
        done = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr


def test_the_defaults_without_a_budget_and_without_data(tmp_path):
    answer = _plan(tmp_path)
    assert answer.resolution["budget.time"] == 1800
    assert answer.resolution.values["budget.time"].origin == "recommended"
    with pytest.raises(DataError, match="no data"):
        plan(None, machine=MACHINE)


def test_refusals_reach_the_caller(tmp_path):
    with pytest.raises(BudgetError, match="one training step"):
        _plan(tmp_path, time="0")
    with pytest.raises(UsageError, match="no GPU"):
        _plan(tmp_path, options={"device": "cuda"})
    with pytest.raises(UsageError, match="causal"):
        _plan(tmp_path, options={"model.kind": "encoder"})
    with pytest.raises(ModelError, match="Did you mean SmolLM2-135M-Instruct"):
        _plan(tmp_path, model="SmolLM2-135M")
    encoder = _model(tmp_path / "encoder", model_type="bert")
    with pytest.raises(UsageError, match="writes no text"):
        _plan(tmp_path, model=str(encoder))
    with pytest.raises(ModelError, match="not a model"):
        _plan(tmp_path, model=str(_rows(tmp_path / "x.jsonl")))


def test_a_model_that_does_not_fit_is_said_and_leaves_with_code_5(tmp_path):
    answer = _plan(tmp_path, options={"memory.limit": "100MiB"})
    assert not answer.fits
    assert any("does not fit" in note for note in answer.notes)
    arguments = ["plan", str(tmp_path / "rows.jsonl"), "--model", str(tmp_path / "model"), "--set", "memory.limit=9MiB"]
    done = CliRunner().invoke(app, arguments)
    assert "DOES NOT FIT" in done.output
    assert isinstance(done.exception, BudgetError)
    assert CliRunner().invoke(app, [*arguments, "--json"]).exit_code == 5


def test_a_gpu_is_taken_when_there_is_one(tmp_path):
    machine = Machine("test", 8, 8, 2**36, 2**35, True, (Accelerator("NVIDIA L4", 2**34, 2**34, True),))
    answer = _plan(tmp_path, machine=machine)
    assert answer.placement.layout.device == "cuda"
    assert "L4" in answer.forecast.source


def test_splits_given_by_file_and_column(tmp_path):
    validation = _rows(tmp_path / "v.jsonl", 7)
    answer = _plan(tmp_path, options={"data.validation": str(validation), "data.test_share": 0.2})
    assert (answer.rows.train, answer.rows.validation, answer.rows.test) == (80, 7, 20)


def test_short_budgets_evaluate_fewer_rows_unless_told(tmp_path):
    data = _rows(tmp_path / "many.jsonl", 4000)
    fields = {"model": "SmolLM2-135M-Instruct", "machine": MACHINE, "matmul": lambda machine: 2.4e11, "time": "1m"}
    answer = plan(data, **fields)
    assert answer.resolution["evaluation.max_rows"] < 200
    assert answer.resolution.values["evaluation.max_rows"].origin == "recommended"
    assert any("not fetched" in note for note in answer.notes)
    assert not answer.rows.count.row.exact
    assert any("cuts them short" in note for note in plan(data, **{**fields, "time": "5s"}).notes)
    told = plan(data, **fields, options={"evaluation.max_rows": 150})
    assert told.resolution["evaluation.max_rows"] == 150


def test_rows_that_reason_get_the_room_to_come_to_their_answers(tmp_path):
    def room(thought, options=None, words=3):
        turns = [{"role": "user", "content": "how many"}, {"role": "assistant", "content": "a " * words} | thought]
        data = tmp_path / "thoughts.jsonl"
        data.write_text("".join(json.dumps({"messages": turns, "number": i}) + "\n" for i in range(40)))
        model = str(_model(tmp_path / "model", max_position_embeddings=4096))
        found = plan(data, model=model, machine=MACHINE, matmul=lambda machine: 2.4e11, options=options or {})
        return found.resolution.values["evaluation.max_answer_tokens"], found.request.evaluation.max_answer_tokens

    long = {"reasoning_content": "so " * 300}
    said, forecast = room(long)
    assert said.value == forecast == 384 and "19 of 20 rows" in said.evidence, "1.25 × (300 + 3 + 1), in steps of 64"
    assert room(long, {"evaluation.max_answer_tokens": 50})[1] == 50, "whoever chose is obeyed"
    assert room({"reasoning_content": "so " * 20})[1] == 128, "what is enough stays"
    assert room({}, words=300)[1] == 128, "a long answer that is cut can still be compared"
    assert room({"reasoning_content": "so " * 3000})[1] == 2048


def test_a_probe_is_asked_and_believed(tmp_path):
    seen = []

    def probe(draft):
        task = task_spec(draft, tmp_path / "task")
        seen.append(task)
        return Measured(123.0, 456.0, 10**9)

    answer = _plan(tmp_path, probe=probe)
    assert answer.forecast.units.train_tokens_per_s.value == pytest.approx(123)
    assert answer.forecast.memory_bytes.value == 10**9
    rows = [
        Example.from_json(json.loads(line)) for line in Path(seen[0].folder, "train.jsonl").read_text().splitlines()
    ]
    assert rows[0] == answer.rows.result.examples[0]
    assert measured({"train_tokens_per_s": 2, "score_tokens_per_s": 3}) == Measured(2.0, 3.0, 0, 0.0)
    with pytest.raises(Exception, match="could not measure"):
        measured({"train_tokens_per_s": float("nan"), "score_tokens_per_s": 3})


def test_tokens_are_counted_with_template_and_cut_to_the_context(tmp_path):
    rows = [conversation("a b c", "d e"), conversation("a b c d e", "f g h i")]
    bare = count_tokens(rows, kind="causal", tokenizer=_model(tmp_path / "a") / "tokenizer.json", context_tokens=99)
    assert (bare.row.answer, bare.row.prompt) == (4.0, 4.0 + 2)  # answers 2 and 4 with their end; 2 special tokens
    assert bare.row.mean_square == (8**2 + 12**2) / 2
    # words are split at spaces: "<|user|>What is it?<|end|><|assistant|>It is a test.<|end|>" has as many as the texts
    # together but one, so the template adds nothing here
    folder = _model(tmp_path / "b", TEMPLATE)
    assert count_tokens(rows, kind="causal", tokenizer=folder / "tokenizer.json", context_tokens=99).row.prompt == 4.0
    spaced = TEMPLATE.replace("<|{{ m.role }}|>", " {{ m.role }} : ").replace("<|end|>", " end ")
    folder = _model(tmp_path / "c", spaced)
    assert count_tokens(rows, kind="causal", tokenizer=folder / "tokenizer.json", context_tokens=99).row.prompt == 4 + 5
    cut = count_tokens(rows, kind="causal", tokenizer=folder / "tokenizer.json", context_tokens=10)
    assert cut.row.longest == 10
    hostile = _model(tmp_path / "d", "{{ ''.__class__.__mro__[1].__subclasses__() }}{{ raise_exception('no') }}")
    assert count_tokens(rows, kind="causal", tokenizer=hostile / "tokenizer.json", context_tokens=99).row.prompt == 28
    estimated = count_tokens(rows, kind="causal", tokenizer=None, context_tokens=99)
    assert not estimated.row.exact
    (folder / "tokenizer.json").write_text("{}")
    with pytest.raises(ModelError, match="cannot be read"):
        count_tokens(rows, kind="causal", tokenizer=folder / "tokenizer.json", context_tokens=99)


def test_tokens_of_labels_and_plain_text(tmp_path):
    tokenizer = _model(tmp_path / "a") / "tokenizer.json"
    labelled = [Example((Turn("user", "a b c"),), label="x")]
    row = count_tokens(labelled, kind="encoder", tokenizer=tokenizer, context_tokens=99).row
    assert (row.prompt, row.answer) == (5.0, 1.0)
    text = [Example((Turn("text", "a b c d"),), targets=(0,))]
    row = count_tokens(text, kind="causal", tokenizer=tokenizer, context_tokens=99).row
    assert (row.prompt, row.answer) == (1.0, 4.0)


def test_catalogue_sizes_agree_with_the_catalogue():
    assert set(CATALOGUE_CONFIGS) == set(MODELS)
    for name, config in CATALOGUE_CONFIGS.items():
        assert ModelShapes.from_config(config).parameters == MODELS[name].parameters


def _gguf(path, *, architecture=b"llama", cut=None, tied=True):
    def text(value):
        return struct.pack("<Q", len(value)) + value

    def number(key, value):
        return text(architecture + b"." + key) + struct.pack("<II", 4, value)

    words = [b"a", b"bb", b"ccc"]
    keys = [
        text(b"general.architecture") + struct.pack("<I", 8) + text(architecture),
        number(b"embedding_length", 64), number(b"block_count", 2), number(b"feed_forward_length", 128),
        number(b"attention.head_count", 4), number(b"attention.head_count_kv", 2), number(b"context_length", 77),
        text(b"tokenizer.ggml.tokens") + struct.pack("<IIQ", 9, 8, 3) + b"".join(map(text, words)),
        text(b"tokenizer.ggml.scores") + struct.pack("<IIQ", 9, 6, 3) + struct.pack("<3f", 1, 2, 3),
    ]  # fmt: skip
    names = [b"token_embd.weight"] + ([] if tied else [b"output.weight"])
    tensors = [text(name) + struct.pack("<IQQIQ", 2, 64, 3, 0, 0) for name in names]
    content = b"GGUF" + struct.pack("<IQQ", 3, len(tensors), len(keys)) + b"".join(keys) + b"".join(tensors)
    path.write_bytes(content[:cut])
    return len(content)


@pytest.mark.parametrize("tied", [True, False])
def test_sizes_from_a_gguf_header(tmp_path, tied):
    _gguf(tmp_path / "m.gguf", tied=tied)
    shapes = find_model(str(tmp_path / "m.gguf")).shapes
    assert (shapes.width, shapes.layers, shapes.kv_heads, shapes.vocabulary, shapes.context_tokens) == (64, 2, 2, 3, 77)
    assert shapes.tied_embeddings == tied


def test_damaged_gguf_files_are_refused_at_every_length(tmp_path):
    path = tmp_path / "m.gguf"
    length = _gguf(path)
    for cut in range(0, length - 1, 7):
        _gguf(path, cut=cut)
        with pytest.raises(ModelError, match="not a whole GGUF"):
            find_model(str(path))
    _gguf(path, architecture=b"zebra")
    with pytest.raises(ModelError, match="zebra"):
        find_model(str(path))
    path.write_bytes(b"GGUF" + struct.pack("<IQQ", 3, 2**63, 2**63))
    with pytest.raises(ModelError):
        find_model(str(path))


def test_hub_snapshots_are_found_offline(tmp_path, monkeypatch):
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    revision = "a" * 40
    snapshot = _model(tmp_path / "hub/models--some--model/snapshots" / revision)
    (tmp_path / "hub/models--some--model/refs").mkdir()
    (tmp_path / "hub/models--some--model/refs/main").write_text(revision)
    assert find_model("some/model").folder == snapshot
    with pytest.raises(ModelError, match="downloaded first"):
        find_model("some/other")
    with pytest.raises(ModelError):
        find_model("../../etc")


def test_calibration_is_measured_once_and_kept(tmp_path):
    ticks = iter(range(10**6))
    rate = measure(busy=lambda: next(ticks) * 0.001, wall=iter([0.0, 0.1, 1.0]).__next__)
    assert rate == pytest.approx(2 * 512**3 / 0.001)
    first = matmul_rate(MACHINE)
    stored = next((tmp_path / "cache/machine").glob("*.json"))
    stored.write_text(stored.read_text().replace(repr(first), "5e9"))
    assert matmul_rate(MACHINE) == 5e9
    stored.write_text("torn{")
    assert matmul_rate(MACHINE) > 0


def test_a_second_forecast_after_the_probe_reads_nothing_again(tmp_path):
    first = _plan(tmp_path, time="10m")
    (tmp_path / "rows.jsonl").unlink()  # nothing may be read again
    probe = {"train_tokens_per_s": 40.0, "score_tokens_per_s": 90.0, "peak_bytes": 10**9, "answer_s": 0.5}
    second = replan(first, measured(probe), spent_s=33.0)
    assert second.forecast.units.train_tokens_per_s.value == pytest.approx(40)
    assert second.forecast.memory_bytes.value == 10**9
    assert second.forecast.phases[0].seconds.value == 33.0
    assert "probe" in second.forecast.source
    assert first.forecast.source != second.forecast.source
    step = int(first.config["rows_per_update"]) * first.rows.count.row.total / 40
    assert default_run(second.request, 100, 5).value == pytest.approx(5 * step)
    assert default_run(second.request, 100, 6).value > 6 * step  # the first rung that is evaluated lies at 6
    longer = default_run(second.request, 100, 50).value - default_run(second.request, 100, 49).value
    assert longer > step  # a rung lies at 50
    assert default_run(second.request, 100, 49).value - default_run(second.request, 100, 48).value == pytest.approx(
        step
    )
    said = after_probe(second.forecast.to_json())
    assert said.startswith("after the probe: whole run ")
    assert "953.7 MiB" in said and "; the default LoRA " in said


def test_one_configuration_alone_is_called_so(tmp_path):
    from foretune.cli.plan import lines

    one, several = (_plan(tmp_path, options={"budget.trials": trials}) for trials in (1, 3))
    text, other = "\n".join(lines(one)), "\n".join(lines(several))
    assert "trials     1: one configuration" in text and "  the one run " in text and "default LoRA" not in text
    assert "; the one run " in after_probe(one.forecast.to_json())
    assert "the default LoRA included" in other and "  default LoRA " in other


def test_a_run_is_as_long_as_the_search_would_make_it(tmp_path):
    slow = {"probe": lambda draft: Measured(20.0, 200.0, 10**9)}
    assert _plan(tmp_path, options={"budget.trials": 2}, **slow).forecast.horizon_share == 1.0
    shares = [_plan(tmp_path, time=time, **slow).forecast.horizon_share for time in ("60s", "2m", "2h")]
    assert 0 < shares[0] < shares[1] < shares[2] == 1.0
    assert 0.7 < _plan(tmp_path, time="4m", **slow).forecast.horizon_share < 1.0
    coarse = _plan(tmp_path, time="4m", options={"training.rows_per_update": 16}, **slow)
    assert coarse.forecast.horizon_share == 1.0  # 15 steps have no early rung: one run alone, whole


def _recorded_run(tmp_path, number, speed, ratio):
    """One finished fit in the store: speeds in operations per second, and forecasts with truths."""
    recorder = Recorder(
        prefix=f"run-{number}", task="t", task_features={}, model="m", model_features={"parameters": 82_000},
        machine=MACHINE, versions={},
    )  # fmt: skip
    recorder.run("a", {"method": "lora", "number": number}, seed=0, horizon=10)
    rows = {f"{SPEED}:{work}:cpu:bfloat16": (1.0, 2.0, 3.0, speed * factor) for work, factor in
            (("train", 1), ("score", 2))}  # fmt: skip
    rows |= {"run_seconds": (90.0, 100.0, 110.0, 100.0 * ratio), "memory_bytes": (1e9, 1e9, 1e9, 1e9)}
    recorder.forecast("a", rows)
    recorder.close()


def test_what_earlier_runs_measured_makes_the_next_forecast_tighter_and_better(tmp_path, monkeypatch):
    monkeypatch.setenv("FORETUNE_STORE", str(tmp_path / "store.sqlite"))
    truth = 3e10
    before = _plan(tmp_path, options={"budget.trials": 1})
    for number in range(6):
        _recorded_run(tmp_path, number, truth * (0.95, 1.0, 1.05)[number % 3], 1.3)
    history, outcomes = known_history()
    assert len(history) == len(outcomes) == 12
    after = _plan(tmp_path, options={"budget.trials": 1}, history=history, outcomes=outcomes)
    assert "6 earlier runs" in after.forecast.source
    assert after.request.rates.train.value == pytest.approx(truth, rel=0.01)
    width = [a.high / a.low for a in (before.request.rates.train, after.request.rates.train)]
    assert width[1] < 0.6 * width[0]
    uncorrected = _plan(tmp_path, options={"budget.trials": 1}, history=history)
    ratio = [
        next(p.seconds.value for p in answer.forecast.phases if p.name == "the one run")
        for answer in (after, uncorrected)
    ]
    assert ratio[0] / ratio[1] == pytest.approx(1.3 ** (6 / 8), rel=0.01)  # shrunk by two runs' worth
    other = _plan(tmp_path, machine=replace(MACHINE, cores=8), history=history)
    assert "matrix products" in other.forecast.source


def test_the_shared_head_is_counted_as_encoding_shares_it(tmp_path):
    folder = _model(tmp_path / "m", "{% for m in messages %} be brief {{ m.role }} : {{ m.content }} end {% endfor %}"
                    "{% if add_generation_prompt %} be brief assistant : {% endif %}")  # fmt: skip
    rows = [conversation(f"what is {i}", "this") for i in range(40)]
    vocabulary = {
        word: i
        for i, word in enumerate(["[UNK]", "be", "brief", "user", "assistant", ":", "what", "is", "end", "this"])
    }
    numbers = {str(i): len(vocabulary) + i for i in range(40)}
    tokenizer = json.loads((folder / "tokenizer.json").read_text())
    tokenizer["model"]["vocab"] = vocabulary | numbers
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    count = count_tokens(rows, kind="causal", tokenizer=folder / "tokenizer.json", context_tokens=99)
    assert count.row.head == len(["be", "brief", "user", ":", "what", "is"])
    assert count_tokens(rows, kind="encoder", tokenizer=folder / "tokenizer.json", context_tokens=99).row.head == 0
    text = [Example((Turn("text", "what is this"),), targets=(0,))] * 20
    assert count_tokens(text, kind="causal", tokenizer=folder / "tokenizer.json", context_tokens=99).row.head == 0
    same = [conversation("what is this", "this")] * 20  # a row keeps one token of its own before its answer
    count = count_tokens(same, kind="causal", tokenizer=folder / "tokenizer.json", context_tokens=99)
    assert count.row.head == count.row.prompt - 1


def test_a_seven_billion_model_is_planned_from_its_configuration(tmp_path):
    shape = {"hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32, "num_attention_heads": 32,
             "vocab_size": 32000, "max_position_embeddings": 4096}  # fmt: skip
    model = str(_model(tmp_path / "seven", **shape))
    enough = _plan(tmp_path, model=model, options={"memory.limit": "24GiB"})
    assert enough.fits
    assert enough.placement.layout.quantize == "none"
    tight = _plan(tmp_path, model=model, options={"memory.limit": "10GiB"})
    assert tight.fits
    assert tight.placement.layout.quantize == "4bit"
    assert "the base model is loaded in 4 bits" in tight.notes
    assert not _plan(tmp_path, model=model, options={"memory.limit": "4GiB"}).fits


def test_an_encoder_reserves_memory_for_full_tuning_which_the_search_tries(tmp_path):
    rows = tmp_path / "labels.jsonl"
    rows.write_text("".join(json.dumps({"text": f"row {i}", "label": "ab"[i % 2]}) + "\n" for i in range(100)))
    model = str(_model(tmp_path / "encoder", model_type="bert"))
    both = plan(rows, model=model, machine=MACHINE, matmul=lambda machine: 2.4e11)
    alone = plan(rows, model=model, machine=MACHINE, matmul=lambda machine: 2.4e11, sets=["training.method=lora"])
    assert both.placement.peak.trained > alone.placement.peak.trained
    assert both.config["method"] == alone.config["method"] == "lora"
    assert both.rows.count.row.head == 0
