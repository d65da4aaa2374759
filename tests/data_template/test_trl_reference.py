"""Masks against trl and transformers: the chat templates that trl carries, and what its trainer prepares."""

from __future__ import annotations

import json
import logging
import re
from pathlib import Path

import pytest
import template_tokenizers as made

from foretune.data.encode import encode_rows, inference_ids
from foretune.data.example import Call, Example, Turn, conversation
from foretune.data.layout import layout_of, messages_of
from foretune.data.mask_check import TOOLS_AS_TEXT, check_encoding
from foretune.data.template import answer_text
from foretune.data.tools import calling_turn
from foretune.errors import ModelError

trl_templates = pytest.importorskip("trl.chat_template_utils")
FOLDER = Path(trl_templates.__file__).parent / "chat_templates"
NAMES = sorted(path.stem for path in FOLDER.glob("*.jinja"))
SETTINGS = {"kind": "causal", "task": "generation", "context_tokens": 4096}
ONE = conversation("what is two?", "two")
TWO = Example(
    (Turn("user", "cat"), Turn("assistant", "sat"), Turn("user", "dog"), Turn("assistant", "ran")), targets=(1, 3)
)
_CONTROL = re.compile(r"<[|｜]?[A-Za-z_▁/][\w▁/]*[|｜]?>|\[/?INST\]")
_SERVED = re.compile(r"<\|start\|>assistant|(<think>)?\s*(</think>)?\s*")
"""What some of trl's templates train although it is part of the prompt that a server feeds."""
OPENS_REASONING = {name for name in NAMES if name.startswith("deepseek")}
"""Their inference prompt opens a reasoning block that an answer without reasoning does not have."""


def tokenizer_for(name):
    """A byte tokenizer that knows every control token its template writes."""
    template = (FOLDER / f"{name}.jinja").read_text(encoding="utf-8")
    special = sorted({*_CONTROL.findall(template), "<bos>", "<eos>", "<|im_end|>"})
    eos = "<|im_end|>" if "<|im_end|>" in template else "<eos>"
    return made.byte_tokenizer(template, special=special, bos="<bos>", eos=eos)


@pytest.mark.parametrize("name", sorted(set(NAMES) - OPENS_REASONING))
def test_a_published_template_gives_rows_that_pass_the_check(name):
    tokenizer = tokenizer_for(name)
    rows = encode_rows([ONE, TWO], tokenizer, **SETTINGS)
    check_encoding([ONE, TWO], rows, tokenizer, **SETTINGS)
    answer = rows[0].ids[rows[0].prompt_length :].tolist()
    assert answer_text(answer, tokenizer, layout=layout_of(tokenizer)) == "two"


LEFT = {"x": {"type": "integer", "description": "Left."}}
TOOL = {"type": "function", "function": {"name": "add", "description": "Sum.", "parameters": {
    "type": "object", "properties": LEFT, "required": ["x"]}}}  # fmt: skip
CALLING = Example(
    (Turn("user", "one more?"), calling_turn("", [Call("add", '{"x": 1}')]), Turn("tool", "two"),
     Turn("assistant", "It is two.")),
    targets=(1, 3), tools=json.dumps([TOOL]),
)  # fmt: skip
KNOW_TOOLS = {"qwen2_5", "qwen3", "qwen3_instruct_2507", "qwen3_5_think", "llama3_1", "llama3_2", "lfm2_2_5", "glm4moe",
              "nemotron_3_nano"}  # fmt: skip
END_CALLS_OTHERWISE = {"gptoss", "gemma4", "gemma4_v5"}


@pytest.mark.parametrize("name", sorted(set(NAMES) - OPENS_REASONING))
def test_a_published_template_gives_rows_with_tools_that_pass_the_check(name):
    """Where it knows tools, in the tokens of transformers' own call with tools; elsewhere as text."""
    tokenizer = tokenizer_for(name)
    layout = layout_of(tokenizer)
    assert layout.tools or name not in KNOW_TOOLS
    assert not (layout.tools and name in END_CALLS_OTHERWISE)
    (row,) = encode_rows([CALLING], tokenizer, **{**SETTINGS, "context_tokens": 9999})
    report = check_encoding([CALLING], [row], tokenizer, **{**SETTINGS, "context_tokens": 9999})
    assert (TOOLS_AS_TEXT in report.notes) is not layout.tools
    if not layout.tools:
        return
    call = {"id": "call00000", "type": "function", "function": {"name": "add", "arguments": {"x": 1}}}
    messages = [
        {"role": "user", "content": "one more?"}, {"role": "assistant", "content": "", "tool_calls": [call]},
        {"role": "tool", "content": "two", "name": "add", "tool_call_id": "call00000"},
    ]  # fmt: skip
    if layout.blocks:
        messages = [{**one, "content": [{"type": "text", "text": one["content"]}]} for one in messages]
    fed = tokenizer.apply_chat_template(
        messages, tools=[TOOL], add_generation_prompt=True, return_dict=False, **layout.variables
    )
    assert row.ids[: row.prompt_length].tolist() == fed[len(fed) - row.prompt_length :]


