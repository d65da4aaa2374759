"""Target masks of chat templates and the plain layout, against masks written by hand."""

from __future__ import annotations

import numpy as np
import pytest
import template_tokenizers as made

from foretune.data.coloured import coloured
from foretune.data.encode import encode_rows, inference_ids
from foretune.data.example import Example, Turn, conversation
from foretune.data.layout import layout_of
from foretune.data.mask_check import check_encoding
from foretune.data.template import answer_text, prompt_with_examples, stop_ids
from foretune.errors import DataError, ModelError, UsageError

SETTINGS = {"kind": "causal", "task": "generation", "context_tokens": 400}
ONE = conversation("what is two?", "two")
TWO = Example(
    (Turn("user", "cat"), Turn("assistant", "sat"), Turn("user", "dog"), Turn("assistant", "ran")), targets=(1, 3)
)
SYSTEM = Example((Turn("system", "sys"), Turn("user", "cat"), Turn("assistant", "sat")), targets=(2,))


def shown(tokenizer, example, **settings):
    """The row as text with [[trained]] stretches, after the self-check has passed on it."""
    settings = {**SETTINGS, **settings}
    rows = encode_rows([example], tokenizer, **settings)
    check_encoding([example], rows, tokenizer, **settings)
    return coloured(rows[0], tokenizer).replace("↵", "")


@pytest.mark.parametrize("kind", ["chatml bytes", "chatml merging"])
def test_chatml_trains_answer_and_end_but_not_the_line_break_after_it(kind):
    tokenizer = made.TOKENIZERS[kind]()
    assert shown(tokenizer, ONE) == (
        "<|im_start|>system\nBe good.<|im_end|>\n<|im_start|>user\nwhat is two?<|im_end|>\n"
        "<|im_start|>assistant\n[[two<|im_end|>]]"
    )
    assert shown(tokenizer, SYSTEM) == (
        "<|im_start|>system\nsys<|im_end|>\n<|im_start|>user\ncat<|im_end|>\n<|im_start|>assistant\n[[sat<|im_end|>]]"
    )


def test_mask_counted_by_hand_where_a_byte_is_a_token():
    tokenizer = made.TOKENIZERS["chatml bytes"]()
    row = encode_rows([TWO], tokenizer, **SETTINGS)[0]
    head = 1 + len("system\nBe good.") + 1 + 1
    question = 1 + len("user\ncat") + 1 + 1
    header = 1 + len("assistant\n")
    first = head + question + header
    second = first + len("sat") + 2 + question + header
    expected = [*range(first, first + 4), *range(second, second + 4)]
    assert np.flatnonzero(row.target_mask).tolist() == expected
    assert row.prompt_length == second
    assert len(row.ids) == second + 4
    assert row.answer_bytes == 6
    assert row.ids[first + 3] == row.ids[-1] == tokenizer.convert_tokens_to_ids("<|im_end|>")


def test_only_named_turns_are_trained():
    last_only = Example(TWO.turns, targets=(3,))
    text = shown(made.TOKENIZERS["chatml bytes"](), last_only)
    assert text.count("[[") == 1 and text.endswith("[[ran<|im_end|>]]")


def test_turns_after_the_last_target_are_left_out():
    followed = Example((*ONE.turns, Turn("user", "thanks")), targets=(1,))
    assert shown(made.TOKENIZERS["chatml bytes"](), followed) == shown(made.TOKENIZERS["chatml bytes"](), ONE)


def test_llama3_has_one_bos_although_template_and_tokenizer_write_one():
    tokenizer = made.TOKENIZERS["llama3 bytes"]()
    row = encode_rows([ONE], tokenizer, **SETTINGS)[0]
    bos = tokenizer.bos_token_id
    assert row.ids.tolist().count(bos) == 1 and row.ids[0] == bos
    assert shown(tokenizer, ONE) == (
        "<bos><|start|>user<|end|>\n\nwhat is two?<|eot|><|start|>assistant<|end|>\n\n[[two<|eot|>]]"
    )


