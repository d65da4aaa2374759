"""GGUF, the one-file form of llama.cpp and its relatives, for the Llama architecture.

Weights are written unquantized (float32, float16 or bfloat16); llama.cpp's own tool quantizes further. llama.cpp
rotates neighbouring pairs of a head where Hugging Face rotates its halves, so the rows of the query and key
projections are reordered on the way (the inverse of what transformers does when it reads GGUF). Byte-level BPE
tokenizers are written with the name of their pre-tokenizer as llama.cpp knows it; one it does not know is refused,
because it would split text differently without a word. What cannot be expressed is refused, never approximated.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from foretune import files
from foretune.errors import ModelError, Place, UsageError
from foretune.export.adapter import CARD
from foretune.export.loading import load_tokenizer, read_config

if TYPE_CHECKING:
    import numpy as np
    import torch
    from torch import nn

FILE = "model.gguf"
ARCHITECTURE = "llama"
NUMBER_TYPES = ("float32", "float16", "bfloat16")
_LAYER_TENSORS = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
}
_OTHER_TENSORS = {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"}
_SINGLE_BYTES, _HALF_BYTES = 4, 2
_SINGLE_DIGITS = ("Digits", "ByteLevel")
_LLAMA3_SPLIT = r"\p{N}{1,3}"
_QWEN2_SPLIT = r"\p{N}|"


def export_gguf(merged: Path, destination: Path, dtype: str = "float16", *, card: str | None = None) -> Path:
    """Write the model in the folder ``merged`` as ``model.gguf`` into ``destination``; returns the file's path.

    ``dtype`` is float32, float16 or bfloat16. Raises `UsageError` for what GGUF cannot hold here, `ModelError` for
    a damaged folder, `OutputError`. Does not check the answers: `foretune.export.verify` does.
    """
    import gguf

    config = read_config(merged)
    refuse_unsupported(config, merged)
    if dtype not in NUMBER_TYPES:
        raise UsageError(f"{dtype!r} is not a number type of this export.", remedy=f"Use {', '.join(NUMBER_TYPES)}.")
    tokenizer = load_tokenizer(merged)
    kind = {"float32": "F32", "float16": "F16", "bfloat16": "BF16"}[dtype]
    number_type = gguf.GGMLQuantizationType[kind]
    with files.atomic_folder(destination) as aside:
        writer = gguf.GGUFWriter(aside / FILE, ARCHITECTURE)
        try:
            _add_metadata(writer, config, kind)
            _add_tokenizer(writer, tokenizer, int(config["vocab_size"]), merged)
            _write_tensors(writer, merged, config, number_type)
        finally:
            writer.close()
        if card is not None:
            files.write_text(aside / CARD, card)
    return destination / FILE


def refuse_unsupported(config: dict[str, Any], place: Path) -> None:
    """Raise `UsageError` unless the configuration is a Llama that GGUF holds exactly."""
    rope = config.get("rope_parameters") or config.get("rope_scaling") or {}
    reasons = {
        f"the architecture {config.get('model_type')!r} is not supported": config.get("model_type") != ARCHITECTURE,
        "attention or MLP biases are not supported": bool(config.get("attention_bias") or config.get("mlp_bias")),
        f"the activation {config.get('hidden_act')!r} is not supported": config.get("hidden_act", "silu") != "silu",
        f"the position scaling {rope.get('rope_type')!r} is not supported": rope.get("rope_type", "default")
        not in ("default", None),
        "quantized weights are not supported": bool(config.get("quantization_config")),
    }
    for reason, holds in reasons.items():
        if holds:
            remedy = "Use --merge and convert the merged folder with llama.cpp's own converter."
            raise UsageError(f"GGUF export: {reason}.", place=Place(place), remedy=remedy)


def _add_metadata(writer: Any, config: dict[str, Any], kind: str) -> None:
    import gguf

    heads = int(config["num_attention_heads"])
    head_width = int(config.get("head_dim") or config["hidden_size"] // heads)
    rope = config.get("rope_parameters") or {}
    writer.add_type("model")
    writer.add_name("foretune")
    writer.add_vocab_size(int(config["vocab_size"]))
    writer.add_context_length(int(config["max_position_embeddings"]))
    writer.add_embedding_length(int(config["hidden_size"]))
    writer.add_block_count(int(config["num_hidden_layers"]))
    writer.add_feed_forward_length(int(config["intermediate_size"]))
    writer.add_head_count(heads)
    writer.add_head_count_kv(int(config.get("num_key_value_heads") or heads))
    writer.add_key_length(head_width)
    writer.add_value_length(head_width)
    writer.add_rope_dimension_count(head_width)
    writer.add_rope_freq_base(float(rope.get("rope_theta") or config.get("rope_theta") or 10000.0))
    writer.add_layer_norm_rms_eps(float(config["rms_norm_eps"]))
    writer.add_file_type(
        {"F32": gguf.LlamaFileType.ALL_F32, "F16": gguf.LlamaFileType.MOSTLY_F16}.get(
            kind, gguf.LlamaFileType.MOSTLY_BF16
        )
    )


def pre_tokenizer_name(description: dict[str, Any]) -> str | None:
    """llama.cpp's name for the pre-tokenizer in a ``tokenizer.json``; None for one that it does not have."""
    outer = description.get("pre_tokenizer") or {}
    steps = outer.get("pretokenizers", [outer])
    names = tuple(step.get("type") for step in steps)
    if any(step.get("type") == "ByteLevel" and step.get("add_prefix_space") for step in steps):
        return None
    if description.get("normalizer") not in (None, {"type": "NFC"}):
        return None
    if names == ("ByteLevel",) and steps[0].get("use_regex", True):
        return "gpt-2"
    if names == _SINGLE_DIGITS and steps[0].get("individual_digits") and steps[1].get("use_regex", True):
        return "smollm"
    if names == ("Split", "ByteLevel") and not steps[1].get("use_regex", True):
        pattern = str(steps[0].get("pattern", {}).get("Regex", ""))
        return "llama-bpe" if _LLAMA3_SPLIT in pattern else "qwen2" if _QWEN2_SPLIT in pattern else None
    return None


