"""Kept hidden states below the lowest adapted layer: the losses of the ordinary pass, within a budget, never stale."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from peft import LoraConfig
from torch import nn

from foretune.catalogue.methods import METHODS
from foretune.data.batches import lay_out
from foretune.data.update import Epochs
from foretune.methods.attachment import PeftAttachment
from foretune.models.modules import describe, linear_targets
from foretune.training.forward import Network
from foretune.training.loop import LoopSettings, StepReport, Training
from foretune.training.optimizer import OptimizerSettings
from foretune.training.prefix import FrozenPrefix, PrefixStore, blocks_of, lowest_adapted_block
from tests.training.rows import random_rows
from tests.training.test_forward import PACKS, architectures

ROWS = random_rows(12)


def upper(model: Any, layers: Sequence[int] = (2, 3), **fields: Any) -> PeftAttachment:
    """LoRA on the linear layers of a few blocks."""
    targets = [name for name in linear_targets(model) if describe(name).layer in layers]
    settings = {"r": 4, "target_modules": targets, **fields}
    return PeftAttachment(model, LoraConfig(**settings), METHODS["lora"].traits, seed=0)


def llama(tiny_llama: Any, **fields: Any) -> Any:
    model = tiny_llama(num_hidden_layers=4, **fields)
    model.requires_grad_(False)
    return model.eval()


def trained(model: Any, store: PrefixStore | None, *, steps: int = 6, packing: bool = True) -> tuple[Any, list[float]]:
    """Weights and losses of two epochs of three updates."""
    attachment = upper(model)
    prefix = None if store is None else FrozenPrefix(attachment.model, "tiny", store)
    training = Training(
        Network(attachment.model, "causal", prefix), attachment, ROWS, Epochs(12, 4, 0),
        LoopSettings(OptimizerSettings(1e-2, 6), seed=0, micro_batch_tokens=40, packing=packing),
    )  # fmt: skip
    seen: list[StepReport] = []
    training.run(steps, on_step=lambda report: seen.append(report) or True)
    state = attachment.state()
    attachment.detach()
    return state, [report.loss for report in seen]


@pytest.mark.parametrize("packing", [True, False])
def test_losses_are_those_without_it_and_later_epochs_only_look_up(tiny_llama: Any, packing: bool) -> None:
    model = llama(tiny_llama)
    _, expected = trained(model, None, packing=packing)
    store = PrefixStore(2**20)
    _, losses = trained(model, store, packing=packing)
    assert losses == pytest.approx(expected, rel=1e-5) and losses != expected[:1] * 6
    probes = 3
    assert store.computed == 12 + probes and store.found == 12
    assert store.used_bytes == sum(len(row.ids) for row in ROWS) * 32 * 4 + _probe_bytes(store)
    _, again = trained(model, store, packing=packing)  # another trial
    assert again == losses and store.computed == 12 + probes


def _probe_bytes(store: PrefixStore) -> int:
    (group,) = store._groups.values()
    sizes = [len(states) for states in group.values()]
    return (sum(sizes) - sum(len(row.ids) for row in ROWS)) * 32 * 4


@pytest.mark.parametrize("budget", [0, 3000, 8000])
def test_the_budget_is_kept_and_cannot_be_seen_in_the_result(tiny_llama: Any, budget: int) -> None:
    model = llama(tiny_llama)
    weights, losses = trained(model, PrefixStore(2**20))
    store = PrefixStore(budget)
    same_weights, same_losses = trained(model, store)
    assert store.used_bytes <= budget and (budget == 0 or store.used_bytes > budget / 2)
    assert losses == same_losses
    assert all(torch.equal(weights[name], tensor) for name, tensor in same_weights.items())


def test_an_interrupted_run_repeats_itself_bit_for_bit(tiny_llama: Any) -> None:
    """Half a run with an empty store, as after a resume, against the same steps with a warm one."""
    model = llama(tiny_llama)
    store = PrefixStore(2**20)
    half, _ = trained(model, store, steps=3)
    warm, _ = trained(model, store, steps=3)
    assert all(torch.equal(half[name], tensor) for name, tensor in warm.items())


def run(network: Network, *, packing: bool = True, training: bool = False) -> torch.Tensor:
    batch = lay_out(ROWS, range(5), kind="causal", limit_tokens=200, packing=packing).micro_batches[0]
    with torch.no_grad(), network.mode(packing=packing, training=training):
        return network.run(batch).hidden


@pytest.mark.parametrize("name", PACKS)
def test_architectures(name: str) -> None:
    kind, config = architectures()[name]
    torch.manual_seed(0)
    config._attn_implementation = "eager"
    model = kind(config).eval()
    model.requires_grad_(False)
    attachment = upper(model, [1])
    store = PrefixStore(2**20)
    network = Network(attachment.model, "causal", FrozenPrefix(attachment.model, name, store))
    plain = Network(attachment.model, "causal")
    for packing in {False, network.packs}:
        torch.testing.assert_close(run(network, packing=packing), run(plain, packing=packing), rtol=1e-4, atol=1e-4)
        assert all(store.verdicts.values()) and store.computed


def test_other_weights_rows_and_blocks_are_not_confused(tiny_llama: Any) -> None:
    store = PrefixStore(2**20)
    for number, (model, layers, rows) in enumerate([
        (llama(tiny_llama), (2, 3), 5), (llama(tiny_llama, seed=1), (2, 3), 5), (llama(tiny_llama), (3,), 5),
        (llama(tiny_llama), (2, 3), 5),
    ]):  # fmt: skip
        attachment = upper(model, layers)
        seed = 1 if number == 1 else 0
        network = Network(attachment.model, "causal", FrozenPrefix(attachment.model, f"seed {seed}", store))
        before = store.computed
        torch.testing.assert_close(run(network), run(Network(attachment.model, "causal")), rtol=1e-4, atol=1e-4)
        assert store.computed - before == (0 if number == 3 else rows + 3)


def test_full_it_gives_up_what_belongs_to_others_and_keeps_its_own() -> None:
    store = PrefixStore(4 * 100)
    for row in range(5):
        store.put("old", bytes([row]), torch.zeros(20))
    assert store.used_bytes == 400 and store.get("old", bytes([4])) is not None
    store.put("new", b"a", torch.zeros(30))
    assert store.used_bytes == 120 and store.get("old", bytes([0])) is None
    store.put("new", b"b", torch.zeros(80))
    assert store.used_bytes == 120 and store.get("new", b"a") is not None and store.get("new", b"b") is None


def _replaced(model: Any) -> None:
    model.model.layers[0].mlp = nn.Identity()


def _rewritten(model: Any) -> None:
    with torch.no_grad():
        model.model.layers[0].mlp.up_proj.weight.mul_(1.5)


DISTURBED = {
    "hook": lambda model: model.model.embed_tokens.register_forward_hook(lambda *a: a[-1] * 1.5),
    "trained": lambda model: model.model.layers[1].input_layernorm.requires_grad_(True),
    "replaced": _replaced,
    "rewritten": _rewritten,
}


@pytest.mark.parametrize("what", DISTURBED)
def test_whatever_touches_the_lower_part_ends_it(tiny_llama: Any, what: str) -> None:
    attachment = upper(llama(tiny_llama))
    store = PrefixStore(2**20)
    network = Network(attachment.model, "causal", FrozenPrefix(attachment.model, "tiny", store))
    before = run(network)
    found = store.found
    DISTURBED[what](attachment.model)
    after = run(network)
    assert store.found == found
    assert torch.equal(after, run(Network(attachment.model, "causal")))
    assert (what == "trained") == torch.allclose(before, after, atol=1e-4)


def test_noise_below_rules_it_out_in_training_only(tiny_llama: Any) -> None:
    attachment = upper(llama(tiny_llama, attention_dropout=0.5))
    store = PrefixStore(2**20)
    network = Network(attachment.model, "causal", FrozenPrefix(attachment.model, "tiny", store))
    run(network, training=True)
    assert store.computed == 0
    run(network)
    assert store.computed == 5 + 3
    noisy = upper(llama(tiny_llama), lora_dropout=0.5)  # above the kept states
    assert FrozenPrefix(noisy.model.train(), "tiny", store).usable()


@pytest.mark.parametrize("name", ["opt", "starcoder2"])
def test_noise_that_no_module_shows_rules_it_out_as_well(name: str) -> None:
    from transformers import AutoConfig, AutoModelForCausalLM

    own = {"opt": {"dropout": 0.1, "ffn_dim": 48, "word_embed_proj_dim": 32},
           "starcoder2": {"residual_dropout": 0.1, "intermediate_size": 48, "num_key_value_heads": 2}}  # fmt: skip
    size = {"vocab_size": 97, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
    torch.manual_seed(0)
    config = AutoConfig.for_model(name, **size, **own[name], max_position_embeddings=64)
    model = AutoModelForCausalLM.from_config(config).eval()
    attachment = upper(model.requires_grad_(False), [1])
    store = PrefixStore(2**20)
    network = Network(attachment.model, "causal", FrozenPrefix(attachment.model, name, store))
    run(network, training=True)
    assert network.noisy and store.computed == 0
    run(network)
    assert store.computed == 5 + 3


def test_the_lowest_adapted_block(tiny_llama: Any) -> None:
    def lowest(change: Any) -> int:
        model = llama(tiny_llama)
        change(model)
        return lowest_adapted_block(model)

    assert lowest(lambda model: None) == 4
    assert lowest(lambda model: upper(model, [3, 1])) == 1
    assert lowest(lambda model: model.model.norm.requires_grad_(True)) == 4
    assert lowest(lambda model: model.model.layers[2].input_layernorm.requires_grad_(True)) == 2
    assert lowest(lambda model: model.model.embed_tokens.requires_grad_(True)) == 0
    assert lowest(lambda model: model.lm_head.requires_grad_(True)) == 0  # tied: it is the embedding
    assert lowest(lambda model: upper(model, target_modules=["embed_tokens", "q_proj"])) == 0


def test_blocks_are_found() -> None:
    for name in PACKS:
        kind, config = architectures()[name]
        blocks = blocks_of(kind(config))
        assert blocks is not None and len(blocks) == 2


@pytest.mark.model
def test_on_the_default_model() -> None:
    from foretune.catalogue.models import ModelReference
    from foretune.data.encode import encode_rows
    from foretune.data.example import conversation
    from foretune.models.load import load

    loaded = load(ModelReference("SmolLM2-135M-Instruct", dtype="float32"), device="cpu")
    model: Any = loaded.model
    model.requires_grad_(False)
    examples = [conversation(f"What is {i} plus {i}?", str(2 * i)) for i in range(6)]
    rows = encode_rows(examples, loaded.tokenizer, kind="causal", task="generation", context_tokens=64)
    attachment = upper(model.eval(), range(22, 30))
    store = PrefixStore(2**24)
    batch = lay_out(rows, range(6), kind="causal", limit_tokens=512, packing=True).micro_batches[0]
    losses = []
    for prefix in (None, FrozenPrefix(attachment.model, loaded.weights_hash, store)):
        network = Network(attachment.model, "causal", prefix)
        with torch.no_grad(), network.mode(packing=True, training=False):
            losses.append(network.run(batch).nll())
    assert store.computed == 6 + 3
    torch.testing.assert_close(losses[0], losses[1], rtol=1e-4, atol=1e-4)