def test_a_template_that_writes_bos_twice_gives_one():
    tokenizer = made.byte_tokenizer("{{ bos_token }}" + made.LLAMA3, add_bos=True, **made.LLAMA3_TOKENS)
    row = encode_rows([ONE], tokenizer, **SETTINGS)[0]
    assert row.ids.tolist().count(tokenizer.bos_token_id) == 1
    check_encoding([ONE], [row], tokenizer, **SETTINGS)


def test_merge_across_the_boundary_keeps_the_inference_prompt():
    tokenizer = made.TOKENIZERS["llama3 merging"]()
    example = conversation("what is two?", "four")
    prompt = [{"role": "user", "content": "what is two?"}]
    served = tokenizer.apply_chat_template(prompt, add_generation_prompt=True, return_dict=False)
    whole = tokenizer.apply_chat_template(
        [*prompt, {"role": "assistant", "content": "four"}], tokenize=True, return_dict=False
    )
    assert whole[: len(served)] != served, "the tokenizer must merge here, or this test shows nothing"
    row = encode_rows([example], tokenizer, **SETTINGS)[0]
    assert row.ids[: row.prompt_length].tolist() == served
    assert tokenizer.decode(row.ids) == tokenizer.decode(whole)
    assert shown(tokenizer, example).endswith("\n\n[[four<|eot|>]]")


@pytest.mark.parametrize("kind", ["gemma bytes", "gemma sentence"])
def test_gemma_writes_the_model_role_and_moves_the_system_turn(kind):
    tokenizer = made.TOKENIZERS[kind]()
    text = shown(tokenizer, SYSTEM)
    assert text.endswith("<turn>model\n[[sat</turn>]]")
    assert "sys\n\ncat</turn>" in text
    assert "no system role" in " ".join(layout_of(tokenizer).notes)
    assert tokenizer.convert_ids_to_tokens(stop_ids(tokenizer)) == ["</turn>", "<eos>"]


def test_mistral_answer_keeps_its_leading_space_token_and_ends_with_eos():
    tokenizer = made.TOKENIZERS["mistral sentence"]()
    row = encode_rows([ONE], tokenizer, **SETTINGS)[0]
    target = tokenizer.convert_ids_to_tokens(row.ids[row.prompt_length :].tolist())
    assert target[0].startswith("▁t") and target[-1] == "</s>"
    assert shown(tokenizer, ONE).endswith("[/INST][[two</s>]]")
    assert row.ids.tolist().count(tokenizer.bos_token_id) == 1


def test_a_prompt_ending_in_a_space_is_continued_without_a_second_one():
    tokenizer = made.TOKENIZERS["vicuna sentence"]()
    row = encode_rows([ONE], tokenizer, **SETTINGS)[0]
    assert tokenizer.decode(row.ids).endswith("BOT: two</s>")
    served = tokenizer.apply_chat_template(
        [{"role": "user", "content": "what is two?"}], add_generation_prompt=True, return_dict=False
    )
    assert row.ids[: row.prompt_length].tolist() == served


def test_generation_markers_take_template_text_out_of_the_mask():
    tokenizer = made.byte_tokenizer(made.MARKED)
    settings = {**SETTINGS}
    row = encode_rows([ONE], tokenizer, **settings)[0]
    assert coloured(row, tokenizer).endswith("[[two]][log][[<|im_end|>]]")
    full = tokenizer.apply_chat_template(
        [{"role": t.role, "content": t.content} for t in ONE.turns],
        return_dict=True,
        return_assistant_tokens_mask=True,
    )
    assert row.ids.tolist() == full["input_ids"][: len(row.ids)]
    assert row.target_mask.astype(int).tolist() == full["assistant_masks"][: len(row.ids)]


