"""The methods that peft has, one row each: how its configuration is made, its count and what it keeps.

A row is a `PeftRow`: the declaration, peft's configuration class, how our settings are called there, and settings that
are fixed. `foretune.methods.hf_peft` builds the configuration from it. Counts were derived from peft 0.21's layers and
are held to them by the contract. Learning-rate multipliers other than LoRA's are starting points after the papers'
own settings, rounded; the search tests them.

Not here: what peft puts before the rows (`prompts` has it, as tuners of ours), and what does not fit, with the reasons
in `REFUSED`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

from foretune.catalogue.methods.base import (
    Count,
    Declaration,
    Family,
    Target,
    Widths,
    alpha,
    dropout,
    per_linear,
    raised,
    rank,
    targets,
)
from foretune.catalogue.space import Choice, Number, Parameter, Space
from foretune.catalogue.traits import Merge, Traits

LORA_RATE, VECTOR_RATE, ROTATION_RATE, SPECTRAL_RATE = 10.0, 25.0, 5.0, 50.0
"""Multiples of full tuning's rate: low-rank; scales and biases (1e-3 to 5e-3 at small widths); rotations; coefficients
of fixed random or spectral bases."""
FROD_SHARE = 0.01
"""peft's share of the entries beside the diagonal that are free"""
ADAMSS_GROUPS = 2
"""Groups of a weight's rows, of rank 1 each"""


@dataclass(frozen=True)
class PeftRow:
    """A method of peft."""

    declaration: Declaration
    config: str
    """Name of peft's configuration class"""
    names: Mapping[str, str]
    """Our setting -> peft's"""
    fixed: Mapping[str, Any] = field(default_factory=dict)
    pattern: str = ""
    """peft's setting for a knob that differs by module; empty where there is none"""
    moves_base: bool = False
    """Whether attaching changes the base weights, which detaching then puts back"""
    within_width: bool = False
    """Whether the knob counts singular directions of a layer, of which there are no more than its smaller width"""


def _row(
    name: str,
    about: str,
    source: str,
    *,
    config: str,
    knob: Parameter | None,
    formula: str,
    count: Count | None,
    names: Mapping[str, str],
    rate: float = LORA_RATE,
    more: Sequence[Parameter] = (),
    fixed: Mapping[str, Any] | None = None,
    pattern: str = "",
    identity: bool = True,
    merge: Merge = "exact",
    moves_base: bool = False,
    within_width: bool = False,
    example: Mapping[str, Any] | None = None,
    family: Family = "delta",
    which_targets: bool = True,
    switches: bool = True,
    packable: bool = True,
    kinds: tuple[str, ...] = ("causal", "seq2seq", "encoder"),
    notes: tuple[str, ...] = (),
) -> PeftRow:
    parameters: tuple[Parameter, ...] = (*(() if knob is None else (knob,)), *more)
    if which_targets:
        parameters += (targets(name),)
    if pattern:
        parameters += (raised(name),)
    traits = Traits(
        identity_at_init=identity, merge=merge, disables_to_base=not moves_base, packable=packable,
        deterministic=True, servable=False,
    )  # fmt: skip
    menu: tuple[Parameter, ...] = ()
    if isinstance(knob, Number) and knob.name.endswith(".rank"):
        options = tuple(value for value in (4, 8, 16, 32, 64) if knob.low <= value <= knob.high)
        menu = (Choice(knob.name, options, 16 if 16 in options else options[0]),)
    declared = Declaration(
        name=name, about=about, space=Space(parameters), menu=Space(menu), traits=traits, rate_multiplier=rate,
        short_run_multiplier=1.5 if rate == LORA_RATE else 1.0, source=source,
        knob="" if knob is None else knob.name.rpartition(".")[2], formula=formula, count=count,
        evidence="released code", family=family, kinds=kinds, example=dict(example or {}), switches=switches,
        notes=notes,
    )  # fmt: skip
    return PeftRow(declared, config, dict(names), dict(fixed or {}), pattern, moves_base, within_width)


