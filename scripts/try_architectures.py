"""Fit a tiny random model of every architecture in the table below, from its plan to its verified adapter.

    python scripts/try_architectures.py [TYPE…] [--docs]

A model of two layers is made for each ``model_type``, saved as a folder, and given to ``foretune.fit`` with forty rows:
one trial of the default LoRA, one epoch. What came out is printed, a line each; ``--docs`` writes the lines into
``docs/architectures.md`` and keeps those of types that were not tried this time. About 20 seconds of a processor each.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
import warnings
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
DOCS = ROOT / "docs" / "architectures.md"
START, END = "<!-- tried:start -->", "<!-- tried:end -->"

_ENDS = {"bos_token_id": 0, "eos_token_id": 2, "pad_token_id": 5}
_PLAIN = {"vocab_size": 400, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2,
          "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 128, "initializer_range": 0.2,
          **_ENDS}  # fmt: skip
_WIDE = {**_PLAIN, "head_dim": 8}
_EXPERTS = {"moe_intermediate_size": 32, "num_experts": 4, "num_local_experts": 4, "num_experts_per_tok": 2,
            "n_routed_experts": 4}  # fmt: skip
_GROUPED = {"first_k_dense_replace": 1, "n_group": 1, "topk_group": 1}
_LATENT = {"num_key_value_heads": 4, "q_lora_rank": 16, "kv_lora_rank": 8, "qk_rope_head_dim": 8,
           "qk_nope_head_dim": 8, "v_head_dim": 8}  # fmt: skip
_GPT = {"vocab_size": 400, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 128, "n_ctx": 128, "rotary_dim": 8,
        "initializer_range": 0.2, **_ENDS}  # fmt: skip
_STATES = {"vocab_size": 400, "hidden_size": 32, "num_hidden_layers": 2, "state_size": 4, **_ENDS}
_LINEAR = {"linear_num_value_heads": 4, "linear_num_key_heads": 2, "linear_key_head_dim": 8,
           "linear_value_head_dim": 8}  # fmt: skip
_SEES = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2,
         "image_size": 28, "patch_size": 14}  # fmt: skip
_QWEN_SEES = {"depth": 2, "hidden_size": 16, "intermediate_size": 32, "num_heads": 2, "out_hidden_size": 32,
              "patch_size": 14}  # fmt: skip
_GEMMA4 = {**_WIDE, "vocab_size_per_layer_input": 400, "hidden_size_per_layer_input": 8, "global_head_dim": 8,
           "layer_types": ["sliding_attention", "full_attention"], "num_kv_shared_layers": 0}  # fmt: skip
_MIXED = ["linear_attention", "full_attention"]

CAUSAL: dict[str, dict[str, Any]] = {
    **{name: _PLAIN for name in (
        "apertus", "arcee", "cohere", "diffllama", "doge", "gpt_neox", "granite", "llama", "nanochat", "nemotron",
        "olmo", "olmo2", "olmo3", "persimmon", "phi", "phi3", "qwen2", "smollm3", "stablelm", "starcoder2",
    )},
    **{name: _WIDE for name in (
        "cohere2", "ernie4_5", "gemma", "glm", "glm4", "helium", "hunyuan_v1_dense", "ministral", "mistral", "qwen3",
        "seed_oss",
    )},
    **{name: {**_WIDE, "query_pre_attn_scalar": 8} for name in ("gemma2", "gemma3_text", "vaultgemma")},
    **{name: {**_PLAIN, **_EXPERTS} for name in ("flex_olmo", "granitemoe", "mixtral", "olmoe", "phimoe")},
    **{name: {**_WIDE, **_EXPERTS} for name in ("gpt_oss", "qwen3_moe")},
    "deepseek_v2": {**_PLAIN, **_EXPERTS, **_LATENT, **_GROUPED, "topk_method": "greedy"},
    "deepseek_v3": {**_PLAIN, **_EXPERTS, **_LATENT, **_GROUPED},
    "dots1": {**_PLAIN, **_EXPERTS, **_GROUPED, "n_shared_experts": 1},
    "glm4_moe": {**_WIDE, **_EXPERTS, **_GROUPED},
    "hunyuan_v1_moe": {**_WIDE, **_EXPERTS, "moe_topk": 2},
    "llama4_text": {**_WIDE, **_EXPERTS, "intermediate_size_mlp": 64},
    "llama4": {"text_config": {**_WIDE, **_EXPERTS, "intermediate_size_mlp": 64}, "vision_config": _SEES},
    "gemma3": {"text_config": {**_WIDE, "query_pre_attn_scalar": 8}, "vision_config": _SEES, "mm_tokens_per_image": 4},
    "gemma4_text": _GEMMA4,
    "gemma4": {"text_config": _GEMMA4, "vision_config": None},
    "qwen3_5": {"text_config": {**_WIDE, **_LINEAR, "layer_types": _MIXED}, "vision_config": _QWEN_SEES},
    "qwen3_next": {**_WIDE, **_EXPERTS, **_LINEAR, "shared_expert_intermediate_size": 32, "layer_types": _MIXED},
    "lfm2": {**_WIDE, "layer_types": ["conv", "full_attention"], "block_multiple_of": 8},
    "mamba": _STATES,
    "falcon_mamba": _STATES,
    "mamba2": {**_STATES, "num_heads": 8, "head_dim": 8, "n_groups": 1},
    "jamba": {**_PLAIN, "num_experts": 2, "num_experts_per_tok": 1, "mamba_d_state": 4, "mamba_dt_rank": 4,
              "attn_layer_period": 2, "attn_layer_offset": 1, "use_mamba_kernels": False},
    "granitemoehybrid": {**_PLAIN, **_EXPERTS, "shared_intermediate_size": 32, "layer_types": ["mamba", "attention"],
                         "mamba_n_heads": 8, "mamba_d_head": 8, "mamba_d_state": 4},
    **{name: _GPT for name in ("gpt2", "gptj", "codegen", "gpt_bigcode")},
    "gpt_neo": {"vocab_size": 400, "hidden_size": 32, "num_layers": 2, "num_heads": 4, "intermediate_size": 64,
                "max_position_embeddings": 128, "attention_types": [[["global", "local"], 1]], **_ENDS},
    "mpt": {"vocab_size": 400, "d_model": 32, "n_heads": 4, "n_layers": 2, "max_seq_len": 128},
    "bloom": {"vocab_size": 400, "hidden_size": 32, "n_layer": 2, "n_head": 4, **_ENDS},
    "falcon": {"vocab_size": 400, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, **_ENDS},
    "opt": {"vocab_size": 400, "hidden_size": 32, "ffn_dim": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
            "max_position_embeddings": 128, "word_embed_proj_dim": 32, **_ENDS},
    "xglm": {"vocab_size": 400, "d_model": 32, "ffn_dim": 64, "num_layers": 2, "attention_heads": 4,
             "max_position_embeddings": 128, **_ENDS},
    "exaone4": {**_WIDE, "sliding_window": 16, "sliding_window_pattern": 2},
    "minimax": {**_WIDE, **_EXPERTS, "layer_types": ["full_attention", "full_attention"]},
}  # fmt: skip
_BERT = {**_PLAIN, "max_position_embeddings": 130, "cls_token_id": 3, "sep_token_id": 4}
_RELATIVE = {**_BERT, "relative_attention": True, "pos_att_type": ["p2c", "c2p"], "position_buckets": 16}
ENCODERS: dict[str, dict[str, Any]] = {
    **{name: _BERT for name in (
        "bert", "camembert", "ernie", "modernbert", "mpnet", "nomic_bert", "roberta", "xlm-roberta", "xlm-roberta-xl",
    )},
    **{name: {**_BERT, "embedding_size": 32} for name in ("convbert", "electra", "roformer", "albert", "squeezebert")},
    "deberta": _RELATIVE, "deberta-v2": _RELATIVE, "eurobert": {**_BERT, "num_key_value_heads": 4},
    "distilbert": {"vocab_size": 400, "dim": 32, "hidden_dim": 64, "n_layers": 2, "n_heads": 4,
                   "max_position_embeddings": 130, "pad_token_id": 5},
}  # fmt: skip
_BART = {"vocab_size": 400, "d_model": 32, "encoder_layers": 2, "decoder_layers": 2, "encoder_attention_heads": 4,
         "decoder_attention_heads": 4, "encoder_ffn_dim": 64, "decoder_ffn_dim": 64, "max_position_embeddings": 128,
         "init_std": 0.2, "encoder_layerdrop": 0.0, "decoder_layerdrop": 0.0, **_ENDS, "decoder_start_token_id": 2,
         "forced_eos_token_id": None}  # fmt: skip
_T5 = {"vocab_size": 400, "d_model": 32, "d_kv": 8, "d_ff": 64, "num_layers": 2, "num_heads": 4, "pad_token_id": 5,
       "eos_token_id": 2, "decoder_start_token_id": 5}  # fmt: skip
PAIRED: dict[str, dict[str, Any]] = {
    **{name: _BART for name in ("bart", "blenderbot", "m2m_100", "mbart", "pegasus", "pegasus_x", "plbart")},
    **{name: _T5 for name in ("mt5", "t5", "umt5")},
    "marian": {**_BART, "decoder_vocab_size": 400}, "longt5": {**_T5, "encoder_attention_type": "local"},
    "led": {**_BART, "attention_window": 8, "max_encoder_position_embeddings": 128,
            "max_decoder_position_embeddings": 128},
    "nllb-moe": {**_BART, "num_experts": 4}, "switch_transformers": {**_T5, "num_experts": 4},
}  # fmt: skip
SEEING = {"llama4", "qwen3_5"}
"""Saved with all that they read, though their class for text alone is fitted"""


def tried(name: str, folder: Path) -> str:
    """What a fit of a tiny ``name`` ends with: its losses before and after, or the error."""
    import torch
    import transformers

    import foretune
    from foretune.errors import ForetuneError
    from tests import tiny

    torch.manual_seed(3)
    kind = "causal" if name in CAUSAL else "encoder" if name in ENCODERS else "seq2seq"
    auto = {"causal": transformers.AutoModelForCausalLM, "encoder": transformers.AutoModel,
            "seq2seq": transformers.AutoModelForSeq2SeqLM}[kind]  # fmt: skip
    rows = tiny.questions(40)
    if kind == "encoder":
        rows = [{"text": row["question"], "label": ["red", "blue"][i % 2]} for i, row in enumerate(rows)]
    try:
        config = transformers.AutoConfig.for_model(name, **{**CAUSAL, **ENCODERS, **PAIRED}[name])
        (transformers.AutoModelForImageTextToText if name in SEEING else auto).from_config(config).save_pretrained(
            folder
        )
    except (ValueError, TypeError, AttributeError, ZeroDivisionError, ImportError, RuntimeError) as error:
        return f"not made: {' '.join(str(error).split())[:120]}"
    tiny.tokenizer(chat=kind == "causal", encoder=kind == "encoder").save_pretrained(folder)
    os.environ["FORETUNE_STORE"] = str(folder / "store.sqlite")
    options = {"budget.trials": 1, "training.epochs": 1, "device": "cpu", "model.dtype": "float32",
               "evaluation.max_answer_tokens": 8, "data.context_tokens": 96}  # fmt: skip
    try:
        result = foretune.fit(
            tiny.write_rows(folder / "rows.jsonl", rows), model=str(folder), output=folder / "run", options=options
        )
    except ForetuneError as error:
        said = str(error).replace(f"{folder}/config.json: ", "").partition(" The worker's log")[0]
        return f"refused: {' '.join(said.split())}"
    compared = result.record.comparison
    before, after = (compared.system(role).metrics["loss"].value for role in ("base", "winner"))
    checked = "adapter verified" if result.record.exports[0].verified else "adapter not loaded again"
    return f"loss {before:.2f} → {after:.2f}, {checked}"


def written(found: dict[str, str]) -> None:
    """Put the lines into the documentation, those of other types kept."""
    text = DOCS.read_text(encoding="utf-8")
    before, rest = text.split(START)
    table, after = rest.split(END)
    lines = {line.split("`")[1]: line for line in table.splitlines() if line.startswith("| `")}
    for name, said in found.items():
        kind = "language model" if name in CAUSAL else "encoder" if name in ENCODERS else "encoder–decoder"
        lines[name] = f"| `{name}` | {kind} | {said} |"
    rows = "\n".join(lines[name] for name in sorted(lines))
    head = "| model_type | kind | a tiny one, fitted |\n|---|---|---|"
    DOCS.write_text(f"{before}{START}\n\n{head}\n{rows}\n\n{END}{after}", encoding="utf-8")


def main(arguments: list[str]) -> None:
    """Try the named types, or all."""
    warnings.filterwarnings("ignore")
    import foretune.fit.job
    from tests.inline import InlineExecutor

    foretune.fit.job.LocalExecutor = InlineExecutor  # type: ignore[misc, assignment]  # in this process: no start-up
    known = [*CAUSAL, *ENCODERS, *PAIRED]
    found = {}
    for name in [each for each in arguments if not each.startswith("-")] or known:
        with tempfile.TemporaryDirectory(prefix="foretune-") as folder:
            found[name] = tried(name, Path(folder))
        print(json.dumps({"model_type": name, "said": found[name]}, ensure_ascii=False), flush=True)
        if "--docs" in arguments:
            written(found)


if __name__ == "__main__":
    main(sys.argv[1:])
