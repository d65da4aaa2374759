"""Loading: kinds, heads, padding, hashes; and everything that can be wrong with a model folder or hub id."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from foretune.catalogue.models import ModelReference
from foretune.errors import ModelError, UsageError
from foretune.models.kinds import infer_kind
from foretune.models.load import (
    computing_dtype,
    cpu_has_bfloat16,
    load,
    locate,
    read_config,
    weights_hash,
)

from .conftest import tiny_llama, tiny_tokenizer


def _reference(folder: Path, **fields: Any) -> ModelReference:
    return ModelReference(str(folder), **{"dtype": "float32", **fields})


@pytest.fixture
def bert_folder(tmp_path: Path) -> Path:
    folder = tmp_path / "bert"
    tokenizer = tiny_tokenizer(unk_token="<unk>", pad_token="<s>")
    config = transformers.BertConfig(
        vocab_size=len(tokenizer), hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2
    )
    torch.manual_seed(0)
    transformers.BertModel(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def test_a_folder_loads_as_saved(llama_folder: Path) -> None:
    loaded = load(_reference(llama_folder))
    original = tiny_llama(len(loaded.tokenizer))
    for name, tensor in original.state_dict().items():
        assert torch.equal(loaded.model.state_dict()[name], tensor), name
    assert not loaded.model.training
    assert loaded.kind == "causal" and loaded.folder_or_id == str(llama_folder)
    assert loaded.model.lm_head.weight is loaded.model.model.embed_tokens.weight


def test_padding_is_the_end_token_and_adds_no_embedding(llama_folder: Path) -> None:
    loaded = load(_reference(llama_folder))
    assert loaded.tokenizer.pad_token == "</s>"
    assert loaded.model.config.pad_token_id == loaded.model.generation_config.pad_token_id == 2
    assert loaded.model.get_input_embeddings().num_embeddings == len(loaded.tokenizer)


def test_a_padding_token_beyond_the_embeddings_is_not_used(llama_folder: Path) -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.add_special_tokens({"pad_token": "<extra>"})
    tokenizer.save_pretrained(llama_folder)
    loaded = load(_reference(llama_folder))
    assert loaded.tokenizer.pad_token_id == 2


def test_a_tokenizer_without_any_stand_in_is_refused(llama_folder: Path) -> None:
    tiny_tokenizer(bos_token="<s>").save_pretrained(llama_folder)
    with pytest.raises(ModelError, match="no padding, end or unknown token"):
        load(_reference(llama_folder))


def test_the_head_of_a_classifier_depends_on_the_seed_alone(bert_folder: Path) -> None:
    reference = _reference(bert_folder, kind="encoder")
    labels = ("bad", "fair", "good")
    torch.manual_seed(1)
    first = load(reference, labels=labels)
    torch.manual_seed(2)
    state = torch.random.get_rng_state()
    second = load(reference, labels=labels)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert torch.equal(first.model.classifier.weight, second.model.classifier.weight)
    assert not torch.equal(
        first.model.classifier.weight, load(reference, labels=labels, seed=1).model.classifier.weight
    )
    assert first.model.classifier.weight.std() > 0
    assert first.model.config.id2label == {0: "bad", 1: "fair", 2: "good"}
    assert first.model.config.label2id["good"] == 2


def test_regression_has_one_output(bert_folder: Path) -> None:
    model = load(_reference(bert_folder, kind="encoder"), regression=True).model
    assert model.config.num_labels == 1 and model.config.problem_type == "regression"
    ids = torch.tensor([[5, 6, 7]])
    assert model(ids).logits.shape == (1, 1)
    with pytest.raises(UsageError, match="not both"):
        load(_reference(bert_folder, kind="encoder"), labels=("a", "b"), regression=True)


def test_a_trained_head_is_kept_and_a_head_of_another_size_is_drawn_anew(bert_folder: Path, tmp_path: Path) -> None:
    trained = load(_reference(bert_folder, kind="encoder"), labels=("a", "b"))
    with torch.no_grad():
        trained.model.classifier.weight.fill_(0.5)
    folder = tmp_path / "trained"
    trained.model.save_pretrained(folder)
    trained.tokenizer.save_pretrained(folder)
    again = load(_reference(folder, kind="encoder"), labels=("a", "b"))
    assert torch.equal(again.model.classifier.weight, torch.full((2, 16), 0.5))
    other = load(_reference(folder, kind="encoder"), labels=("a", "b", "c"))
    assert other.model.classifier.weight.shape == (3, 16)
    assert other.model.classifier.weight.std() > 0


def test_a_causal_model_can_carry_a_classifier(llama_folder: Path) -> None:
    model = load(_reference(llama_folder), labels=("a", "b")).model
    assert model(torch.tensor([[5, 6, 2]])).logits.shape == (1, 2)


def test_an_encoder_decoder_loads(tmp_path: Path) -> None:
    tokenizer = tiny_tokenizer()
    config = transformers.BartConfig(
        vocab_size=len(tokenizer), d_model=16, encoder_layers=1, decoder_layers=1, encoder_ffn_dim=32,
        decoder_ffn_dim=32, encoder_attention_heads=2, decoder_attention_heads=2, pad_token_id=0, bos_token_id=1,
        eos_token_id=2, decoder_start_token_id=2,
    )  # fmt: skip
    folder = tmp_path / "bart"
    transformers.BartForConditionalGeneration(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    loaded = load(_reference(folder, kind="seq2seq"))
    assert loaded.model.config.is_encoder_decoder
    with pytest.raises(ModelError, match="kind seq2seq, not causal"):
        load(_reference(folder))


def test_the_hash_is_that_of_the_weights(llama_folder: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(llama_folder, tmp_path / "copy")
    (copy / "README.md").write_text("other text")
    assert weights_hash(copy) == weights_hash(llama_folder)
    content = bytearray((copy / "model.safetensors").read_bytes())
    content[-1] ^= 1
    (copy / "model.safetensors").write_bytes(content)
    assert weights_hash(copy) != weights_hash(llama_folder)


Damage = Callable[[Path], Any]


def _pickled(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")


def _without(name: str) -> Damage:
    return lambda folder: (folder / name).unlink()


def _without_tokenizer(folder: Path) -> None:
    for path in [*folder.glob("tokenizer*"), *folder.glob("vocab*"), *folder.glob("special*")]:
        path.unlink()


def _as_adapter(folder: Path) -> None:
    (folder / "config.json").rename(folder / "adapter_config.json")


def _missing_tensor(folder: Path) -> None:
    from safetensors.torch import load_file, save_file

    tensors = load_file(folder / "model.safetensors")
    del tensors["model.layers.1.mlp.up_proj.weight"]
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def _other_shape(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    config["intermediate_size"] = 48
    (folder / "config.json").write_text(json.dumps(config))


def _escaping_index(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder.parent / "outside.safetensors")
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": "../outside.safetensors"}}))


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (_without("config.json"), "no config.json"),
        (_without("model.safetensors"), "no weights"),
        (_without_tokenizer, "no tokenizer"),
        (_pickled, "pickled only"),
        (_as_adapter, "an adapter, not a base model"),
        (_missing_tensor, r"lacks 1 tensors.*up_proj"),
        (_other_shape, "another shape"),
        (_escaping_index, "outside the folder"),
        (lambda folder: (folder / "config.json").write_text('{"model_type": "llama",'), r"config\.json:1:\d+"),
        (lambda folder: (folder / "config.json").write_text("[]"), "no model_type"),
        (lambda folder: (folder / "config.json").write_bytes(b"\xff\xfe"), "cannot be read"),
        (lambda folder: (folder / "config.json").write_text('{"model_type": "nothing"}'), "cannot be loaded"),
        (lambda folder: (folder / "tokenizer.json").write_text("{"), "cannot be loaded"),
    ],
)
def test_a_damaged_folder_is_said_with_its_place(llama_folder: Path, damage: Damage, says: str) -> None:
    damage(llama_folder)
    with pytest.raises(ModelError, match=says) as caught:
        load(_reference(llama_folder))
    assert str(llama_folder) in str(caught.value)
    assert caught.value.remedy


@pytest.mark.parametrize("keep", [0, 1, 0.5, 0.999])
def test_weights_cut_short_are_found_before_loading(llama_folder: Path, keep: float) -> None:
    path = llama_folder / "model.safetensors"
    content = path.read_bytes()
    path.write_bytes(content[: int(keep) if keep in (0, 1) else int(keep * len(content))])
    with pytest.raises(ModelError, match=r"model\.safetensors.*(cut short|header)"):
        load(_reference(llama_folder))


def test_remote_code_is_refused_by_name_of_the_flag_and_not_run(llama_folder: Path, tmp_path: Path) -> None:
    marker = tmp_path / "was-run"
    config = json.loads((llama_folder / "config.json").read_text())
    config["model_type"] = "homemade"
    config["auto_map"] = {"AutoConfig": "homemade.Config", "AutoModelForCausalLM": "homemade.Model"}
    (llama_folder / "config.json").write_text(json.dumps(config))
    (llama_folder / "homemade.py").write_text(f"open({str(marker)!r}, 'w').close()\n")
    with pytest.raises(ModelError, match="--trust-remote-code"):
        load(_reference(llama_folder))
    assert not marker.exists()


def test_locate(llama_folder: Path, tmp_path: Path) -> None:
    assert locate(str(llama_folder)) == llama_folder
    assert locate("owner/name") == "owner/name"
    for source in ("nothing", "./no/such", "a/b/c", "owner/"):
        with pytest.raises(ModelError, match="there is no model"):
            locate(source)
    with pytest.raises(ModelError, match="no such file"):
        locate(str(tmp_path / "absent.gguf"))
    text = tmp_path / "notes.txt"
    text.write_text("not a model")
    with pytest.raises(ModelError, match="not a GGUF file"):
        locate(str(text))


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty hub cache that transformers looks into, with the network forbidden."""
    import huggingface_hub.constants

    folder = tmp_path / "hub"
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(folder))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    return folder


