"""Rows with tools through chat templates that know them in several ways, and through those that do not."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import template_tokenizers as made

from foretune.data.coloured import coloured
from foretune.data.encode import encode_rows, inference_ids
from foretune.data.example import Call, Example, Turn
from foretune.data.layout import layout_of
from foretune.data.mask_check import check_encoding
from foretune.data.tools import as_text, calling_turn

TOOL = {"type": "function", "function": {"name": "add", "description": "Sum.", "parameters": {"type": "object"}}}
ROW = Example(
    (Turn("user", "2+3?"), calling_turn("", [Call("add", '{"x": 2, "y": 3}')]), Turn("tool", "5"),
     Turn("assistant", "It is 5.")),
    targets=(1, 3), tools=json.dumps([TOOL]),
)  # fmt: skip
CALL_LAST = Example(ROW.turns[:2], targets=(1,), tools=ROW.tools)
HEAD = (
    "{% if tools %}{{ '<|im_start|>system\nTools:' }}{% for tool in tools %}{{ ' ' + (tool | tojson) }}{% endfor %}"
    "{{ '<|im_end|>\n' }}{% endif %}"
)
END = "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
TAGGED = (
    HEAD + "{% for message in messages %}{% if message.role == 'tool' %}"
    "{{ '<|im_start|>user\n<tool_response>\n' + message.content + '\n</tool_response><|im_end|>\n' }}"
    "{% else %}{{ '<|im_start|>' + message.role + '\n' + message.content }}"
    "{% for call in message.tool_calls or [] %}{% if message.content or not loop.first %}{{ '\n' }}{% endif %}"
    '{{ \'<tool_call>\n{"name": "\' + call.function.name + \'", "arguments": \' + (call.function.arguments | tojson) '
    "+ '}\n</tool_call>' }}{% endfor %}{{ '<|im_end|>\n' }}{% endif %}{% endfor %}" + END
)
JSON_CALL = (
    HEAD + "{% for message in messages %}{{ '<|im_start|>' + message.role + '\n' }}"
    "{% if message.tool_calls %}{% if message.tool_calls | length > 1 %}{{ raise_exception('one call at a time') }}"
    "{% endif %}{% set call = message.tool_calls[0].function %}"
    "{{ '{\"name\": \"' + call.name + '\", \"parameters\": ' + (call.arguments | tojson) + '}' }}"
    "{% else %}{{ message.content }}{% endif %}{{ '<|im_end|>\n' }}{% endfor %}" + END
)
FORGETS_RESULTS = TAGGED.replace("message.content + '\n</tool_response>", "'\n</tool_response>")


def shown(tokenizer, example):
    settings = {"kind": "causal", "task": "generation", "context_tokens": 900}
    rows = encode_rows([example], tokenizer, **settings)
    report = check_encoding([example], rows, tokenizer, **settings)
    assert report.control == 0 and report.untrained_turns == 0
    return coloured(rows[0], tokenizer).replace("↵", "")


def test_a_template_that_tags_calls_writes_them_as_the_row_reads():
    tokenizer = made.byte_tokenizer(TAGGED)
    assert layout_of(tokenizer).tools
    assert shown(tokenizer, ROW) == (
        f"<|im_start|>system\nTools: {json.dumps(TOOL)}<|im_end|>\n<|im_start|>user\n2+3?<|im_end|>\n"
        f"<|im_start|>assistant\n[[{ROW.turns[1].content}<|im_end|>]]\n"
        "<|im_start|>user\n<tool_response>\n5\n</tool_response><|im_end|>\n"
        "<|im_start|>assistant\n[[It is 5.<|im_end|>]]"
    )
    fed = inference_ids(CALL_LAST, tokenizer)
    row = encode_rows([CALL_LAST], tokenizer, kind="causal", task="generation", context_tokens=900)[0]
    assert fed.tolist() == row.ids[: row.prompt_length].tolist() and "Tools:" in tokenizer.decode(fed)


def test_a_template_with_words_of_its_own_is_checked_by_names_and_arguments():
    tokenizer = made.byte_tokenizer(JSON_CALL)
    assert layout_of(tokenizer).tools
    text = shown(tokenizer, ROW)
    assert '[[{"name": "add", "parameters": {"x": 2, "y": 3}}<|im_end|>]]' in text and "[[It is 5.<|im_end|>]]" in text
    two = Example((ROW.turns[0], calling_turn("", [Call("add", "{}")] * 2)), targets=(1,), tools=ROW.tools)
    with pytest.raises(Exception, match="one call at a time"):
        shown(tokenizer, two)


@pytest.mark.parametrize("template", [made.CHATML, FORGETS_RESULTS, made.GEMMA, None])
def test_other_templates_and_none_at_all_get_tools_as_text(template):
    extra = made.GEMMA_TOKENS if template == made.GEMMA else {}
    tokenizer = made.byte_tokenizer(template, **extra)
    assert not layout_of(tokenizer).tools
    text = shown(tokenizer, ROW)
    assert text == shown(tokenizer, as_text(ROW))
    result = "<tool_response>\n5\n</tool_response>"
    assert all(part in text for part in (json.dumps(TOOL["function"]), result, ROW.turns[1].content, "It is 5."))


def test_rows_without_tools_are_rendered_as_before():
    plain = Example((Turn("user", "q"), Turn("assistant", "a")), targets=(1,))
    for template in (TAGGED, made.CHATML):
        tokenizer = made.byte_tokenizer(template)
        ids = tokenizer.apply_chat_template([{"role": "user", "content": "q"}], add_generation_prompt=True,
                                            return_dict=False)  # fmt: skip
        assert inference_ids(plain, tokenizer).tolist() == ids


def test_an_encoder_decoder_reads_tools_in_its_input():
    tokenizer = made.TOKENIZERS["encoder-decoder"]() if "encoder-decoder" in made.TOKENIZERS else made.encoder_decoder()
    settings = {"kind": "seq2seq", "task": "generation", "context_tokens": 900}
    rows = encode_rows([CALL_LAST], tokenizer, **settings)
    check_encoding([CALL_LAST], rows, tokenizer, **settings)
    assert len(rows[0].ids) > len(tokenizer("2+3?")["input_ids"]) + 10


def test_tools_and_reasoning_as_text_in_one_turn():
    """A template that knows neither: both stand in the content, the reasoning first."""
    tokenizer = made.byte_tokenizer(made.CHATML)
    said = replace(calling_turn("Let me add.", [Call("add", '{"x": 1}')]), reasoning="one and one")
    row = Example((Turn("user", "1+1?"), said), targets=(1,))
    settings = {"kind": "causal", "task": "generation", "context_tokens": 900}
    (encoded,) = encode_rows([row], tokenizer, **settings)
    check_encoding([row], [encoded], tokenizer, **settings)
    text = tokenizer.decode(encoded.ids[encoded.prompt_length :])
    assert text.startswith("<think>\none and one\n</think>\n\nLet me add.\n<tool_call>")


def test_an_encoder_decoder_writes_reasoning_before_its_answer():
    tokenizer = made.TOKENIZERS["encoder-decoder"]() if "encoder-decoder" in made.TOKENIZERS else made.encoder_decoder()
    row = Example((Turn("user", "q"), Turn("assistant", "a", reasoning="ab")), targets=(1,))
    bare = Example((Turn("user", "q"), Turn("assistant", "a")), targets=(1,))
    settings = {"kind": "seq2seq", "task": "generation", "context_tokens": 900}
    thought, plain = encode_rows([row, bare], tokenizer, **settings)
    check_encoding([row, bare], [thought, plain], tokenizer, **settings)
    assert len(thought.decoder_ids) > len(plain.decoder_ids) and np.array_equal(thought.ids, plain.ids)