def test_text_that_the_template_puts_before_an_answer_is_trained_and_taken_off_answers():
    tokenizer = made.TOKENIZERS["thinking merging"]()
    assert shown(tokenizer, ONE).endswith("assistant\n[[<think>\n\n</think>\n\ntwo<|im_end|>]]")
    layout = layout_of(tokenizer)
    row = encode_rows([ONE], tokenizer, **SETTINGS)[0]
    assert answer_text(row.ids[row.prompt_length :].tolist(), tokenizer, layout=layout) == "two"


def test_an_earlier_turn_that_is_rendered_differently_later_is_not_trained_but_counted():
    tokenizer = made.TOKENIZERS["thinking merging"]()
    rows = encode_rows([TWO], tokenizer, **SETTINGS)
    text = coloured(rows[0], tokenizer).replace("↵", "")
    assert "assistant\nsat<|im_end|>" in text and text.count("[[") == 1
    assert check_encoding([TWO], rows, tokenizer, **SETTINGS).untrained_turns == 1


def test_a_template_without_end_of_turn_gets_eos_and_says_so():
    tokenizer = made.TOKENIZERS["no end merging"]()
    assert shown(tokenizer, ONE) == "user: what is two?\nassistant: [[two<|im_end|>]]"
    assert "no end of turn" in layout_of(tokenizer).notes[0]


def test_end_of_turn_is_the_last_of_a_run_of_control_tokens_but_not_after_a_line_break():
    two = made.CHATML.replace("<|im_end|>\n' }}{% endfor", "<|im_end|><|stop|>\n' }}{% endfor")
    tokenizer = made.byte_tokenizer(two, special=(*made.CHATML_TOKENS, "<|stop|>", "<eos>"), eos="<eos>")
    assert shown(tokenizer, ONE).endswith("[[two<|im_end|><|stop|>]]")
    far = made.CHATML.replace("<|im_end|>\n' }}{% endfor", "<|im_end|>\n<eos>' }}{% endfor")
    tokenizer = made.byte_tokenizer(far, special=(*made.CHATML_TOKENS, "<eos>"), eos="<eos>")
    assert shown(tokenizer, ONE).endswith("[[two<|im_end|>]]")


@pytest.mark.parametrize(
    ("template", "words"),
    [
        (made.NO_GENERATION_PROMPT, "no generation prompt"),
        (made.OTHER_PROMPT, "not how it begins a training row"),
        (made.NO_ANSWER, "leaves the answer out"),
        ("{{ messages[0]['content'] + 1 }}", "fails on one question"),
    ],
)
def test_a_template_without_an_exact_mask_is_refused_with_a_remedy(template, words):
    with pytest.raises(ModelError, match=words) as caught:
        encode_rows([ONE], made.byte_tokenizer(template), **SETTINGS)
    assert "--plain" in str(caught.value)


def test_a_refused_template_still_trains_in_the_plain_layout():
    assert shown(made.byte_tokenizer(made.NO_GENERATION_PROMPT), ONE, plain=True) == "what is two?\n[[two<|im_end|>]]"


def test_a_switch_of_the_template_is_used_when_only_that_makes_the_prompt_a_prefix():
    switched = made.CHATML.replace(
        "{{ '<|im_start|>assistant\n' }}{% endif %}",
        "{{ '<|im_start|>assistant\n' }}{% if enable_thinking is not defined or enable_thinking %}{{ '<think>' }}"
        "{% endif %}{% endif %}",
    )
    tokenizer = made.byte_tokenizer(switched)
    assert layout_of(tokenizer).variables == {"enable_thinking": False}
    assert shown(tokenizer, ONE).endswith("assistant\n[[two<|im_end|>]]")
    assert "enable_thinking" in layout_of(tokenizer).notes[0]


