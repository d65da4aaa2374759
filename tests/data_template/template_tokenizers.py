"""Tiny tokenizers with the chat templates that the field uses, built in memory.

The byte tokenizers have no merges, so one byte is one token and every mask can be counted by hand.
"""

from __future__ import annotations

from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

CHATML = (
    "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}"
    "{{ '<|im_start|>system\nBe good.<|im_end|>\n' }}{% endif %}"
    "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
LLAMA3 = (
    "{{ bos_token }}{% for message in messages %}"
    "{{ '<|start|>' + message['role'] + '<|end|>\n\n' + message['content'] | trim + '<|eot|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|start|>assistant<|end|>\n\n' }}{% endif %}"
)
GEMMA = (
    "{{ bos_token }}{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system role') }}{% endif %}"
    "{% for message in messages %}{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('roles must alternate') }}{% endif %}"
    "{{ '<turn>' + ('model' if message['role'] == 'assistant' else message['role']) + '\n' "
    "+ message['content'] | trim + '</turn>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<turn>model\n' }}{% endif %}"
)
MISTRAL = (
    "{{ bos_token }}{% for message in messages %}{% if message['role'] == 'user' %}"
    "{{ '[INST] ' + message['content'] + ' [/INST]' }}{% elif message['role'] == 'assistant' %}"
    "{{ ' ' + message['content'] + eos_token }}{% endif %}{% endfor %}"
)
VICUNA = (
    "{% for message in messages %}{% if message['role'] == 'user' %}{{ 'USER: ' + message['content'] + '\n' }}"
    "{% elif message['role'] == 'assistant' %}{{ 'BOT: ' + message['content'] + eos_token }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'BOT: ' }}{% endif %}"
)
MARKED = (
    "{% for message in messages %}{% if message['role'] == 'assistant' %}{{ '<|im_start|>assistant\n' }}"
    "{% generation %}{{ message['content'] }}{% endgeneration %}{{ '[log]' }}"
    "{% generation %}{{ '<|im_end|>' }}{% endgeneration %}{{ '\n' }}"
    "{% else %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}{% endif %}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
THINKING = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' }}"
    "{% if message['role'] == 'assistant' and loop.last %}{{ '<think>\n\n</think>\n\n' }}{% endif %}"
    "{{ message['content'] + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
NO_END = (
    "{% for message in messages %}{{ message['role'] + ': ' + message['content'] + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'assistant: ' }}{% endif %}"
)
NO_GENERATION_PROMPT = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}"
    "{% endfor %}"
)
OTHER_PROMPT = CHATML.replace(
    "'<|im_start|>assistant\n' }}{% endif %}", "'<|im_start|>assistant\n<think>' }}{% endif %}"
)
NO_ANSWER = (
    "{% for message in messages %}{% if message['role'] == 'user' %}{{ 'Q: ' + message['content'] }}{% endif %}"
    "{% endfor %}{% if add_generation_prompt %}{{ 'A: ' }}{% endif %}"
)
CHATML_TOKENS = ("<|im_start|>", "<|im_end|>")

_CORPUS = ["the cat sat on the mat and the dog ran", "what is two plus two? four, yes", "\n\n\nuser\nassistant\n"] * 4


def wrapped(tokenizer: Tokenizer, template: str | None, eos: str | None, bos: str | None = None, **names: str):
    made = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=eos, bos_token=bos, **names)
    made.chat_template = template
    return made


def with_bos(tokenizer: Tokenizer, bos: str) -> None:
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{bos} $A", special_tokens=[(bos, tokenizer.token_to_id(bos))]
    )


