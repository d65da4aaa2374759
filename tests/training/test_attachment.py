"""What an attachment leaves behind in the base: nothing, a classifier's trained head included."""

from __future__ import annotations

import pytest
import torch
from transformers import BertConfig, BertForSequenceClassification

from foretune.catalogue.methods import resolve
from foretune.catalogue.priors import DEFAULT_LORA
from foretune.methods.contract.models import specimen
from foretune.methods.registry import get
from foretune.seeding import torch_generator


@pytest.mark.parametrize("method", ["lora", "full"])
def test_the_base_is_bitwise_as_before_and_nothing_drops_out(method: str) -> None:
    torch.manual_seed(0)
    base = BertForSequenceClassification(
        BertConfig(vocab_size=50, hidden_size=16, intermediate_size=24, num_hidden_layers=1, num_attention_heads=2,
                   max_position_embeddings=32, num_labels=3, hidden_dropout_prob=0.5)
    ).eval()  # fmt: skip
    before = {name: tensor.clone() for name, tensor in base.state_dict().items()}
    ids = torch.tensor([[3, 4, 5, 6]])
    for _ in range(2):
        config = {**DEFAULT_LORA, "method": method}
        attachment = get(method).attach(base, config, generator=torch_generator(0, "init"))
        assert not any(module.training for module in attachment.model.modules())
        with torch.no_grad():
            assert torch.equal(attachment.model(ids).logits, attachment.model(ids).logits)
            for group in attachment.parameter_groups(1.0):
                for weight in group["params"]:
                    weight.add_(0.5)
        base = attachment.detach()
        after = base.state_dict()
        assert list(after) == list(before)
        assert all(torch.equal(after[name], tensor) for name, tensor in before.items())


def test_what_a_method_drew_is_forgotten_with_it() -> None:
    from foretune.methods.tuners.frozen import _drawn

    case = specimen("llama")
    attachment = get("nola").attach(case.model, resolve({"method": "nola"}), generator=torch_generator(0, "init"))
    case.logits(attachment.model)
    found = _drawn.cache_info()
    assert 0 < found.currsize < found.hits, "layers of one shape share"
    attachment.detach()
    assert _drawn.cache_info().currsize == 0