THOUGHT = Example((Turn("user", "2 + 2?"), Turn("assistant", "four", reasoning="two, two")), targets=(1,))
LATER = Example((*THOUGHT.turns, Turn("user", "3?"), Turn("assistant", "six", reasoning="3, 3")), targets=(1, 3))
KNOW_REASONING = ("diffusion_gemma", "gemma4_v5", "glm4moe", "gptoss", "lfm2_2_5", "muse", "nemotron", "qwen3_5",
                  "qwen3_6", "qwen3_8")  # fmt: skip
"""Beginnings of the names of templates with a place for reasoning; qwen3 and qwen3_training are two more."""


@pytest.mark.parametrize("name", sorted(set(NAMES) - OPENS_REASONING))
def test_a_published_template_gives_rows_with_reasoning_that_pass_the_check(name):
    """Where it has a place for reasoning, in the tokens of transformers' own call; elsewhere as text."""
    tokenizer = tokenizer_for(name)
    layout = layout_of(tokenizer)
    rows = encode_rows([THOUGHT, LATER, ONE], tokenizer, **SETTINGS)
    report = check_encoding([THOUGHT, LATER, ONE], rows, tokenizer, **SETTINGS)
    written = [row.ids[row.prompt_length :].tolist() for row in rows]
    assert [answer_text(ids, tokenizer, layout=layout) for ids in written] == ["four", "six", "two"]
    assert "two, two" in tokenizer.decode(written[0]) and rows[0].answer_bytes >= len("two, twofour")
    assert layout.reasoning is not None
    known = name.startswith(KNOW_REASONING) or name in ("qwen3", "qwen3_training")
    assert bool(layout.reasoning.key) is known
    assert layout.reasoning.note(layout.variables) in report.notes
    if not known:
        assert "two, two" not in tokenizer.decode(rows[1].ids) and report.untrained_turns == 1
        return
    messages = [{"role": "user", "content": "2 + 2?"},
                {"role": "assistant", "content": "four", "reasoning_content": "two, two"}]  # fmt: skip
    if layout.blocks:
        messages = [{**one, "content": [{"type": "text", "text": one["content"]}]} for one in messages]
    variables = {"return_dict": False, **layout.reasoning.variables}
    fed = tokenizer.apply_chat_template(messages[:1], add_generation_prompt=True, **variables)
    full = tokenizer.apply_chat_template(messages, **variables)
    ended = written[0] if layout.end_in_template else written[0][:-1]
    assert rows[0].ids[: rows[0].prompt_length].tolist() == fed[len(fed) - rows[0].prompt_length :]
    assert full[len(fed) : len(fed) + len(ended)] == ended


@pytest.mark.parametrize("name", ["nemotron_3_nano", "qwen3_5_nothink"])
def test_rows_that_reason_are_rendered_with_the_variables_for_it(name):
    tokenizer = tokenizer_for(name)
    layout = layout_of(tokenizer)
    assert layout.reasoning.variables != layout.variables
    assert "rows that reason are rendered with" in layout.reasoning.note(layout.variables)
    waiting = [Example((THOUGHT.turns[0], Turn("assistant", "", reasoning=said)), targets=(1,)) for said in ("", "…")]
    plain, thinking = (tokenizer.decode(inference_ids(each, tokenizer)) for each in waiting)
    assert plain.count("<think>") == plain.count("</think>") and thinking.rstrip().endswith("<think>")


@pytest.mark.parametrize("name", sorted(OPENS_REASONING))
def test_a_template_whose_prompt_is_no_prefix_is_refused(name):
    with pytest.raises(ModelError, match="not how it begins a training row"):
        encode_rows([ONE], tokenizer_for(name), **SETTINGS)


