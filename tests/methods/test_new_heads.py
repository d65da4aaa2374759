"""A classifier's head may be more than its last layer: all that the base lacks is trained and saved."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModel, AutoModelForSequenceClassification, AutoTokenizer

from foretune.catalogue.methods import resolve
from foretune.catalogue.models import ModelReference
from foretune.methods.attachment import load_adapter
from foretune.methods.registry import get
from foretune.models.load import NEW_HEAD, load
from foretune.seeding import torch_generator
from tests import tiny

LABELS = ("blue", "red")
SIZES = {"vocab_size": 400, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
         "num_attention_heads": 4, "max_position_embeddings": 64, "pad_token_id": 5,
         "initializer_range": 0.2}  # fmt: skip
ARCHITECTURES = {
    "deberta-v2": {"pooler.dense"},
    "modernbert": {"head.dense", "head.norm", "classifier"},
    "eurobert": {"dense", "classifier"},
    "roberta": {"classifier.dense", "classifier.out_proj"},
    "bert": {"classifier"},
}


def base_model(name: str, folder: Path) -> Path:
    """A bare encoder with its tokenizer, as it is pre-trained: without the head of a classifier."""
    from transformers import AutoConfig

    torch.manual_seed(1)
    AutoModel.from_config(AutoConfig.for_model(name, **SIZES)).save_pretrained(folder)
    tiny.tokenizer(chat=False, encoder=True).save_pretrained(folder)
    return folder


@pytest.mark.parametrize("name", ARCHITECTURES)
@pytest.mark.parametrize("method", ["lora", "bottleneck", "layernorm"])
def test_the_whole_new_head_is_trained_and_answers_the_same_elsewhere(name: str, method: str, tmp_path: Path) -> None:
    folder = base_model(name, tmp_path / "base")
    loaded = load(ModelReference(str(folder), kind="encoder", dtype="float32"), labels=LABELS)
    new = set(getattr(loaded.model, NEW_HEAD))
    assert ARCHITECTURES[name] <= new and all(
        part.startswith(("classifier", "pooler", "head", "dense")) for part in new
    )
    before = {key: weight.clone() for key, weight in loaded.model.state_dict().items()}
    attachment: Any = get(method).attach(loaded.model, {"method": method}, generator=torch_generator(0, "init"))
    trained = [key.replace(".modules_to_save.default", "") for key, _ in attachment.trainable()]
    for part in new:
        assert any(part in key for key in trained), f"{part} would stay as it was drawn"
    with torch.no_grad():
        for _, weight in attachment.trainable():
            weight.add_(torch.randn(weight.shape, generator=torch.Generator().manual_seed(weight.numel())) * 0.1)
    words = AutoTokenizer.from_pretrained(folder)(["the lamp", "a horse"], return_tensors="pt", padding=True)
    logits = attachment.model(**words).logits.detach()
    attachment.save(tmp_path / "adapter")
    assert attachment.adapter_parameters == sum(w.numel() for key, w in attachment.trainable()) - sum(
        loaded.model.get_parameter(key).numel() for key in before if any(key.startswith(part + ".") for part in new)
    )  # fmt: skip
    base = attachment.detach()
    assert all(torch.equal(weight, before[key]) for key, weight in base.state_dict().items()), "the base is as before"
    torch.manual_seed(99)  # another draw of the head, as any user's machine makes one
    other = AutoModelForSequenceClassification.from_pretrained(folder, num_labels=2, dtype=torch.float32)
    again = load_adapter(other, tmp_path / "adapter").eval()
    torch.testing.assert_close(again(**words).logits, logits, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("method", ["mora", "bitfit", "lora"])
def test_a_merged_classifier_keeps_its_trained_head(method: str, tmp_path: Path) -> None:
    folder = base_model("bert", tmp_path / "base")
    loaded = load(ModelReference(str(folder), kind="encoder", dtype="float32"), labels=LABELS)
    attachment: Any = get(method).attach(
        loaded.model, resolve({"method": method}), generator=torch_generator(0, "init")
    )
    with torch.no_grad():
        for _, weight in attachment.trainable():
            weight.add_(torch.randn(weight.shape, generator=torch.Generator().manual_seed(weight.numel())) * 0.1)
    words = loaded.tokenizer(["the lamp", "a horse"], return_tensors="pt", padding=True)
    logits = attachment.model(**words).logits.detach()
    attachment.merge().save_pretrained(tmp_path / "merged")
    again = AutoModelForSequenceClassification.from_pretrained(tmp_path / "merged", dtype=torch.float32).eval()
    torch.testing.assert_close(again(**words).logits, logits, rtol=1e-4, atol=1e-4)