def _lora(name: str, about: str, source: str, extra: Mapping[str, Any], **changes: Any) -> PeftRow:
    """A variant of LoRA that is a setting of peft's `LoraConfig`."""
    settings: dict[str, Any] = {
        "config": "LoraConfig",
        "knob": rank(name),
        "formula": "r(i+o)",
        "count": per_linear(lambda i, o, r, own: r * (i + o)),
        "names": {"rank": "r", "alpha": "lora_alpha", "dropout": "lora_dropout"},
        "more": (alpha(name), dropout(name)),
        "fixed": extra,
        "pattern": "rank_pattern",
        "example": {"rank": 4, "alpha": 8, "raised": 3},
    }
    return _row(name, about, source, **{**settings, **changes})


def divisor(number: int, limit: int) -> int:
    """The largest divisor of ``number`` that is not above ``limit``."""
    return max(d for d in range(1, min(number, max(1, limit)) + 1) if number % d == 0)


def common_width(chosen: Sequence[Target], *, outputs: bool = False) -> int:
    """The greatest common divisor of the targets' inputs (and outputs)."""
    return math.gcd(*(t.inputs for t in chosen), *((t.outputs for t in chosen) if outputs else ()))


def _blocks(formula: Callable[[int, int, int], int], *, outputs: bool = False) -> Count:
    """A sum over targets of ``formula(inputs, outputs, block size)``, with one block size that divides every width."""

    def count(chosen: Sequence[Target], model: Widths, own: Mapping[str, Any]) -> int:
        size = divisor(common_width(chosen, outputs=outputs), int(own["block"]))
        return sum(formula(t.inputs, t.outputs, size) for t in chosen)

    return count


def _block(name: str, default: int, about: str = "Width of a block, where it divides the layers' widths.") -> Number:
    return Number(f"{name}.block", 2, 1024, default, log=True, whole=True, about=about)


def circulant_block(inputs: int, outputs: int, wanted: int) -> int:
    """C3A's block of a layer: the largest divisor of both widths up to ``wanted``."""
    return divisor(math.gcd(inputs, outputs), wanted)


@lru_cache(maxsize=256)
def _near_square(number: int) -> tuple[int, int]:
    """The two factors of ``number`` nearest to its root, the smaller first (LoKr's factorization)."""
    small = divisor(number, math.isqrt(number))
    return small, number // small


def _lokr(inputs: int, outputs: int, r: int, own: Mapping[str, Any]) -> int:
    (a, b), (c, d) = _near_square(outputs), _near_square(inputs)
    second = r * (b + d) if r < max(b, d) / 2 else b * d
    return a * c + second


def _glora(chosen: Sequence[Target], model: Widths, own: Mapping[str, Any]) -> int:
    r = int(own["rank"])
    return sum(2 * r * (t.inputs + t.outputs) + (r * (t.inputs + 1) + 2 if t.bias else 0) for t in chosen)