def _add_tokenizer(writer: Any, tokenizer: Any, vocabulary: int, place: Path) -> None:
    import json

    import gguf

    description = json.loads(tokenizer.backend_tokenizer.to_str())
    pre = pre_tokenizer_name(description)
    model = description.get("model", {})
    if model.get("type") != "BPE" or model.get("byte_fallback") or pre is None:
        raise UsageError(
            "GGUF export: this tokenizer has no counterpart in llama.cpp that is known to split text the same way.",
            place=Place(place),
            remedy="Use --merge and convert the merged folder with llama.cpp's own converter.",
        )
    added = {int(token["id"]): token for token in description.get("added_tokens", [])}
    by_id = {int(number): text for text, number in tokenizer.get_vocab().items()}
    if max(by_id, default=-1) >= vocabulary:
        raise ModelError("the tokenizer has more tokens than the model.", place=Place(place))
    types = []
    for number in range(vocabulary):
        special = number in added and bool(added[number]["special"])
        types.append(
            gguf.TokenType.UNUSED
            if number not in by_id
            else gguf.TokenType.CONTROL
            if special
            else gguf.TokenType.USER_DEFINED
            if number in added
            else gguf.TokenType.NORMAL
        )
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(pre)
    writer.add_token_list([by_id.get(number, f"[PAD{number}]") for number in range(vocabulary)])
    writer.add_token_types(types)
    writer.add_token_merges([m if isinstance(m, str) else " ".join(m) for m in model["merges"]])
    writer.add_add_space_prefix(False)
    writer.add_add_bos_token(_adds_bos(tokenizer))
    for name in ("bos", "eos", "unk", "pad"):
        token = getattr(tokenizer, f"{name}_token_id", None)
        if token is not None:
            getattr(writer, f"add_{name}_token_id")(int(token))
    if isinstance(tokenizer.chat_template, str):
        writer.add_chat_template(tokenizer.chat_template)