def test_a_hub_id_is_loaded_from_the_local_snapshot(hub: Path, llama_folder: Path) -> None:
    commit = "0123456789abcdef0123456789abcdef01234567"
    repository = hub / "models--owner--tiny"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text(commit)
    shutil.copytree(llama_folder, repository / "snapshots" / commit)
    loaded = load(ModelReference("owner/tiny", dtype="float32"))
    assert loaded.folder_or_id == "owner/tiny"
    assert loaded.weights_hash == weights_hash(llama_folder)
    assert read_config("owner/tiny")["model_type"] == "llama"
    (repository / "snapshots" / commit / "model.safetensors").rename(
        repository / "snapshots" / commit / "pytorch_model.bin"
    )
    with pytest.raises(ModelError, match="owner/tiny"):
        load(ModelReference("owner/tiny", dtype="float32"))


def test_a_hub_id_that_is_not_cached_explains_offline_mode(hub: Path) -> None:
    with pytest.raises(ModelError, match="HF_HUB_OFFLINE"):
        load(ModelReference("owner/absent"))


def test_four_bits_train_and_stay_as_they_are(llama_folder: Path) -> None:
    bitsandbytes = pytest.importorskip("bitsandbytes")
    model = load(_reference(llama_folder, quantize="4bit")).model
    linear = model.model.layers[0].mlp.up_proj
    assert isinstance(linear, bitsandbytes.nn.Linear4bit)
    assert linear.weight.quant_type == "nf4"
    before = linear.weight.data.clone()
    whole = load(_reference(llama_folder)).model
    ids = torch.tensor([[5, 6, 7, 8]])
    with torch.no_grad():
        first = model(ids).logits
        difference = (first - whole(ids).logits).abs().max()
    assert 0 < difference < 0.5
    embedded = model.get_input_embeddings()(ids).detach().requires_grad_()
    model(inputs_embeds=embedded).logits.sum().backward()
    assert embedded.grad is not None and embedded.grad.abs().sum() > 0
    with torch.no_grad():
        assert torch.equal(model(ids).logits, first)
    assert torch.equal(linear.weight.data, before)