def _vblora(chosen: Sequence[Target], model: Widths, own: Mapping[str, Any]) -> int:
    length = divisor(common_width(chosen, outputs=True), int(own["vector_length"]))
    vectors, r = int(own["vectors"]), int(own["rank"])
    return vectors * length + sum(vectors * r * (t.inputs + t.outputs) // length for t in chosen)


def _frod(inputs: int) -> int:
    beside = inputs * inputs - inputs
    return inputs + min(beside, max(1, int(inputs * inputs * FROD_SHARE)))


def _attention_and_ffn(chosen: Sequence[Target], model: Widths, own: Mapping[str, Any]) -> int:
    keys = sum(t.outputs for t in chosen if t.role.endswith((".k", ".v")))
    return keys + sum(t.inputs for t in chosen if t.role == "mlp.down")


def _entries(inputs: int, outputs: int, parts: int, own: Mapping[str, Any]) -> int:
    return int(inputs * outputs * (1 - sparsity(parts)))


def sparsity(parts: int) -> float:
    """The sparsity that leaves ``parts`` in a million entries."""
    return 1 - parts / 1_000_000


_RI, _RO = (lambda i, o, r, own: r * i), (lambda i, o, r, own: r * o)
_RIO = per_linear(lambda i, o, r, own: r * (i + o))


def _spectral(**changes: Any) -> dict[str, Any]:
    """What methods with a number of coefficients for each layer share."""
    settings: dict[str, Any] = {
        "names": {"frequencies": "n_frequency"},
        "pattern": "n_frequency_pattern",
        "count": per_linear(lambda i, o, n, own: n, "frequencies"),
        "formula": "n",
        "rate": SPECTRAL_RATE,
        "example": {"frequencies": 20, "raised": 3},
    }
    return settings | changes


def _frequencies(name: str, default: int) -> Number:
    about = "Coefficients of each layer's update."
    return Number(f"{name}.frequencies", 1, 100_000, default, log=True, whole=True, about=about)


ROWS: tuple[PeftRow, ...] = (
    _lora("rslora", "LoRA scaled by α/√r, which keeps large ranks learning.", "Kalajdzievski 2023 (2312.03732)",
          {"use_rslora": True}),
    _lora("dora", "LoRA on the direction of each weight, with its length trained apart.",
          "Liu et al. 2024 (2402.09353)", {"use_dora": True}, formula="r(i+o) + o",
          count=per_linear(lambda i, o, r, own: r * (i + o) + o)),
    _lora("pissa", "LoRA that starts as the weight's largest singular part; the base keeps the rest.",
          "Meng et al. 2024 (2404.02948)", {"init_lora_weights": "pissa"}, moves_base=True, within_width=True,
          switches=False),
    _lora("olora", "LoRA that starts from the weight's QR factors.", "Büyükakyüz 2024 (2406.01775)",
          {"init_lora_weights": "olora"}, moves_base=True, within_width=True, switches=False),
    _lora("mica", "LoRA whose B is fixed to the weight's smallest left singular directions.",
          "peft 0.21, init_lora_weights='mica'", {"init_lora_weights": "mica"}, within_width=True, formula="r·i",
          count=per_linear(_RI)),
    _lora("kasa", "LoRA with singular values of its own, on a base freed of its smallest ones.",
          "Wang et al. 2024 (2412.06071)", {}, formula="r(i+o) + r",
          count=per_linear(lambda i, o, r, own: r * (i + o) + r), identity=False, moves_base=True, within_width=True,
          switches=False),
    _row("adalora", "LoRA as P Λ Q; with the regularizer rank-schedule, ranks move to the layers that need them.",
         "Zhang et al. 2023 (2303.10512)", config="AdaLoraConfig", knob=rank("adalora"), formula="r(i+o) + r",
         count=per_linear(lambda i, o, r, own: r * (i + o) + r), more=(alpha("adalora"), dropout("adalora")),
         names={"rank": "init_r", "alpha": "lora_alpha", "dropout": "lora_dropout"},
         fixed={"total_step": 10**9, "tinit": 10**8, "tfinal": 10**8, "target_r": 1}, example={"rank": 4},
         switches=False, notes=("ranks stay as they are without the regularizer rank-schedule",)),
    _row("gralora", "LoRA on a grid of blocks: more rank for the same parameters.", "Jung et al. 2025 (2505.20355)",
         config="GraloraConfig", knob=rank("gralora", 32, low=2, about="Rank; odd ones count one higher."),
         formula="r(i+o), r even", count=per_linear(lambda i, o, r, own: (r + r % 2) * (i + o)),
         names={"rank": "r", "alpha": "alpha", "dropout": "gralora_dropout"},
         more=(alpha("gralora", 64.0), dropout("gralora")), fixed={"gralora_k": 2}, example={"rank": 4}),
    _row("hira", "The weight multiplied entry by entry with a low-rank matrix.", "Huang et al. 2025 (ICLR, HiRA)",
         config="HiraConfig", knob=rank("hira", 32), formula="r(i+o)", count=_RIO,
         names={"rank": "r", "dropout": "hira_dropout"}, more=(dropout("hira"),), example={"rank": 4}),
    _row("shira", "Free entries of the weight, drawn at random, as many as LoRA would have.",
         "Bhardwaj et al. 2024 (2406.13175)", config="ShiraConfig", knob=rank("shira", 32), formula="r(i+o)",
         count=_RIO, names={"rank": "r"}, fixed={"random_seed": 0}, example={"rank": 4}),
    _row("delora", "LoRA with the size of its update bounded and trained apart.", "Bini et al. 2025 (2503.18225)",
         config="DeloraConfig", knob=rank("delora", 8), formula="r(i+o) + 1",
         count=per_linear(lambda i, o, r, own: r * (i + o) + 1), names={"rank": "r", "bound": "delora_lambda"},
         pattern="rank_pattern",
         more=(Number("delora.bound", 0.01, 1000, 15.0, log=True, about="Size λ of the update at the start."),),
         example={"rank": 4, "bound": 1.0, "raised": 3}),
    _row("deft", "A low-rank part of the weight is taken out and learnt anew.", "peft 0.21, DEFT",
         config="DeftConfig", knob=rank("deft", 8), formula="r(i+o)", count=_RIO,
         names={"rank": "r", "dropout": "deft_dropout"}, more=(dropout("deft"),), example={"rank": 4},
         within_width=True),
    _row("glora", "Low-rank scale, shift and prompt of a layer at once.", "Chavan et al. 2023 (2306.07967)",
         config="GloraConfig", knob=rank("glora", 8), formula="2r(i+o), and r(i+1) + 2 where there is a bias",
         count=_glora, names={"rank": "r"}, example={"rank": 4}),
    _row("loha", "A product, entry by entry, of two low-rank matrices.", "Hyeon-Woo et al. 2021 (2108.06098)",
         config="LoHaConfig", knob=rank("loha", 8), formula="2r(i+o)",
         count=per_linear(lambda i, o, r, own: 2 * r * (i + o)), names={"rank": "r", "alpha": "alpha"},
         more=(alpha("loha", 16.0),), pattern="rank_pattern", example={"rank": 4, "raised": 3}),
    _row("lokr", "A Kronecker product of a small matrix and a low-rank one.", "Edalati et al. 2022 (2212.10650)",
         config="LoKrConfig", knob=rank("lokr", 8), formula="ac + r(b+d), o = ab, i = cd", count=per_linear(_lokr),
         names={"rank": "r", "alpha": "alpha"}, more=(alpha("lokr", 16.0),), pattern="rank_pattern",
         example={"rank": 2, "raised": 3}),
    _row("hra", "A chain of reflections turns each layer's input.", "Yuan et al. 2024 (2405.17484)",
         config="HRAConfig", knob=rank("hra", 8, low=2, about="Reflections; odd ones count one higher."),
         formula="r·i, r even", count=per_linear(lambda i, o, r, own: (r + r % 2) * i), names={"rank": "r"},
         rate=ROTATION_RATE, example={"rank": 4}),
    _row("oft", "Blocks of each layer's input are rotated.", "Qiu et al. 2023 (2306.07280)", config="OFTConfig",
         knob=_block("oft", 32), formula="(i/b)·b(b−1)/2", count=_blocks(lambda i, o, b: i * (b - 1) // 2),
         names={"block": "oft_block_size"}, rate=ROTATION_RATE, example={"block": 4}),
    _row("boft", "Blocks of each layer's input are rotated, with a scale for each output.",
         "Liu et al. 2023 (2311.06243)", config="BOFTConfig", knob=_block("boft", 8), formula="(i/b)b² + o",
         count=_blocks(lambda i, o, b: i * b + o), names={"block": "boft_block_size"}, rate=ROTATION_RATE,
         example={"block": 4}),
    _row("psoft", "A rotation inside the weight's largest singular directions.", "peft 0.21, PSOFT (ICLR 2026)",
         config="PsoftConfig", knob=rank("psoft", 32, low=2), formula="r(r−1)/2 + 2r",
         count=per_linear(lambda i, o, r, own: r * (r - 1) // 2 + 2 * r), names={"rank": "r"}, rate=ROTATION_RATE,
         example={"rank": 4}, within_width=True),
    _row("miss", "One block of rows is added to every block of a weight's columns.", "Kang & Yin 2024 (2409.15371)",
         config="MissConfig", knob=rank("miss", 64), formula="r·o", count=per_linear(_RO),
         names={"rank": "r", "dropout": "miss_dropout"}, more=(dropout("miss"),), example={"rank": 4}),
    _row("peanut", "A small network on the weight itself gives the update.", "Zhong et al. 2024 (2410.01870)",
         config="PeanutConfig", knob=rank("peanut", 16), formula="2r·o",
         count=per_linear(lambda i, o, r, own: 2 * r * o), names={"rank": "r"}, example={"rank": 4}),
    _row("osf", "The weight's small singular directions are trained, the large ones kept.",
         "Nayak et al. 2025 (2504.07097)", config="OSFConfig",
         knob=Number("osf.kept", 1, 65_536, 128, log=True, whole=True, about="Singular directions that stay frozen."),
         formula="(min(i,o)−k)(i+o+1)",
         count=per_linear(lambda i, o, k, own: max(0, min(i, o) - k) * (i + o + 1), "kept"),
         names={"kept": "effective_rank"}, rate=1.0, example={"kept": 8}, switches=False),
    _row("adamss", "Small updates of groups of a weight's rows in its singular directions.", "peft 0.21, AdaMSS",
         config="AdamssConfig", knob=rank("adamss", 100), formula="2r + o",
         count=per_linear(lambda i, o, r, own: ADAMSS_GROUPS * r + o), names={"rank": "r"},
         fixed={"num_subspaces": ADAMSS_GROUPS, "subspace_rank": 1}, example={"rank": 8}, switches=False,
         within_width=True),
    _row("randlora", "A full-rank sum of scaled random low-rank matrices; a smaller rank trains more.",
         "Albert et al. 2025 (2502.00987)", config="RandLoraConfig", knob=rank("randlora", 32),
         formula="r·n + n·min(i,o), n = ⌈min(i,o)/r⌉",
         count=per_linear(lambda i, o, r, own: -(-min(i, o) // r) * (r + min(i, o))),
         names={"rank": "r", "alpha": "randlora_alpha"},
         more=(alpha("randlora", 640.0, about="The update is scaled by alpha / rank."),),
         fixed={"projection_prng_key": 0}, example={"rank": 4, "alpha": 8.0}, switches=False),
    _row("vera", "LoRA of frozen random matrices; two scale vectors are trained.", "Kopiczko et al. 2023 (2310.11454)",
         config="VeraConfig", knob=rank("vera", 256, high=16_384), formula="r + o",
         count=per_linear(lambda i, o, r, own: r + o), names={"rank": "r", "dropout": "vera_dropout"},
         more=(dropout("vera"),), rate=VECTOR_RATE, example={"rank": 4}, switches=False),
    _row("pvera", "VeRA with a distribution over its first vector.", "2512.07703", config="PveraConfig",
         knob=rank("pvera", 256, high=16_384), formula="2r + o",
         count=per_linear(lambda i, o, r, own: 2 * r + o), names={"rank": "r"}, rate=VECTOR_RATE,
         example={"rank": 4}, switches=False),
    _row("fourierft", "A few coefficients of the update's Fourier transform.", "Gao et al. 2024 (2405.03003)",
         config="FourierFTConfig", knob=_frequencies("fourierft", 1000), identity=False,
         **_spectral(more=(Number("fourierft.scaling", 0.01, 10_000, 150.0, log=True, about="Scale of the update."),),
                     names={"frequencies": "n_frequency", "scaling": "scaling"},
                     example={"frequencies": 20, "scaling": 10.0, "raised": 3})),
    _row("waveft", "A few coefficients of the update's wavelet transform.", "2505.12532", config="WaveFTConfig",
         knob=_frequencies("waveft", 2592), **_spectral()),
    _row("c3a", "A block-circulant update.", "Chen et al. 2024 (2407.19342)", config="C3AConfig",
         knob=Number("c3a.block", 1, 1024, 128, log=True, whole=True, about="Largest block; larger trains less."),
         formula="i·o/b", count=per_linear(lambda i, o, b, own: i * o // circulant_block(i, o, b), "block"),
         names={"block": "block_size"}, identity=False, rate=SPECTRAL_RATE, example={"block": 8}),
    _row("vblora", "Low-rank factors put together from a bank of shared vectors.", "Li et al. 2024 (2405.15179)",
         config="VBLoRAConfig", knob=rank("vblora", 4, high=64), formula="h·r(i+o)/b + h·b",
         count=_vblora, names={"rank": "r", "vectors": "num_vectors", "vector_length": "vector_length"},
         more=(Number("vblora.vectors", 2, 4096, 64, log=True, whole=True, about="Vectors h in the bank."),
               Number("vblora.vector_length", 2, 1024, 64, log=True, whole=True, about="Their length b.")),
         identity=False, example={"rank": 4, "vectors": 16, "vector_length": 8}, switches=False),
    _row("unilora", "All low-rank factors from one short vector, by a fixed random projection.", "2506.00799",
         config="UniLoraConfig", knob=Number("unilora.length", 1, 10_000_000, 256, log=True, whole=True,
                                             about="Length of the vector."), formula="n",
         count=lambda chosen, model, own: int(own["length"]), names={"length": "theta_d_length", "rank": "r"},
         more=(rank("unilora", 4),), identity=False, rate=SPECTRAL_RATE, example={"length": 32, "rank": 4},
         switches=False),
    _row("tinylora", "A handful of coefficients for each layer's singular directions.", "2602.04118",
         config="TinyLoraConfig", knob=Number("tinylora.coefficients", 1, 65_536, 64, log=True, whole=True,
                                              about="Coefficients of a layer."), formula="u",
         count=per_linear(lambda i, o, u, own: u, "coefficients"), names={"coefficients": "u"}, rate=SPECTRAL_RATE,
         example={"coefficients": 8}, switches=False),
    _row("road", "Pairs of outputs are rotated and scaled.", "Liao & Monz 2024 (2409.00119)", config="RoadConfig",
         knob=None, formula="o, 2o or 4o by variant",
         count=lambda chosen, model, own: int(str(own["variant"]).rpartition("_")[2]) * sum(t.outputs for t in chosen),
         names={"variant": "variant"},
         more=(Choice("road.variant", ("road_1", "road_2", "road_4"), "road_1", about="Parameters an output pair."),),
         rate=VECTOR_RATE),
    _row("supertuning", "The weight's largest entries are trained.", "2607.09287", config="SupertuningConfig",
         knob=Number("supertuning.parts", 1, 1_000_000, 10_000, log=True, whole=True,
                     about="Trained entries in a million."), formula="⌊parts·10⁻⁶·i·o⌋",
         count=per_linear(_entries, "parts"), names={"parts": "sparsity"}, rate=5.0, example={"parts": 100_000}),
    _row("frod", "A rotation with a sparse part between shared factors.", "peft 0.21, FRoD", config="FrodConfig",
         knob=None, formula="i + 0.01·i²", names={}, fixed={"progressbar": False, "sparse_rate": FROD_SHARE},
         count=lambda chosen, model, own: sum(_frod(t.inputs) for t in chosen), example={},
         switches=False, identity=False, merge="no", notes=("its factorisation loses more than rounding when merged",)),
    _row("beft", "A bias of its own for each chosen layer.", "2509.15974", config="BeftConfig", knob=None, formula="o",
         count=lambda chosen, model, own: sum(t.outputs for t in chosen), names={}, rate=VECTOR_RATE, merge="no"),
    _row("ia3", "Keys, values and the feed-forward's inner activations are rescaled.", "Liu et al. 2022 (2205.05638)",
         config="IA3Config", knob=None, formula="d_k + d_v + f a layer", count=_attention_and_ffn, names={},
         rate=VECTOR_RATE, which_targets=False, family="edit"),
    _row("trainable_tokens", "The embeddings of some tokens are trained.", "peft 0.21, trainable tokens",
         config="TrainableTokensConfig", knob=Number("trainable_tokens.last", 1, 100_000, 16, log=True, whole=True,
                                                     about="The last so many tokens of the vocabulary."),
         formula="n·d", names={"last": "token_indices"}, kinds=("causal", "encoder"),
         count=lambda chosen, model, own: int(own["last"]) * model.width,
         rate=SPECTRAL_RATE, which_targets=False, family="embedding", example={"last": 30}, switches=False,
         notes=("for tokens that a vocabulary was extended by, which stand at its end",)),
)  # fmt: skip

REFUSED: Mapping[str, str] = {
    "xlora": "it mixes adapters that are trained already; `foretune adapters combine` puts stored ones together",
    "poly": "peft wants a task with every call, also where rows have none; mtllora shares factors between tasks",
    "lily": "its router averages over all tokens of a call: a row's answer depends on the rows beside it, and a "
    "token's on those that follow",
    "shadow": "its second model keeps keys beside the base's cache, which get lost where the model is called step by "
    "step: answers written token by token are not those of whole rows",
}
"""Methods of peft that are not reached, with the reason"""

PEFT: dict[str, PeftRow] = {row.declaration.name: row for row in ROWS}
