"""Greedy generation against model.generate row by row, on tiny random models of several architectures."""

import copy
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from transformers import (
    BartConfig,
    BartForConditionalGeneration,
    BloomConfig,
    BloomForCausalLM,
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    GenerationConfig,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    M2M100Config,
    M2M100ForConditionalGeneration,
    T5Config,
    T5ForConditionalGeneration,
)

from foretune.errors import TrainingError, UsageError
from foretune.evaluation import greedy
from foretune.evaluation.generation import generate, generate_ids
from foretune.evaluation.streaming import write_one

VOCABULARY = 60
STOP = 7


def llama(**changes: Any) -> Any:
    config = LlamaConfig(
        vocab_size=VOCABULARY, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, initializer_range=0.3, max_position_embeddings=256, bos_token_id=1, eos_token_id=2,
        pad_token_id=0, **changes,
    )  # fmt: skip
    return LlamaForCausalLM(config)


def gemma() -> Any:
    return Gemma3ForCausalLM(Gemma3TextConfig(
        vocab_size=VOCABULARY, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=1, head_dim=8, sliding_window=6, layer_types=["sliding_attention", "full_attention"],
        initializer_range=0.3, bos_token_id=1, eos_token_id=2, pad_token_id=0,
    ))  # fmt: skip


def gpt2() -> Any:
    return GPT2LMHeadModel(GPT2Config(
        vocab_size=VOCABULARY, n_embd=32, n_layer=2, n_head=4, n_positions=128, initializer_range=0.3,
        bos_token_id=1, eos_token_id=2,
    ))  # fmt: skip


def bloom() -> Any:
    return BloomForCausalLM(BloomConfig(
        vocab_size=VOCABULARY, hidden_size=32, n_layer=2, n_head=4, initializer_range=0.3,
        bos_token_id=1, eos_token_id=2,
    ))  # fmt: skip


def bart() -> Any:
    model = BartForConditionalGeneration(BartConfig(
        vocab_size=VOCABULARY, d_model=32, encoder_layers=2, decoder_layers=2, encoder_ffn_dim=48, decoder_ffn_dim=48,
        encoder_attention_heads=4, decoder_attention_heads=4, max_position_embeddings=128, init_std=0.5,
        bos_token_id=1, eos_token_id=2, pad_token_id=0, decoder_start_token_id=2, forced_eos_token_id=2,
    ))  # fmt: skip
    model.generation_config.forced_bos_token_id = 11
    return model


def m2m() -> Any:
    return M2M100ForConditionalGeneration(M2M100Config(
        vocab_size=VOCABULARY, d_model=32, encoder_layers=2, decoder_layers=2, encoder_ffn_dim=48, decoder_ffn_dim=48,
        encoder_attention_heads=4, decoder_attention_heads=4, max_position_embeddings=128, init_std=0.5,
        bos_token_id=1, eos_token_id=2, pad_token_id=3, decoder_start_token_id=2,
    ))  # fmt: skip


def t5() -> Any:
    return T5ForConditionalGeneration(T5Config(
        vocab_size=VOCABULARY, d_model=32, d_kv=8, d_ff=48, num_layers=2, num_heads=4, initializer_factor=3.0,
        pad_token_id=0, eos_token_id=2, decoder_start_token_id=0,
    ))  # fmt: skip


def seeded(build: Callable[[], Any]) -> Any:
    torch.manual_seed(0)
    return build().eval()


def some_prompts(count: int = 9, head: int = 0, seed: int = 0) -> list[Any]:
    random = np.random.default_rng(seed)
    shared = random.integers(8, VOCABULARY, head)
    return [
        np.concatenate([shared, random.integers(8, VOCABULARY, int(random.integers(1, 12)))]).astype(np.int64)
        for _ in range(count)
    ]


def one_by_one(model: Any, prompts: list[Any], new_tokens: int, stop: int) -> list[list[int]]:
    """What transformers' own greedy search answers to each prompt alone, everything but the arg max off."""
    model = copy.deepcopy(model)
    saved = model.generation_config
    plain = GenerationConfig(
        do_sample=False, max_new_tokens=new_tokens, eos_token_id=stop, pad_token_id=0,
        decoder_start_token_id=saved.decoder_start_token_id, forced_bos_token_id=saved.forced_bos_token_id,
    )  # fmt: skip
    model.generation_config = plain
    answers = []
    for prompt in prompts:
        ids = torch.as_tensor(prompt[None])
        output = model.generate(input_ids=ids, attention_mask=torch.ones_like(ids), generation_config=plain)[0].tolist()
        new = output[1 if model.config.is_encoder_decoder else len(prompt) :]
        answers.append(new[: new.index(stop)] if stop in new else new)
    return answers


def likely_stop(model: Any, prompts: list[Any]) -> int:
    """A token that ends some answers early, so that rows finish at different steps."""
    free = one_by_one(model, prompts, 20, stop=5)
    tokens, counts = np.unique(
        np.concatenate([np.asarray(answer[1:], dtype=int) for answer in free]), return_counts=True
    )
    return int(tokens[counts.argmax()])