def byte_tokenizer(template: str | None, special=CHATML_TOKENS, eos="<|im_end|>", bos=None, add_bos=False):
    """One byte is one token: byte-level without merges."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={character: i for i, character in enumerate(alphabet)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(list(special))
    if add_bos:
        with_bos(tokenizer, bos)
    return wrapped(tokenizer, template, eos, bos)


def merging_tokenizer(template: str | None, special=CHATML_TOKENS, eos="<|im_end|>", bos=None, add_bos=False):
    """Byte-level BPE that merges words, and line breaks with what follows them."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(r"\n+\w*| ?\w+|[^\w\n]"), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=list(special),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator([*_CORPUS, *["\n\nfour", "\nfour", "\nyes"] * 9] * 3, trainer)
    if add_bos:
        with_bos(tokenizer, bos)
    return wrapped(tokenizer, template, eos, bos)


def sentence_tokenizer(template: str | None, special=("<s>", "</s>"), eos="</s>", bos="<s>", blank=(), lead=True):
    """As Llama 2 and Mistral: a space is ▁, one is put before every text (not with Gemma), bytes as a fallback."""
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    spaces = normalizers.Replace(" ", "▁")
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), spaces]) if lead else spaces
    byte_tokens = [f"<0x{byte:02X}>" for byte in range(256)]
    trainer = trainers.BpeTrainer(
        vocab_size=420,
        special_tokens=["<unk>", *special, *byte_tokens],
        initial_alphabet=list("abcdefghijklmnopqrstuvwxyz?.,:[]/▁QAINSTUERBO"),
        show_progress=False,
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Split("▁", "merged_with_next")
    tokenizer.train_from_iterator(_CORPUS, trainer)
    parts = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    tokenizer.decoder = decoders.Sequence([*parts, decoders.Strip(" ", 1, 0)] if lead else parts)
    if bos:
        with_bos(tokenizer, bos)
    made = wrapped(tokenizer, template, eos, bos, unk_token="<unk>")
    if blank:
        made.add_tokens(list(blank))
    return made


def word_piece():
    """As BERT: [CLS] text [SEP], lower case."""
    words = ["[UNK]", "[CLS]", "[SEP]", "[PAD]", "good", "bad", "film", "a", "very", "##s", ".", "the"]
    tokenizer = Tokenizer(models.WordPiece({word: i for i, word in enumerate(words)}, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 1), ("[SEP]", 2)]
    )
    names = {"unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]", "pad_token": "[PAD]"}
    return wrapped(tokenizer, None, None, **names)


def encoder_decoder():
    """As T5: text </s>, no bos."""
    made = byte_tokenizer(None, special=("</s>", "<pad>"), eos="</s>")
    made.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="$A </s>", special_tokens=[("</s>", made.eos_token_id)]
    )
    return made


LLAMA3_TOKENS = {"special": ("<bos>", "<|start|>", "<|end|>", "<|eot|>", "<eos>"), "bos": "<bos>", "eos": "<eos>"}
GEMMA_TOKENS = {"special": ("<bos>", "<eos>", "<turn>", "</turn>"), "bos": "<bos>", "eos": "<eos>"}

TOKENIZERS = {
    "chatml bytes": lambda: byte_tokenizer(CHATML),
    "chatml merging": lambda: merging_tokenizer(CHATML),
    "llama3 bytes": lambda: byte_tokenizer(LLAMA3, add_bos=True, **LLAMA3_TOKENS),
    "llama3 merging": lambda: merging_tokenizer(LLAMA3, add_bos=True, **LLAMA3_TOKENS),
    "gemma bytes": lambda: byte_tokenizer(GEMMA, add_bos=True, **GEMMA_TOKENS),
    "gemma sentence": lambda: sentence_tokenizer(GEMMA, blank=("\n", "\n\n"), lead=False, **GEMMA_TOKENS),
    "mistral sentence": lambda: sentence_tokenizer(MISTRAL),
    "vicuna sentence": lambda: sentence_tokenizer(VICUNA),
    "thinking merging": lambda: merging_tokenizer(THINKING),
    "no end merging": lambda: merging_tokenizer(NO_END),
    "plain bytes": lambda: byte_tokenizer(None, special=("<bos>", "<eos>"), bos="<bos>", eos="<eos>", add_bos=True),
    "plain merging": lambda: merging_tokenizer(None),
    "plain sentence": lambda: sentence_tokenizer(None),
}