def test_contents_as_blocks_where_the_template_wants_them():
    blocks = made.CHATML.replace("message['content'] +", "message['content'][0]['text'] +")
    assert shown(made.byte_tokenizer(blocks), ONE).endswith(
        "what is two?<|im_end|>\n<|im_start|>assistant\n[[two<|im_end|>]]"
    )


def test_the_date_is_fixed():
    dated = (
        "{% if not date_string is defined %}{% set date_string = strftime_now('%d %b %Y') %}{% endif %}"
        "{{ 'Today: ' + date_string + '\n' }}" + made.CHATML
    )
    assert shown(made.byte_tokenizer(dated), ONE).startswith("Today: 01 Jan 2026\n")


def test_a_tokenizer_without_eos_is_refused():
    with pytest.raises(ModelError, match="no end-of-text"):
        encode_rows([ONE], made.byte_tokenizer(None, eos=None), **SETTINGS)


def test_plain_layout():
    tokenizer = made.TOKENIZERS["plain bytes"]()
    assert shown(tokenizer, ONE) == "<bos>what is two?\n[[two<eos>]]"
    assert shown(tokenizer, SYSTEM) == "<bos>sys\n\ncat\n[[sat<eos>]]"
    assert shown(tokenizer, TWO) == "<bos>cat\n[[sat]]\n\ndog\n[[ran<eos>]]"
    assert stop_ids(tokenizer) == (tokenizer.eos_token_id,)


def test_plain_text_trains_everything_but_the_first_token():
    example = Example((Turn("text", "the cat"),))
    assert shown(made.TOKENIZERS["plain bytes"](), example, task="language-modelling") == "<bos>[[the cat<eos>]]"
    no_bos = made.byte_tokenizer(None)
    assert shown(no_bos, example, task="language-modelling") == "t[[he cat<|im_end|>]]"


def test_roles_out_of_order_are_refused_with_the_place():
    example = Example((Turn("user", "a"), Turn("user", "b"), Turn("assistant", "c")), targets=(2,))
    with pytest.raises(DataError, match=r"row 2: the chat template refuses .*user user assistant.*alternate"):
        encode_rows([ONE, example], made.TOKENIZERS["gemma bytes"](), **SETTINGS)


def test_rows_without_question_or_answer_are_refused_with_the_place():
    tokenizer = made.TOKENIZERS["chatml bytes"]()
    with pytest.raises(DataError, match="row 1: the first turn is an answer"):
        encode_rows([Example((Turn("assistant", "c"),), targets=(0,))], tokenizer, **SETTINGS)
    with pytest.raises(DataError, match="row 1: the row has no answer"):
        encode_rows([Example((Turn("user", "c"),))], tokenizer, **SETTINGS)


def test_shots_come_before_the_question_after_the_system_turn_and_are_not_trained():
    tokenizer = made.TOKENIZERS["chatml bytes"]()
    shown_first = prompt_with_examples(SYSTEM, [ONE, conversation("x", "y")])
    assert [turn.content for turn in shown_first.turns] == ["sys", "what is two?", "two", "x", "y", "cat", "sat"]
    text = shown(tokenizer, shown_first)
    assert text.count("[[") == 1 and text.endswith("cat<|im_end|>\n<|im_start|>assistant\n[[sat<|im_end|>]]")
    labelled = Example((Turn("user", "nice"),), label="good")
    asked = prompt_with_examples(Example((Turn("user", "poor"),), label="bad"), [labelled])
    assert [turn.content for turn in asked.turns] == ["nice", "good", "poor"] and asked.label == "bad"
    with pytest.raises(UsageError):
        prompt_with_examples(ONE, [Example((Turn("user", "open"),))])


def test_inference_needs_no_answer():
    tokenizer = made.TOKENIZERS["llama3 merging"]()
    asked = inference_ids(Example(ONE.turns[:1]), tokenizer)
    row = encode_rows([ONE], tokenizer, **SETTINGS)[0]
    assert np.array_equal(asked, row.ids[: row.prompt_length])