@pytest.mark.parametrize("build", [llama, gemma, gpt2, bloom, bart, m2m, t5])
@pytest.mark.parametrize("head", [0, 10])
def test_batches_of_any_size_answer_as_transformers_does_row_by_row(build: Callable[[], Any], head: int) -> None:
    model = seeded(build)
    prompts = some_prompts(head=head)
    stop = likely_stop(model, prompts)
    expected = one_by_one(model, prompts, 20, stop)
    assert len({len(answer) for answer in expected}) > 1, "rows must end at different steps"
    for batch_tokens in (1, 120, 10_000):
        assert generate_ids(model, prompts, max_new_tokens=20, stop_ids=[stop], batch_tokens=batch_tokens) == expected


def test_the_shared_head_is_used_where_exact_and_only_there() -> None:
    device = torch.device("cpu")
    with torch.no_grad():
        head = greedy.shared_head(seeded(llama), some_prompts(head=10), device)
        assert head is not None and head.length >= 10
        assert greedy.shared_head(seeded(llama), some_prompts(head=4), device) is None
        assert greedy.shared_head(seeded(gemma), some_prompts(head=10), device) is None  # sliding window
        assert greedy.shared_head(seeded(bloom), some_prompts(head=10), device) is None  # no explicit positions
        assert greedy.shared_head(seeded(bart), some_prompts(head=10), device) is None
        same = [some_prompts(1, head=10)[0]] * 3
        head = greedy.shared_head(seeded(llama), same, device)
        assert head is not None and head.length == len(same[0]) - 1  # a token is left to start from


@pytest.mark.parametrize("kind", ["lora", "prefix", "prompt"])
def test_peft_models_answer_as_row_by_row(kind: str) -> None:
    from peft import LoraConfig, PrefixTuningConfig, PromptTuningConfig, get_peft_model

    configs: dict[str, Any] = {
        "lora": LoraConfig(r=4, target_modules="all-linear", init_lora_weights=False, task_type="CAUSAL_LM"),
        "prefix": PrefixTuningConfig(num_virtual_tokens=4, task_type="CAUSAL_LM"),
        "prompt": PromptTuningConfig(num_virtual_tokens=4, task_type="CAUSAL_LM"),
    }
    model = get_peft_model(seeded(llama), configs[kind]).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "prompt_encoder" in name:
                parameter.normal_(0, 0.5)
    prompts = some_prompts(head=9)

    def recomputed(prompt: Any) -> list[int]:
        """Without any cache: the whole row through the forward pass for every token."""
        ids = torch.as_tensor(prompt[None])
        for _ in range(12):
            with torch.no_grad():
                logits = model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits[:, -1]
            ids = torch.cat([ids, logits.argmax(-1, keepdim=True)], dim=1)
        new = ids[0, len(prompt) :].tolist()
        return new[: new.index(STOP)] if STOP in new else new

    expected = [recomputed(prompt) for prompt in prompts]
    assert generate_ids(model, prompts, max_new_tokens=12, stop_ids=[STOP]) == expected
    assert [write_one(model, prompt, max_new_tokens=12, stop_ids=[STOP])[0] for prompt in prompts] == expected
    model.base_model.disable_adapter_layers() if kind == "lora" else None
    if kind == "lora":
        assert generate_ids(model, prompts, max_new_tokens=12, stop_ids=[STOP]) != expected


@pytest.mark.parametrize("kind", ["prefix", "prompt"])
def test_encoder_decoders_with_learnt_prompts_answer_as_row_by_row(kind: str) -> None:
    from peft import PrefixTuningConfig, PromptTuningConfig, get_peft_model

    made = {"prefix": PrefixTuningConfig, "prompt": PromptTuningConfig}[kind]
    base = seeded(bart)
    base.generation_config.forced_bos_token_id = None
    model = get_peft_model(base, made(num_virtual_tokens=4, task_type="SEQ_2_SEQ_LM")).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "prompt_encoder" in name:
                parameter.normal_(0, 0.5)
    prompts = some_prompts()

    def recomputed(prompt: Any) -> list[int]:
        ids = torch.as_tensor(prompt[None])
        new = torch.tensor([[model.get_base_model().config.decoder_start_token_id]])
        for _ in range(12):
            with torch.no_grad():
                output = model(input_ids=ids, attention_mask=torch.ones_like(ids), decoder_input_ids=new)
            new = torch.cat([new, output.logits[:, -1].argmax(-1, keepdim=True)], dim=1)
        answer = new[0, 1:].tolist()
        return answer[: answer.index(STOP)] if STOP in answer else answer

    expected = [recomputed(prompt) for prompt in prompts]
    assert generate_ids(model, prompts, max_new_tokens=12, stop_ids=[STOP]) == expected


