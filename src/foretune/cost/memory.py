"""Peak memory of a worker: the larger of training and answering.

Training holds the weights, what is trained, what is kept for the backward pass, and the head's chunk. The bytes kept
per token and layer are counted tensor by tensor from the modelling code of transformers 5 (norms keep a float32 copy
of their input, attention its projections, the gated layer four activations, every adapter its input and its rank-r
result; packed attention also its documents cut apart, keys and values repeated for every head). A test compares them
with what autograd really saves. With gradient checkpointing a layer keeps its input only, and one layer at a time is
whole. A micro-batch holds at most an update, whose shared head counts once.

Loading maps the stored file beside the weights that are made from it. Those pages are not counted: the system takes
them back when memory is short.

On a processor the C library's heap does not give back what was freed between tensors that live on, and the kernels
keep compiled code: `_HEAP_ACTIVATIONS`, `_HEAP_LOGITS` and `_KERNELS_BYTES` are fitted to
SmolLM2-135M in bfloat16 with LoRA r=16 and r=64 at 255, 512 and 920 tokens (peaks of 1,412, 1,772 and 2,667 MiB).
Out of that sample (full tuning 3,550; checkpointing at 1,024 tokens 1,479; 256 tokens 1,583; float32 2,594; MiniLM with
LoRA 764, in full 1,146) it is within 7 %.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from foretune.catalogue.priors import DEFAULT_LORA
from foretune.cost.interval import Interval
from foretune.cost.operations import RowTokens, packs, shares_head
from foretune.cost.shapes import CROSS, ModelShapes, Stack

FLOAT32_BYTES = 4
_WIDTH_BYTES = {"float32": 4, "bfloat16": 2}
_FOUR_BIT_BYTES = 0.5 + 1 / 16  # a nibble for each weight and a float32 scale for each block of 64
_MOMENTS_BYTES = 8  # two float32 moments of Adam
_MASTER_BYTES = 4
_STATISTICS_BYTES = 4  # float32 numbers that a norm or an attention head keeps for each token
_ATTENTION_DROPOUT_BYTES = 14  # probabilities, noise and their product, for each head and key
_COMPOSED_ACTIVATIONS = {"gelu_new": 3}  # written in tensor operations: so many more copies of the layer's width
_LOGIT_BYTES = 14  # bf16 logits, float32 logits, their log-softmax and its gradient
_WORKSPACE_COPIES = 4  # gradients of activations alive at once in the widest layer
FRAMEWORK_BYTES = {"cpu": 520 * 2**20, "cuda": 560 * 2**20}  # measured: torch, transformers, peft; a CUDA context
_SPREAD = 0.15  # relative half-width before anything was measured
_OUTPUTS_KEPT_ANYWAY = ("value", "gate", "up", "gate_up")  # by what comes behind them: attention, activation, product
_EDIT_NUMBERS = 3  # of a token in a layer: cosine, length, slope of the gate; its branches have rank numbers more
_HEAP_ACTIVATIONS, _HEAP_LOGITS = 0.45, 0.5
_KERNELS_BYTES = 100 * 2**20
_ANSWERED_TOGETHER, _CACHE_POSITIONS, _CACHE_BYTES = 128, 16_384, 2**30  # of one batch in `evaluation.generation`
_CUDA_SLACK = 0.06  # the caching allocator's rounding and fragmentation


@dataclass(frozen=True)
class Layout:
    """How a step is laid out in memory."""

    micro_batch_tokens: int = 512
    head_chunk: int = 256
    """Target positions whose logits exist at once"""
    gradient_checkpointing: bool = False
    dtype: str = "bfloat16"
    quantize: str = "none"
    device: str = "cpu"
    adapter_rank: int = 16
    adapter_dropout: bool = False
    keeps_outputs: bool = False
    """Whether the adapter needs the outputs of its layers again (LoRATRF's edit)"""
    extra_outputs: float = 0.0
    """What the method keeps of each token beside LoRA, in outputs of the linear layers (`methods.kept`)"""
    weight_copies: float = 0.0
    """What it keeps whatever the tokens, in copies of the weights of the linear layers"""
    prefix_states_bytes: float = 0.0
    """Hidden states below the lowest adapted layer that are kept from pass to pass"""
    longest_row: int = 512
    row: RowTokens | None = None
    """The mean row, where it is known; it bounds what a micro-batch holds"""
    rows_per_update: int = 16
    answer_tokens: int = 0
    """Longest generated answer; 0 where none is"""

    @property
    def of_default_lora(self) -> Layout:
        """The same for the default LoRA in the place of the method."""
        rank, dropout = int(DEFAULT_LORA["lora.rank"]), float(DEFAULT_LORA["lora.dropout"]) > 0
        return replace(
            self, adapter_rank=rank, adapter_dropout=dropout, keeps_outputs=False, extra_outputs=0.0, weight_copies=0.0
        )

    @property
    def tokens(self) -> float:
        """Tokens of the largest micro-batch as it is computed: an update, where that is less than the limit."""
        limit = float(max(self.micro_batch_tokens, self.longest_row))
        if self.row is None:
            return limit
        return max(self.longest_row, min(limit, self.row.head + self.rows_per_update * self.row.own))

    @property
    def several_micro_batches(self) -> bool:
        """Whether an update may take more than one micro-batch."""
        return self.row is None or self.row.head + self.rows_per_update * self.row.own > self.tokens

    @property
    def documents(self) -> float:
        """Rows in the largest micro-batch."""
        if self.row is None:
            return 1.0
        return max(1.0, (self.tokens - self.row.head) / max(1.0, self.row.own))

    @property
    def targets(self) -> float:
        """Positions whose logits exist at once."""
        return float(self.head_chunk) if self.row is None else min(self.head_chunk, self.documents * self.row.answer)

    @property
    def width_bytes(self) -> int:
        """Bytes of one activation."""
        return _WIDTH_BYTES[self.dtype]


@dataclass(frozen=True)
class Peak:
    """The parts of the peak, in bytes."""

    weights: float
    trained: float
    activations: float
    logits: float
    framework: float
    slack: float = field(default=0.0)
    cache: float = field(default=0.0)
    """Keys and values of the answers written at once"""
    prefix: float = field(default=0.0)
    """Kept hidden states of a frozen prefix"""

    @property
    def total(self) -> float:
        """The worst moment: training or answering."""
        training = self.trained + self.activations + self.logits + self.slack
        return self.framework + self.weights + self.prefix + max(training, self.trained + self.cache)

    @property
    def interval(self) -> Interval:
        """The peak with what is not known before a probe; weights are exact, the rest is not."""
        unknown = _SPREAD * (self.total - self.weights) + _SPREAD / 3 * self.weights
        return Interval(self.total - unknown, self.total, self.total + unknown)


def weight_bytes(shapes: ModelShapes, layout: Layout) -> float:
    """Bytes of the loaded base; 4-bit covers the matrices of the layers, embeddings and head stay as they are."""
    if layout.quantize != "4bit":
        return shapes.parameters * layout.width_bytes
    packed = sum(linear.weights for linear in shapes.linears)
    return packed * _FOUR_BIT_BYTES + (shapes.parameters - packed) * layout.width_bytes


def trained_bytes(trainable: int, layout: Layout) -> float:
    """Bytes that training adds: the adapter (or a copy of the base, which full tuning puts back afterwards), moments,
    gradients, and float32 masters where the compute type is narrower.

    Gradients in that type move to the masters after each micro-batch; both exist at once from the second one on.
    """
    width = layout.width_bytes
    each = width + _MOMENTS_BYTES + FLOAT32_BYTES
    if width < FLOAT32_BYTES:
        each += _MASTER_BYTES + (width if layout.several_micro_batches else 0)
    return trainable * each


def layer_bytes_per_token(shapes: ModelShapes, layout: Layout, *, full: bool, stack: Stack) -> float:
    """Bytes a mean layer of ``stack`` keeps for each of its tokens, without checkpointing."""
    width, layers = layout.width_bytes, _layers(shapes, stack)
    linears = [(linear, linear.count / layers) for linear in shapes.linears if linear.stack == stack]
    if not linears:
        return 0.0
    kept = _norm_bytes(shapes, width, full=full, stack=stack)
    crosses = any(linear.role.startswith(CROSS) for linear, _ in linears)
    kept += _attention_bytes(shapes, layout, linears_cross=crosses)
    kept += _feed_forward_bytes(shapes, width)
    attentions = 1 + crosses
    several = sum(share for _, share in linears)
    if not full:
        outputs = sum(linear.outputs * share for linear, share in linears)
        kept += width * (layout.adapter_rank * several + layout.extra_outputs * outputs)
    if not full and layout.keeps_outputs:
        kept += width * sum(x.outputs * share for x, share in linears if x.role not in _OUTPUTS_KEPT_ANYWAY)
        kept += several * (width * layout.adapter_rank + _EDIT_NUMBERS * FLOAT32_BYTES)
    if not full and layout.adapter_dropout:
        # each adapter keeps its own dropped input and the noise; the shared inputs are then not kept
        inputs = sum(linear.inputs * share for linear, share in linears)
        kept += 2 * width * inputs - width * ((1 + attentions) * shapes.width + shapes.ffn_width)
    if shapes.dropout:
        kept += width * shapes.width * (1 + attentions)
    return kept


def _layers(shapes: ModelShapes, stack: Stack) -> int:
    """Layers of a stack; an encoder alone is counted as ``layers``."""
    return shapes.encoder_layers if stack == "encoder" and shapes.kind == "seq2seq" else shapes.layers


def _norm_bytes(shapes: ModelShapes, width: int, *, full: bool, stack: Stack) -> float:
    total = 0.0
    for norm in shapes.norms:
        if norm.stack != stack or not norm.in_layers:
            continue
        heads = {"q_norm": shapes.heads, "k_norm": shapes.kv_heads}.get(norm.role, 1)
        size = norm.width * (heads if norm.width == shapes.head_dim else 1)
        if norm.bias:  # a layer norm keeps its input, mean and deviation
            kept = width * size + 2 * _STATISTICS_BYTES
        else:  # an RMS norm is written in tensor operations: the float32 input; the scaled one only if trained
            kept = FLOAT32_BYTES * size + _STATISTICS_BYTES * heads
            if full:
                kept += (FLOAT32_BYTES if shapes.architecture.startswith("gemma") else width) * size
        total += kept * norm.layers / _layers(shapes, stack)
    return total


def _attention_bytes(shapes: ModelShapes, layout: Layout, *, linears_cross: bool) -> float:
    """The layer's input, queries, keys, values and result; twice with cross-attention."""
    width, inner, kv = layout.width_bytes, shapes.heads * shapes.head_dim, shapes.kv_heads * shapes.head_dim
    once = width * (shapes.width + 2 * inner + 2 * kv) + _STATISTICS_BYTES * shapes.heads
    if shapes.attention_dropout:
        once += _ATTENTION_DROPOUT_BYTES * shapes.heads * min(layout.longest_row, layout.micro_batch_tokens)
    return once * (2 if linears_cross else 1)


def _feed_forward_bytes(shapes: ModelShapes, width: int) -> float:
    """The input, then: gate, activated gate, up and their product; or up and its activation."""
    gated = any(linear.role in ("gate", "gate_up") for linear in shapes.linears)
    copies = (4 if gated else 2) + _COMPOSED_ACTIVATIONS.get(shapes.activation, 0)
    return width * (shapes.width + copies * shapes.ffn_width)


def packed_bytes(shapes: ModelShapes, layout: Layout) -> float:
    """Bytes that packed attention keeps in one layer: queries and results, keys and values of each document."""
    if layout.row is None or not packs(shapes):
        return 0.0
    inner = layout.width_bytes * shapes.heads * shapes.head_dim
    own = layout.row.own if shares_head(shapes, noisy=False) else layout.row.total
    return 2 * inner * layout.documents * (own + layout.row.total)


def activation_bytes(shapes: ModelShapes, layout: Layout, *, full: bool) -> float:
    """Bytes kept for the backward pass of one micro-batch, plus the working space of the widest layer."""
    width, tokens, packed = layout.width_bytes, layout.tokens, packed_bytes(shapes, layout)
    stacks: tuple[tuple[Stack, int], ...] = (("encoder", shapes.encoder_layers), ("decoder", shapes.layers))
    if shapes.kind == "encoder":
        stacks = (("encoder", shapes.layers),)
    per_layer = {stack: layer_bytes_per_token(shapes, layout, full=full, stack=stack) for stack, _ in stacks}
    outside = (width + FLOAT32_BYTES) * shapes.width * 2  # embedding, final norm, hidden states at the targets
    workspace = _WORKSPACE_COPIES * width * max(shapes.ffn_width, shapes.width)
    copies = 0.0 if full else width * layout.weight_copies * sum(linear.weights for linear in shapes.linears)
    if layout.gradient_checkpointing:
        kept = sum(width * shapes.width * layers for _, layers in stacks) + max(per_layer.values())
        copies /= shapes.total_layers
    else:
        kept = sum(per_layer[stack] * layers for stack, layers in stacks)
        packed *= shapes.layers
    return tokens * (kept + outside + workspace) + packed + copies


def cache_bytes(shapes: ModelShapes, layout: Layout) -> float:
    """Keys and values of one batch of answers, and its logits."""
    if not layout.answer_tokens or shapes.kind == "encoder":
        return 0.0
    each = 2 * layout.width_bytes * shapes.kv_heads * shapes.head_dim * shapes.layers
    positions = (layout.row.total if layout.row else layout.longest_row) + layout.answer_tokens
    together = min(_ANSWERED_TOGETHER * positions, _CACHE_POSITIONS, _CACHE_BYTES / each)
    rows = max(1.0, together / positions)
    return rows * (positions * each + _LOGIT_BYTES * shapes.vocabulary)


def peak(shapes: ModelShapes, layout: Layout, *, trainable: int, full: bool) -> Peak:
    """The peak of a worker that trains ``trainable`` parameters."""
    logits = 0.0 if shapes.kind == "encoder" else _LOGIT_BYTES * layout.targets * shapes.vocabulary
    parts = Peak(
        weights=weight_bytes(shapes, layout),
        trained=trained_bytes(trainable, layout),
        activations=activation_bytes(shapes, layout, full=full),
        logits=logits,
        framework=FRAMEWORK_BYTES[layout.device],
        cache=cache_bytes(shapes, layout),
        prefix=layout.prefix_states_bytes,
    )
    if layout.device == "cuda":
        return replace(parts, slack=_CUDA_SLACK * (parts.total - parts.framework))
    heap = _HEAP_ACTIVATIONS * parts.activations + _HEAP_LOGITS * parts.logits
    return replace(parts, slack=heap + _KERNELS_BYTES)
