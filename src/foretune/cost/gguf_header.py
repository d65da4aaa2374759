"""The header of a GGUF file as a ``config.json``: sizes and tensor names, without reading weights or vocabulary.

Format: ggml's "GGUF file format" document (magic, version, counts; keys with typed values; tensor names with their
dimensions). The gguf package reads the same, but decodes every token of the vocabulary, which takes seconds; this
skips arrays. Only architectures that transformers loads from GGUF and `architectures` describes are translated.
"""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any, BinaryIO

from foretune.errors import ModelError, Place

_MAGIC = b"GGUF"
_VERSIONS = (2, 3)
_SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_STRING, _ARRAY = 8, 9
_LONGEST_STRING = 1 << 24  # a chat template is thousands of bytes; more is a damaged length
_MOST_ITEMS = 1 << 26
_MOST_DIMENSIONS = 8  # ggml itself has four
_MODEL_TYPES = {"llama": "llama", "qwen2": "qwen2", "qwen3": "qwen3", "gemma": "gemma", "gemma2": "gemma2",
                "gemma3": "gemma3_text", "phi3": "phi3", "gpt2": "gpt2", "smollm3": "smollm3"}  # fmt: skip


def read_config(path: Path) -> dict[str, Any]:
    """A configuration with the names of transformers. Raises `ModelError` for a damaged or unknown file."""
    try:
        with path.open("rb") as stream:
            fields, lengths, tensors = _header(stream)
    except FileNotFoundError as error:
        raise ModelError("there is no such file.", place=Place(path), remedy="Check the path.") from error
    except (OSError, struct.error, ValueError, UnicodeDecodeError) as error:
        raise ModelError(
            "this is not a whole GGUF file.", place=Place(path), remedy="Check that it is complete, or fetch it again."
        ) from error
    architecture = fields.get("general.architecture")
    if architecture not in _MODEL_TYPES:
        raise ModelError(
            f"GGUF files of the architecture {architecture!r} cannot be forecast.",
            place=Place(path),
            remedy=f"Known: {', '.join(_MODEL_TYPES)}.",
        )
    return _translated(str(architecture), fields, lengths, tensors)


def _translated(name: str, fields: dict[str, Any], lengths: dict[str, int], tensors: set[str]) -> dict[str, Any]:
    vocabulary = lengths.get("tokenizer.ggml.tokens") or fields.get(f"{name}.vocab_size")
    tied = "output.weight" not in tensors
    get = fields.get
    if name == "gpt2":
        return {
            "model_type": "gpt2", "vocab_size": vocabulary, "n_embd": get("gpt2.embedding_length"),
            "n_layer": get("gpt2.block_count"), "n_head": get("gpt2.attention.head_count"),
            "n_inner": get("gpt2.feed_forward_length"), "n_positions": get("gpt2.context_length"),
            "tie_word_embeddings": tied,
        }  # fmt: skip
    return {
        "model_type": _MODEL_TYPES[name],
        "vocab_size": vocabulary,
        "hidden_size": get(f"{name}.embedding_length"),
        "intermediate_size": get(f"{name}.feed_forward_length"),
        "num_hidden_layers": get(f"{name}.block_count"),
        "num_attention_heads": get(f"{name}.attention.head_count"),
        "num_key_value_heads": get(f"{name}.attention.head_count_kv") or get(f"{name}.attention.head_count"),
        "head_dim": get(f"{name}.attention.key_length"),
        "max_position_embeddings": get(f"{name}.context_length"),
        "attention_bias": "blk.0.attn_q.bias" in tensors and name != "qwen2",
        "tie_word_embeddings": tied,
    }


def _header(stream: BinaryIO) -> tuple[dict[str, Any], dict[str, int], set[str]]:
    """(scalar values by key, array lengths by key, tensor names)."""
    if stream.read(len(_MAGIC)) != _MAGIC:
        raise ValueError("magic")
    version, tensor_count, key_count = _unpack(stream, "<IQQ")
    if version not in _VERSIONS or tensor_count > _MOST_ITEMS or key_count > _MOST_ITEMS:
        raise ValueError("version or counts")
    fields: dict[str, Any] = {}
    lengths: dict[str, int] = {}
    for _ in range(key_count):
        key = _string(stream)
        (kind,) = _unpack(stream, "<I")
        if kind == _ARRAY:
            lengths[key] = _skip_array(stream)
        else:
            fields[key] = _string(stream) if kind == _STRING else _unpack(stream, "<" + _scalar(kind))[0]
    names = set()
    for _ in range(tensor_count):
        names.add(_string(stream))
        (dimensions,) = _unpack(stream, "<I")
        if dimensions > _MOST_DIMENSIONS:
            raise ValueError("dimensions")
        _unpack(stream, f"<{dimensions}QIQ")
    return fields, lengths, names


def _unpack(stream: BinaryIO, layout: str) -> tuple[Any, ...]:
    return struct.unpack(layout, stream.read(struct.calcsize(layout)))


def _scalar(kind: int) -> str:
    if kind not in _SCALARS:
        raise ValueError("type")
    return _SCALARS[kind]


def _string(stream: BinaryIO) -> str:
    (length,) = _unpack(stream, "<Q")
    if length > _LONGEST_STRING:
        raise ValueError("string length")
    content = stream.read(length)
    if len(content) != length:
        raise ValueError("end of file")
    return content.decode("utf-8")


def _skip_array(stream: BinaryIO) -> int:
    kind, count = _unpack(stream, "<IQ")
    if count > _MOST_ITEMS:
        raise ValueError("array length")
    if kind == _STRING:
        for _ in range(count):
            (length,) = _unpack(stream, "<Q")
            if length > _LONGEST_STRING:
                raise ValueError("string length")
            stream.seek(length, 1)
    elif kind == _ARRAY:
        for _ in range(count):
            _skip_array(stream)
    else:
        stream.seek(count * struct.calcsize("<" + _scalar(kind)), 1)
    return int(count)