def test_four_bits_leave_the_head_of_a_classifier_dense(bert_folder: Path) -> None:
    bitsandbytes = pytest.importorskip("bitsandbytes")
    model = load(_reference(bert_folder, kind="encoder", quantize="4bit"), labels=("a", "b")).model
    assert isinstance(model.bert.encoder.layer[0].output.dense, bitsandbytes.nn.Linear4bit)
    assert type(model.classifier) is type(model.bert.pooler.dense) is torch.nn.Linear
    model(torch.tensor([[5, 6, 7]])).logits.sum().backward()
    assert model.classifier.weight.grad is not None


def test_four_bits_without_the_extra_names_it(llama_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ModelError, match=r"pip install foretune\[quantize\]"):
        load(_reference(llama_folder, quantize="4bit"))


@pytest.mark.parametrize(
    ("config", "kind"),
    [
        ({"model_type": "llama", "architectures": ["LlamaForCausalLM"]}, "causal"),
        ({"model_type": "bert", "architectures": ["BertModel"]}, "encoder"),
        ({"model_type": "bert", "is_decoder": True, "architectures": ["BertLMHeadModel"]}, "causal"),
        ({"model_type": "bart", "is_encoder_decoder": True, "architectures": ["BartForCausalLM"]}, "seq2seq"),
        ({"model_type": "t5", "architectures": ["T5ForConditionalGeneration"]}, "seq2seq"),
        ({"model_type": "gemma3", "architectures": ["Gemma3ForConditionalGeneration"]}, "causal"),
        ({"model_type": "gpt2", "architectures": ["GPT2LMHeadModel"]}, "causal"),
        ({"model_type": "new", "architectures": ["NewForMaskedLM"]}, "encoder"),
        ({"model_type": "qwen2"}, "causal"),
    ],
)
def test_infer_kind(config: dict[str, Any], kind: str) -> None:
    assert infer_kind(config) == kind