def _adds_bos(tokenizer: Any) -> bool:
    ids = tokenizer("a")["input_ids"]
    return bool(ids) and ids[0] == tokenizer.bos_token_id is not None


def gguf_name(name: str) -> str | None:
    """The GGUF name of a Llama weight; None for buffers that are not stored. Raises `KeyError` for unknown weights."""
    if name.endswith("rotary_emb.inv_freq"):
        return None
    stem = name.removesuffix(".weight")
    if stem in _OTHER_TENSORS:
        return f"{_OTHER_TENSORS[stem]}.weight"
    parts = stem.split(".")
    if parts[:2] == ["model", "layers"] and len(parts) > 3:
        return f"blk.{int(parts[2])}.{_LAYER_TENSORS['.'.join(parts[3:])]}.weight"
    raise KeyError(name)


def reorder_rotary(weight: np.ndarray, heads: int) -> np.ndarray:
    """Rows of a query or key projection from "halves" to "neighbouring pairs"; weight: (heads * width, hidden)."""
    halves = weight.reshape(heads, 2, weight.shape[0] // heads // 2, *weight.shape[1:])
    return halves.swapaxes(1, 2).reshape(weight.shape)


def _stored(folder: Path) -> Iterator[tuple[str, Any]]:
    """Name and lazily read tensor of every stored weight."""
    from safetensors import safe_open

    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(path, framework="pt") as tensors:
            for name in sorted(tensors.keys()):
                yield name, tensors.get_slice(name)


def _array(name: str, tensor: torch.Tensor, config: dict[str, Any]) -> np.ndarray:
    import numpy

    array: np.ndarray = tensor.float().numpy()
    heads = int(config["num_attention_heads"])
    if name.endswith("q_proj.weight"):
        array = reorder_rotary(array, heads)
    elif name.endswith("k_proj.weight"):
        array = reorder_rotary(array, int(config.get("num_key_value_heads") or heads))
    return numpy.ascontiguousarray(array, dtype=numpy.float32)


def _write_tensors(writer: Any, folder: Path, config: dict[str, Any], number_type: Any) -> None:
    """Two passes, so that one tensor at a time is in memory: names and sizes first, then the data."""
    import math

    import gguf
    import numpy

    single = gguf.GGMLQuantizationType.F32  # vectors (norms) stay float32, as llama.cpp's kernels want them
    kinds: dict[str, Any] = {}
    for name, view in _stored(folder):
        try:
            target = gguf_name(name)
        except KeyError:
            what = f"GGUF export: the weight {name} has no place in a GGUF Llama."
            raise UsageError(what, place=Place(folder)) from None
        if target is None or (target == "output.weight" and config.get("tie_word_embeddings")):
            continue
        shape = tuple(view.get_shape())
        kinds[name] = number_type if len(shape) > 1 else single
        size = math.prod(shape) * (_SINGLE_BYTES if kinds[name] == single else _HALF_BYTES)
        writer.add_tensor_info(target, shape, numpy.dtype(numpy.float32), size, raw_dtype=kinds[name])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    for name, view in _stored(folder):
        if name in kinds:
            writer.write_tensor_data(gguf.quantize(_array(name, view[:], config), kinds[name]))


def load_gguf(path: Path) -> nn.Module:
    """The model in a GGUF file, read by transformers, float32, in evaluation mode. Raises `ModelError`."""
    import torch
    import transformers

    try:
        model: nn.Module = transformers.AutoModelForCausalLM.from_pretrained(
            path.parent, gguf_file=path.name, dtype=torch.float32, local_files_only=True
        )
    except (OSError, ValueError, RuntimeError, KeyError) as error:
        raise ModelError(f"the GGUF file cannot be read back: {error}.", place=Place(path)) from error
    return model.eval()
