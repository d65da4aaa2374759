"""GGUF files into folders that transformers loads: dequantised once, then like any other model.

The blocks of a GGUF file are unpacked to dense tensors, loaded into a model built from the configuration in the
file's header, and saved as safetensors with the tokenizer and its chat template. ``quantization_config`` is dropped:
the saved model is dense. transformers ties the output layer to the embeddings where the file holds no output layer.

Stored as float32 up to `FLOAT32_PARAMETERS` parameters: a quantised weight is scale * integer + minimum in half
precision, which neither bfloat16 nor float16 holds exactly, and the model has to answer as the GGUF does. Larger
models are stored as bfloat16, whose rounding (2^-9 relative) is far below the quantisation step; that halves the disk.

What it does not do: write GGUF files (`foretune.export.gguf` does), or read parts split by ``gguf-split``.
"""

from __future__ import annotations

import contextlib
import copy
import io
from pathlib import Path
from typing import TYPE_CHECKING, Any

from foretune.errors import ModelError, Place

if TYPE_CHECKING:
    import torch

FLOAT32_PARAMETERS = 1_000_000_000
"""Up to this many parameters the dense copy is float32 (4 GB on disk at most)."""
GGUF_MAGIC = b"GGUF"
_READABLE = 0o644  # safetensors writes files that only their owner can read; a cache may be shared


def is_gguf(path: Path) -> bool:
    """True when the file starts as a GGUF file does, whatever its name."""
    with path.open("rb") as stream:
        return stream.read(len(GGUF_MAGIC)) == GGUF_MAGIC


def dequantise(gguf_file: Path, folder: Path) -> None:
    """Write the model and the tokenizer of ``gguf_file`` into ``folder`` (existing, usually an `atomic_folder`).

    Raises `ModelError` when the file is damaged or of an architecture that transformers cannot read from GGUF.
    """
    if not is_gguf(gguf_file):
        raise ModelError(
            "this is not a GGUF file (it does not start with 'GGUF').",
            place=Place(gguf_file),
            remedy="Check that the download is complete.",
        )
    try:
        with contextlib.redirect_stderr(io.StringIO()):  # progress bars of the reader, which has no switch for them
            dense = _dense_model(gguf_file)
            tokenizer = _tokenizer(gguf_file)
            dense.save_pretrained(folder)
            tokenizer.save_pretrained(folder)
    except ModelError:
        raise
    except Exception as error:  # the readers raise anything from IndexError to struct.error on damaged files
        if isinstance(error, OSError) and error.errno is not None:  # the disk's own refusals, said by `files`
            raise
        raise ModelError(
            f"the GGUF file cannot be read ({type(error).__name__}: {error}).",
            place=Place(gguf_file),
            remedy="It is damaged or of an architecture transformers does not read from GGUF: download it again, or "
            "use the model's safetensors folder.",
        ) from error
    for path in folder.iterdir():
        path.chmod(_READABLE)


def _dense_model(gguf_file: Path) -> Any:
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSeq2SeqLM, GgufConfig

    where = {"pretrained_model_name_or_path": str(gguf_file.parent), "gguf_file": gguf_file.name}
    config = AutoConfig.from_pretrained(**where)
    auto = AutoModelForSeq2SeqLM if getattr(config, "is_encoder_decoder", False) else AutoModelForCausalLM
    loaded, report = auto.from_pretrained(
        **where,
        dtype=torch.float32,
        quantization_config=GgufConfig(dequantize=True),
        use_safetensors=True,
        output_loading_info=True,
    )
    if report["missing_keys"]:
        raise ModelError(
            f"the GGUF file lacks weights: {', '.join(sorted(report['missing_keys'])[:3])} and "
            f"{len(report['missing_keys'])} in all.",
            place=Place(gguf_file),
            remedy="Download it again, or use the model's safetensors folder.",
        )
    config = copy.deepcopy(loaded.config)
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    state: dict[str, torch.Tensor] = loaded.state_dict()
    if sum(parameter.numel() for parameter in loaded.parameters()) > FLOAT32_PARAMETERS:
        state = {name: tensor.to(torch.bfloat16) for name, tensor in state.items()}
        config.dtype = torch.bfloat16
    with torch.device("meta"):
        dense = auto.from_config(config)
    dense.load_state_dict(state, assign=True)
    dense.tie_weights()
    if dense.can_generate():
        dense.generation_config = loaded.generation_config
    return dense


def _tokenizer(gguf_file: Path) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(str(gguf_file.parent), gguf_file=gguf_file.name)