@pytest.mark.parametrize("name", [name for name in NAMES if name.endswith("_training") and name not in OPENS_REASONING])
def test_masks_equal_trl_s_training_templates(name):
    """Equal up to the end of the turn, apart from the lead: text between the prompt that is served and the answer."""
    tokenizer = tokenizer_for(name)
    layout = layout_of(tokenizer)
    row = encode_rows([ONE], tokenizer, **SETTINGS)[0]
    messages = messages_of(ONE.turns, layout)
    logging.disable(logging.WARNING)
    full = tokenizer.apply_chat_template(
        messages, return_dict=True, return_assistant_tokens_mask=True, **layout.variables
    )
    logging.disable(logging.NOTSET)
    length = len(row.ids)
    assert full["input_ids"][:length] == row.ids.tolist()
    theirs = full["assistant_masks"][:length]
    after_lead = row.prompt_length + len(layout.lead.encode())
    assert theirs[after_lead:] == row.target_mask[after_lead:].astype(int).tolist() == [1] * (length - after_lead)
    in_prompt = [token for token, mask in zip(row.ids[: row.prompt_length], theirs, strict=False) if mask]
    assert _SERVED.fullmatch(tokenizer.decode(in_prompt))
    rest = tokenizer.decode(full["input_ids"][length:])
    assert not rest.strip() or "<" in rest, "only template text follows the end of a turn"


@pytest.fixture(scope="module")
def prepare(tmp_path_factory):
    """What trl's trainer makes of a data set: rows with input_ids and labels."""
    from datasets import Dataset
    from transformers import LlamaConfig, LlamaForCausalLM
    from trl import SFTConfig, SFTTrainer

    def prepared(rows, tokenizer, **settings):
        config = LlamaConfig(
            vocab_size=len(tokenizer), hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=1
        )
        folder = str(tmp_path_factory.mktemp("trl"))
        arguments = SFTConfig(
            output_dir=folder, use_cpu=True, report_to="none", bf16=False, max_length=None, packing=False, **settings
        )
        tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
        trainer = SFTTrainer(
            LlamaForCausalLM(config), args=arguments, train_dataset=Dataset.from_list(rows), processing_class=tokenizer
        )
        return list(trainer.train_dataset)

    return prepared


def trained(row):
    """Positions and ids that trl trains on, whichever way this version writes it down."""
    labels = row.get("labels")
    if labels is None:
        mask = row.get("completion_mask") or row["assistant_masks"]
        labels = [token if keep else -100 for token, keep in zip(row["input_ids"], mask, strict=True)]
    return [(position, label) for position, label in enumerate(labels) if label != -100]


def ours(row):
    return [(t, int(row.ids[t])) for t in range(len(row.ids)) if row.target_mask[t]]


@pytest.mark.parametrize("kind", ["chatml bytes", "chatml merging", "gemma bytes"])
def test_prompt_and_completion_equal_trl_s_completion_only_loss(prepare, kind):
    tokenizer = made.TOKENIZERS[kind]()
    theirs = prepare(
        [
            {
                "prompt": [{"role": "user", "content": "what is two?"}],
                "completion": [{"role": "assistant", "content": "two"}],
            }
        ],
        tokenizer,
        completion_only_loss=True,
    )[0]
    row = encode_rows([ONE], tokenizer, **SETTINGS)[0]
    assert theirs["input_ids"][: len(row.ids)] == row.ids.tolist()
    assert trained(theirs)[: row.targets] == ours(row)
    after = [token for _, token in trained(theirs)[row.targets :]]
    assert tokenizer.decode(after) == "\n", "trl also trains the line break that belongs to the next turn"


def test_plain_prompt_and_completion_equal_trl_s(prepare):
    tokenizer = made.byte_tokenizer(None, special=("<bos>", "<eos>"), bos="<bos>", eos="<eos>", add_bos=True)
    theirs = prepare([{"prompt": "what is two?\n", "completion": "two"}], tokenizer, completion_only_loss=True)[0]
    row = encode_rows([ONE], tokenizer, **SETTINGS)[0]
    assert theirs["input_ids"] == row.ids.tolist() and trained(theirs) == ours(row)


def test_every_answer_equals_trl_s_assistant_only_loss(prepare):
    marked = made.CHATML.replace(
        "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}",
        "{{ '<|im_start|>' + message['role'] + '\n' }}{% if message['role'] == 'assistant' %}{% generation %}"
        "{{ message['content'] + '<|im_end|>' }}{% endgeneration %}{% else %}{{ message['content'] + '<|im_end|>' }}"
        "{% endif %}{{ '\n' }}",
    )
    tokenizer = made.byte_tokenizer(marked)
    messages = [{"role": turn.role, "content": turn.content} for turn in TWO.turns]
    theirs = prepare([{"messages": messages}], tokenizer, assistant_only_loss=True)[0]
    row = encode_rows([TWO], tokenizer, **SETTINGS)[0]
    assert trained(theirs) == ours(row) and len(ours(row)) == 8