def test_the_models_own_generation_settings_change_nothing() -> None:
    model, prompts = seeded(llama), some_prompts()
    expected = generate_ids(model, prompts, max_new_tokens=10, stop_ids=[STOP])
    model.generation_config.update(do_sample=True, temperature=2.0, repetition_penalty=5.0, max_length=3)
    model.generation_config.suppress_tokens = list(range(30))
    assert generate_ids(model, prompts, max_new_tokens=10, stop_ids=[STOP]) == expected


def test_the_model_is_left_as_it_was() -> None:
    model = seeded(lambda: llama(attention_dropout=0.5))
    model.train()
    model.model.layers[0].eval()
    model.config.use_cache = False
    model.gradient_checkpointing_enable()
    modes = [module.training for module in model.modules()]
    weights = {name: value.clone() for name, value in model.state_dict().items()}
    prompts = some_prompts()
    first = generate_ids(model, prompts, max_new_tokens=10, stop_ids=[STOP])
    assert generate_ids(model, prompts, max_new_tokens=10, stop_ids=[STOP]) == first  # no dropout
    assert [module.training for module in model.modules()] == modes
    assert model.config.use_cache is False and model.is_gradient_checkpointing
    assert all(torch.equal(value, weights[name]) for name, value in model.state_dict().items())
    ids = torch.as_tensor(prompts[0][None])
    model(input_ids=ids, labels=ids).loss.backward()  # training goes on after generation


def test_a_chunk_callback_stops_and_keeps_whole_batches() -> None:
    model, prompts = seeded(llama), some_prompts(12)
    expected = generate_ids(model, prompts, max_new_tokens=4, stop_ids=[])
    seen: list[int] = []

    def two_batches(done: int) -> bool:
        seen.append(done)
        return len(seen) < 2

    some = generate_ids(model, prompts, max_new_tokens=4, stop_ids=[], batch_tokens=50, on_chunk=two_batches)
    answered = [i for i, answer in enumerate(some) if answer is not None]
    assert 0 < len(answered) == seen[-1] < 12
    assert all(some[i] == expected[i] for i in answered)
    everything_at_once = generate_ids(model, prompts, max_new_tokens=40, stop_ids=[], on_chunk=lambda done: False)
    assert everything_at_once == [None] * 12  # stopped inside the one batch


def test_a_batch_too_large_for_memory_is_halved(monkeypatch: pytest.MonkeyPatch) -> None:
    model, prompts = seeded(llama), some_prompts()
    expected = generate_ids(model, prompts, max_new_tokens=6, stop_ids=[STOP])
    real, sizes = greedy.CausalSteps, []

    def small(model: Any, batch: list[Any], head: Any, device: Any) -> Any:
        sizes.append(len(batch))
        if len(batch) > 2:
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes.")
        return real(model, batch, head, device)

    monkeypatch.setattr(greedy, "CausalSteps", small)
    assert generate_ids(model, prompts, max_new_tokens=6, stop_ids=[STOP]) == expected
    assert max(sizes) == 9

    def broken(*rest: Any) -> Any:
        raise RuntimeError("something else")

    monkeypatch.setattr(greedy, "CausalSteps", broken)
    with pytest.raises(RuntimeError, match="something else"):
        generate_ids(model, prompts, max_new_tokens=6, stop_ids=[STOP])


def test_what_cannot_be_answered_is_refused() -> None:
    model = seeded(llama)
    assert generate_ids(model, [], max_new_tokens=3, stop_ids=[]) == []
    with pytest.raises(UsageError, match="prompt 1 is empty"):
        generate_ids(model, [np.array([3]), np.array([], dtype=np.int64)], max_new_tokens=3, stop_ids=[])
    with pytest.raises(UsageError, match="256 tokens and the model 256"):
        generate_ids(model, [np.full(256, 9)], max_new_tokens=3, stop_ids=[])
    with pytest.raises(UsageError, match="no room"):
        generate_ids(model, some_prompts(), max_new_tokens=0, stop_ids=[])
    near_the_end = generate_ids(model, [np.full(254, 9), np.full(9, 9)], max_new_tokens=30, stop_ids=[])
    assert [len(answer or []) for answer in near_the_end] == [2, 30]
    with torch.no_grad():
        model.lm_head.weight.fill_(float("nan"))
    with pytest.raises(TrainingError, match="not finite"):
        generate_ids(model, some_prompts(), max_new_tokens=3, stop_ids=[])


def test_text_comes_out_without_special_tokens() -> None:
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = {f"w{i}": i for i in range(VOCABULARY)}
    raw = Tokenizer(models.WordLevel(words, unk_token="w0"))
    raw.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=raw, unk_token="w0", eos_token="w2")
    model, prompts = seeded(llama), some_prompts(3)
    ids = generate_ids(model, prompts, max_new_tokens=8, stop_ids=[STOP])
    texts = generate(model, tokenizer, prompts, max_new_tokens=8, stop_ids=[STOP])
    assert texts == [" ".join(f"w{i}" for i in answer or [] if i not in (0, 2)) for answer in ids]