def test_infer_kind_asks_when_nothing_says() -> None:
    with pytest.raises(ModelError, match="Name the kind"):
        infer_kind({"model_type": "new", "architectures": ["NewModel"]})


@pytest.mark.parametrize(
    ("text", "native"),
    [
        ("processor : 0\nflags : fpu sse avx512_bf16 amx_tile\n", True),
        ("processor : 0\nflags : fpu sse avx2\n", False),
        ("processor : 0\nFeatures : fp asimd bf16\n", True),
        ("model name : avx512_bf16\n", False),
    ],
)
def test_native_bfloat16_is_read_from_the_flags(tmp_path: Path, text: str, native: bool) -> None:
    cpuinfo = tmp_path / "cpuinfo"
    cpuinfo.write_text(text)
    assert cpu_has_bfloat16(cpuinfo) is native
    assert cpu_has_bfloat16(tmp_path / "absent") is False


def test_a_named_dtype_wins() -> None:
    device = torch.device("cpu")
    assert computing_dtype("float32", device) is torch.float32
    assert computing_dtype("bfloat16", device) is torch.bfloat16


def test_a_hub_model_that_is_not_here_is_downloaded_without_pickles(monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub

    from foretune.models import load

    asked: list[tuple[str, str | None, list[str]]] = []

    def download(name: str, *, revision: str | None, allow_patterns: list[str]) -> str:
        asked.append((name, revision, allow_patterns))
        return ""

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    assert load.bring("somebody/some-model", revision="v1") == "somebody/some-model"
    ((name, revision, patterns),) = asked
    assert (name, revision) == ("somebody/some-model", "v1")
    assert "*.safetensors" in patterns and not any("bin" in pattern or "pt" in pattern for pattern in patterns)


def test_a_hub_model_offline_is_our_error(monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub

    from foretune.models import load

    def refuse(*_: object, **__: object) -> str:
        raise ConnectionError("offline mode is enabled")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", refuse)
    with pytest.raises(ModelError, match="somebody/some-model"):
        load.bring("somebody/some-model")
